"""Shamir's secret sharing: any ``threshold`` of the shares give the secret, fewer say nothing about it.

Field: integers modulo p = 2^61 - 1. A secret of 32 bytes and 5 bytes of its hash are cut into five limbs of 60 bits,
each the value at 0 of a random polynomial of degree ``threshold - 1``; a share is the values at its place. The hash is
shared with the secret, so that fewer shares show nothing of it either; by it, joining too few shares, changed ones or
some of different secrets is noticed, but for a chance of 2^-40.

A share of a self-mask's seed and a share of a mask key are different types. Whoever held enough of both for one client
could unmask what it sent, so nothing that takes one takes the other.

Source: Shamir 1979, "How to share a secret".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from struct import unpack
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloister.errors import SecureSumError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.keys import SECRET_BYTES, Secret, message

PRIME = (1 << 61) - 1
SHARE_BYTES = 40
LARGEST_PLACE = (1 << 31) - 1

_LIMBS, _LIMB_BITS, _TAG_BYTES = SHARE_BYTES // 8, 60, 5
_P, _LOW, _HALF = np.uint64(PRIME), np.uint64((1 << 30) - 1), np.uint64((1 << 31) - 1)
_1, _30, _31, _61 = (np.uint64(bits) for bits in (1, 30, 31, 61))
_PIECES, _PIECE_BITS, _PIECE = 3, 21, np.uint64((1 << 21) - 1)
_EXACT_TERMS = 1 << 11


@dataclass(frozen=True)
class _Share:
    """``place``: where the polynomials were evaluated, 1 to 2^31 - 1; ``value``: 40 secret bytes."""

    place: int
    value: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Raise :class:`SecureSumError` for what is no share."""
        if type(self.place) is not int or not 1 <= self.place <= LARGEST_PLACE:
            raise SecureSumError(f"share: expected a place from 1 to {LARGEST_PLACE}, found {self.place}")
        if not isinstance(self.value, bytes) or len(self.value) != SHARE_BYTES:
            raise SecureSumError(f"share at place {self.place}: expected {SHARE_BYTES} bytes, found another value")
        if max(self.limbs()) >= PRIME:
            raise SecureSumError(f"share at place {self.place}: expected limbs below 2^61 - 1, found a larger one")

    def limbs(self) -> tuple[int, ...]:
        """Return the five field elements."""
        return unpack("<5Q", self.value)

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled."""
        raise SecureSumError("a share cannot be copied or pickled; seal its value for the peer that it belongs to")


class SeedShare(_Share):
    """A share of the seed of a client's self-mask: shown for clients whose vector is in the sum."""


class KeyShare(_Share):
    """A share of a client's secret mask key: shown for clients whose vector never came."""


Kind = TypeVar("Kind", SeedShare, KeyShare)


def split_seed(secret: Secret, threshold: int, places: Sequence[int], source: NoiseSource) -> tuple[SeedShare, ...]:
    """Return a share for each of ``places``, in their order, any ``threshold`` of which give ``secret``.

    ``source`` must be fresh from the operating system: whoever knows it knows the secret from one share.
    Raises :class:`SecureSumError` for places that repeat or are not from 1 to 2^31 - 1, and for a threshold that is not
    from 2 to their number (1 would give every holder the secret).
    """
    return _split(SeedShare, secret, threshold, places, source)


def split_key(secret: Secret, threshold: int, places: Sequence[int], source: NoiseSource) -> tuple[KeyShare, ...]:
    """Return a share for each of ``places``, as :func:`split_seed` does, of a secret key."""
    return _split(KeyShare, secret, threshold, places, source)


def join_seed(shares: Iterable[SeedShare]) -> Secret:
    """Return the secret of ``shares``, all of which are used; give at least the threshold.

    Raises :class:`SecureSumError` for shares of the other type, none, two of one place, and (but for a chance of 2^-40)
    too few, changed ones or some of different secrets.
    """
    return _join(SeedShare, shares)


def join_key(shares: Iterable[KeyShare]) -> Secret:
    """Return the secret key of ``shares``, as :func:`join_seed` does."""
    return _join(KeyShare, shares)


def _split(
    kind: type[Kind], secret: Secret, threshold: int, places: Sequence[int], source: NoiseSource
) -> tuple[Kind, ...]:
    if len(set(places)) != len(places) or any(not 1 <= place <= LARGEST_PLACE for place in places):
        raise SecureSumError(
            f"places of shares: expected different ones from 1 to {LARGEST_PLACE}, found {list(places)}"
        )
    if not 2 <= threshold <= len(places):
        raise SecureSumError(f"threshold of shares: expected 2 to {len(places)}, found {threshold}")
    number = int.from_bytes(bytes(secret.view()) + _tag(secret), "little")
    coefficients = np.empty((threshold, _LIMBS), np.uint64)
    coefficients[0] = [number >> (_LIMB_BITS * index) & (1 << _LIMB_BITS) - 1 for index in range(_LIMBS)]
    coefficients[1:] = source.integers(PRIME, (threshold - 1) * _LIMBS).reshape(-1, _LIMBS)
    values = evaluate(coefficients, tuple(places)).astype("<u8").tobytes()
    coefficients.fill(0)
    starts = range(0, len(values), SHARE_BYTES)
    return tuple(kind(place, values[at : at + SHARE_BYTES]) for place, at in zip(places, starts, strict=True))


