"""Noise that protects people: a keyed, cryptographically strong source of random numbers.

Unlike :class:`cloister.randomness.SeedTree`, whose draws anybody can repeat who knows the experiment, the draws of a
:class:`NoiseSource` can be predicted only with its key, and a key that protects people comes from the operating system.
The two types share no base and no method, so that one cannot be passed where the other belongs.

Sources: ChaCha20, RFC 8439; HKDF, RFC 5869; Box and Muller, "A note on the generation of random normal deviates", 1958.
"""

import math
import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from cloister.errors import PrivacyError

Shape = int | tuple[int, ...]

_KEY_BYTES = 32
_CHUNK = 1 << 16  # words made at a time, so that they stay in the processor's cache
_ZEROS = bytes(8 * _CHUNK)  # the cipher's keystream is what it makes of zeros
_SEGMENT_BYTES = 1 << 38  # after 2^32 blocks of 64 bytes the cipher's counter would start again
_ONE = np.uint64(0x3FF0000000000000)  # the bits of 1.0


class NoiseSource:
    """A stream of random numbers that nobody can predict without the key.

    Draws are consecutive parts of one ChaCha20 keystream: the same key and the same order of draws give the same
    numbers. :meth:`fork` depends on the key and the labels only, not on what was drawn. A source is not shared between
    threads, is never copied or pickled, and draws only in the process that made it: two holders of one stream would
    add the same noise twice, which cancels in a difference. In another process, fork under a label of its own.

    Guarantee: to whoever lacks the key, draws are computationally indistinguishable from uniform words. Gaussians are
    made of them in double precision: that the exact mechanism adds real numbers and this one adds doubles is not
    covered (Mironov 2012); where that matters use integers, as :class:`cloister.privacy.local.DiscreteLaplace` does.
    """

    __slots__ = ("_key", "_process", "_segment", "_stream", "_used")

    def __init__(self, key: bytes) -> None:
        """Use ``key``, 32 secret bytes; raises :class:`PrivacyError` for anything else."""
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            found = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise PrivacyError(f"noise key: expected {_KEY_BYTES} bytes, found {found}; use NoiseSource.fresh()")
        self._key = key
        self._process = os.getpid()
        self._segment = -1
        self._next_segment()

    @classmethod
    def fresh(cls) -> "NoiseSource":
        """Return a source whose key comes from the operating system and is held nowhere else."""
        return cls(os.urandom(_KEY_BYTES))

    def fork(self, *labels: str | int) -> "NoiseSource":
        """Return the independent source of these labels: same key and labels, same stream, whatever was drawn.

        A round that is replayed forks under the same labels, and so replays its noise. ``"1"`` and ``1`` are different
        labels. Raises :class:`PrivacyError` without a label, or for one of another type.
        """
        if not labels or any(type(label) not in (str, int) for label in labels):
            found = ", ".join(type(label).__name__ for label in labels) or "none"
            raise PrivacyError(f"noise source: expected labels that are strings or integers, found {found}")
        parts = [f"{type(label).__name__[0]}{label}".encode() for label in labels]
        # Lengths before the parts: ("ab", "c") and ("a", "bc") are different labels.
        return NoiseSource(_derive(self._key, b"fork" + b"".join(len(part).to_bytes(8) + part for part in parts)))

    def gaussian(self, shape: Shape, std: float) -> NDArray[np.float64]:
        """Return independent draws of N(0, std^2).

        No draw exceeds 8.6 ``std``, beyond which lies a probability below 1e-17. Raises :class:`PrivacyError` unless
        ``std`` is positive and finite: noise that is off is not noise.
        """
        if not (math.isfinite(std) and std > 0):
            raise PrivacyError(f"noise: expected a positive, finite standard deviation, found {std}")
        values = np.empty(shape, np.float64)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            half = (part.size + 1) // 2
            uniform = self.uniform(2 * half)
            radius = np.sqrt(np.log(uniform[:half]) * -2.0) * std
            angle = uniform[half:] * (2 * math.pi)
            part[:half] = radius * np.cos(angle)
            part[half:] = (radius * np.sin(angle))[: part.size - half]
        return values

    def uniform(self, shape: Shape) -> NDArray[np.float64]:
        """Return independent uniform draws: odd multiples of 2^-53, so that neither 0 nor 1 is one."""
        values = np.empty(shape, np.float64)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            bits = self._words(part.size)
            bits >>= np.uint64(12)
            bits |= _ONE
            np.subtract(bits.view(np.float64), 1.0 - 2.0**-53, out=part)  # exact: from [1, 2) down to (0, 1)
        return values

    def bernoulli(self, p: float, n: int) -> NDArray[np.bool_]:
        """Return ``n`` independent draws that are true with probability ``p`` (to within 2^-53).

        Raises :class:`PrivacyError` unless ``p`` is in [0, 1].
        """
        if not 0 <= p <= 1:
            raise PrivacyError(f"noise: expected a probability, found {p}")
        return self.uniform(n) < p

    def integers(self, bound: int, n: int) -> NDArray[np.int64]:
        """Return ``n`` independent draws, uniform on 0 to ``bound - 1`` exactly (words beyond are thrown away).

        Raises :class:`PrivacyError` unless ``bound`` is from 1 to 2^63.
        """
        if not 1 <= bound <= 1 << 63:
            raise PrivacyError(f"noise: expected a bound from 1 to 2^63, found {bound}")
        largest = np.uint64((1 << 64) // bound * bound - 1)  # the last word before an incomplete run of remainders
        words = self._words(n)
        while (wrong := words > largest).any():
            words[wrong] = self._words(int(wrong.sum()))
        return (words % np.uint64(bound)).astype(np.int64)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """Return 0 to ``n - 1`` in an order uniform over all orders: that of ``n`` distinct random words."""
        while True:
            words = self._words(n)
            order = np.argsort(words)
            if not (np.diff(words[order]) == 0).any():
                return order.astype(np.int64)

    def __repr__(self) -> str:
        """Return the type alone; the key is never shown."""
        return "NoiseSource(...)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled."""
        raise PrivacyError("a noise source cannot be copied or pickled; fork it under a label of its own")

    def _words(self, n: int) -> NDArray[np.uint64]:
        if os.getpid() != self._process:
            raise PrivacyError(
                f"noise source: expected to draw in process {self._process} that made it, found {os.getpid()}, which "
                "would repeat the same noise; fork the source under a label of this process"
            )
        buffer = bytearray(8 * n)
        view = memoryview(buffer)
        while len(view):
            size = min(len(view), len(_ZEROS), _SEGMENT_BYTES - self._used)
            self._stream.update_into(memoryview(_ZEROS)[:size], view[:size])
            view = view[size:]
            self._used += size
            if self._used == _SEGMENT_BYTES:
                self._next_segment()
        return np.frombuffer(buffer, "<u8").astype(np.uint64, copy=False)

    def _next_segment(self) -> None:
        self._segment += 1
        self._used = 0
        nonce = bytes(4) + self._segment.to_bytes(12, "little")  # a block counter from 0, then the nonce proper
        self._stream: CipherContext = Cipher(
            algorithms.ChaCha20(_derive(self._key, b"stream"), nonce), None
        ).encryptor()


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"cloister noise " + purpose).derive(key)
