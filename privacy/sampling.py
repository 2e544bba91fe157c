"""Who takes part in a private step: secret draws of units, each of which knows how it has to be accounted.

A draw is as secret as noise: whoever knows it gets no amplification, so draws come from a
:class:`~cloister.privacy.noise.NoiseSource` and never from a seed. The draw of a step depends on the source and the
step alone, so a round that is replayed draws the same units.

``population`` is a public number of places, at least the number of units. Places without a unit are drawn like others
and contribute nothing. So a unit that comes or goes fills or empties one place and moves nobody else, and neighbouring
data sets differ in one place whatever the relation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError
from cloister.privacy.events import Sampler
from cloister.privacy.noise import NoiseSource


class UnitSampler(ABC):
    """Draws the units of each step. ``kind`` is what the accountant has to assume; assuming another is unsound."""

    kind: ClassVar[Sampler]

    @abstractmethod
    def draw(self, source: NoiseSource, step: int, units: int) -> NDArray[np.int64]:
        """Return the ascending indices, below ``units``, of those who take part in step 0, 1, ...

        Raises :class:`PlanError` for more units than the population that was declared.
        """

    @abstractmethod
    def event_values(self, steps: int) -> dict[str, Any]:
        """Return how steps 0 to ``steps - 1`` are accounted: the sampling fields of one event."""


@dataclass(frozen=True, kw_only=True)
class Poisson(UnitSampler):
    """Each unit independently with probability ``rate``; a draw may be empty."""

    kind = Sampler.POISSON
    rate: float

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 < self.rate <= 1:
            raise PlanError(f"poisson sampler: expected a rate in (0, 1], found {self.rate}; set plan.rate")

    def draw(self, source: NoiseSource, step: int, units: int) -> NDArray[np.int64]:
        """Return the units whose own coin came up."""
        return np.flatnonzero(source.fork("poisson", step).bernoulli(self.rate, units)).astype(np.int64)

    def event_values(self, steps: int) -> dict[str, Any]:
        """Return one use per step at this rate."""
        return {"sampler": self.kind, "rate": self.rate, "count": steps}


@dataclass(frozen=True, kw_only=True)
class WithoutReplacement(UnitSampler):
    """A fresh uniform subset of ``size`` of the ``population`` places at each step."""

    kind = Sampler.WITHOUT_REPLACEMENT
    size: int
    population: int

    def __post_init__(self) -> None:
        """Refuse a subset larger than the whole."""
        _check_places(self.kind, self.size, self.population)

    def draw(self, source: NoiseSource, step: int, units: int) -> NDArray[np.int64]:
        """Return the units on the places drawn for this step."""
        _check_units(units, self.population)
        return _present(source.fork("subset", step).permutation(self.population)[: self.size], units)

    def event_values(self, steps: int) -> dict[str, Any]:
        """Return one use per step of a subset of this size."""
        return {"sampler": self.kind, "sample_size": self.size, "population": self.population, "count": steps}


@dataclass(frozen=True, kw_only=True)
class Shuffled(UnitSampler):
    """Batches of ``size`` places, cut from a fresh order of the ``population`` for every epoch; the last is smaller.

    Nothing is amplified: a unit is accounted as taking part once in every epoch that has begun. The usual loader of
    training code is this, however it was accounted.
    """

    kind = Sampler.FIXED
    size: int
    population: int

    def __post_init__(self) -> None:
        """Refuse a batch larger than the whole."""
        _check_places(self.kind, self.size, self.population)

    @property
    def batches(self) -> int:
        """The batches of one epoch."""
        return -(-self.population // self.size)

    def draw(self, source: NoiseSource, step: int, units: int) -> NDArray[np.int64]:
        """Return the units of this step's batch; step 0 begins an epoch."""
        _check_units(units, self.population)
        epoch, batch = divmod(step, self.batches)
        order = source.fork("epoch", epoch).permutation(self.population)
        return _present(order[batch * self.size : (batch + 1) * self.size], units)

    def event_values(self, steps: int) -> dict[str, Any]:
        """Return one use per epoch that has begun."""
        return {"sampler": self.kind, "count": -(-steps // self.batches)}


@dataclass(frozen=True, kw_only=True)
class Everyone(UnitSampler):
    """All units at every step."""

    kind = Sampler.ALL

    def draw(self, source: NoiseSource, step: int, units: int) -> NDArray[np.int64]:
        """Return all units."""
        return np.arange(units, dtype=np.int64)

    def event_values(self, steps: int) -> dict[str, Any]:
        """Return one use per step."""
        return {"sampler": self.kind, "count": steps}


def _present(places: NDArray[np.int64], units: int) -> NDArray[np.int64]:
    """Return, ascending, the places that hold a unit."""
    return np.sort(places[places < units])


def _check_places(kind: Sampler, size: int, population: int) -> None:
    if not 1 <= size <= population:
        raise PlanError(
            f"{kind} sampler: expected a sample size from 1 to the population, found {size} of {population}; "
            "set plan.sample_size and plan.population"
        )


def _check_units(units: int, population: int) -> None:
    if units > population:
        raise PlanError(
            f"sampler: expected at most {population} units, the plan's population, found {units}; declare a public "
            "upper bound as plan.population, or sample with poisson, which needs none"
        )
