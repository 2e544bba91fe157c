"""DP-SGD inside a client: private steps whose accounting comes from the same object that takes them.

Two kinds of draws. :class:`RecordSteps`, here, draws records: for the unit ``example``, or for people with at most
``group`` records each, whose loss is then accounted as that of a group. :class:`~cloister.privacy.subjects.UnitSteps`
draws people, and is what people should be protected by.

Sources: Abadi et al., CCS 2016, arXiv 1607.00133, algorithm 1; for groups Ganesh, arXiv 2407.07737.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from cloister.errors import PlanError
from cloister.privacy.clipping import sensitivity
from cloister.privacy.coupling import coupled, misattributed, single_gradients
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.noise import NoiseSource
from cloister.privacy.per_record import Loss, Method, learning, unit_gradients
from cloister.privacy.sampling import UnitSampler
from cloister.privacy.steps import Fetch, Indices, NoisyMean, clipped_sum, step

_MISATTRIBUTED = (
    "private steps: method {method} does not get the gradients of single records right on this model (a weight that is "
    "used twice, or a batch that is not the first dimension); use method loop"
)


@dataclass(frozen=True, kw_only=True)
class PrivateData:
    """A client's records. ``owners``: the unit of each record; ``fetch``: returns records by index."""

    owners: Sequence[str]
    fetch: Fetch

    def units(self) -> list[Indices]:
        """Return the records of each unit, in order of first appearance."""
        found = dict[str, list[int]]()
        for index, owner in enumerate(self.owners):
            found.setdefault(owner, []).append(index)
        return [np.array(records, dtype=np.int64) for records in found.values()]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done: ``steps`` private steps, to be accounted as ``events``. Neither depends on the data."""

    steps: int
    events: tuple[Event, ...]


@dataclass(frozen=True, kw_only=True)
class PrivateSteps(ABC):
    """Private steps of one client in one round, and how they are accounted.

    ``sampler``: draws what a step uses. ``steps``: how many are taken. ``bounds``: L2 bound by name prefix, ``{"": C}``
    for one bound. ``noise_multiplier``: standard deviation of the noise, divided by what one drawn unit changes under
    ``relation``. ``denominator``: the public number that a noisy sum is divided by, such as rate times a public number
    of units. ``method``: how gradients are computed; ``physical``: most records at a time.

    Guarantee: ``steps`` uses of the Gaussian mechanism on what ``sampler`` draws, as :attr:`events` says, for a loss of
    single records (which :meth:`run` tries out) and against whoever sees every model on the way.
    Raises :class:`PlanError` for numbers that are not positive.
    """

    sampler: UnitSampler
    steps: int
    bounds: Mapping[str, float]
    noise_multiplier: float
    denominator: float
    unit: Unit
    relation: Relation = Relation.ADD_REMOVE
    method: Method = Method.HOOKS
    physical: int = 64
    _mean: NoisyMean = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse numbers that make no step, or none that protects."""
        for name in ("steps", "physical"):
            if getattr(self, name) < 1:
                raise PlanError(f"private steps: expected {name} of at least 1, found {getattr(self, name)}")
        mean = NoisyMean(
            noise_multiplier=self.noise_multiplier,
            sensitivity=sensitivity(self.bounds),
            denominator=self.denominator,
            relation=self.relation,
        )
        object.__setattr__(self, "_mean", mean)

    @property
    def events(self) -> tuple[Event, ...]:
        """How these steps are accounted."""
        return (
            Event(
                kind=EventKind.GAUSSIAN,
                noise_multiplier=self.noise_multiplier,
                unit=self.unit,
                relation=self.relation,
                group=self._group,
                **self.sampler.event_values(self.steps),
            ),
        )

    def run(
        self,
        module: nn.Module,
        loss: Loss,
        data: PrivateData,
        optimizer: torch.optim.Optimizer,
        source: NoiseSource,
        learned: Collection[str] | None = None,
    ) -> Outcome:
        """Train ``module`` for ``steps`` steps and return what was done.

        ``loss`` maps module and records to one loss per record. ``learned``: names of the parameters that learn; all
        others are frozen, those that stay at the client too. ``optimizer`` has all parameters that learn. ``source``:
        forked for this client and round; the same source repeats the same steps on the same data.
        Raises :class:`PlanError`, before any step, for a model or loss that mixes records, whose gradients ``method``
        does not get right, or for data outside the plan's bounds.
        """
        population = self._population(data)
        with learning(module, learned):
            few = data.fetch(np.arange(3, dtype=np.int64) % len(data.owners)) if len(data.owners) else None
            if few is not None and (reasons := coupled(module, loss, few)):
                raise PlanError(f"private steps: expected a loss of single records, found that {'; '.join(reasons)}")
            single = None if few is None or self.method is Method.LOOP else single_gradients(module, loss, few)
            with unit_gradients(self.method, module, loss, self.bounds) as gradients:
                _check_optimizer(optimizer, gradients.parameters, gradients.names)
                if few is not None and single is not None and misattributed(gradients, few, single):
                    raise PlanError(_MISATTRIBUTED.format(method=self.method))
                for number in range(self.steps):
                    drawn = self._draw(population, source, number)
                    total = clipped_sum(gradients, data.fetch, drawn, physical=self.physical, share=self._share)
                    noisy = self._mean.of(total, source.fork("noise", number))
                    step(optimizer, gradients.parameters, noisy)
        return Outcome(steps=self.steps, events=self.events)

    def _draw(self, population: Sequence[Indices], source: NoiseSource, number: int) -> list[Indices]:
        return [population[unit] for unit in self.sampler.draw(source, number, len(population))]

    @property
    @abstractmethod
    def _group(self) -> int:
        """The most of the population that belongs to one unit."""

    @property
    @abstractmethod
    def _share(self) -> float:
        """What a record's gradient counts in that of its unit."""

    @abstractmethod
    def _population(self, data: PrivateData) -> list[Indices]:
        """Return what the sampler draws from: for each, the indices of its records."""


