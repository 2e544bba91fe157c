"""The messages of secure aggregation, in the order in which they are sent.

Clients sign what they send: their identity's signature covers the kind of message, the round, the scope (before the
keys are known the terms', then the session's digest) and everything else in it, so that a message is none of another
client, round, layout or cohort. Servers do not sign: whatever a server says is checked against what clients signed.

Every ``decode`` raises :class:`~cloister.errors.SecureSumError`, and nothing else, for bytes that are not exactly what
``encode`` returns for one message; it allocates at most a small multiple of the bytes it was given.

Source: Bonawitz et al. 2017, section 4 and figure 4.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from cloister.errors import SecureSumError
from cloister.privacy.secagg.keys import PUBLIC_BYTES, SEAL_BYTES, SIGNATURE_BYTES, Identity, verify
from cloister.privacy.secagg.masks import Words, words
from cloister.privacy.secagg.shares import LARGEST_PLACE, SHARE_BYTES, KeyShare, SeedShare
from cloister.privacy.secagg.wire import Kind, Reader, entries, header

SEALED_BYTES = SEAL_BYTES + 4 + 2 * SHARE_BYTES
"""Bytes of a sealed pair of shares."""

_SEED, _KEY = b"s", b"k"


@dataclass(frozen=True, kw_only=True)
class Message(ABC):
    """``round``: from 1. ``scope``: 32 bytes, the digest of the terms or of the session that the message belongs to."""

    kind: ClassVar[Kind]
    round: int
    scope: bytes

    def encode(self) -> bytes:
        """Return the message as bytes."""
        return header(self.kind, self.round, self.scope) + self._content()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message that ``data`` holds; raises :class:`SecureSumError` if it does not hold exactly one."""
        reader = Reader(data, cls.kind)
        values = cls._read(reader)
        reader.end()
        return cls(round=reader.round, scope=reader.scope, **values)

    @abstractmethod
    def _content(self) -> bytes:
        """Return what follows the header."""

    @classmethod
    @abstractmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        """Return the fields in what follows the header."""


@dataclass(frozen=True, kw_only=True)
class Signed(Message):
    """A message of ``client``, and its signature."""

    client: int
    signature: bytes = field(default=bytes(SIGNATURE_BYTES), repr=False)

    def signed(self, identity: Identity) -> Self:
        """Return this message with the signature of ``identity``."""
        return replace(self, signature=identity.sign(self._purpose(), self.digest()))

    def verify(self, public: bytes) -> None:
        """Raise :class:`SecureSumError` unless the signature is that of the identity ``public``."""
        verify(public, self.signature, self._purpose(), self.digest())

    def digest(self) -> bytes:
        """Return the SHA-256 of everything that is signed, header included: a commitment to the message."""
        return hashlib.sha256(self.encode()[:-SIGNATURE_BYTES]).digest()

    def _purpose(self) -> str:
        return f"secure aggregation, {self.kind.name.lower()}"

    def _content(self) -> bytes:
        return self.client.to_bytes(4) + self._body() + self.signature

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        client = reader.number(4)
        values = cls._read_body(reader)
        return {"client": client, **values, "signature": reader.take(SIGNATURE_BYTES)}

    @abstractmethod
    def _body(self) -> bytes:
        """Return what lies between client and signature."""

    @classmethod
    @abstractmethod
    def _read_body(cls, reader: Reader) -> dict[str, Any]:
        """Return the fields between client and signature."""


@dataclass(frozen=True, kw_only=True)
class Advertise(Signed):
    """A client's public keys for this session: ``sealing`` for what it sends to peers, ``masking`` for masks."""

    kind = Kind.ADVERTISE
    sealing: bytes
    masking: bytes

    def _body(self) -> bytes:
        return self.sealing + self.masking

    @classmethod
    def _read_body(cls, reader: Reader) -> dict[str, Any]:
        return {"sealing": reader.take(PUBLIC_BYTES), "masking": reader.take(PUBLIC_BYTES)}


@dataclass(frozen=True, kw_only=True)
class Cohort(Message):
    """Everybody's advertisement, in ascending order of clients. ``scope``: the terms'."""

    kind = Kind.COHORT
    advertised: tuple[Advertise, ...]

    def _content(self) -> bytes:
        return entries((each.client, each.sealing + each.masking + each.signature) for each in self.advertised)

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        cut, end = PUBLIC_BYTES, 2 * PUBLIC_BYTES
        advertised = tuple(
            Advertise(
                round=reader.round,
                scope=reader.scope,
                client=client,
                sealing=keys[:cut],
                masking=keys[cut:end],
                signature=keys[end:],
            )
            for client, keys in reader.entries(end + SIGNATURE_BYTES)
        )
        return {"advertised": advertised}


