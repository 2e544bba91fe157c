"""The file of a transcript: one canonical JSON object per line, chained by hashes, each signed by the server.

::

    {"entry": {...}, "number": 7, "previous": "<SHA-256 of line 6>", "signature": "<Ed25519>"}

``previous`` is the SHA-256 of the whole line before, its signature included; that of line 1 is a constant. The
signature covers entry, number and ``previous``. A line is added whole and synced before :meth:`Transcript.append`
returns; a process killed in between leaves a last line without its newline, which nobody has used, and which the next
opening cuts off. Reading takes the memory of one line.

Two things no chain can show: that lines at its end are missing (compare the head: how many lines, the hash of the
last), and that all of it was made anew by whoever has the server's key (compare a head that was noted elsewhere).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from cloister.errors import CloisterError, TranscriptError
from cloister.privacy.chain import canonical, sync_folder
from cloister.privacy.secagg.keys import Identity, verify
from cloister.privacy.transcript import COMMITMENT, LINE, Commitment, End, Header, Round, entry_of

FILE_NAME = "transcript.jsonl"
KEPT = "transcript"
"""The folder beside the file that holds vectors' bytes, each in a file named after its digest."""

GENESIS = hashlib.sha256(b"cloister transcript, version 1").hexdigest()
_LONGEST = 1 << 28  # of a line, in bytes: a cohort of a million
_KEYS = {"entry", "number", "previous", "signature"}


@dataclass(frozen=True)
class Head:
    """How long a transcript is, and the hash of its last line, which stands for all of it."""

    lines: int = 0
    digest: str = GENESIS


@dataclass(frozen=True)
class Line:
    """A line whose place in the chain and whose signature are right. ``number`` counts from 1."""

    number: int
    entry: Header | Round | End
    digest: str


@dataclass(frozen=True, kw_only=True)
class Break:
    """A broken link: where it is, what was checked, what was expected and what was found.

    ``kind``, ``round``, ``client`` of the entry, as far as they can still be read ("" and 0: not, or none).
    """

    line: int
    what: str
    expected: str
    found: str
    kind: str = ""
    round: int = 0
    client: str = ""

    def __str__(self) -> str:
        """Return all of it in one sentence."""
        about = [self.kind, f"round {self.round}" if self.round else "", f"client {self.client}" if self.client else ""]
        where = ", ".join(part for part in about if part)
        place = f"line {self.line}" if self.line else "the run"
        return f"{place}{f' ({where})' if where else ''}: {self.what}: expected {self.expected}, found {self.found}"


def read(path: Path) -> Iterator[Line | Break]:
    """Yield the lines of a transcript, oldest first, until its end or the first broken link, which comes last.

    Raises :class:`TranscriptError` where the file cannot be opened or read.
    """
    head, server, header = Head(), "", None
    try:
        with path.open("rb") as file:
            while raw := file.readline(_LONGEST + 1):
                found = _checked(raw, head, server, header)
                yield found
                if isinstance(found, Break):
                    return
                head = Head(found.number, found.digest)
                if isinstance(found.entry, Header):
                    server, header = found.entry.server, found.entry
    except OSError as error:
        raise TranscriptError(
            f"{path}: cannot be read ({error}); name a run folder, or a {FILE_NAME} copied from one"
        ) from error


