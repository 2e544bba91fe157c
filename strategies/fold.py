"""How valid replies become new arrays: one at a time, in canonical order, each let go of once it is added."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from cloister.errors import ConfigError, RunError
from cloister.flower import NDArray, tensor
from cloister.models.spec import Group, released
from cloister.strategies.validation import Reply

Weigh = Callable[[Reply], float]
Pairs = tuple[tuple[str, str], ...]


class Fold(ABC):
    """One round's aggregation. ``add`` is called once per valid reply; ``finish`` once, if the round counts."""

    @abstractmethod
    def add(self, reply: Reply) -> None:
        """Take in one reply. Keep nothing of its memory longer than needed."""

    @abstractmethod
    def finish(self) -> dict[str, NDArray]:
        """Return the new arrays, in the order of the old ones, and commit what the strategy remembers."""


class WeightedSum:
    """``sum_i w_i d_i`` over replies, added to the current arrays once the total weight is known.

    Floating-point entries are summed in place in their own precision, at least float32: one pass per reply. Integer
    entries (BatchNorm's counters) are summed in float64 and the mean is rounded to the nearest integer, so they stay
    integers. For every (mean, variance) pair in ``pooled`` the new variance is that of the pooled data,
    ``sum_i p_i (var_i + mu_i^2) - mu^2``, with p_i = w_i / sum w.
    """

    def __init__(self, current: Mapping[str, NDArray], names: Iterable[str], pooled: Pairs = ()) -> None:
        """Sum the entries ``names`` of ``current``."""
        self._current = current
        self._sums = {name: _zeros(current[name]) for name in names}
        self._pooled = tuple(pair for pair in pooled if pair[1] in self._sums)
        self._squares = {mean: np.zeros(current[mean].shape) for mean, _ in self._pooled}

    def add(self, deltas: Mapping[str, NDArray], weight: float) -> None:
        """Add ``weight`` times the deltas."""
        for name, total in self._sums.items():
            total.add_(tensor(deltas[name]), alpha=weight)
        for name, squares in self._squares.items():
            squares += weight * np.square(deltas[name], dtype=np.float64)

    def norm(self) -> float:
        """Return the L2 norm of the sum."""
        return math.sqrt(sum(float(total.double().square().sum()) for total in self._sums.values()))

    def totals(self) -> dict[str, NDArray]:
        """Return the sums by name."""
        return {name: total.numpy() for name, total in self._sums.items()}

    def moved(self, divisor: float) -> dict[str, NDArray]:
        """Return current + sum / divisor, by name. The sums are used up."""
        result: dict[str, NDArray] = {}
        for name, total in self._sums.items():
            old = tensor(self._current[name])
            total.div_(divisor)
            if name in self._squares:
                self._squares[name] = self._squares[name] / divisor - np.square(total.double().numpy())
            if not old.is_floating_point():
                total.round_()
            result[name] = total.add_(old).to(old.dtype).numpy()
        for mean, variance in self._pooled:
            # var' = mean(var_i) + mean(m_i^2) - mean(m_i)^2 with m_i = mu_i - mu: no large numbers cancel.
            spread = np.maximum(self._squares[mean], 0.0)
            result[variance] = (result[variance] + spread).astype(self._current[variance].dtype)
        return result


class MeanFold(Fold):
    """The weighted mean of all entries, SHARED and BUFFER alike (FedAvg)."""

    def __init__(self, current: Mapping[str, NDArray], pooled: Pairs, weigh: Weigh) -> None:
        """Average changes of ``current`` with weights ``weigh(reply)``."""
        self._sum = WeightedSum(current, current, pooled)
        self._weigh, self._total = weigh, 0.0

    def add(self, reply: Reply) -> None:
        """Add one reply with its weight."""
        weight = self._weigh(reply)
        self._total += weight
        self._sum.add(reply.deltas, weight)

    def finish(self) -> dict[str, NDArray]:
        """Return current + weighted mean of the changes."""
        return self._sum.moved(self._total)


def check_model(groups: Mapping[str, Group], arrays: Mapping[str, NDArray]) -> None:
    """Raise ConfigError unless ``arrays`` are exactly the SHARED and BUFFER entries, of kinds that can be averaged."""
    expected = set(released(groups))
    missing, unexpected = sorted(expected - set(arrays)), sorted(set(arrays) - expected)
    if missing or unexpected:
        raise ConfigError(
            f"model arrays: missing {missing[:5]}, unexpected {unexpected[:5]}; "
            "give exactly the entries whose group is SHARED or BUFFER"
        )
    for name, values in arrays.items():
        if values.dtype.kind not in "fi":
            raise ConfigError(
                f"model entry {name!r}: expected floating-point or signed integer values, found {values.dtype}; "
                "declare it LOCAL or FROZEN"
            )


def finite(arrays: dict[str, NDArray], number: int) -> dict[str, NDArray]:
    """Return ``arrays``; raises RunError if an entry is not finite, as when a mean overflows a 16-bit model."""
    for name, values in arrays.items():
        flat = values.reshape(-1)
        if flat.dtype.kind != "f":
            continue
        with np.errstate(all="ignore"):
            sure = np.isfinite(np.dot(flat, flat))  # one pass; only a sum that is not finite is looked at again
        if not sure and not np.isfinite(flat).all():
            raise RunError(
                f"round {number}: {name}: expected finite values after averaging, found others in {flat.dtype}; "
                "average in float32, or set strategy.limits.max_norm; the last checkpoint is whole"
            )
    return arrays


def trainable(groups: Mapping[str, Group], arrays: Mapping[str, NDArray]) -> list[str]:
    """Return the names of the floating-point SHARED entries: what optimisers and control variates act on."""
    return [name for name, values in arrays.items() if groups[name] is Group.SHARED and values.dtype.kind == "f"]


def variances(groups: Mapping[str, Group], pooled: Pairs) -> frozenset[str]:
    """Return the names of the BUFFER entries that hold variances: those pooled as such, and torch's ``running_var``."""
    named = {name for name, group in groups.items() if group is Group.BUFFER and name.endswith("running_var")}
    return frozenset(named | {variance for _, variance in pooled})


def _zeros(values: NDArray) -> torch.Tensor:
    dtype = tensor(values).dtype
    precision = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float64
    return torch.zeros(values.shape, dtype=precision)