@dataclass(frozen=True, kw_only=True)
class Shares(Signed):
    """For each holder of the client's shares, in ascending order, a pair that only the holder can open."""

    kind = Kind.SHARES
    sealed: tuple[tuple[int, bytes], ...] = field(repr=False)

    def _body(self) -> bytes:
        return entries(iter(self.sealed))

    @classmethod
    def _read_body(cls, reader: Reader) -> dict[str, Any]:
        return {"sealed": tuple(reader.entries(SEALED_BYTES, SIGNATURE_BYTES))}


@dataclass(frozen=True, kw_only=True)
class Delivery(Message):
    """What peers sealed for one client: sender and sealed pair, in ascending order of senders."""

    kind = Kind.DELIVERY
    sealed: tuple[tuple[int, bytes], ...] = field(repr=False)

    def _content(self) -> bytes:
        return entries(iter(self.sealed))

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        return {"sealed": tuple(reader.entries(SEALED_BYTES))}


@dataclass(frozen=True, kw_only=True)
class Masked(Signed):
    """The client's masked vector: integers modulo 2^``bits``, each in as few bytes as hold ``bits``."""

    kind = Kind.MASKED
    bits: int
    vector: Words = field(repr=False)

    def _body(self) -> bytes:
        return bytes((self.bits,)) + self.vector.size.to_bytes(8) + pack(self.vector, self.bits)

    @classmethod
    def _read_body(cls, reader: Reader) -> dict[str, Any]:
        bits, size = reader.number(1), reader.number(8)
        words(bits)
        if (found := reader.left - SIGNATURE_BYTES) != size * width(bits):
            raise reader.error(f"{size} words of {width(bits)} bytes, found {found} bytes")
        vector = unpack(reader.rest(SIGNATURE_BYTES), bits)
        if bits % 8 and int(vector.max(initial=0)) >> bits:
            raise reader.error(f"integers below 2^{bits}, found a larger one")
        return {"bits": bits, "vector": vector}


@dataclass(frozen=True, kw_only=True)
class Survivors(Message):
    """Whose masked vectors the server has: one bit for each client of the cohort, in its order, first bit lowest."""

    kind = Kind.SURVIVORS
    cohort: int
    members: bytes

    def digest(self) -> bytes:
        """Return the SHA-256 of the message: what clients sign."""
        return hashlib.sha256(self.encode()).digest()

    @classmethod
    def of(cls, round: int, scope: bytes, cohort: Sequence[int], members: Set[int]) -> Self:
        """Return the message for a cohort, ascending, and those of it whose vectors are there."""
        bits = np.fromiter((client in members for client in cohort), np.bool_, len(cohort))
        packed = np.packbits(bits, bitorder="little").tobytes()
        return cls(round=round, scope=scope, cohort=len(cohort), members=packed)

    def of_cohort(self, cohort: Sequence[int]) -> frozenset[int]:
        """Return whose vectors are there; raises :class:`SecureSumError` for a cohort of another size."""
        if len(cohort) != self.cohort:
            raise SecureSumError(
                f"malformed message: expected survivors of {len(cohort)} clients, found of {self.cohort}"
            )
        bits = np.unpackbits(np.frombuffer(self.members, np.uint8), count=self.cohort, bitorder="little")
        return frozenset(client for client, bit in zip(cohort, bits.tolist(), strict=True) if bit)

    def _content(self) -> bytes:
        return self.cohort.to_bytes(4) + self.members

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        cohort = reader.number(4)
        if (found := reader.left) != (cohort + 7) // 8:
            raise reader.error(f"one bit for each of {cohort} clients, found {found} bytes")
        members = reader.rest()
        if cohort % 8 and members[-1] >> cohort % 8:
            raise reader.error(f"one bit for each of {cohort} clients, found more bits")
        return {"cohort": cohort, "members": members}


@dataclass(frozen=True, kw_only=True)
class Consistency(Signed):
    """That the client was shown ``survivors``: the SHA-256 of the message that it was sent."""

    kind = Kind.CONSISTENCY
    survivors: bytes

    def _body(self) -> bytes:
        return self.survivors

    @classmethod
    def _read_body(cls, reader: Reader) -> dict[str, Any]:
        return {"survivors": reader.take(32)}


