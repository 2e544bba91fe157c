"""Random linear sketches: that a sum is the sum of committed vectors, without the vectors.

Each client commits to its masked vector y_u, of integers modulo R = 2^bits, by hash. The server adds them up, and
announces the hash of the total T. From a hash over *all of these* follows the public challenge: 128 vectors r_j of
bits. Each client publishes its sketch, (<r_1, y_u>, ..., <r_128, y_u>) modulo R, and signs it. The sum of the sketches
must be the sketch of T.

What it shows. If T differs from the sum of the vectors of which the signed sketches were made, by any D != 0 modulo R,
one equation holds with probability at most 1/2 over r_j: given all bits but that of a coordinate i with D_i != 0, of
its two values at most one solves it. So all 128 hold with probability at most 2^-128. Coefficients from all of Z_R
would do no better: D = 2^(bits-1) in one coordinate passes each with probability 1/2, since R is no prime; that is the
price of a power of two, and why there are 128 and not one. The challenge comes from a hash, so whoever makes T can try
many; 128 equations leave nothing to try (in the random oracle model).

Against whom. A server that adds wrongly, leaves out a client that it lists, or adds one that it does not. Not against a
client: a signed sketch that does not belong to the hashed vector makes the sum come out wrong, which shows that
*somebody* cheated, and who it was shows only where vectors are kept (:func:`of_sum` is the same check with them). A
client and the server together can make up that client's vector, here as before. Nothing is shown about what is in a
vector, nor about the masks: that the announced sum of the masks is what the clients' seeds give has to be seen from
the seeds.

What it gives away. Linear functions of masked vectors, which the server has anyway; masks hide them as they hide the
vectors.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from cloister.errors import TranscriptError
from cloister.privacy.chain import canonical

Vector = npt.NDArray[np.unsignedinteger[Any]]

EQUATIONS = 128
_ROW = EQUATIONS // 8  # bytes of challenge for one coordinate
_CHUNK = 1 << 13  # coordinates at a time: sums of so many 32-bit numbers are exact in float64


def word(bits: int) -> np.dtype[Any]:
    """Return the type in which numbers modulo 2^bits are kept: little-endian, 32 bits, or 64 where it must be."""
    return np.dtype("<u4") if bits <= 32 else np.dtype("<u8")


def vector_digest(vector: Vector, bits: int) -> str:
    """Return the SHA-256 (hex) of a vector modulo 2^bits, one number after the other as :func:`word`."""
    return hashlib.sha256(as_words(vector, bits).data).hexdigest()


def as_words(vector: Vector, bits: int) -> Vector:
    """Return the vector as it is hashed and kept. Raises :class:`TranscriptError` for numbers of 2^bits and above."""
    vector = np.ascontiguousarray(vector).reshape(-1)
    if vector.dtype.kind != "u" or (vector.size and int(vector.max()) >> bits):
        raise TranscriptError(
            f"vector: expected unsigned integers below 2^{bits}, found {vector.dtype} up to "
            f"{vector.max(initial=0)}; reduce it first"
        )
    return vector.astype(word(bits), copy=False)


def challenge(run: str, round: int, layout: str, bits: int, commitments: Mapping[str, str], total: str) -> bytes:
    """Return the 32 bytes from which the bits r_j follow, once everything that they judge is fixed.

    ``commitments``: digest of the vector of every client that counts, by name. ``total``: digest of the sum.
    """
    fixed = {"run": run, "round": round, "layout": layout, "bits": bits, "clients": dict(commitments), "total": total}
    return hashlib.sha256(b"cloister sketch, version 1\n" + canonical(fixed).encode()).digest()


def sketch(vector: Vector, seed: bytes, bits: int) -> tuple[int, ...]:
    """Return <r_j, vector> modulo 2^bits for each of the 128 vectors of bits that follow from a challenge.

    Takes about 10 ms for 100,000 coordinates, and a fixed amount of memory whatever their number.
    """
    words = as_words(vector, bits)
    return of_parts((words[start : start + _CHUNK] for start in range(0, words.size, _CHUNK)), seed, bits)


def of_parts(parts: Iterable[Vector], seed: bytes, bits: int) -> tuple[int, ...]:
    """Return the sketch of a vector that comes in consecutive parts."""
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    low, high = np.zeros(EQUATIONS, np.uint64), np.zeros(EQUATIONS, np.uint64)
    for part in _chunks(parts):
        rows = np.frombuffer(stream.update(bytes(part.size * _ROW)), np.uint8).reshape(part.size, _ROW)
        chosen = np.unpackbits(rows, axis=1).astype(np.float64)
        low += (_half(part, 0) @ chosen).astype(np.uint64)
        if bits > 32:
            high += (_half(part, 32) @ chosen).astype(np.uint64)
    mask = (1 << bits) - 1
    return tuple((int(a) + (int(b) << 32)) & mask for a, b in zip(low, high, strict=True))


def added(sketches: Iterable[Sequence[int]], bits: int) -> tuple[int, ...]:
    """Return the sum of sketches modulo 2^bits, equation by equation."""
    total = [0] * EQUATIONS
    for each in sketches:
        total = [(a + b) & ((1 << bits) - 1) for a, b in zip(total, each, strict=True)]
    return tuple(total)


def to_hex(numbers: Sequence[int], bits: int) -> str:
    """Return a sketch as the hexadecimal text that a transcript holds."""
    return np.asarray(numbers, np.uint64).astype(word(bits)).tobytes().hex()


def from_hex(text: str, bits: int) -> tuple[int, ...]:
    """Return the sketch that :func:`to_hex` wrote; raises :class:`TranscriptError` for one of another length."""
    data = bytes.fromhex(text)
    if len(data) != EQUATIONS * word(bits).itemsize:
        raise TranscriptError(
            f"sketch: expected {EQUATIONS} numbers of {word(bits).itemsize} bytes, found {len(data)} bytes; it was "
            "changed, or is that of another width"
        )
    return tuple(int(number) for number in np.frombuffer(data, word(bits)))


def _chunks(parts: Iterable[Vector]) -> Iterator[Vector]:
    """Cut every part to pieces whose sums are exact; only the last may be short, or the bits would shift."""
    for part in parts:
        for start in range(0, part.size, _CHUNK):
            yield part[start : start + _CHUNK]


def _half(part: Vector, shift: int) -> npt.NDArray[np.float64]:
    return ((part >> np.asarray(shift, part.dtype)) & np.asarray(0xFFFFFFFF, part.dtype)).astype(np.float64)
