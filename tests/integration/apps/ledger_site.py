"""A site that releases rounds through its spool and ledger, and a machine on which it may die between any two steps.

``Machine.die_at(n)`` runs the site in a process of its own that is killed with ``kill -9`` before its ``n``-th call
that the outside could notice: each statement of SQLite, each call that touches a file. Between two of them nothing
changes that outlives the process. ``power=True`` also takes away what was not synced by then: contents of files, and
names that a rename gave them. The wire is a file that survives, as replies that left do.
"""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from cloister.errors import LedgerError
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.settings import Budget
from cloister.privacy.spool import Spool

ROUNDS = 3
EFFECTS = {"execute", "fsync", "replace", "open", "write", "flush", "unlink", "remove", "mkdir", "link", "close"}
EVENT = Event(kind=EventKind.GAUSSIAN, noise_multiplier=1.0, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)


def cost(events: Sequence[Event], delta: float) -> float:
    return float(sum(event.count for event in events))


def entry(round: int) -> Entry:
    about: dict[str, Any] = {"task": "t", "unit": EVENT.unit, "relation": EVENT.relation, "kinds": {"arrays": 32}}
    return Entry(kind=EntryKind.RELEASE, run="r", round=round, events=(EVENT,), **about)


def request(round: int) -> str:
    return f"{round:064x}"


@dataclass
class Site:
    """What answers requests; ``spool`` and ``ledger`` may be replaced by worse ones."""

    folder: Path
    spool: type[Spool] = Spool
    ledger: type[Ledger] = Ledger

    @property
    def wire(self) -> Path:
        return self.folder.parent / "wire"

    def send(self, round: int, data: bytes) -> None:
        with self.wire.open("a") as wire:
            wire.write(f"{round} {data.hex()}\n")

    def sent(self) -> list[tuple[int, str]]:
        lines = self.wire.read_text().splitlines() if self.wire.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    def serve(self, first: int = 1) -> None:
        """Answer the requests of the rounds from ``first`` on, each with noise that is never drawn twice."""
        with self.ledger.open(self.folder / FILE_NAME, cost=cost) as books:
            kept = self.spool(self.folder / "spool", books)
            for round in range(first, ROUNDS + 1):
                data = kept.find("r", round, request(round))
                if data is None:
                    books.admit("r", round, (EVENT,), Budget(epsilon=ROUNDS, delta=1e-5))
                    self.release(kept, round, os.urandom(32))
                else:
                    self.send(round, data)

    def release(self, kept: Spool, round: int, data: bytes) -> None:
        self.send(round, kept.release(entry(round), request(round), data))

    def first(self) -> int:
        """The round that the server asks for after a restart: the last one that it got, in case it lost it."""
        return max((round for round, _ in self.sent()), default=1)

    def check(self) -> None:
        """Raise AssertionError unless everything that left is accounted for, once, and every round left."""
        with Ledger.read(self.folder / FILE_NAME, cost=cost) as books:
            books.verify()
            rows = [it for it in books.entries() if it.kind is EntryKind.RELEASE]
        assert [row.round for row in rows] == list(range(1, ROUNDS + 1))
        assert {round for round, _ in self.sent()} == set(range(1, ROUNDS + 1))
        contents = {row.round: row.content for row in rows}
        for round, data in self.sent():
            assert hashlib.sha256(bytes.fromhex(data)).hexdigest() == contents[round], f"round {round} is not in"
        assert sum(row.events[0].count for row in rows) == ROUNDS


class Machine:
    """Runs a site, kills it, and cuts the power."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.journal = site.folder.parent / "journal"
        self.left = 0

    def die_at(self, number: int, *, power: bool = False, first: int = 1) -> bool:
        """Serve rounds from ``first`` on, killed before the ``number``-th effect; return False if there are fewer."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.left = number
                if power:
                    self._record()
                sys.setprofile(self._profile)
                self.site.serve(first)
                sys.setprofile(None)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return False
        assert status == -signal.SIGKILL
        if power:
            self._lose_what_was_not_synced()
        return True

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and argument.__name__ in EFFECTS:
            self._tick()

    def _tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def _record(self) -> None:
        """Write down each sync and each rename in this process; nothing is synced in truth."""
        self.journal.mkdir(parents=True, exist_ok=True)
        rename = os.replace

        def fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self._step({"folder": str(path)}, b"")
            else:
                self._step({"inode": os.fstat(descriptor).st_ino}, path.read_bytes())

        def replace(source: Path, target: Path) -> None:
            old = target.read_bytes() if target.exists() else b""
            self._step({"renamed": str(target), "folder_of": str(target.parent), "existed": target.exists()}, old)
            rename(source, target)

        os.fsync, os.replace = fsync, replace  # type: ignore[assignment]

    def _step(self, step: dict[str, Any], content: bytes) -> None:
        sys.setprofile(None)  # the journal is not of this world
        self._tick()
        number = len(list(self.journal.iterdir()))
        (self.journal / f"{number:06d}").write_bytes(json.dumps(step).encode() + b"\n" + content)
        sys.setprofile(self._profile)

    def _lose_what_was_not_synced(self) -> None:
        contents: dict[int, bytes] = {}
        renamed: dict[str, tuple[str, bytes | None]] = {}
        for path in sorted(self.journal.iterdir()):
            head, _, content = path.read_bytes().partition(b"\n")
            step = json.loads(head)
            if "inode" in step:
                contents[step["inode"]] = content
            elif "folder" in step:
                renamed = {name: it for name, it in renamed.items() if it[0] != step["folder"]}
            else:
                renamed[step["renamed"]] = (step["folder_of"], content if step["existed"] else None)
        for path in (*self.site.folder.glob("ledger.head"), *self.site.folder.glob("spool/*/*")):
            path.write_bytes(contents.get(path.stat().st_ino, b""))
        for name, (_, old) in renamed.items():
            Path(name).unlink(missing_ok=True)
            if old is not None:
                Path(name).write_bytes(old)


@contextlib.contextmanager
def _spared() -> Iterator[None]:
    """Spare the disk: no machine fails here. That commits are synced is a matter of one setting, tested elsewhere."""
    connect = sqlite3.connect
    with mock.patch.object(os, "fsync"), mock.patch.object(sqlite3, "connect", partial(connect, factory=_Unsynced)):
        yield


class _Unsynced(sqlite3.Connection):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        super().execute("PRAGMA synchronous=OFF")

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement == "PRAGMA synchronous=FULL":
            statement = "PRAGMA synchronous=OFF"
        return super().execute(statement, *arguments)


def survives(site: Site, *kills: int, power: bool = False) -> bool | None:
    """Kill the site before these effects, one restart after the other, and say whether all is well in the end.

    None if it was done before it came to the first of them.
    """
    with _spared():
        machine = Machine(site)
        for place, number in enumerate(kills):
            if not machine.die_at(number, power=power, first=site.first()) and not place:
                return None
        try:
            site.serve(site.first())
            site.check()
        except (AssertionError, LedgerError):
            return False
        return True
