"""What stands where in the vector that is summed, and how its reals become integers whose sum is exact.

The vector is: the tensors, each multiplied by its client's weight; then what counts the same whatever the weight (class
centres, counts, clip bits); then the weight itself. One sum so gives a weighted mean, without anybody's weight shown.

Sources: the range, Bonawitz et al. 2017, eprint 2017/281; stochastic rounding, Kairouz, Liu and Steinke 2021, arXiv
2102.06387.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import SecureSumError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.keys import message
from cloister.privacy.secagg.masks import LONGEST_BYTES, Words, words

Shape = tuple[int, ...]
Arrays = Mapping[str, Any]
Reals = NDArray[np.float64]

_CHUNK = 1 << 16
_LARGEST = 1 << 52  # integers up to here, and their halves, are doubles


@dataclass(frozen=True)
class Layout:
    """Names and shapes, in their order. Make one with :meth:`of`; two are equal where their digests are.

    ``tensors`` are weighted, ``extra`` entries are not; the weight is the last coordinate and has no name.
    """

    tensors: tuple[tuple[str, Shape], ...]
    extra: tuple[tuple[str, Shape], ...] = ()

    def __post_init__(self) -> None:
        """Raise :class:`SecureSumError` for names that are empty or repeat and for sizes no vector has."""
        names = [name for name, _ in self._entries]
        if not names or not all(names) or len(set(names)) != len(names):
            raise SecureSumError(f"layout: expected some names, each once and not empty, found {names[:20]}")
        wrong = [name for name, shape in self._entries if any(type(side) is not int or side < 0 for side in shape)]
        if wrong:
            raise SecureSumError(f"layout: expected sides that are integers from 0, found others in {wrong[:20]}")
        if 8 * self.size > LONGEST_BYTES:
            raise SecureSumError(f"layout: expected at most 2^35 coordinates, found {self.size}; sum it in parts")

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], extra: Mapping[str, Shape] | Sequence[str] = ()) -> "Layout":
        """Return the layout of these tensors and, beside them, these entries without weight.

        ``extra``: names of single numbers, or shapes by name.
        """
        beside = extra.items() if isinstance(extra, Mapping) else ((name, ()) for name in extra)
        return cls(
            tuple((name, tuple(shape)) for name, shape in shapes.items()),
            tuple((name, tuple(shape)) for name, shape in beside),
        )

    @cached_property
    def weighted(self) -> int:
        """How many coordinates are weighted; they come first."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @cached_property
    def unweighted(self) -> int:
        """How many coordinates are not."""
        return sum(math.prod(shape) for _, shape in self.extra)

    @property
    def size(self) -> int:
        """How many coordinates the summed vector has, the weight included."""
        return self.weighted + self.unweighted + 1

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that no other layout has: SHA-256 of names and shapes in their order."""
        parts = [len(self.tensors).to_bytes(8)]
        for name, shape in self._entries:
            parts += [name.encode(), b"".join(side.to_bytes(8) for side in shape)]
        return sha256(message("cloister layout", *parts)).digest()

    def flatten(self, tensors: Arrays, extra: Arrays | None = None) -> Reals:
        """Return the reals as one vector of ``size - 1`` doubles: all but the weight.

        Raises :class:`SecureSumError` for names that are missing or unknown and for other shapes.
        """
        vector, start = np.empty(self.size - 1), 0
        for entries, given in ((self.tensors, tensors), (self.extra, extra or {})):
            if given.keys() != {name for name, _ in entries}:
                wrong = sorted(given.keys() ^ {name for name, _ in entries})
                raise SecureSumError(f"layout: expected exactly its names, found {wrong[:20]} missing or unknown")
            for name, shape in entries:
                array = np.asarray(given[name])
                if array.shape != shape:
                    raise SecureSumError(f"layout: expected {name!r} of shape {shape}, found {array.shape}")
                vector[start : start + array.size] = array.reshape(-1)
                start += array.size
        return vector

    def unflatten(self, vector: Reals) -> tuple[dict[str, Reals], dict[str, Reals]]:
        """Return tensors and extra entries by name: views of ``vector``, which has ``size - 1`` reals."""
        if vector.shape != (self.size - 1,):
            raise SecureSumError(f"layout: expected a vector of {self.size - 1} reals, found shape {vector.shape}")
        parts: tuple[dict[str, Reals], dict[str, Reals]] = {}, {}
        start = 0
        for entries, part in zip((self.tensors, self.extra), parts, strict=True):
            for name, shape in entries:
                end = start + math.prod(shape)
                part[name], start = vector[start:end].reshape(shape), end
        return parts

    @property
    def _entries(self) -> tuple[tuple[str, Shape], ...]:
        return self.tensors + self.extra


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Reals as integers modulo 2^``bits``, so that the sum over at most ``clients`` cannot wrap around.

    Weighted reals are clipped to [-``clip``, ``clip``] and multiplied by a weight in [0, ``weight_cap``]; the last
    ``unweighted`` reals are clipped to [-``unweighted_clip``, ``unweighted_clip``]. Each becomes one of 2 ``levels`` +
    1 integers, as many as fit: clients * 2 * levels + 1 <= 2^bits. At most they are as fine as doubles (2^52 levels).

    Raises :class:`SecureSumError` for ranges that are not positive and finite, and where 2^bits is too small to hold
    every client's largest value, or its weight in whole numbers.
    """

    bits: int
    clip: float
    clients: int
    weight_cap: float = 1.0
    unweighted: int = 0
    unweighted_clip: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        words(self.bits)
        for name in ("clip", "weight_cap", "unweighted_clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise SecureSumError(f"fixed point: expected a positive, finite {name}, found {getattr(self, name)}")
        if self.clients < 1 or self.unweighted < 0:
            raise SecureSumError(
                f"fixed point: expected clients from 1 and unweighted from 0, found {self.clients}, {self.unweighted}"
            )
        if self.levels < max(1, self.weight_cap):
            needed = math.ceil(math.log2(2 * self.clients * max(1, math.ceil(self.weight_cap)) + 1))
            raise SecureSumError(
                f"fixed point: expected a modulus that holds {self.clients} clients of weight {self.weight_cap:g}, "
                f"found 2^{self.bits}; give at least {needed} bits, many more for a fine sum, or a lower cap"
            )

    @property
    def levels(self) -> int:
        """The largest integer that one client's coordinate becomes."""
        return min(((1 << self.bits) - 1) // (2 * self.clients), _LARGEST)

    @property
    def step(self) -> float:
        """By less than this the sum of weighted reals is off for each client, at random and with mean 0."""
        return self.clip * self.weight_cap / self.levels

    def encode(self, vector: NDArray[np.floating[Any]], weight: float, source: NoiseSource) -> Words:
        """Return the integers of a client's reals, and its weight after them: one more coordinate than ``vector``.

        Rounding is up or down at random, so that no value is off on average; ``source`` is the client's own. Weights
        that are whole numbers are exact.

        Raises :class:`SecureSumError` for a weight outside [0, ``weight_cap``] and for reals that are not finite.
        """
        if not 0 <= weight <= self.weight_cap:
            raise SecureSumError(f"fixed point: expected a weight from 0 to {self.weight_cap:g}, found another; cap it")
        if vector.ndim != 1 or vector.size < self.unweighted:
            raise SecureSumError(
                f"fixed point: expected a vector of at least {self.unweighted} reals, found shape {vector.shape}"
            )
        whole, weighted = np.empty(vector.size + 1, words(self.bits)), vector.size - self.unweighted
        factor = weight / self.weight_cap * (self.levels / self.clip)
        self._round(vector[:weighted], self.clip, factor, source, whole)
        extra = self.levels / self.unweighted_clip
        self._round(vector[weighted:], self.unweighted_clip, extra, source, whole[weighted:])
        self._round(np.array([weight]), self.weight_cap, self._weight_scale, source, whole[-1:])
        return whole

    def decode(self, total: Words, count: int) -> tuple[Reals, float]:
        """Return the sum over ``count`` clients of weight times reals (and of the unweighted ones), and of the weights.

        The weighted mean is their quotient. Raises :class:`SecureSumError` for a count that is not from 1 to
        ``clients`` and for a total that no such clients have: a mask was not taken off, or somebody sent no encoding.
        """
        if not 1 <= count <= self.clients:
            raise SecureSumError(f"fixed point: expected a sum over 1 to {self.clients} clients, found {count}")
        if total.ndim != 1 or total.size <= self.unweighted or total.dtype != words(self.bits):
            raise SecureSumError(
                f"fixed point: expected a vector of {words(self.bits).__name__}, longer than {self.unweighted}, found "
                f"{total.dtype} {total.shape}"
            )
        empty = np.uint64(64 - self.bits)  # the sign moves to the top and back, and fills what is above it
        signed = (total.astype(np.uint64) << empty).view(np.int64) >> empty.astype(np.int64)
        if max(int(signed.max()), -int(signed.min())) > count * self.levels or signed[-1] < 0:
            raise SecureSumError(
                f"sum over {count} clients: expected one in their range, found another; a mask was not taken off, or "
                "somebody sent what is no encoding: discard the round"
            )
        reals, weighted = signed[:-1].astype(np.float64), total.size - 1 - self.unweighted
        reals[:weighted] *= self.step
        reals[weighted:] *= self.unweighted_clip / self.levels
        return reals, int(signed[-1]) / self._weight_scale

    @property
    def _weight_scale(self) -> int:
        return math.floor(self.levels / self.weight_cap)  # whole, so that whole weights stay exact

    def _round(
        self, reals: NDArray[np.floating[Any]], clip: float, factor: float, source: NoiseSource, out: Words
    ) -> None:
        """Write the integers of ``reals`` to the first words of ``out``, part by part, which bounds the memory."""
        mask = np.uint64((1 << self.bits) - 1)
        for start in range(0, reals.size, _CHUNK):
            part = reals[start : start + _CHUNK].astype(np.float64)
            if not np.isfinite(part).all():
                raise SecureSumError("fixed point: expected finite reals, found others; leave this round out")
            np.clip(part, -clip, clip, out=part)
            part *= factor
            down = np.floor(part)
            down += source.uniform(part.size) < part - down
            np.clip(down, -self.levels, self.levels, out=down)  # the product may have been rounded up
            out[start : start + part.size] = down.astype(np.int64).view(np.uint64) & mask
