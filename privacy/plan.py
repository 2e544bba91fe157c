"""The privacy plan of an experiment: the one place where noise, clip, sampler and weights are tied together.

Server and client build the same frozen :class:`Plan` from the same values and compare its :attr:`~Plan.digest`. What
is clipped, what is noised and what is accounted for all follow from it (:mod:`cloister.privacy.stages`,
:mod:`cloister.privacy.accounting`), so they cannot disagree.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from cloister.errors import PlanError
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.facts import Facts, Refusal
from cloister.privacy.settings import (
    Budget,
    Centres,
    Clip,
    ClipKind,
    Matrix,
    Mechanism,
    Sampled,
    Secure,
    Table,
    Trust,
    Weighting,
)
from cloister.privacy.stages import Stage, client_stages, server_stages


class Plan(Table):
    """Who is protected, by what noise, under which assumptions. The keys of an experiment's ``[plan]``.

    ``unit``, ``relation``: what two neighbouring data sets differ in. ``mechanism``, ``trust``: what is noised and by
    whom. ``sampler``, ``rate``: how the units of a step (dp-sgd) or the clients of a round (otherwise) are drawn, each
    with probability ``rate`` where that is Poisson; else ``sample_size`` of ``population``.
    ``population``: clients in the federation, where clients are drawn. ``sample_size``, for Poisson steps of dp-sgd
    and where all clients are counted: the public number by which a noisy sum is divided.
    ``sampled``, ``records``, ``steps``: of dp-sgd: what a step draws; the most records of one unit (in a step for
    ``units``, in all for ``records``); private steps in a round at one client.
    ``rounds``: of the run, 0 for the experiment's. ``clients``: the most clients that one unit can be on.
    ``noise_multiplier``: standard deviation of the noise divided by what one unit changes under ``relation``; 0 for
    :meth:`calibrate` to find it. ``weighting``, ``weight_cap``: a client's weight is 1, or the smaller of 1 and its
    records divided by the cap. ``robust``: a rule in place of the mean. ``secure``: the server learns sums alone.
    Without keys a plan noises nothing and claims nothing.

    Raises :class:`~cloister.errors.ConfigError` for unknown keys and wrong types, :class:`PlanError` for values that
    contradict each other. Whether a plan is sound for an experiment is for :meth:`check` to say.
    """

    unit: Annotated[Unit, Field(strict=False)] = Unit.SUBJECT
    relation: Annotated[Relation, Field(strict=False)] = Relation.ADD_REMOVE
    mechanism: Annotated[Mechanism, Field(strict=False)] = Mechanism.NONE
    trust: Annotated[Trust, Field(strict=False)] = Trust.LOCAL
    sampler: Annotated[Sampler, Field(strict=False)] = Sampler.ALL
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    sample_size: NonNegativeInt = 0
    population: NonNegativeInt = 0
    sampled: Annotated[Sampled, Field(strict=False)] = Sampled.UNITS
    records: PositiveInt = 1
    steps: NonNegativeInt = 0
    rounds: NonNegativeInt = 0
    clients: PositiveInt = 1
    noise_multiplier: NonNegativeFloat = 0.0
    weighting: Annotated[Weighting, Field(strict=False)] = Weighting.UNIFORM
    weight_cap: NonNegativeFloat = 0.0
    robust: str = ""
    clip: Clip | None = None
    matrix: Matrix | None = None
    centres: Centres | None = None
    secure: Secure | None = None
    budget: Budget | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "plan") -> Self:
        """Return the plan that a table (TOML or JSON) describes; ``source`` names the table in errors."""
        return cls.parse(dict(values), source)

    @classmethod
    def none(cls) -> Self:
        """Return the plan of an experiment that has none: nothing is noised and nothing is claimed."""
        return cls()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for problem, wrong in _contradictions(self).items():
            if wrong:
                raise PlanError(f"plan: {problem}")
        if self.bits_noise > 0:
            self.update_multiplier  # noqa: B018 - it refuses bits that would cost more than the plan
        return self

    def values(self) -> dict[str, Any]:
        """Return plain values for TOML or JSON, from which :meth:`of` makes an equal plan."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the plan's canonical JSON: equal on every machine for equal plans."""
        text = json.dumps(self.values(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def noisy(self) -> bool:
        """Whether the model that is learned is noised, so that an epsilon can be claimed for it."""
        return self.mechanism is not Mechanism.NONE

    @property
    def private_steps(self) -> bool:
        """Whether noise is added at every optimiser step inside a client."""
        return self.mechanism is Mechanism.DP_SGD

    @property
    def central(self) -> bool:
        """Whether the server adds the noise, and keeps the ledger for it."""
        return self.noisy and self.trust is Trust.CENTRAL

    @property
    def local(self) -> bool:
        """Whether noise is added before anything leaves a client."""
        return self.noisy and self.trust is Trust.LOCAL

    @property
    def distributed(self) -> bool:
        """Whether each client adds a share of the noise, of which the secure sum is enough."""
        return self.noisy and self.trust is Trust.DISTRIBUTED

    @property
    def clip_norm(self) -> float:
        """L2 norm of everything that is clipped together, at the start; infinite where nothing is clipped."""
        if self.clip is None:
            return math.inf
        return math.hypot(*self.clip.per_layer.values()) if self.clip.per_layer else self.clip.bound

    @property
    def spread(self) -> float:
        """How far one unit moves a sum of clipped contributions, in clip bounds: 2 where it is replaced, else 1."""
        return 2.0 if self.relation is Relation.REPLACE_ONE else 1.0

    @property
    def cohort(self) -> float:
        """Expected clients of a round, a public number; 0 where clients are not what is drawn."""
        if self.private_steps:
            return 0.0
        if self.sampler is Sampler.POISSON:
            return self.rate * self.population
        return float(self.sample_size or self.population)

    @property
    def bits_noise(self) -> float:
        """Standard deviation of the noise on the sum of an adaptive clip's bits."""
        clip = self.clip
        return 0.0 if clip is None else clip.bits_noise or self.cohort / 20

    @property
    def update_multiplier(self) -> float:
        """The multiplier of the noise on updates; above ``noise_multiplier`` where bits take a part of the cost.

        Together both cost as much as one Gaussian with ``noise_multiplier`` (Andrew et al. 2021, theorem 1; there z <
        2 sigma_b, since a bit moves by a half). Raises :class:`PlanError` where the bits alone cost more.
        """
        if self.clip is None or self.clip.kind is not ClipKind.ADAPTIVE or self.noise_multiplier == 0:
            return self.noise_multiplier
        from cloister.privacy.clipping import split_noise  # it imports torch

        return split_noise(self.noise_multiplier, self.bits_noise, spread=self.spread)

    def check(self, facts: Facts) -> list[Refusal]:
        """Return every reason why this plan does not hold for an experiment; none means that it does."""
        from cloister.privacy.rules import check  # it reads plans

        return check(self, facts)

    def client_stages(self) -> tuple[Stage, ...]:
        """Return what a client does to its release, in this order."""
        return client_stages(self)

    def server_stages(self) -> tuple[Stage, ...]:
        """Return what the server does to the clipped (or already noised) updates of a round, in this order."""
        return server_stages(self)

    def events(self, rounds: int) -> tuple[Event, ...]:
        """Return everything that one unit went through after ``rounds`` rounds.

        At one client; where the server adds the noise, in its releases. Raises :class:`PlanError` while the noise is
        not known.
        """
        return self.increment(0, rounds)

    def increment(self, before: int, after: int) -> tuple[Event, ...]:
        """Return the events of rounds ``before + 1`` to ``after``: what a ledger appends for them.

        A matrix mechanism is one event for all its rounds and belongs to the first.
        """
        if not 0 <= before <= after:
            raise PlanError(f"plan: expected 0 <= before <= after, found rounds {before} to {after}")
        found = [*self._model_events(before, after), *self._centre_events(before, after)]
        return tuple(found)

    def calibrate(self, epsilon: float, delta: float, *, rounds: int, clients: int = 0) -> Self:
        """Return this plan with the smallest noise for which a unit on ``clients`` clients loses at most ``epsilon``.

        ``clients`` 0: the plan's. Raises :class:`PlanError` where no noise is enough.
        """
        from cloister.privacy.accounting import calibrate  # it counts events of plans

        def events(noise_multiplier: float) -> tuple[Event, ...]:
            plan = self.model_copy(update={"noise_multiplier": noise_multiplier})
            return plan.events(rounds) * (clients or self.clients)

        return self.with_noise(calibrate(events, epsilon, delta))

    def with_noise(self, noise_multiplier: float) -> Self:
        """Return this plan with another noise multiplier."""
        return self.of({**self.values(), "noise_multiplier": noise_multiplier})

    def _model_events(self, before: int, after: int) -> list[Event]:
        count = after - before
        if count == 0 or (self.mechanism is Mechanism.MATRIX and before > 0):
            return []
        if not self.noisy:
            return [Event(kind=EventKind.NONE, count=count, unit=self.unit, relation=self.relation)]
        if self.noise_multiplier == 0:
            raise PlanError(
                "plan: noise_multiplier is 0, so what a round costs is not known; call calibrate(epsilon, delta, "
                "rounds=...), or give noise_multiplier"
            )
        values: dict[str, Any] = {"sampler": Sampler.ALL, "count": count}
        if self.mechanism is Mechanism.MATRIX:
            values["count"] = 1
        elif self.distributed:
            from cloister.privacy.summing import shares_of  # it reads plans

            return [replace(shares_of(self).event(), count=count)]
        elif self.private_steps or self.trust is Trust.CENTRAL:
            values |= self._sampling(count * (self.steps if self.private_steps else 1))
        return [
            Event(
                kind=EventKind.GAUSSIAN,
                noise_multiplier=self.noise_multiplier,
                unit=self.unit,
                relation=self.relation,
                **values,
            )
        ]

    def _sampling(self, count: int) -> dict[str, Any]:
        """Return the event values for ``count`` draws, each followed by one noisy sum."""
        group = self.records if self.private_steps and self.sampled is Sampled.RECORDS else 1
        values: dict[str, Any] = {"sampler": self.sampler, "count": count, "group": group}
        if self.sampler is Sampler.POISSON:
            values["rate"] = self.rate
        elif self.sampler is Sampler.WITHOUT_REPLACEMENT:
            values |= {"sample_size": self.sample_size, "population": self.population}
        elif self.sampler is Sampler.FIXED:  # every unit is in one batch of an epoch, and a round starts a new epoch
            epoch = math.ceil(self.population / self.sample_size)
            values["count"] = count // self.steps * math.ceil(self.steps / epoch)
        return values

    def _centre_events(self, before: int, after: int) -> list[Event]:
        centres = self.centres
        count = centres.releases(after) - centres.releases(before) if centres else 0
        if centres is None or count == 0:
            return []
        return [
            Event(
                kind=EventKind.GAUSSIAN,
                noise_multiplier=multiplier,
                count=count,
                unit=self.unit,
                relation=self.relation,
            )
            for multiplier in (centres.noise_multiplier, centres.count_multiplier)
        ]


def _contradictions(plan: Plan) -> dict[str, bool]:
    """Return the problems that make a plan meaningless for any experiment, each with whether this one has it."""
    clip = plan.clip
    sized = plan.sampler in (Sampler.WITHOUT_REPLACEMENT, Sampler.FIXED)
    return {
        "clip: expected a [plan.clip] with a bound under mechanism " + plan.mechanism: plan.noisy and clip is None,
        "steps: expected at least 1 under mechanism dp-sgd, found 0": plan.private_steps and plan.steps == 0,
        f"rate: expected 1 for sampler {plan.sampler}, found {plan.rate:g}; only poisson has a rate": plan.rate != 1
        and plan.sampler is not Sampler.POISSON,
        f"sample_size: expected 1 to population for sampler {plan.sampler}, found {plan.sample_size} of "
        f"{plan.population}": sized and not 1 <= plan.sample_size <= plan.population,
        "sampler: expected fixed batches under mechanism dp-sgd only, found fixed for clients": not plan.private_steps
        and plan.sampler is Sampler.FIXED,
        "matrix: expected a [plan.matrix] under mechanism matrix": plan.mechanism is Mechanism.MATRIX
        and plan.matrix is None,
        f"matrix: expected mechanism matrix, found {plan.mechanism}": plan.matrix is not None
        and plan.mechanism is not Mechanism.MATRIX,
        "weight_cap: expected a positive number of records for weighting capped, found 0": plan.weighting
        is Weighting.CAPPED
        and plan.weight_cap == 0,
        "secure: expected a [plan.secure] under trust distributed, of whose sum alone the noise is enough": plan.trust
        is Trust.DISTRIBUTED
        and plan.secure is None,
        "secure.largest: expected a positive number, found 0; it bounds numbers that no [plan.clip] bounds": plan.secure
        is not None
        and plan.secure.largest == 0
        and (clip is None or plan.local),
        "clip.kind: expected a bound that stays, found adaptive under mechanism matrix, whose noise of one round "
        "covers others; set clip.kind = 'flat'": clip is not None
        and clip.kind is ClipKind.ADAPTIVE
        and plan.mechanism is Mechanism.MATRIX,
        "clip.per_layer: expected a bound for each name prefix for kind per-layer, and none otherwise": clip is not None
        and (clip.kind is ClipKind.PER_LAYER) != bool(clip.per_layer),
    }
