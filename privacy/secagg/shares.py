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
_30, _31, _61 = (np.uint64(bits) for bits in (30, 31, 61))


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
        return tuple(int.from_bytes(self.value[start : start + 8], "little") for start in range(0, SHARE_BYTES, 8))

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
    values = evaluate(coefficients, np.asarray(places, np.uint64))
    coefficients.fill(0)
    return tuple(kind(place, row.tobytes()) for place, row in zip(places, values.astype("<u8"), strict=True))


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


def evaluate(coefficients: NDArray[np.uint64], places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return polynomials modulo 2^61 - 1 at ``places``: ``[terms, limbs]`` and ``[n]`` give ``[n, limbs]``.

    Coefficients, lowest first, are below p, places below 2^31. Horner's rule; each product is of 61 by 31 bits and is
    put together from halves whose sum stays below 2^63: with acc = high 2^30 + low and high x = a 2^31 + b,
    acc x = low x + a 2^61 + b 2^30, and 2^61 is 1 modulo p.
    """
    x = places[:, None]
    total = np.broadcast_to(coefficients[-1], (len(places), coefficients.shape[1]))
    for coefficient in coefficients[-2::-1]:
        high = (total >> _30) * x
        total = (total & _LOW) * x + (high >> _31) + ((high & _HALF) << _30) + coefficient
        total = (total & _P) + (total >> _61)
        total -= _P * (total >= _P)
    return total


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