class Transcript:
    """The transcript of one run, opened for writing by the one process that runs it."""

    def __init__(self, path: Path, identity: Identity, head: Head) -> None:
        """Wrap a file whose chain was checked up to ``head``; :meth:`open` makes one."""
        self.path, self._identity, self._head = path, identity, head

    @classmethod
    def open(
        cls, path: Path, identity: Identity, header: Header, take: Callable[[Header | Round | End], object]
    ) -> Self:
        """Open the transcript at ``path``, or begin one with ``header``; ``take`` gets each entry that is in it.

        A torn last line is cut off. Raises :class:`TranscriptError` if a link is broken, or if the file is that of
        another run, plan, experiment or server; one of other code goes on.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _mend(path)
            sync_folder(path.parent)
        except OSError as error:
            raise _unusable(path, error) from error
        transcript = cls(path, identity, Head())
        for found in read(path):
            if isinstance(found, Break):
                raise TranscriptError(
                    f"{path}: {found}. The file was changed or its disk is failing: keep it as evidence and restore "
                    "the copy from before, or move it away; what is then written begins anew and says so"
                )
            if isinstance(found.entry, Header):
                _check_same(path, found.entry, header)
            transcript._head = Head(found.number, found.digest)
            take(found.entry)
        if transcript.head == Head():
            transcript.append(header)
            take(header)
        return transcript

    @property
    def head(self) -> Head:
        """How far the file goes; worth noting where nobody can change it."""
        return self._head

    def append(self, entry: Header | Round | End) -> Head:
        """Add a line, synced to disk when this returns; return the new head.

        Raises :class:`TranscriptError` where it cannot be written whole; then the file is as it was before.
        """
        line = signed_line(self._identity, self._head, entry)
        try:
            with self.path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, size)
                    raise
        except OSError as error:
            raise _unusable(self.path, error) from error
        self._head = Head(self._head.lines + 1, hashlib.sha256(line[:-1]).hexdigest())
        return self._head


def signed_line(identity: Identity, head: Head, entry: Header | Round | End) -> bytes:
    """Return the line, with its newline, that follows ``head`` and says ``entry``."""
    number = head.lines + 1
    signature = identity.sign(LINE, *_parts(number, head.digest, entry.text()))
    values = {"entry": entry.values(), "number": number, "previous": head.digest, "signature": signature.hex()}
    return canonical(values).encode() + b"\n"


def _parts(number: int, previous: str, text: str) -> tuple[bytes, ...]:
    return number.to_bytes(8, "little"), previous.encode(), text.encode()


def _checked(raw: bytes, head: Head, server: str, header: Header | None) -> Line | Break:
    """Return what stands in a line that must follow ``head``, signed by ``server`` (line 1: by its own header)."""
    number = head.lines + 1
    broken = Break(line=number, what="form", expected="one canonical JSON object and a newline", found="")
    if not raw.endswith(b"\n"):
        return replace(broken, found="a line without its end (it is longer than any, torn by a kill, or was cut)")
    text = raw[:-1]
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != _KEYS or canonical(values).encode() != text:
            raise ValueError("other keys, or the same values written in another way")
    except (ValueError, RecursionError) as error:
        return replace(broken, found=str(error)[:200])
    broken = replace(broken, **_about(values["entry"]))
    if type(values["number"]) is not int or values["number"] != number:
        return replace(broken, what="number", expected=str(number), found=str(values["number"])[:40])
    if values["previous"] != head.digest:
        expected = f"{head.digest}, the hash of line {head.lines}" if head.lines else f"{GENESIS}, that of no line"
        return replace(broken, what="chain", expected=expected, found=str(values["previous"])[:80])
    try:
        entry = entry_of(values["entry"])
    except (CloisterError, AttributeError) as error:
        return replace(broken, what="entry", expected="one of this version", found=str(error.args[0])[:300])
    if isinstance(entry, Header) != (number == 1):
        return replace(broken, what="kind", expected="a header in line 1 alone", found=entry.kind)
    key = server or (entry.server if isinstance(entry, Header) else "")
    try:
        signature = bytes.fromhex(values["signature"])
        if signature.hex() != values["signature"]:
            raise ValueError("expected lower-case hexadecimal digits")
        verify(bytes.fromhex(key), signature, LINE, *_parts(number, head.digest, entry.text()))
    except (CloisterError, ValueError, TypeError):
        client = _suspect(entry, header)
        return replace(
            broken,
            client=client,
            what="signature",
            expected=f"one of server {key} over this line",
            found="another: the line or its signature was changed",
        )
    return Line(number, entry, hashlib.sha256(text).hexdigest())


def _about(entry: Any) -> dict[str, Any]:
    """Return what can be read of an entry that may be damaged."""
    if not isinstance(entry, Mapping):
        return {}
    kind, number = entry.get("kind"), entry.get("round")
    return {"kind": str(kind)[:20] if kind else "", "round": number if type(number) is int else 0}


def _suspect(entry: Header | Round | End, header: Header | None) -> str:
    """Return the first client whose own signature does not hold in a damaged line; "" if all do."""
    if not isinstance(entry, Round) or header is None:
        return ""
    for client, commitment in entry.commitments.items():
        key = header.roster.get(client, "")
        if commitment.signature and key and not signature_holds(key, commitment):
            return client
    return ""


def signature_holds(key: str, commitment: Commitment) -> bool:
    """Return whether a client's signature over its commitment holds under its public key (hex)."""
    return holds(key, commitment.signature, COMMITMENT, *Commitment.signed(commitment.digest))


def holds(key: str, signature: str, purpose: str, *parts: bytes) -> bool:
    """Return whether an Ed25519 signature (hex) for ``purpose`` holds under a public key (hex)."""
    try:
        verify(bytes.fromhex(key), bytes.fromhex(signature), purpose, *parts)
    except (CloisterError, ValueError):
        return False
    return True


def _mend(path: Path) -> None:
    """Make the file if there is none, and cut off a last line that was being written when its process was killed."""
    with path.open("a+b") as file:
        size = keep = file.seek(0, os.SEEK_END)
        while keep > 0:
            start = max(0, keep - (1 << 16))
            file.seek(start)
            block = file.read(keep - start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep != size:
            file.truncate(keep)
        os.fsync(file.fileno())


def _check_same(path: Path, found: Header, header: Header) -> None:
    for name in ("run", "experiment_digest", "plan", "server"):
        was, now = getattr(found, name), getattr(header, name)
        if was != now:
            raise TranscriptError(
                f"{path}: expected the transcript of {name} {str(now)[:80]}, found that of {str(was)[:80]}; put back "
                "what the run was started with, or start a new run"
            )


def _unusable(path: Path, error: OSError) -> TranscriptError:
    return TranscriptError(
        f"{path}: cannot be written ({error}), so the run stops; free disk space, make the folder writable for this "
        "user, then `cloister resume` it"
    )