@dataclass(frozen=True, kw_only=True)
class Agreement(Message):
    """The signatures of :class:`Consistency` by other clients, in ascending order."""

    kind = Kind.AGREEMENT
    signatures: tuple[tuple[int, bytes], ...] = field(repr=False)

    def _content(self) -> bytes:
        return entries(iter(self.signatures))

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        return {"signatures": tuple(reader.entries(SIGNATURE_BYTES))}


@dataclass(frozen=True, kw_only=True)
class Unmask(Signed):
    """One share for each peer, in ascending order: of a seed or of a key. There is no place for both."""

    kind = Kind.UNMASK
    shown: tuple[tuple[int, SeedShare | KeyShare], ...] = field(repr=False)

    def _body(self) -> bytes:
        return entries(
            (peer, (_SEED if isinstance(share, SeedShare) else _KEY) + share.place.to_bytes(4) + share.value)
            for peer, share in self.shown
        )

    @classmethod
    def _read_body(cls, reader: Reader) -> dict[str, Any]:
        shown = []
        for peer, data in reader.entries(5 + SHARE_BYTES, SIGNATURE_BYTES):
            if data[:1] not in (_SEED, _KEY):
                raise reader.error(f"a share of a seed or of a key, found {data[:1]!r}")
            place = int.from_bytes(data[1:5])
            shown.append((peer, SeedShare(place, data[5:]) if data[:1] == _SEED else KeyShare(place, data[5:])))
        return {"shown": tuple(shown)}


def pair(seed: SeedShare, key: KeyShare) -> bytes:
    """Return the text that is sealed for a holder: its place and both values."""
    return seed.place.to_bytes(4) + seed.value + key.value


def unpair(text: bytes) -> tuple[SeedShare, KeyShare]:
    """Return the two shares in an opened text; raises :class:`SecureSumError` if they are none."""
    place = int.from_bytes(text[:4])
    if len(text) != 4 + 2 * SHARE_BYTES or not 1 <= place <= LARGEST_PLACE:
        raise SecureSumError(f"pair of shares: expected {4 + 2 * SHARE_BYTES} bytes with a place, found {len(text)}")
    return SeedShare(place, text[4 : 4 + SHARE_BYTES]), KeyShare(place, text[4 + SHARE_BYTES :])


def width(bits: int) -> int:
    """Return the bytes that one integer of ``bits`` bits takes on the way."""
    return (bits + 7) // 8


def zeros(size: int, bits: int) -> Words:
    """Return a vector of zeros of the type that holds integers of ``bits`` bits."""
    return np.zeros(size, np.uint32) if bits <= 32 else np.zeros(size, np.uint64)


def pack(vector: Words, bits: int) -> bytes:
    """Return the lowest bytes of each word, lowest first."""
    size = vector.dtype.itemsize
    little = np.ascontiguousarray(vector, f"<u{size}").view(np.uint8).reshape(-1, size)
    return little[:, : width(bits)].tobytes()


def unpack(data: bytes, bits: int) -> Words:
    """Return the words that :func:`pack` was given; read-only where nothing had to be copied."""
    dtype = np.dtype(words(bits))
    if width(bits) == dtype.itemsize:
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    little = np.zeros((len(data) // width(bits), dtype.itemsize), np.uint8)
    little[:, : width(bits)] = np.frombuffer(data, np.uint8).reshape(-1, width(bits))
    return little.reshape(-1).view(dtype.newbyteorder("<")).astype(dtype, copy=False)


def longest(kind: Kind, *, clients: int, holders: int, size: int, bits: int) -> int:
    """Return the most bytes that a message can have in a cohort of ``clients``; longer ones need not be read."""
    head, signed = 41, 4 + SIGNATURE_BYTES
    return (
        head
        + {
            Kind.TERMS: 62,
            Kind.ADVERTISE: signed + 2 * PUBLIC_BYTES,
            Kind.COHORT: 4 + clients * (4 + 2 * PUBLIC_BYTES + SIGNATURE_BYTES),
            Kind.SHARES: signed + 4 + holders * (4 + SEALED_BYTES),
            Kind.DELIVERY: 4 + holders * (4 + SEALED_BYTES),
            Kind.MASKED: signed + 9 + size * width(bits),
            Kind.SURVIVORS: 4 + (clients + 7) // 8,
            Kind.CONSISTENCY: signed + 32,
            Kind.AGREEMENT: 4 + clients * (4 + SIGNATURE_BYTES),
            Kind.UNMASK: signed + 4 + holders * (9 + SHARE_BYTES),
        }[kind]
    )
