"""Arithmetic modulo the prime 2^31 - 1, exact, on arrays of unsigned 64-bit words.

An element is a word below the prime. Products of two are below 2^62, so three of them and an element can be added
before a reduction is due; the prime is a Mersenne prime, so a reduction is shifts and additions.
"""

import numpy as np
from numpy.typing import NDArray

from cloister.privacy.noise import NoiseSource

PRIME = (1 << 31) - 1
ELEMENT_BYTES = 4
Elements = NDArray[np.uint64]

_P, _BITS = np.uint64(PRIME), np.uint64(31)
_BLOCK = 1 << 15  # columns at a time, so that sums stay in the processor's cache
_TERMS = 3  # products that can be added to an element without leaving 64 bits: 3 (p - 1)^2 + p - 1 < 2^64


def reduced(values: Elements) -> Elements:
    """Return ``values`` modulo the prime, in place: any words become elements."""
    for _ in range(2):  # 2^31 = 1 modulo the prime, so the upper bits are added to the lower 31
        high = values >> _BITS
        values &= _P
        values += high
    values -= (values >= _P) * _P
    return values


def integers(values: NDArray[np.int64]) -> Elements:
    """Return signed integers as elements: a negative one is counted down from the prime."""
    return np.mod(values, PRIME).astype(np.uint64)


def centred(elements: Elements) -> NDArray[np.int64]:
    """Return elements as the signed integers nearest to zero, from ``-(p - 1) / 2`` to ``(p - 1) / 2``."""
    signed = elements.astype(np.int64)
    signed[signed > PRIME // 2] -= PRIME
    return signed


def uniform(n: int, source: NoiseSource) -> Elements:
    """Return ``n`` independent elements, each exactly uniform: random words beyond a multiple of p are thrown away."""
    return source.integers(PRIME, n).astype(np.uint64)


def product(matrix: Elements, rows: Elements) -> Elements:
    """Return the matrix product ``matrix @ rows`` of shapes (a, k) and (k, m), as (a, m)."""
    result = np.zeros((matrix.shape[0], rows.shape[1]), np.uint64)
    for start in range(0, rows.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        for total, factors in zip(result[:, columns], matrix, strict=True):
            for term, (factor, row) in enumerate(zip(factors, rows[:, columns], strict=True), 1):
                total += factor * row
                if term % _TERMS == 0:
                    reduced(total)
            reduced(total)
    return result


def inverse(element: int) -> int:
    """Return the element whose product with ``element`` is 1. Raises ValueError for multiples of the prime."""
    return pow(element, -1, PRIME)
