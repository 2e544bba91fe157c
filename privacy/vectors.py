"""What is kept beside a transcript, each piece in a file named after its digest: sums, and messages with vectors.

Numbers modulo 2^bits lie one after the other as :func:`~cloister.privacy.sketch.word`. Messages lie
as clients signed them. Whoever keeps masked vectors keeps what the server saw anyway; whoever publishes them gives it
to everybody, who can do no more with it.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cloister.errors import SecureSumError, TranscriptError
from cloister.privacy.chain import write_synced
from cloister.privacy.secagg.keys import SIGNATURE_BYTES
from cloister.privacy.secagg.messages import Masked
from cloister.privacy.sketch import Vector, as_words, of_parts, vector_digest, word
from cloister.privacy.transcript import ModularSum

_BLOCK = 1 << 17  # numbers at a time, a whole number of a sketch's chunks
_SUFFIX = ".bin"


def keep(folder: Path, vector: Vector, bits: int) -> str:
    """Write a vector into ``folder`` and return its digest; nothing is written where it is there already.

    Raises :class:`TranscriptError` where it cannot be written.
    """
    words = as_words(vector, bits)
    digest = hashlib.sha256(words.data).hexdigest()
    keep_bytes(folder, digest, words.tobytes())
    return digest


def keep_bytes(folder: Path, digest: str, data: bytes) -> None:
    """Write bytes with this digest into ``folder``; raises :class:`TranscriptError` where they cannot be written."""
    path = folder / f"{digest}{_SUFFIX}"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_synced(path, data)
    except OSError as error:
        raise TranscriptError(
            f"{path}: cannot be written ({error}); free disk space, or keep no masked vectors"
        ) from error


def committed(masked: Vector, announced: Vector, bits: int, folder: Path | None) -> ModularSum:
    """Return what the server commits to of a secure sum: of masked vectors, and of what they hold.

    ``folder``: where the sums are kept, beside the messages that were summed; None for nowhere.
    """
    size, mask = masked.size, np.asarray((1 << bits) - 1, masked.dtype)
    sums = {"total": masked, "masks": (masked - announced) & mask, "announced": announced & mask}
    digests = {
        name: keep(folder, vector, bits) if folder else vector_digest(vector, bits) for name, vector in sums.items()
    }
    return ModularSum(bits=bits, size=size, kept=folder is not None, vectors=folder is not None, **digests)


class Kept:
    """The vectors of one round in a folder, read part by part: one is in memory at a time, where one is summed."""

    def __init__(self, folder: Path, bits: int, size: int) -> None:
        """Read vectors of ``size`` numbers modulo 2^``bits``."""
        self._folder, self._bits, self._size = folder, bits, size

    def problem(self, digest: str) -> str:
        """Return what is wrong with the file of a vector: "" if it has this digest, this length and small numbers."""
        path = self._folder / f"{digest}{_SUFFIX}"
        hashed, count, most = hashlib.sha256(), 0, 0
        try:
            for part in self._parts(digest):
                hashed.update(part.data)
                count, most = count + part.size, max(most, int(part.max(initial=0)))
        except (OSError, ValueError) as error:
            return f"{path.name}, which cannot be read ({type(error).__name__})"
        if hashed.hexdigest() != digest:
            return f"{path.name} with hash {hashed.hexdigest()}"
        if count != self._size or most >> self._bits:
            return f"{path.name} with {count} numbers up to {most}"
        return ""

    def message(self, digest: str) -> Masked | str:
        """Return the message with this digest that holds a masked vector, or what is wrong with its file."""
        path = self._folder / f"{digest}{_SUFFIX}"
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                return f"{path.name} with hash {hashlib.sha256(data).hexdigest()}"
            found = Masked.decode(data + bytes(SIGNATURE_BYTES))
        except (OSError, SecureSumError) as error:
            return f"{path.name}, which cannot be read ({error})"
        if (found.bits, found.vector.size) != (self._bits, self._size):
            return f"{path.name} with {found.vector.size} numbers of {found.bits} bits"
        return found

    def zeros(self) -> Vector:
        """Return a sum of nothing."""
        return np.zeros(self._size, word(self._bits))

    def reduced(self, total: Vector) -> str:
        """Return the digest of ``total`` modulo 2^bits."""
        hashed = hashlib.sha256()
        for start in range(0, total.size, _BLOCK):
            hashed.update(self._low(total[start : start + _BLOCK]).data)
        return hashed.hexdigest()

    def is_difference(self, announced: str, total: str, masks: str) -> bool:
        """Return whether the vector ``announced`` is ``total`` minus ``masks`` modulo 2^bits."""
        parts = zip(self._parts(announced), self._parts(total), self._parts(masks), strict=True)
        return all(np.array_equal(self._low(a), self._low(b - c)) for a, b, c in parts)

    def sketch(self, digest: str, seed: bytes) -> tuple[int, ...]:
        """Return the sketch of a vector."""
        return of_parts(self._parts(digest), seed, self._bits)

    def _low(self, part: Vector) -> Vector:
        return part & np.asarray((1 << self._bits) - 1, part.dtype)

    def _parts(self, digest: str) -> Iterator[Vector]:
        kind = word(self._bits)
        with (self._folder / f"{digest}{_SUFFIX}").open("rb") as file:
            read: Callable[[], bytes] = lambda: file.read(_BLOCK * kind.itemsize)  # noqa: E731
            yield from (np.frombuffer(data, kind) for data in iter(read, b""))
