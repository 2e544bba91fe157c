"""What privacy bookkeeping speaks of: units, relations, samplers, and the events from which an epsilon is computed.

An :class:`Event` says what was done, never what it cost: cost depends on everything else that was done, and is computed
from all events together by :mod:`cloister.privacy.accounting`. Events are what the ledger stores.
"""

import math
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from cloister.errors import PlanError


class Unit(StrEnum):
    """What one neighbouring data set has and the other has not."""

    EXAMPLE = "example"
    SESSION = "session"
    SUBJECT = "subject"
    CLIENT = "client"


class Relation(StrEnum):
    """How two neighbouring data sets differ: one unit added or removed, replaced, or replaced by nothing."""

    ADD_REMOVE = "add-remove"
    REPLACE_ONE = "replace-one"
    ZERO_OUT = "zero-out"


class Sampler(StrEnum):
    """How the units of one step are chosen.

    ``POISSON``: each independently at a rate. ``FIXED``: batches of a shuffled epoch. ``WITHOUT_REPLACEMENT``: a
    fresh subset of fixed size each time. ``ALL``: everybody. ``MIN_SEPARATION``: whoever comes, but not again before
    a number of rounds have passed.
    """

    POISSON = "poisson"
    FIXED = "fixed"
    WITHOUT_REPLACEMENT = "without-replacement"
    ALL = "all"
    MIN_SEPARATION = "min-separation"


class EventKind(StrEnum):
    """The noise of an event; ``NONE`` is a release without any, after which no finite epsilon holds."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"
    RANDOMISED_RESPONSE = "randomised-response"
    DISCRETE_GAUSSIAN = "discrete-gaussian"
    SKELLAM = "skellam"
    NONE = "none"


SHARED = frozenset({EventKind.DISCRETE_GAUSSIAN, EventKind.SKELLAM})
"""Integer noise of which each client of a secure sum adds a share."""

_OF_SHARED = ("l1", "l2", "dimension", "shares")


@dataclass(frozen=True, kw_only=True)
class Event:
    """``count`` uses of one mechanism on samples drawn in one way.

    ``noise_multiplier``: standard deviation (Laplace: scale) of the noise divided by the sensitivity to one unit
    under ``relation``; for records in groups, to one record. ``rate``: probability that a unit (in a group: one
    record of it) takes part. ``group``: the most records that one unit can have where *records* are sampled and
    clipped; 1 where units are. ``sample_size`` and ``population`` belong to ``WITHOUT_REPLACEMENT``; ``epsilon`` and
    ``categories`` to randomised response. ``l1``, ``l2``, ``dimension`` and ``shares`` belong to noise in shares: what
    one unit changes in a sum of integer vectors, in L1 and L2 norm, their length, and how many shares the noise has;
    ``noise_multiplier`` is that of their sum.
    A matrix mechanism over many rounds is one Gaussian event whose sensitivity is that of all of a unit's rounds.

    Raises :class:`PlanError` for values out of range.
    """

    kind: EventKind
    noise_multiplier: float = 0.0
    count: int = 1
    sampler: Sampler = Sampler.ALL
    rate: float = 1.0
    group: int = 1
    sample_size: int = 0
    population: int = 0
    epsilon: float = 0.0
    categories: int = 0
    l1: float = 0.0
    l2: float = 0.0
    dimension: int = 0
    shares: int = 0
    unit: Unit
    relation: Relation

    def __post_init__(self) -> None:
        """Refuse values that no mechanism has."""
        noisy = self.kind in (EventKind.GAUSSIAN, EventKind.LAPLACE, *SHARED)
        problems = {
            f"noise_multiplier: expected a positive number, found {self.noise_multiplier}": noisy
            and not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0),
            f"count: expected at least 1, found {self.count}": self.count < 1,
            f"rate: expected a probability above 0, found {self.rate}": not 0 < self.rate <= 1,
            f"rate: expected 1 for sampler {self.sampler}, found {self.rate}": self.rate != 1
            and self.sampler is not Sampler.POISSON,
            f"group: expected at least 1, found {self.group}": self.group < 1,
            f"sample_size: expected 1 to population, found {self.sample_size} of {self.population}": (
                self.sampler is Sampler.WITHOUT_REPLACEMENT and not 1 <= self.sample_size <= self.population
            ),
            f"epsilon, categories: expected positive and at least 2, found {self.epsilon}, {self.categories}": (
                self.kind is EventKind.RANDOMISED_RESPONSE and not (self.epsilon > 0 and self.categories >= 2)
            ),
            f"l1, l2: expected 0 < l2 <= l1, finite, found {self.l1}, {self.l2}": self.kind in SHARED
            and not 0 < self.l2 <= self.l1 < math.inf,
            f"dimension, shares: expected at least 1, found {self.dimension}, {self.shares}": self.kind in SHARED
            and min(self.dimension, self.shares) < 1,
            "l1, l2, dimension, shares: belong to discrete-gaussian and skellam": self.kind not in SHARED
            and any(getattr(self, key) != 0 for key in _OF_SHARED),
        }
        for problem, wrong in problems.items():
            if wrong:
                raise PlanError(f"privacy event: {problem}")

    def values(self) -> dict[str, Any]:
        """Return plain JSON values, from which :meth:`of` makes an equal event."""
        values = {key: str(value) if isinstance(value, StrEnum) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key not in _OF_SHARED or self.kind in SHARED}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Return the event that :meth:`values` described; raises :class:`PlanError` for anything else."""
        kinds = {"kind": EventKind, "sampler": Sampler, "unit": Unit, "relation": Relation}
        known = {field.name for field in fields(cls)}
        try:
            if values.get("kind") not in SHARED:
                known -= set(_OF_SHARED)  # so that events of other kinds have the digests that they always had
            if set(values) != known:
                raise ValueError(f"expected the keys {sorted(known)}, found {sorted(values)}")
            typed: dict[str, Any] = {key: kinds[key](value) if key in kinds else value for key, value in values.items()}
            return cls(**typed)
        except (TypeError, ValueError) as error:
            raise PlanError(f"privacy event: {error}") from error