def _join(kind: type[Kind], shares: Iterable[Kind]) -> Secret:
    held = sorted(shares, key=lambda share: share.place)
    if wrong := [type(share).__name__ for share in held if type(share) is not kind]:
        raise SecureSumError(f"shares: expected each to be a {kind.__name__}, found a {wrong[0]}")
    places = tuple(share.place for share in held)
    if len(set(places)) != len(places) or not places:
        raise SecureSumError(f"shares: expected some, each of another place, found places {list(places)}")
    factors, columns = _factors(places), zip(*(share.limbs() for share in held), strict=True)
    limbs = [sum(f * y for f, y in zip(factors, column, strict=True)) % PRIME for column in columns]
    number = sum(limb << (_LIMB_BITS * index) for index, limb in enumerate(limbs))
    data = number.to_bytes(SHARE_BYTES, "little")
    secret = Secret(data[:SECRET_BYTES])
    if max(limbs) >> _LIMB_BITS or data[SECRET_BYTES:] != _tag(secret) + bytes(SHARE_BYTES - SECRET_BYTES - _TAG_BYTES):
        secret.wipe()
        raise SecureSumError(
            f"{len(held)} shares: expected enough of one secret, found too few or some that were changed; "
            "wait for more shares or end the round without a sum"
        )
    return secret


def evaluate(coefficients: NDArray[np.uint64], places: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return polynomials modulo 2^61 - 1 at n ``places``: ``[terms, limbs]`` gives ``[n, limbs]``.

    Coefficients, lowest first, and places are below p. Powers times coefficients is a product of matrices, of which
    both are cut into pieces of 21 bits: products of pieces are below 2^42, and 2,048 of them add up exactly in doubles.
    Pieces i and j of a product stand for 2^(21 (i + j)), which modulo p is a rotation of 61 bits.
    """
    powers, total = _powers(places, len(coefficients)), np.zeros((len(places), coefficients.shape[1]), np.uint64)
    for start in range(0, len(coefficients), _EXACT_TERMS):
        left = powers[:, start : start + _EXACT_TERMS]
        right = np.concatenate(_pieces(coefficients[start : start + _EXACT_TERMS]), axis=1)
        # [piece of the power, place, piece of the coefficient, limb]
        products = (left @ right).astype(np.uint64).reshape(_PIECES, len(places), _PIECES, -1)
        for index in range(2 * _PIECES - 1):
            pairs = [(i, index - i) for i in range(_PIECES) if 0 <= index - i < _PIECES]
            number, turn = sum(products[i, :, j] for i, j in pairs), _PIECE_BITS * index % 61
            total += (number << np.uint64(turn) & _P) + (number >> np.uint64(61 - turn))  # five below 2^61 + 2^55
        total = (total & _P) + (total >> _61)
    return total - _P * (total >= _P)


@lru_cache(maxsize=2)  # a client shares two secrets among the same places
def _powers(places: tuple[int, ...], terms: int) -> NDArray[np.float64]:
    """Return the pieces of each place to the powers 0 to ``terms - 1``: ``[pieces * n, terms]``.

    There are twice as many powers after each step.
    """
    powers = np.array(places, np.uint64)[:, None]
    while powers.shape[1] < terms - 1:
        powers = np.concatenate([powers, _multiply(powers, powers[:, -1:])], axis=1)
    powers = np.concatenate([np.ones((len(places), 1), np.uint64), powers[:, : terms - 1]], axis=1)
    return np.concatenate(_pieces(powers))


def _multiply(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the products modulo p, below p + 8, of numbers below p + 8.

    Of halves of at most 2^30 and 2^31: 2^62 is 2 modulo p, and the middle times 2^31 is turned by 31 of 61 bits. All of
    it is below 2^64; its bits from 61 on count 1 each.
    """
    a1, a0, b1, b0 = a >> _31, a & _HALF, b >> _31, b & _HALF
    middle = a1 * b0 + a0 * b1
    total: NDArray[np.uint64] = (a1 * b1 << _1) + (middle >> _30) + ((middle & _LOW) << _31) + a0 * b0
    return (total & _P) + (total >> _61)


def _pieces(numbers: NDArray[np.uint64]) -> list[NDArray[np.float64]]:
    return [(numbers >> np.uint64(_PIECE_BITS * index) & _PIECE).astype(np.float64) for index in range(_PIECES)]


@lru_cache(maxsize=64)
def _factors(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's factors at 0: the product over j != i of x_j / (x_j - x_i) modulo p, for each i."""
    above, factors = 1, []
    for x in places:
        above = above * x % PRIME
    for x in places:
        below = x
        for other in places:
            if other != x:
                below = below * (other - x) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(factors)


def _tag(secret: Secret) -> bytes:
    return sha256(message("cloister share", secret.view())).digest()[:_TAG_BYTES]
