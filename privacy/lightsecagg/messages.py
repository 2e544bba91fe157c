"""What is sent in LightSecAgg, as bytes of a known length: versioned, checked before anything is allocated, no pickle.

Format of every message, little-endian: ``CLSA``, version (1 byte), kind (1 byte), session (16 bytes), three unsigned
32-bit numbers, payload. Elements are unsigned 32-bit numbers below the prime. All decoders raise
:class:`~cloister.errors.SecureSumError` for anything else than what an encoder of the same terms makes.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.field import ELEMENT_BYTES, PRIME, Elements
from cloister.privacy.lightsecagg.terms import SESSION_BYTES, Terms

VERSION = 1
_MAGIC = b"CLSA"
_HEAD = struct.Struct(f"<4sBB{SESSION_BYTES}sIII")
_ENTRY = struct.Struct("<III")
_MOST = 2**32 - 1


class Kind(IntEnum):
    """The kinds of messages, as on the wire."""

    SHARE = 1
    SEALED = 2
    UPLOAD = 3
    REQUEST = 4
    ANSWER = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """User ``sender``'s share of the mask of its upload ``number``, for user ``receiver`` alone: sent sealed."""

    sender: int
    receiver: int
    number: int
    values: Elements

    def encode(self, terms: Terms) -> bytes:
        """Return the message, which is secret."""
        return _packed(Kind.SHARE, terms, (self.sender, self.receiver, self.number), _bytes(self.values))

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        """Return the message in ``data``."""
        (sender, receiver, number), payload = _unpacked(Kind.SHARE, data, terms)
        terms.check_place(sender)
        terms.check_place(receiver)
        values = _elements(payload, terms.length)
        return cls(sender=sender, receiver=receiver, number=number, values=values)


@dataclass(frozen=True, kw_only=True)
class SealedShare:
    """A :class:`Share` that only its receiver can open; what the server passes on."""

    sender: int
    receiver: int
    number: int
    sealed: bytes

    def encode(self, terms: Terms) -> bytes:
        """Return the message."""
        return _packed(Kind.SEALED, terms, (self.sender, self.receiver, self.number), self.sealed)

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        """Return the message in ``data``; what is sealed may be up to 64 bytes longer than a share."""
        (sender, receiver, number), payload = _unpacked(Kind.SEALED, data, terms)
        terms.check_place(sender)
        terms.check_place(receiver)
        least = _HEAD.size + terms.length * ELEMENT_BYTES
        if not least <= len(payload) <= least + 64:
            raise _fault(f"{least} to {least + 64} sealed bytes", f"{len(payload)}")
        return cls(sender=sender, receiver=receiver, number=number, sealed=bytes(payload))


@dataclass(frozen=True, kw_only=True, eq=False)
class Upload:
    """User ``sender``'s masked vector, its upload ``number``."""

    sender: int
    number: int
    values: Elements

    def encode(self, terms: Terms) -> bytes:
        """Return the message."""
        return _packed(Kind.UPLOAD, terms, (self.sender, self.number, 0), _bytes(self.values))

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        """Return the message in ``data``."""
        (sender, number, zero), payload = _unpacked(Kind.UPLOAD, data, terms)
        terms.check_place(sender)
        _check_unused(zero)
        return cls(sender=sender, number=number, values=_elements(payload, terms.size))


@dataclass(frozen=True, kw_only=True)
class Request:
    """The server's question: the weighted sum of the shares of these uploads.

    ``step`` numbers the sums of a session. ``weights``: public weight by (user, number of its upload).
    """

    step: int
    weights: Mapping[tuple[int, int], int]

    def encode(self, terms: Terms) -> bytes:
        """Return the message."""
        entries = (_ENTRY.pack(*upload, weight) for upload, weight in sorted(self.weights.items()))
        return _packed(Kind.REQUEST, terms, (self.step, len(self.weights), 0), b"".join(entries))

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        """Return the message in ``data``: each user once at most, in ascending order, weights within the terms."""
        (step, count, zero), payload = _unpacked(Kind.REQUEST, data, terms)
        _check_unused(zero)
        if count > terms.users or len(payload) != count * _ENTRY.size:
            raise _fault(f"at most {terms.users} uploads of {_ENTRY.size} bytes", f"{count} in {len(payload)}")
        entries = list(_ENTRY.iter_unpack(payload))
        users = [user for user, _, _ in entries]
        if users != sorted(set(users)):
            raise _fault("one upload of a user, in ascending order", "another order, or a user twice")
        for user, _, weight in entries:
            terms.check_place(user)
            if not 1 <= weight <= terms.heaviest:
                raise _fault(f"weights from 1 to {terms.heaviest}", f"{weight}")
        return cls(step=step, weights={(user, number): weight for user, number, weight in entries})


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """User ``sender``'s answer to the request of ``step``: the weighted sum of the shares that it holds."""

    sender: int
    step: int
    values: Elements

    def encode(self, terms: Terms) -> bytes:
        """Return the message."""
        return _packed(Kind.ANSWER, terms, (self.sender, self.step, 0), _bytes(self.values))

    @classmethod
    def decode(cls, data: bytes, terms: Terms) -> Self:
        """Return the message in ``data``."""
        (sender, step, zero), payload = _unpacked(Kind.ANSWER, data, terms)
        terms.check_place(sender)
        _check_unused(zero)
        return cls(sender=sender, step=step, values=_elements(payload, terms.length))


def _packed(kind: Kind, terms: Terms, numbers: tuple[int, int, int], payload: bytes) -> bytes:
    if not all(0 <= number <= _MOST for number in numbers):
        raise _fault("numbers that fit 32 bits", f"{numbers}")
    return _HEAD.pack(_MAGIC, VERSION, kind, terms.session, *numbers) + payload


def _unpacked(kind: Kind, data: bytes, terms: Terms) -> tuple[tuple[int, int, int], memoryview]:
    if len(data) < _HEAD.size:
        raise _fault(f"{_HEAD.size} bytes or more", f"{len(data)}")
    magic, version, found, session, *numbers = _HEAD.unpack_from(data)
    if (magic, version, found) != (_MAGIC, VERSION, kind):
        raise _fault(f"{kind.name.lower()} of version {VERSION}", f"kind {found} of version {version}")
    if session != terms.session:
        raise _fault("this session", "another")
    return (numbers[0], numbers[1], numbers[2]), memoryview(data)[_HEAD.size :]


def _bytes(values: Elements) -> bytes:
    return values.astype("<u4").tobytes()


def _elements(payload: memoryview, count: int) -> Elements:
    if len(payload) != count * ELEMENT_BYTES:
        raise _fault(f"{count} elements of {ELEMENT_BYTES} bytes", f"{len(payload)} bytes")
    words = np.frombuffer(payload, "<u4")
    if (words >= PRIME).any():
        raise _fault("elements below the prime", "larger ones")
    return words.astype(np.uint64)


def _check_unused(number: int) -> None:
    if number != 0:
        raise _fault("0 where nothing belongs", f"{number}")


def _fault(expected: str, found: str) -> SecureSumError:
    return SecureSumError(
        f"LightSecAgg message: expected {expected}, found {found}; nothing of it is used: send it again as it was made"
    )