@dataclass(frozen=True, kw_only=True)
class RecordSteps(PrivateSteps):
    """Steps that draw and clip single records: example-level DP-SGD.

    ``group``: the most records of one unit among all records, 1 for the unit ``example``. Whoever has more must be
    bounded beforehand, see :func:`cloister.privacy.contributions.bounded`.

    Guarantee: as the base says, for one record; for a unit of up to ``group`` records what that costs as a group.
    """

    group: int = 1

    def __post_init__(self) -> None:
        """Refuse groups that are none."""
        super().__post_init__()
        if self.group < 1 or (self.unit is Unit.EXAMPLE and self.group != 1):
            raise PlanError(
                f"private steps: expected a group of 1 for the unit example and of at least 1 otherwise, found "
                f"{self.group} for {self.unit}; set plan.records"
            )

    @property
    def _group(self) -> int:
        return self.group

    @property
    def _share(self) -> float:
        return 1.0

    def _population(self, data: PrivateData) -> list[Indices]:
        if self.unit is not Unit.EXAMPLE and (largest := max(Counter(data.owners).values(), default=0)) > self.group:
            raise PlanError(
                f"private steps: expected at most {self.group} records of one {self.unit}, found {largest}; keep those "
                "that cloister.privacy.contributions.bounded returns"
            )
        return [np.array([index], dtype=np.int64) for index in range(len(data.owners))]


def _check_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], names: Sequence[str]
) -> None:
    """Refuse an optimiser that would leave out parameters; what it has beside them gets no gradient."""
    held = {id(values) for group in optimizer.param_groups for values in group["params"]}
    if missing := [name for name, values in zip(names, parameters, strict=True) if id(values) not in held]:
        raise PlanError(
            f"private steps: expected the optimiser to hold all that learns, found it without {missing[:5]}"
        )
