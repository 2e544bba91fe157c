"""Distributed differential privacy: every client adds a share of the noise before a secure sum, and trusts nobody.

Before it is masked, a client's vector is clipped, rotated, scaled, rounded at random to integers of a bounded norm,
noised with integer noise and wrapped around a modulus. Of all that, the server learns the sum. One share alone hides
nothing: what hides a client is the sum of the shares, so that the secure sum must not open for fewer than ``least``.

Source: Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", arXiv 2102.06387, algorithms 1 and 2; Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for
Differentially Private Federated Learning", arXiv 2110.04995.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError, PrivacyError
from cloister.privacy.clipping import clip_flat, split_noise
from cloister.privacy.discrete import MOST_GAUSSIAN, MOST_SKELLAM, discrete_gaussian, skellam
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.local import spread
from cloister.privacy.noise import NoiseSource
from cloister.privacy.rotation import padded, rotate, unrotate
from cloister.privacy.shared_noise import renyi

BETA = math.exp(-0.5)
"""Rounding is repeated with at most this probability."""

DEVIATIONS = 4.0
"""Standard deviations of a coordinate of the sum that fit into half the modulus."""

_Sampler = Callable[[int, int, NoiseSource], NDArray[np.int64]]
_SAMPLERS: dict[EventKind, tuple[_Sampler, int]] = {
    EventKind.DISCRETE_GAUSSIAN: (discrete_gaussian, MOST_GAUSSIAN),
    EventKind.SKELLAM: (skellam, MOST_SKELLAM),
}
_PART = 1 << 17
_TRIES = 100  # at rounding: that as many fail has a probability below BETA^100, or 2e-22


@dataclass(frozen=True)
class Sum:
    """What a secure sum says: ``vector`` [size], divided by what was asked for, and the noised sum of the bits."""

    vector: NDArray[np.float64]
    bits: float


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """How clients and server of one secure sum encode, noise, account and decode. The same on all of them.

    ``mechanism``: discrete-gaussian or skellam. ``size``: numbers in a vector. ``clip``: L2 norm that one vector is
    clipped to. ``bits``: of the modulus, 8 to 32. ``clients``: the most in one sum; ``least``: survivors below which
    the secure sum is not opened; ``dishonest``: how many of those may add no noise, or tell the server theirs.
    ``noise_multiplier``: standard deviation of the noise in the sum when only ``least - dishonest`` shares are in it,
    divided by what one client changes under ``relation``: the clip, or twice the clip where it is replaced.
    ``bits_noise``: of an adaptive clip, the standard deviation on the sum of the un-clipped bits then; 0 without one.

    Guarantee: one sum of at least ``least`` vectors is differentially private for ``unit`` under ``relation`` at the
    cost of :meth:`event`, towards the server with up to ``dishonest`` clients and all who see less, if the secure sum
    shows them nothing but the sum. ``relation`` is zero-out or replace-one: who takes part is not hidden.
    Raises :class:`PlanError` for what cannot be so, with what to change.
    """

    mechanism: EventKind
    size: int
    clip: float
    bits: int
    clients: int
    least: int
    dishonest: int = 0
    noise_multiplier: float
    unit: Unit
    relation: Relation
    bits_noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers with which a sum would overflow, or would not be private."""
        _require(self.mechanism in _SAMPLERS, "mechanism", "discrete-gaussian or skellam", self.mechanism)
        _require(self.size >= 1, "size", "at least 1", self.size)
        for name in ("clip", "noise_multiplier"):
            value = getattr(self, name)
            _require(0 < value < math.inf, name, "a positive, finite number", value)
        _require(0 <= self.bits_noise < math.inf, "bits_noise", "0 or a positive, finite number", self.bits_noise)
        _require(8 <= self.bits <= 32, "bits", "from 8 to 32", self.bits)
        survivors = (self.dishonest, self.least, self.clients)
        _require(0 <= self.dishonest < self.least <= self.clients, "dishonest < least <= clients", "true", survivors)
        hidden = self.relation is not Relation.ADD_REMOVE
        _require(hidden, "relation", "zero-out or replace-one, since who takes part is not hidden", self.relation)
        _require(math.isfinite(self.bound), "clip, bits_noise", "such that both fit together", self.bound)
        _require(self.share >= 1, "bits", "enough for noise of one step per client: take more bits", self.bits)

    @property
    def dimension(self) -> int:
        """How long an encoded vector is: a power of two."""
        return padded(self.size + (self.bits_noise > 0))

    @property
    def bound(self) -> float:
        """L2 norm of a clipped vector and its bit together: ``clip`` without bits."""
        return math.hypot(self.clip, self.bit_scale / 2)

    @property
    def bit_scale(self) -> float:
        """What a bit is multiplied by, as one more coordinate, so that the noise on it is ``bits_noise``; 0 without.

        The noise on the vector is then that of :func:`~cloister.privacy.clipping.split_noise`, and both together cost
        what ``noise_multiplier`` says: the noise is ``noise_multiplier`` times :attr:`bound`.
        """
        if self.bits_noise == 0:
            return 0.0
        factor = spread(self.relation)
        return split_noise(self.noise_multiplier, self.bits_noise, spread=factor) * self.clip * factor / self.bits_noise

    @property
    def share_std(self) -> float:
        """Standard deviation of one client's noise, on the scale of the vectors."""
        return self._relative_std * self.bound

    @property
    def share(self) -> int:
        """Standard deviation of one client's noise in steps of the grid: whole, rounded down.

        No finer than the sampler goes: bits beyond those are room that a sum does not need.
        """
        steps = fitting_scale(self.bits, 1.0, self.dimension, self.clients, self._relative_std)
        return min(int(self._relative_std * steps), _SAMPLERS[self.mechanism][1])

    @property
    def scale(self) -> float:
        """Steps of the grid per unit: as many as fit into the modulus, with a whole number of them per share."""
        return self.share / self.share_std

    @property
    def l2(self) -> float:
        """L2 norm of a rounded vector at most, in steps; :meth:`encode` sees to it. The same for every clip."""
        return rounded_norm(self.share / self._relative_std, self.dimension)

    @property
    def _relative_std(self) -> float:
        """Standard deviation of one client's noise, divided by :attr:`bound`."""
        return self.noise_multiplier * spread(self.relation) / math.sqrt(self.least - self.dishonest)

    def encode(
        self, vector: NDArray[np.floating[Any]], source: NoiseSource, public_seed: bytes, *, bit: float = 0.0
    ) -> NDArray[np.uint32]:
        """Return what a client puts into the secure sum: ``dimension`` integers modulo 2^``bits``.

        ``vector`` [size], float32 or float64; what is not finite counts as zeros. ``source``: the client's own,
        secret, never used for another sum. ``public_seed``: of the rotation, 32 bytes, the same for all. ``bit``: a
        half, a minus half or 0, as :class:`~cloister.privacy.clipping.Clipped` has it.

        Guarantee: before noise the integers have an L2 norm of at most ``l2``, whatever the vector is. Raises
        :class:`PlanError` for a vector of another size or type, and for a bit where there is no noise for it.
        """
        _require(vector.shape == (self.size,), "vector", f"of {self.size} numbers", vector.shape)
        _require(abs(bit) <= (0.5 if self.bits_noise else 0), "bit", "within a half, with bits_noise", bit)
        clipped = clip_flat({"vector": vector}, self.clip).values["vector"].astype(np.float64)
        if self.bits_noise:
            clipped = np.append(clipped, self.bit_scale * bit)
        rotated = rotate(clipped, public_seed)
        rotated *= self.scale
        integers, draw = _rounded(rotated, self.l2, source), _SAMPLERS[self.mechanism][0]
        for part in _parts(integers):
            part += draw(self.share, part.size, source)
        integers &= (1 << self.bits) - 1
        return integers.astype(np.uint32)

    def decode(self, total: NDArray[np.unsignedinteger[Any]], public_seed: bytes, *, divisor: float = 1.0) -> Sum:
        """Return the sum of the clipped vectors plus noise, divided by ``divisor``, a public number.

        ``total`` [dimension]: sum of what clients encoded, modulo 2^``bits``. Raises :class:`PrivacyError` for
        another shape, type or range: it is not such a sum.
        """
        fits = total.shape == (self.dimension,) and total.dtype.kind == "u" and int(total.max()) >> self.bits == 0
        if not fits or not 0 < divisor < math.inf:
            raise PrivacyError(
                f"distributed noise: expected {self.dimension} unsigned integers below 2^{self.bits} and a positive "
                f"divisor, found {total.dtype} of shape {total.shape} and {divisor}; unmask the sum first"
            )
        steps = total.astype(np.int64)
        steps[steps >= 1 << (self.bits - 1)] -= 1 << self.bits
        both = unrotate(steps / self.scale, public_seed, self.size + (self.bits_noise > 0))
        bits = float(both[self.size]) / self.bit_scale if self.bits_noise else 0.0
        return Sum(both[: self.size] / divisor, bits)

    def event(self, survivors: int | None = None) -> Event:
        """Return what one sum costs in which ``survivors`` vectors are; without a number: ``least`` of them.

        Of the survivors, ``dishonest`` count as having added no noise; so does everybody who dropped out. Raises
        :class:`PlanError` where no share is left.
        """
        shares = (self.least if survivors is None else survivors) - self.dishonest
        enough = 1 <= shares <= self.clients - self.dishonest
        _require(enough, "survivors", f"from {self.dishonest + 1} to {self.clients}", survivors)
        factor = spread(self.relation)
        return Event(
            kind=self.mechanism,
            noise_multiplier=self.share * math.sqrt(shares) / (self.l2 * factor),
            l1=self.l2 * factor * min(math.sqrt(self.dimension), self.l2),  # integers: a sum is below that of squares
            l2=self.l2 * factor,
            dimension=self.dimension,
            shares=shares,
            unit=self.unit,
            relation=self.relation,
        )

    def rdp(self, orders: NDArray[np.float64], survivors: int | None = None) -> NDArray[np.float64]:
        """Return the Renyi differential privacy of :meth:`event` at each order above 1."""
        return renyi(self.event(survivors), orders)


