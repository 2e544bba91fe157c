"""How a message of secure aggregation is cut into fields, and refused as soon as a field does not fit.

Numbers are big-endian and unsigned; nothing is self-describing and nothing is executed. A list is a count and entries
of one width, and its count is compared with the bytes that are there before anything is made of it: what a decoder
allocates is bounded by a small multiple of what arrived, whatever the message claims.
"""

from collections.abc import Iterator
from enum import IntEnum

from cloister.errors import SecureSumError

MAGIC, VERSION = b"CSA", 1
DIGEST = 32
"""Bytes of a digest, a key and a session's identity."""
HEADER = 9 + DIGEST
"""Bytes before what differs between kinds."""


class Kind(IntEnum):
    """What a message is; in brackets who sends it."""

    TERMS = 0  # server: what the round is
    ADVERTISE = 1  # client: its two public keys
    COHORT = 2  # server: everybody's keys
    SHARES = 3  # client: one sealed pair of shares for each holder
    DELIVERY = 4  # server: the sealed pairs for one client
    MASKED = 5  # client: its masked vector
    SURVIVORS = 6  # server: whose vectors it has
    CONSISTENCY = 7  # client: that it was shown these survivors
    AGREEMENT = 8  # server: other clients' signatures under the same survivors
    UNMASK = 9  # client: one share for each peer


def header(kind: Kind, round: int, scope: bytes) -> bytes:
    """Return what every message begins with."""
    return MAGIC + bytes((VERSION, kind)) + round.to_bytes(4) + scope


def kind_of(data: bytes) -> Kind:
    """Return what kind of message ``data`` claims to be; raises :class:`SecureSumError` if it is none."""
    if not isinstance(data, bytes):
        raise SecureSumError(f"malformed message: expected bytes, found {type(data).__name__}")
    if len(data) < 5 or data[:3] != MAGIC or data[3] != VERSION or data[4] not in Kind.__members__.values():
        raise SecureSumError(
            f"malformed message: expected {MAGIC!r}, version {VERSION} and a known kind, found {data[:5]!r}; both ends "
            "need the same version of Cloister"
        )
    return Kind(data[4])


class Reader:
    """The fields of one message, in order. Every method raises :class:`SecureSumError` where bytes are missing."""

    def __init__(self, data: bytes, kind: Kind) -> None:
        """Read the header of ``data``; raises :class:`SecureSumError` for another kind than ``kind``."""
        found = kind_of(data)
        self._data = data
        self._kind = kind
        self._at = 5
        if found is not kind:
            raise self.error(f"found {found.name.lower()}")
        self.round = self.number(4)
        self.scope = self.take(DIGEST)

    def error(self, problem: str) -> SecureSumError:
        """Return the error for this message."""
        return SecureSumError(f"malformed message: expected {self._kind.name.lower()}, {problem}")

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if size > self.left:
            raise self.error(f"{size} more bytes after byte {self._at}, found {self.left}")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """Return the next ``size`` bytes as a number."""
        return int.from_bytes(self.take(size))

    def rest(self, tail: int = 0) -> bytes:
        """Return all bytes but the last ``tail``."""
        return self.take(max(self.left - tail, 0))

    def count(self, width: int, tail: int = 0) -> int:
        """Return the length of a list of entries of ``width`` bytes, which fills all but the last ``tail`` bytes."""
        count = self.number(4)
        if count * width + tail != self.left:
            raise self.error(f"{count} entries of {width} bytes and {tail} bytes, found {self.left} bytes")
        return count

    def entries(self, width: int, tail: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield the entries of a list: a client, in ascending order, and ``width`` bytes."""
        previous = -1
        for _ in range(self.count(4 + width, tail)):
            client = self.number(4)
            if client <= previous:
                raise self.error(f"clients in ascending order, found {client} after {previous}")
            previous = client
            yield client, self.take(width)

    def end(self) -> None:
        """Refuse bytes that nobody read."""
        if self.left:
            raise self.error(f"its end after byte {self._at}, found {self.left} more bytes")


def entries(pairs: Iterator[tuple[int, bytes]]) -> bytes:
    """Return a list as :meth:`Reader.entries` reads it; the pairs are in ascending order and of one width."""
    parts = [client.to_bytes(4) + data for client, data in pairs]
    return len(parts).to_bytes(4) + b"".join(parts)
