"""Masks: ChaCha20 key streams that are added to an integer vector, and subtracted by whoever holds the same seed.

The key of a stream comes by HKDF-SHA256 from all 256 bits of the seed, with the session as salt, and with the round,
the layout, the width, the length and the vector's name as context: whatever differs, the streams have nothing in
common, and no two vectors of a session share one. Without the seed a masked vector cannot be told from random words.

Sources: Bonawitz et al. 2017, section 4 (masks); RFC 8439 (ChaCha20); RFC 5869 (HKDF).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numpy.typing import NDArray

from cloister.errors import SecureSumError
from cloister.privacy.secagg.keys import Secret, derive, message

Words = NDArray[np.uint32 | np.uint64]

LONGEST_BYTES = 1 << 38
"""After 2^32 blocks of 64 bytes the cipher's counter would start again."""

_CHUNK = 1 << 16  # words: their key stream and a part of the vector stay in the processor's cache


@dataclass(frozen=True)
class Stream:
    """The masks of one round of one session, modulo 2^``bits``.

    ``session``: the session's digest; ``layout``: that of the vector's layout; ``bits``: 1 to 64. Vectors have words of
    32 bits where ``bits`` is at most 32, otherwise of 64 (:attr:`dtype`).

    A seed masks one vector under one name: the difference of two vectors under the same mask shows. Sessions make new
    keys, so it is enough that a session masks once per round and name.
    """

    session: bytes
    round: int
    layout: bytes
    bits: int

    def __post_init__(self) -> None:
        """Raise :class:`SecureSumError` for a missing session or layout, a negative round or no such width."""
        if not self.session or not self.layout or not 0 <= self.round < 1 << 63:
            raise SecureSumError(f"masks: expected a session, a layout and a round from 0, found round {self.round}")
        words(self.bits)

    @property
    def dtype(self) -> type[np.uint32] | type[np.uint64]:
        """The type of the vectors that are masked."""
        return words(self.bits)

    def add(self, vector: Words, seed: Secret, name: str) -> None:
        """Add the mask of ``seed`` and ``name`` to ``vector``, in place, modulo 2^``bits``; see :meth:`apply`."""
        self.apply(vector, name, add=(seed,))

    def subtract(self, vector: Words, seed: Secret, name: str) -> None:
        """Subtract the mask of ``seed`` and ``name`` from ``vector``, in place; see :meth:`apply`."""
        self.apply(vector, name, subtract=(seed,))

    def apply(self, vector: Words, name: str, *, add: Iterable[Secret] = (), subtract: Iterable[Secret] = ()) -> None:
        """Add and subtract the masks of many seeds, in place, modulo 2^``bits``.

        Every part of ``vector`` passes through all the streams while it is in the processor's cache, so that memory is
        read and written once, however many neighbours a client has. Beside the vector it takes half a MiB.

        Raises :class:`SecureSumError` unless ``vector`` is a contiguous, writable vector of :attr:`dtype`.
        """
        self._check(vector)
        seeds = [*((np.add, seed) for seed in add), *((np.subtract, seed) for seed in subtract)]
        streams = [(combine, self._cipher(vector.size, seed, name)) for combine, seed in seeds]
        width = vector.dtype.itemsize
        zeros, buffer = memoryview(bytes(width * _CHUNK)), bytearray(width * _CHUNK)
        key_stream = np.frombuffer(buffer, f"<u{width}")
        for start in range(0, vector.size, _CHUNK):
            part = vector[start : start + _CHUNK]
            for combine, cipher in streams:
                cipher.update_into(zeros[: width * part.size], buffer)
                combine(part, key_stream[: part.size], out=part)
            if self.bits < 8 * width:
                part &= part.dtype.type((1 << self.bits) - 1)
        key_stream.fill(0)

    def _check(self, vector: Words) -> None:
        found: Any = vector
        if not isinstance(found, np.ndarray) or found.dtype != self.dtype or found.ndim != 1:
            what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise SecureSumError(f"masks of {self.bits} bits: expected a vector of {self.dtype.__name__}, found {what}")
        if not (found.flags.c_contiguous and found.flags.writeable) or found.nbytes > LONGEST_BYTES:
            raise SecureSumError(
                "masks: expected a contiguous, writable vector of at most 2^38 bytes, found another; copy it, or mask "
                "it in parts under names of their own"
            )

    def _cipher(self, length: int, seed: Secret, name: str) -> CipherContext:
        numbers = (number.to_bytes(8) for number in (self.round, self.bits, length))
        key = derive(seed, salt=self.session, info=message("cloister mask", self.layout, name.encode(), *numbers))
        try:
            # Counter and nonce are 0: each key has one stream.
            return Cipher(algorithms.ChaCha20(key.view(), bytes(16)), None).encryptor()
        finally:
            key.wipe()


def words(bits: int) -> type[np.uint32] | type[np.uint64]:
    """Return the type of words that hold integers modulo 2^``bits``. Raises :class:`SecureSumError` unless 1 to 64."""
    if type(bits) is not int or not 1 <= bits <= 64:
        raise SecureSumError(f"modulus: expected 2^1 to 2^64, found 2^{bits}; choose fewer bits")
    return np.uint32 if bits <= 32 else np.uint64
