"""A random rotation that spreads a vector evenly over its coordinates, known to everybody.

After it no coordinate is much larger than the others, whatever the vector was: a sum of rotated vectors fits into few
bits, and rounding costs every direction the same. The rotation hides nothing.

Source: Ailon and Chazelle, "The Fast Johnson-Lindenstrauss Transform", SIAM Journal on Computing 2009; Kairouz, Liu and
Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", arXiv
2102.06387, section 4.
"""

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError

SEED_BYTES = 32


def padded(size: int) -> int:
    """Return the smallest power of two that is at least ``size``: how long a rotated vector is."""
    if size < 1:
        raise PlanError(f"rotation: expected at least one number, found {size}")
    return 1 << (size - 1).bit_length()


def rotate(vector: NDArray[Any], public_seed: bytes) -> NDArray[np.float64]:
    """Return ``H D x / sqrt(d)``: the vector [n], padded with zeros to a power of two d, signs flipped, transformed.

    H is the Walsh-Hadamard matrix, D a diagonal of signs made from ``public_seed`` (32 bytes, one for all clients of a
    round; chosen after the vectors, or by nobody alone, where somebody could want a sum to overflow).

    Guarantee: lengths and angles stay as they are. For a seed that does not depend on the vector each coordinate is a
    sum of independent signs with variance ``|x|^2 / d``, so that it exceeds k standard deviations with probability at
    most 2 exp(-k^2 / 2). O(d log d), in double precision.
    Raises :class:`PlanError` for another seed, or a vector that is not one-dimensional.
    """
    if vector.ndim != 1:
        raise PlanError(f"rotation: expected a vector, found shape {vector.shape}; flatten it first")
    rotated = np.zeros(padded(vector.size))
    rotated[: vector.size] = vector
    rotated *= _signs(public_seed, rotated.size)
    hadamard(rotated)
    rotated /= math.sqrt(rotated.size)
    return rotated


def unrotate(rotated: NDArray[np.float64], public_seed: bytes, size: int) -> NDArray[np.float64]:
    """Return the first ``size`` numbers of the vector that :func:`rotate` was given, or of a sum of such vectors.

    Raises :class:`PlanError` for another seed, or a length that is not the one that ``size`` numbers are padded to.
    """
    if rotated.shape != (padded(size),):
        raise PlanError(f"rotation: expected {padded(size)} numbers for a vector of {size}, found {rotated.shape}")
    vector = rotated.copy()
    hadamard(vector)
    vector *= _signs(public_seed, vector.size)
    vector /= math.sqrt(vector.size)
    return vector[:size]


def hadamard(vector: NDArray[np.floating[Any]]) -> None:
    """Multiply a contiguous vector, whose length is a power of two, by the Walsh-Hadamard matrix, in place.

    The matrix is its own inverse, times the length.
    """
    half = 1
    while half < vector.size:
        pairs = vector.reshape(-1, 2, half)
        upper, lower = pairs[:, 0], pairs[:, 1]
        upper += lower  # a + b
        lower *= -2
        lower += upper  # a + b - 2 b
        half *= 2


def _signs(public_seed: bytes, size: int) -> NDArray[np.int8]:
    """Return plus and minus ones: the bits of SHAKE-256, which every library on every machine makes alike."""
    if not isinstance(public_seed, bytes) or len(public_seed) != SEED_BYTES:
        raise PlanError(f"rotation: expected a public seed of {SEED_BYTES} bytes; take a hash of what the round is")
    stream = hashlib.shake_256(b"cloister rotation" + public_seed).digest((size + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=size).view(np.int8)
    return 1 - 2 * bits
