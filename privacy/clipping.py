"""Bounding what one unit contributes: one L2 norm over everything, one per layer, and a bound that finds itself.

An update is a mapping from names to float32 or float64 tensors, all NumPy's or all torch's. Clipping returns new
tensors of the same kind and never raises because of the values in them: a failure that depends on somebody's data would
itself be a release.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cloister.errors import PlanError

Tensor = TypeVar("Tensor", NDArray[Any], torch.Tensor)

BIT = "unclipped"
"""The metric in which a client sends its :attr:`Clipped.bit`."""

_SLACK = 2.0**-22  # more than rounding to float32 can add to a norm
_TYPES = ("float32", "float64")


@dataclass(frozen=True)
class Clipped(Generic[Tensor]):
    """An update within its bound, and the un-clipped bit of the adaptive rule.

    ``bit``: a half where nothing had to be scaled, minus a half where something had; 0 for an update that was not
    finite, which is replaced by zeros and votes for nothing. Never more than a half from 0: that is its sensitivity.
    """

    values: dict[str, Tensor]
    bit: float


def clip_flat(update: Mapping[str, Tensor], bound: float) -> Clipped[Tensor]:
    """Return the update scaled to an L2 norm, over all its entries together, of at most ``bound``.

    A zero update stays as it is. An update with an entry that is not finite, or with a norm that no double holds,
    becomes zeros.

    Guarantee: the norm of the result, rounded as it is, is at most ``bound``, so that adding or removing an update
    changes a sum of them by at most ``bound``, and replacing one by at most twice that.
    Raises :class:`PlanError` for a bound that is not positive and finite, and for tensors of another type.
    Source: McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963, section
    2 (FlatClip).
    """
    return clip_per_layer(update, {"": bound})


def clip_per_layer(update: Mapping[str, Tensor], bounds: Mapping[str, float]) -> Clipped[Tensor]:
    """Return the update with each layer scaled to an L2 norm of at most its own bound.

    ``bounds``: a bound for each prefix of names. The longest prefix of an entry's name decides to which layer it
    belongs; all entries of a layer share one norm.

    Guarantee: the norm of the whole is at most :func:`sensitivity` of the bounds, which is what noise must be scaled
    to; one noise for the whole and one clip per layer do not otherwise fit together.
    Raises :class:`PlanError` as :func:`clip_flat` does, and for an entry that no prefix covers. An entry that is not
    finite makes the whole update zeros, whichever layer it is in.
    Source: as above (PerLayerClip).
    """
    sensitivity(bounds)
    layers = {name: layer_of(name, bounds) for name in update}
    squares = dict.fromkeys(bounds, 0.0)
    for name, tensor in update.items():
        squares[layers[name]] += _sum_of_squares(name, tensor)
    if not math.isfinite(sum(squares.values())):
        return Clipped({name: _zeros(tensor) for name, tensor in update.items()}, 0.0)
    factors = {layer: _factor(math.sqrt(squares[layer]), bound) for layer, bound in bounds.items()}
    bit = 0.5 if all(factor == 1 for factor in factors.values()) else -0.5
    return Clipped({name: _scaled(tensor, factors[layers[name]]) for name, tensor in update.items()}, bit)


def layer_of(name: str, prefixes: Iterable[str]) -> str:
    """Return the longest of ``prefixes`` with which ``name`` begins; raises :class:`PlanError` where none does."""
    prefixes = list(prefixes)
    found = [prefix for prefix in prefixes if name.startswith(prefix)]
    if not found:
        raise PlanError(
            f"clip: expected a bound for every entry, found none for {name!r} among {sorted(prefixes)}; add a prefix "
            'of its name, or "" for all others'
        )
    return max(found, key=len)


def sensitivity(bounds: Mapping[str, float]) -> float:
    """Return the most that adding or removing one clipped update moves a sum of them, in L2 norm.

    The root of the sum of the squares of all bounds, with or without entries of their own in the update. Raises
    :class:`PlanError` unless there are bounds and all are positive and finite.
    """
    if not bounds or not all(0 < bound < math.inf for bound in bounds.values()):
        raise PlanError(f"clip: expected positive, finite bounds, found {dict(bounds)}")
    return math.hypot(*bounds.values())


def split_noise(noise_multiplier: float, bits_noise: float, *, spread: float = 1.0) -> float:
    """Return the noise multiplier of updates that, together with their noised bits, cost ``noise_multiplier`` alone.

    ``bits_noise``: standard deviation of the noise on the sum of the bits, each of which moves by a half where a unit
    is added or removed (``spread`` 1) and by one where it is replaced (``spread`` 2).
    Raises :class:`PlanError` where the bits alone would cost more than both may.
    Source: Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", arXiv 1905.03871, theorem 1:
    z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2).
    """
    bits = 2 * bits_noise / spread
    if not 0 < noise_multiplier < bits:
        raise PlanError(
            f"adaptive clip: expected a noise multiplier above 0 and below {bits:g}, that of the bits, found "
            f"{noise_multiplier:g}; put more noise on the bits or have more clients in a round"
        )
    return float((noise_multiplier**-2 - bits**-2) ** -0.5)


@dataclass(frozen=True, kw_only=True)
class ClipBound:
    """A clip bound that follows a quantile of the norms of updates.

    ``bound``: in force now. ``quantile``: the share of updates that it should leave as they are. ``learning_rate``: of
    the logarithm of the bound. ``cohort``: expected number of clients in a round, a public constant.

    The state is these plain numbers. They depend on data only through noised bits, so the bound may be published.
    Raises :class:`PlanError` for values out of range.
    Source: Andrew et al. 2021, arXiv 1905.03871, algorithm 1.
    """

    bound: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    cohort: float

    def __post_init__(self) -> None:
        """Refuse numbers with which no bound is found."""
        for name, limit in (("bound", math.inf), ("quantile", 1), ("learning_rate", math.inf), ("cohort", math.inf)):
            value = getattr(self, name)
            if not 0 < value < limit:
                raise PlanError(f"adaptive clip: expected {name} above 0 and below {limit}, found {value}")

    def after(self, bits: float) -> Self:
        """Return the bound of the next round, given the noised sum of this round's :attr:`Clipped.bit`.

        The share of un-clipped updates is estimated as ``bits / cohort + 1/2``; where it is too large the bound falls,
        where it is too small the bound grows. (With the share of *clipped* updates in its place the bound runs away
        from the quantile.) Raises :class:`PlanError` for a sum that is not finite, or a bound that no double holds.
        """
        share = bits / self.cohort + 0.5
        with np.errstate(all="ignore"):
            grown = float(self.bound * np.exp(-self.learning_rate * (share - self.quantile)))
        if not 0 < grown < math.inf:
            raise PlanError(
                f"adaptive clip: expected a noised sum of bits between {-self.cohort / 2:g} and {self.cohort / 2:g} or "
                f"near to it, found {bits}; check the noise on the bits"
            )
        return replace(self, bound=grown)

    def values(self) -> dict[str, float]:
        """Return the state as plain numbers, from which :meth:`of` makes an equal bound."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Self:
        """Return the bound that :meth:`values` described; raises :class:`PlanError` for anything else."""
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise PlanError(f"adaptive clip: expected the numbers {sorted(known)}, found {sorted(values)}")
        return cls(**values)


def _factor(norm: float, bound: float) -> float:
    return 1.0 if norm <= bound else bound / norm * (1 - _SLACK)


def _sum_of_squares(name: str, tensor: NDArray[Any] | torch.Tensor) -> float:
    """Return the sum of squares in double precision; not finite if an entry is not."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _TYPES:
        raise PlanError(f"clip: expected {' or '.join(_TYPES)} for {name!r}, found {kind}; leave it out or convert it")
    if isinstance(tensor, torch.Tensor):
        norm = float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
        return norm * norm
    flat = tensor.reshape(-1)
    with np.errstate(all="ignore"):
        return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if isinstance(tensor, torch.Tensor) else np.zeros_like(tensor)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    if isinstance(tensor, torch.Tensor):
        return tensor.detach() * factor
    return np.asarray(tensor * factor)