def rounded_norm(norm: float, dimension: int) -> float:
    """Return a bound on the L2 norm of a rounded vector, in steps, that one of L2 norm ``norm`` meets in few tries.

    min(norm + sqrt d, sqrt(norm^2 + d / 4 + sqrt(2 log(1 / beta)) (norm + sqrt(d) / 2))): met with probability at least
    1 - beta. Source: Kairouz, Liu and Steinke 2021, arXiv 2102.06387, equation 3.
    """
    root = math.sqrt(dimension)
    likely = norm**2 + dimension / 4 + math.sqrt(2 * math.log(1 / BETA)) * (norm + root / 2)
    return min(norm + root, math.sqrt(likely))


def fitting_scale(bits: int, bound: float, dimension: int, clients: int, share_std: float) -> float:
    """Return the steps per unit with which a coordinate of the sum stays in the modulus for ``DEVIATIONS`` deviations.

    A coordinate of the sum has a variance of at most ``(clients bound)^2 / d`` by the rotation, where all vectors are
    the same, ``clients share_std^2`` by the noise and ``clients / 4`` steps by rounding. 0 where not even that fits.
    Source: Kairouz, Liu and Steinke 2021, arXiv 2102.06387, section 6.2.
    """
    room = 4.0**bits / (4 * DEVIATIONS**2) - clients / 4
    return math.sqrt(max(room, 0.0) / ((clients * bound) ** 2 / dimension + clients * share_std**2))


def _rounded(scaled: NDArray[np.float64], bound: float, source: NoiseSource) -> NDArray[np.int64]:
    """Return the vector rounded up or down at random, without bias, until its norm is at most ``bound``."""
    integers = np.empty(scaled.size, np.int64)
    for _ in range(_TRIES):
        square = 0
        for part, values in zip(_parts(integers), _parts(scaled), strict=True):
            low = np.floor(values)
            part[:] = low + (source.uniform(values.size) < values - low)
            square += int(part @ part)
        if square <= bound**2:
            return integers
    return np.trunc(scaled).astype(np.int64)  # its norm is no larger than that of the vector


def _parts(vector: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield views of a vector, part by part, so that what is drawn for it takes little memory."""
    for start in range(0, vector.size, _PART):
        yield vector[start : start + _PART]


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise PlanError(f"distributed noise: expected {name} to be {expected}, found {found}")
