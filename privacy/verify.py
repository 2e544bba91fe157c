"""Checking a transcript offline, with none of the data: every hash, every signature, every sum, and the epsilon.

What a verified transcript shows: that whoever has the server's key wrote these lines in this order and none was changed
since; that each round is the one that the plan makes, and follows on the weights of the round before; that all rounds
together cost the epsilon that is stated, for the unit and the relation of the plan; that each client that signs signed
what is said to be its own; and, of a secure sum, that the total is the sum of the vectors that clients committed to: by
their bytes where these were kept, otherwise by random sketches (:mod:`cloister.privacy.sketch` says against whom).

What it does not show: that clients trained on what they should, that a server under central noise added it, that the
announced sum of masks is that of the clients' seeds, that lines at the end are not missing (compare the head), nor
whose key the server's is (compare it with one that you got another way).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from cloister.errors import CloisterError, PrivacyError, TranscriptError
from cloister.privacy import sketch as sketches
from cloister.privacy.tally import Tally
from cloister.privacy.transcript import (
    LEDGER_HEAD,
    SKETCH,
    Commitment,
    End,
    Header,
    LedgerHead,
    ModularSum,
    Round,
    digest_of,
)
from cloister.privacy.transcript_file import FILE_NAME, KEPT, Break, Head, Line, holds, read, signature_holds
from cloister.privacy.vectors import Kept

_CLOSE = 1e-6  # relative: two machines round an epsilon differently
_MOST_BROKEN = 20


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a check of a transcript found.

    ``run``, ``experiment``, ``server``: of its header. ``head``: lines that hold, and the hash of the last. ``rounds``:
    the last round. ``finished``: whether it says that the run is over. ``epsilon`` at ``delta``, for ``unit`` and
    ``relation``: recomputed from all events, None where nothing can be claimed; ``claimed``: what the run's record
    claims. ``checked``: how many of each kind of thing were checked. ``notes``: what could not be, and why.
    ``broken``: every broken link.
    """

    path: str
    run: str = ""
    experiment: str = ""
    server: str = ""
    head: Head = field(default_factory=Head)
    rounds: int = 0
    finished: bool = False
    unit: str = ""
    relation: str = ""
    delta: float | None = None
    epsilon: float | None = None
    claimed: float | None = None
    checked: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    broken: tuple[Break, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no link is broken."""
        return not self.broken

    def values(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "ok": self.ok, "broken": [{**asdict(it), "text": str(it)} for it in self.broken]}


def verify(place: Path, *, server: str = "", head: str = "") -> Verification:
    """Check the transcript of a run folder, or a transcript's file alone, and return what was found.

    ``server``: the public key (hex) that must have signed it; ``head``: the hash of a line that must be in it, noted
    when it was the last. In a run folder, the record, the experiment, the last checkpoint and kept vectors are compared
    with it too. Never raises for what a file says: that is a broken link. Raises :class:`TranscriptError` where there
    is no transcript to read.
    """
    folder = place if place.is_dir() else None
    checker = _Checker(place / FILE_NAME if folder else place, folder, head)
    for found in read(checker.path):
        if isinstance(found, Break):
            checker.broken.append(found)
            break
        if isinstance(found.entry, Header):
            checker.begin(found, found.entry, server)
        elif isinstance(found.entry, Round):
            checker.round(found, found.entry)
        else:
            checker.end(found, found.entry)
        checker.passed(found)
        if len(checker.broken) >= _MOST_BROKEN:
            checker.note(f"more than {_MOST_BROKEN} links are broken; what follows was not looked at")
            break
    else:
        checker.close()
    return checker.result()


class _Checker:
    """What is known of a transcript while its lines go by; holds one line at a time, and what the tally holds."""

    def __init__(self, path: Path, folder: Path | None, noted: str) -> None:
        self.path, self.folder = path, folder
        self.broken: list[Break] = []
        self._header: Header | None = None
        self._tally: Tally | None = None
        self._end: End | None = None
        self._last: Line | None = None
        self._noted = noted
        self._record = _record(folder)
        self._recorded: dict[str, Any] = self._record.get("transcript") or {}
        self._roster: dict[str, str] = {}  # registered keys; sites that have none are held to the first that they use
        self._keys: dict[str, str] = {}
        self._heads: dict[str, LedgerHead] = {}
        self._checked: dict[str, int] = {}
        self._notes: dict[str, None] = {}

    # Entries

    def begin(self, line: Line, header: Header, server: str) -> None:
        """Take the header."""
        self._header = header
        self._roster = {client: key for client, key in header.roster.items() if key}
        self._keys = dict(self._roster)
        if server and server.lower() != header.server:
            self._break(line, "server's key", server.lower(), header.server)
        if not server:
            self.note("the server's key is the one that the transcript names: compare it with one you got another way")
        try:
            self._tally = Tally(header)
        except CloisterError as error:
            self._break(line, "plan", "one of this version", str(error.args[0])[:300])

    def round(self, line: Line, entry: Round) -> None:
        """Check one round."""
        self._end = None
        if self._tally is None or self._header is None:
            return
        for problem in self._tally.follows(entry):
            self._break(line, problem.what, problem.expected, problem.found, problem.client)
        self._tally.add(entry)
        for client, commitment in entry.commitments.items():
            self._count("commitments")
            self._signature(line, entry, client, commitment)
            if commitment.head is not None:
                self._ledger_head(line, entry, client, commitment.head)
        secure = self._tally.plan.secure
        if entry.total is not None:
            if secure is not None and secure.bits != entry.total.bits:
                self._break(line, "bits of the sum", f"{secure.bits}, the plan's", str(entry.total.bits))
            self._sum(line, entry, entry.total)
        elif secure is not None and not entry.void and not entry.hidden:
            self._break(line, "sum", "what the server announced", "none")

    def end(self, line: Line, entry: End) -> None:
        """Check the end of the run: the last round, its model, the epsilon."""
        self._end = entry
        if self._tally is None:
            return
        for what, expected, found in (
            ("last round", str(self._tally.last), str(entry.round)),
            ("final model", self._tally.model, entry.model),
        ):
            if expected != found:
                self._break(line, what, expected, found)
        epsilon = self._epsilon(line)
        if not _same(epsilon, entry.epsilon):
            self._break(line, "epsilon", f"{_number(epsilon)}, from the events", _number(entry.epsilon))
        if entry.claimed is not None and (epsilon is None or entry.claimed > epsilon * (1 + _CLOSE)):
            self._break(line, "claim", f"at most {_number(epsilon)}, from the events", _number(entry.claimed))
        elif entry.claimed is not None and epsilon is not None and not _same(entry.claimed, epsilon):
            self.note(
                f"the run claims epsilon {entry.claimed:.4g}: it knew which clients each person is on, or who did not "
                f"reply; without that, {epsilon:.4g} holds"
            )

    def passed(self, line: Line) -> None:
        """Note that a line holds, and whether it is one that was noted elsewhere."""
        self._last = line
        if line.digest == self._noted:
            self._noted = ""
        recorded = self._recorded.get("digest")
        if line.number == self._recorded.get("lines") and line.digest != recorded:
            self._break(line, "head", f"{recorded}, the head in record.json", line.digest)

    def close(self) -> None:
        """Check what only the whole file, and the run's folder, show."""
        at = self._last
        if at is None or self._header is None:
            self.broken.append(Break(line=1, what="header", expected="a header in line 1", found="an empty file"))
            return
        if self._noted:
            self._break(at, "head", f"a line with hash {self._noted}", "none: lines are missing, or it was made anew")
        lines = self._recorded.get("lines")
        if isinstance(lines, int) and lines > at.number:
            self._break(at, "head", f"{lines} lines, as record.json counts", f"{at.number}: the end is missing")
        if self._end is None:
            self.note("the transcript does not say that the run is over")
        if self.folder is not None:
            self._folder_agrees(at, self.folder, self._header)

    def result(self) -> Verification:
        """Return everything that was found."""
        header, tally, last = self._header, self._tally, self._last
        if header is None or tally is None or last is None:
            return Verification(path=str(self.path), broken=tuple(self.broken))
        return Verification(
            path=str(self.path),
            run=header.run,
            experiment=header.experiment,
            server=header.server,
            head=Head(last.number, last.digest),
            rounds=tally.last,
            finished=self._end is not None,
            unit=str(tally.plan.unit),
            relation=str(tally.plan.relation),
            delta=header.delta,
            epsilon=self._epsilon(None),
            claimed=self._end.claimed if self._end else None,
            checked={"lines": last.number, **self._checked},
            notes=tuple(self._notes),
            broken=tuple(self.broken),
        )

    def note(self, text: str) -> None:
        """Note something once."""
        self._notes[text] = None

    # One part of a round

    def _signature(self, line: Line, entry: Round, client: str, commitment: Commitment) -> None:
        key = self._roster.get(client, "")
        if not commitment.signature:
            if key and entry.total is not None:
                self._break(line, "signature of a commitment", f"one of client key {key}", "none", client)
            return
        if not key:
            self._break(line, "signature of a commitment", "a key of the client in the roster", "none", client)
        elif not signature_holds(key, commitment):
            self._break(line, "signature of a commitment", f"one of client key {key}", "another", client)
        else:
            self._count("client signatures")

    def _ledger_head(self, line: Line, entry: Round, client: str, head: LedgerHead) -> None:
        run = self._header.run if self._header else ""
        if client not in self._keys:
            self._keys[client] = head.public
            self.note(f"the key of site {client} was first seen in line {line.number}: compare it with the site's")
        key, before = self._keys[client], self._heads.get(client)
        parts = LedgerHead.signed(run, entry.round, head.rows, head.digest)
        if head.public != key:
            self._break(line, "key of a ledger head", key, head.public, client)
        elif not holds(key, head.signature, LEDGER_HEAD, *parts):
            self._break(line, "signature of a ledger head", f"one of site key {key}", "another", client)
        elif before is not None and head.rows < before.rows:
            self._break(line, "ledger head", f"at least {before.rows} rows, as before", f"{head.rows} rows", client)
        elif before is not None and head.rows == before.rows and head.digest != before.digest:
            self._break(line, "ledger head", f"{before.digest}, as before", head.digest, client)
        else:
            self._heads[client] = head
            self._count("ledger heads")

    def _sum(self, line: Line, entry: Round, total: ModularSum) -> None:
        counted = {client: found for client, found in entry.commitments.items() if found.counted}
        digests = {client: found.digest for client, found in counted.items()}
        run = self._header.run if self._header else ""
        seed = sketches.challenge(run, entry.round, entry.layout, total.bits, digests, total.total)
        if total.sketch:
            self._sketches(line, entry, total, seed, counted)
        beside = self.path.parent / KEPT
        if total.kept and (beside.is_dir() or self.folder is not None):
            self._kept(line, entry, total, seed, digests, Kept(beside, total.bits, total.size))
        elif total.kept:
            self.note("the bytes of sums lie beside the original of this transcript, not here: only digests are known")
        if not total.sketch and not total.vectors:
            self._count("sums announced only, not checked")
            self.note(
                "rounds without kept vectors and sketches: that the total is the sum of what clients committed to was "
                "not checked"
            )

    def _sketches(
        self, line: Line, entry: Round, total: ModularSum, seed: bytes, counted: Mapping[str, Commitment]
    ) -> None:
        run = self._header.run if self._header else ""
        numbers = []
        for client, found in counted.items():
            try:
                numbers.append(sketches.from_hex(found.sketch, total.bits))
            except TranscriptError as error:
                self._break(line, "sketch", "one of every client that counts", str(error.args[0]), client)
                return
            parts = Commitment.sketch_signed(run, entry.round, seed, found.sketch)
            key = self._roster.get(client, "")
            if key and not holds(key, found.sketch_signature, SKETCH, *parts):
                self._break(line, "signature of a sketch", f"one of client key {key}", "another", client)
                return
        added = sketches.to_hex(sketches.added(numbers, total.bits), total.bits)
        if added != total.sketch:
            self._break(line, "sum", f"a total with the clients' sketches, {added[:64]}...", f"{total.sketch[:64]}...")
            return
        self._count("sums by sketches")

    def _kept(
        self, line: Line, entry: Round, total: ModularSum, seed: bytes, digests: Mapping[str, str], kept: Kept
    ) -> None:
        for what, digest in (("total", total.total), ("masks", total.masks), ("announced sum", total.announced)):
            if problem := kept.problem(digest):
                self._break(line, f"bytes of the {what}", f"{digest}.bin with this hash", problem)
                return
        if not kept.is_difference(total.announced, total.total, total.masks):
            self._break(line, "announced sum", f"{total.total} minus {total.masks}", total.announced)
        if total.sketch and sketches.to_hex(kept.sketch(total.total, seed), total.bits) != total.sketch:
            self._break(line, "sketch of the total", "that of the kept bytes", f"{total.sketch[:64]}...")
        if not total.vectors:
            return
        added = kept.zeros()
        numbers = {name: place for place, name in enumerate(sorted(self._header.roster if self._header else ()), 1)}
        for client, digest in digests.items():
            message = kept.message(digest)
            if isinstance(message, str):
                self._break(line, "bytes of a masked vector", f"{digest}.bin with this hash", message, client)
                return
            sent, expected = (message.round, message.client), (entry.round, numbers.get(client))
            if sent != expected:
                said = "round {}, client number {}"
                self._break(line, "masked vector", said.format(*expected), said.format(*sent), client)
            added += message.vector
        if kept.reduced(added) != total.total:
            self._break(line, "sum", f"{kept.reduced(added)}, of the kept vectors", total.total)
            return
        self._count("sums by vectors")

    # The whole

    def _folder_agrees(self, at: Line, folder: Path, header: Header) -> None:
        try:
            found = hashlib.sha256((folder / "experiment.toml").read_bytes()).hexdigest()
            if found != header.experiment_digest:
                self._break(Line(1, header, ""), "experiment.toml", header.experiment_digest, found)
        except OSError:
            self.note("experiment.toml is not here to be compared")
        if not self._record:
            self.note("record.json is not here, or cannot be read, to be compared")
        elif self._end is not None and self._record.get("final"):
            claims = (self._record.get("privacy") or {}).get("claims") or [{}]
            if not _same(claims[0].get("epsilon"), self._end.claimed):
                stated = _number(claims[0].get("epsilon"))
                self._break(at, "claim in record.json", _number(self._end.claimed), stated)
        tally = self._tally
        path = folder / "checkpoints" / f"round-{tally.last if tally else 0:06d}" / "arrays.safetensors"
        if tally is not None and path.is_file():
            try:
                model = digest_of(load_file(path))
            except (OSError, SafetensorError):
                model = "a damaged file"
            if model != tally.model:
                self._break(at, f"weights in {path.parent.name}", tally.model, model)
            self._count("checkpoints")

    def _epsilon(self, line: Line | None) -> float | None:
        try:
            return self._tally.epsilon() if self._tally else None
        except PrivacyError as error:
            if line is not None:
                self._break(line, "epsilon", "one that can be recomputed", str(error.args[0])[:300])
            return None

    def _break(self, line: Line, what: str, expected: str, found: str, client: str = "") -> None:
        entry = line.entry
        number = 0 if isinstance(entry, Header) else entry.round
        about = {"kind": entry.kind, "client": client, "what": what, "expected": expected, "found": found}
        self.broken.append(Break(line=line.number, round=number, **about))

    def _count(self, what: str) -> None:
        self._checked[what] = self._checked.get(what, 0) + 1


def _record(folder: Path | None) -> dict[str, Any]:
    """Return the run's record as plain values; empty where there is none that can be read."""
    try:
        values = json.loads((folder / "record.json").read_bytes()) if folder else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and isinstance(values.get("transcript") or {}, dict) else {}


def _same(one: Any, other: float | None) -> bool:
    if one is None or other is None:
        return one is None and other is None
    return isinstance(one, int | float) and math.isclose(one, other, rel_tol=_CLOSE)


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, int | float) else str(value)[:40]
