"""What a run's transcript says, entry by entry: the header, one entry a round, the end.

A transcript is what a third party needs to check a run afterwards, offline and with none of its data: the plan, who
took part, commitments to what each client sent, what was announced, and what it cost. The file that holds the entries
is :mod:`cloister.privacy.transcript_file`; who checks it is :mod:`cloister.privacy.verify`.

A commitment is the SHA-256 of what a client sent. Of a masked vector, or of one that a plan noised, it gives away
nothing that was not accounted for. Of a reply that nothing protects, whoever guesses the data exactly can confirm the
guess; such a run claims nothing. Where the server adds the noise, who took part and what each sent is what the noise
hides: a round then says neither (``hidden``).
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, StringConstraints

from cloister.config import Config
from cloister.errors import PrivacyError, TranscriptError
from cloister.privacy.chain import canonical
from cloister.privacy.events import Event

NDArray = npt.NDArray[Any]

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
Signature = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{128})?$")]
Words = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]

LINE = "transcript line"
COMMITMENT = "secure aggregation, masked"
SKETCH = "sketch of a vector"
LEDGER_HEAD = "ledger head"
"""What Ed25519 signatures of a transcript are for; no signature of one purpose passes for another.

A client's commitment is what it signed already, when it sent its masked vector.
"""

HEAD = "ledger-head"
"""The kind under which a client that consents sends the head of its ledger beside its reply."""


class Entry(Config):
    """Base of every entry: frozen and typed, and of each value one text alone."""

    def values(self) -> dict[str, Any]:
        """Return plain JSON values, from which :func:`entry_of` makes an equal entry."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """Return the one JSON text of this entry, which is what is signed."""
        return canonical(self.values())

    @classmethod
    def parse_text(cls, text: str) -> Self:
        """Return the entry that :meth:`text` wrote; raises :class:`TranscriptError` for any other text."""
        try:
            entry = cls.model_validate_json(text)
            if entry.text() != text:
                raise ValueError("the same values are written in another way")
        except (ValueError, PrivacyError) as error:
            raise TranscriptError(f"transcript entry: cannot be read ({_first(error)})") from None
        return entry


class Header(Entry):
    """The first entry: what is to be carried out, by which code, and whose signatures count.

    ``run``: the run's name in ledgers. ``experiment_digest``, ``code``: SHA-256 of the experiment file and of the app's
    code. ``plan``: the plan's values. ``delta``: at which its epsilon is computed. ``server``: the Ed25519 public key
    that signs every line. ``roster``: of each site, the public key with which it signs, "" where none was registered:
    then the first one that it uses in this transcript counts, and the reader must compare it with the site's.
    ``model``: the digest of the initial weights.
    """

    kind: Literal["header"] = "header"
    version: Literal[1] = 1
    run: Name
    experiment: str
    experiment_digest: Digest
    code: Digest
    task: str
    rounds: PositiveInt
    plan: dict[str, JsonValue]
    delta: Annotated[float, Field(gt=0, lt=1)]
    server: Annotated[Key, Field(min_length=64)]
    roster: dict[str, Key] = Field(default_factory=dict)
    model: Digest


class LedgerHead(Entry):
    """How far a site's ledger goes: rows, the last row's digest, signed by the site for one round of one run."""

    rows: NonNegativeInt
    digest: Digest
    public: Annotated[Key, Field(min_length=64)]
    signature: Annotated[Signature, Field(min_length=128)]

    @staticmethod
    def signed(run: str, round: int, rows: int, digest: str) -> tuple[bytes, ...]:
        """Return the parts that a site signs for :data:`LEDGER_HEAD`."""
        return run.encode(), _number(round), _number(rows), digest.encode()


class Commitment(Entry):
    """What one client sent in a round.

    ``digest``: of the message with its masked vector (:class:`~cloister.privacy.secagg.messages.Masked`, whose round,
    session and client it covers), or of the reply (:func:`digest_of`), as it was received. ``counted``: whether it is
    in the sum. ``signature``: the client's over the digest; ``sketch``: its sketch, ``sketch_signature``: the client's
    over that (:mod:`cloister.privacy.sketch`); "" where there is none. ``head``: of its ledger, if the site consents.
    """

    digest: Digest
    counted: bool = True
    signature: Signature = ""
    sketch: Words = ""
    sketch_signature: Signature = ""
    head: LedgerHead | None = None

    @staticmethod
    def signed(digest: str) -> tuple[bytes, ...]:
        """Return the parts that a client signs for :data:`COMMITMENT`."""
        return (bytes.fromhex(digest),)

    @staticmethod
    def sketch_signed(run: str, round: int, challenge: bytes, sketch: str) -> tuple[bytes, ...]:
        """Return the parts that a client signs for :data:`SKETCH`, when it has seen what the challenge is made of."""
        return run.encode(), _number(round), challenge, sketch.encode()


class ModularSum(Entry):
    """What the server announces of a secure sum of ``size`` coordinates modulo 2^``bits``.

    ``total``: digest of the sum of all masked vectors that count, fixed before sketches are asked for; ``masks``: of
    the sum of their masks; ``announced``: of the total minus the masks. Digests are those of
    :func:`~cloister.privacy.sketch.vector_digest`. ``kept``: the bytes of the three lie beside the transcript;
    ``vectors``: the messages with the masked vectors too. ``sketch``: the total's own.
    """

    bits: Annotated[int, Field(ge=1, le=64)]
    size: PositiveInt
    total: Digest
    masks: Digest
    announced: Digest
    kept: bool = False
    vectors: bool = False
    sketch: Words = ""


class Round(Entry):
    """One round as it was carried out.

    ``void``: it did not count. ``hidden``: who took part is not said, and ``cohort`` and ``commitments`` are empty.
    ``layout``: digest of the names, shapes and types of what was sent. ``clip``: bound in force, None for none.
    ``events``: what the round did to one unit of a client (where the server adds the noise: in its release).
    ``before``, ``model``: digests of the global weights that were sent and that came out. ``total``: of a secure sum.
    """

    kind: Literal["round"] = "round"
    round: PositiveInt
    void: bool = False
    hidden: bool = False
    cohort: tuple[str, ...] = ()
    commitments: dict[str, Commitment] = Field(default_factory=dict)
    layout: Digest
    clip: PositiveFloat | None = None
    events: tuple[Event, ...] = ()
    total: ModularSum | None = None
    before: Digest
    model: Digest

    def values(self) -> dict[str, Any]:
        """Return plain JSON values; of commitments, of which there may be many, only what says something."""
        values = super().values()
        each = self.commitments.items()
        values["commitments"] = {name: found.model_dump(mode="json", exclude_defaults=True) for name, found in each}
        return values


class End(Entry):
    """The run is over: its last round, the final weights, what follows from the events, what the record claims.

    ``epsilon``: of all events in this transcript at the header's delta, for the unit that loses most, by what the plan
    declares; None where nothing can be claimed. ``claimed``: the epsilon in the run's record, which may be smaller
    where the run knew who is on which client.
    """

    kind: Literal["end"] = "end"
    round: NonNegativeInt
    model: Digest
    epsilon: float | None = None
    claimed: float | None = None


KINDS: Mapping[str, type[Header] | type[Round] | type[End]] = {"header": Header, "round": Round, "end": End}


def entry_of(values: Mapping[str, Any]) -> Header | Round | End:
    """Return the entry with these values; raises :class:`TranscriptError` where they are those of none."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TranscriptError(
            f"transcript entry: expected kind {', '.join(KINDS)}, found {str(kind)[:40]!r}; it was changed, or written "
            "by another version of Cloister"
        )
    return KINDS[kind].parse_text(canonical(values))


def digest_of(arrays: Mapping[str, NDArray], numbers: Mapping[str, float] | None = None) -> str:
    """Return the SHA-256 (hex) of named arrays and numbers: of their layout, then of their values in order of names.

    Arrays of any shape and a numeric type; values count little-endian and in C order, whatever they are in memory. Two
    contents have the same digest only if names, shapes, types and all bits are the same.
    """
    names = sorted(arrays)
    digest = hashlib.sha256(_layout(arrays, names).encode())
    digest.update(repr(sorted((numbers or {}).items())).encode() + b"\n")
    for name in names:
        digest.update(_flat(arrays[name]))
    return digest.hexdigest()


def layout_digest(arrays: Mapping[str, NDArray]) -> str:
    """Return the SHA-256 (hex) of the names, types and shapes alone."""
    return hashlib.sha256(_layout(arrays, sorted(arrays)).encode()).hexdigest()


def _layout(arrays: Mapping[str, NDArray], names: list[str]) -> str:
    rows = [[name, arrays[name].dtype.newbyteorder("<").str, list(arrays[name].shape)] for name in names]
    return canonical({"layout": rows}) + "\n"


def _flat(values: NDArray) -> memoryview:
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _first(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return str(error.args[0] if error.args else error)
