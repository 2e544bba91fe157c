"""One private step: sum what units contribute, add noise, divide by a public number, and let an optimiser step.

Nothing here divides by, skips on, or fails because of a number that depends on who was drawn: an empty draw is noised
and stepped on like any other.

Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv 1607.00133, algorithm 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import PlanError
from cloister.privacy.events import Relation
from cloister.privacy.noise import NoiseSource
from cloister.privacy.per_record import Records, UnitGradients

Indices = NDArray[np.int64]

Fetch = Callable[[Indices], Records]
"""Returns the records of the given indices, in that order."""


@dataclass(frozen=True, kw_only=True)
class NoisyMean:
    """Turns a clipped sum into what may be known.

    ``noise_multiplier``: standard deviation of the noise, divided by what one unit changes in the sum under
    ``relation``. ``sensitivity``: L2 norm of what adding or removing one unit changes; replacing one changes twice
    that. ``denominator``: the public number of units that is divided by, such as rate times a public number of units.

    Guarantee: the result is one use of the Gaussian mechanism with ``noise_multiplier`` under ``relation``, up to
    rounding to the type of the tensors. Raises :class:`PlanError` for numbers that are not positive.
    """

    noise_multiplier: float
    sensitivity: float
    denominator: float
    relation: Relation = Relation.ADD_REMOVE

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing is protected."""
        for name in ("noise_multiplier", "sensitivity", "denominator"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise PlanError(f"private step: expected {name} to be positive and finite, found {value}")

    @property
    def std(self) -> float:
        """Standard deviation of the noise on each entry of the sum."""
        spread = 2.0 if self.relation is Relation.REPLACE_ONE else 1.0
        return self.noise_multiplier * self.sensitivity * spread

    def of(self, total: Sequence[Tensor], source: NoiseSource) -> list[Tensor]:
        """Return ``(total + noise) / denominator``, computed in double precision, in the types of ``total``."""
        results = []
        for values in total:
            noise = torch.from_numpy(source.gaussian(tuple(values.shape), self.std)).to(values.device)
            results.append(((noise.add_(values)) / self.denominator).to(values.dtype))
        return results


def clipped_sum(
    gradients: UnitGradients, fetch: Fetch, units: Sequence[Indices], *, physical: int, share: float = 1.0
) -> list[Tensor]:
    """Return the sum of the clipped gradients of ``units``, each given as the indices of its records.

    Whole units are computed together while they have at most ``physical`` records; a unit with more goes alone. Every
    unit is clipped before anything is summed, so the sum is that of one large batch. ``share``: see
    :meth:`~cloister.privacy.per_record.UnitGradients.add`. Units without records add nothing.
    """
    total = gradients.zeros()
    for batch in _batches(units, physical):
        gradients.add(total, fetch(np.concatenate(batch)), [len(records) for records in batch], share)
    return total


def step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Let ``optimizer`` take a step with ``values`` as the gradients of ``parameters``, and no other gradient."""
    optimizer.zero_grad(set_to_none=True)
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = value
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _batches(units: Sequence[Indices], physical: int) -> Iterator[list[Indices]]:
    batch, size = list[Indices](), 0
    for records in units:
        if batch and size + len(records) > physical:
            yield batch
            batch, size = [], 0
        if len(records):
            batch.append(records)
            size += len(records)
    if batch:
        yield batch
