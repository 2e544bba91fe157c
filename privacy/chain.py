"""An append-only file of texts, each sealed by the SHA-256 of itself and of all before it.

One SQLite file in WAL mode, every commit synced (``synchronous=FULL``). Triggers refuse UPDATE and DELETE; whoever goes
around them breaks the chain of digests. What a chain cannot show is that its end is missing, so its head (how many
rows, the last digest) is kept in a small file beside it. The head is written after the commit: a process killed in
between leaves a file that is *ahead* of its head, which is mended at the next opening; a file *behind* its head has
lost rows and is refused.

The digests have no key: whoever may write both files can write another history. Against that, compare the head with
one that was noted elsewhere (:attr:`Chain.head`).
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from cloister.errors import LedgerError

GENESIS = hashlib.sha256(b"cloister ledger, version 1").hexdigest()
_WAIT_S = 60.0  # for another process that holds the file: longer than any accountant computes
_SCHEMA = {
    "rows": "CREATE TABLE rows (number INTEGER PRIMARY KEY, time TEXT NOT NULL, entry TEXT NOT NULL, "
    "digest TEXT NOT NULL)",
    "no_update": "CREATE TRIGGER no_update BEFORE UPDATE ON rows "
    "BEGIN SELECT RAISE(ABORT, 'rows are never changed'); END",
    "no_delete": "CREATE TRIGGER no_delete BEFORE DELETE ON rows "
    "BEGIN SELECT RAISE(ABORT, 'rows are never deleted'); END",
    # INSERT OR REPLACE deletes without asking no_delete.
    "no_replace": "CREATE TRIGGER no_replace BEFORE INSERT ON rows "
    "WHEN NEW.number IS NOT (SELECT COALESCE(MAX(number), 0) + 1 FROM rows) "
    "BEGIN SELECT RAISE(ABORT, 'rows are only added at the end'); END",
}


def canonical(values: Mapping[str, Any]) -> str:
    """Return the one JSON text of these values: sorted keys, no spaces, ASCII. Raises ValueError for nan and inf."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def link(previous: str, number: int, at: str, entry: str) -> str:
    """Return the digest of a row: SHA-256 over the digest before it, its number, its time and its text."""
    row = canonical({"previous": previous, "number": number, "time": at, "entry": entry})
    return hashlib.sha256(row.encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One sealed text. ``number`` counts from 1; ``time`` is UTC, ISO 8601."""

    number: int
    time: str
    entry: str
    digest: str


@dataclass(frozen=True)
class Head:
    """How long a chain is, and its last digest, which stands for all of it."""

    rows: int = 0
    digest: str = GENESIS


class Chain:
    """The file, opened by one process. Every method raises :class:`LedgerError` that names it and the next step."""

    def __init__(self, path: Path, connection: sqlite3.Connection, clock: Callable[[], float]) -> None:
        """Wrap an open file; :meth:`open` and :meth:`read` make one and check it."""
        self.path = path
        self._connection = connection
        self._clock = clock
        self._head = Head()  # of what this process has read and checked
        self._unread: list[Row] = []  # of it, what nobody has asked for yet
        self._pid = os.getpid()

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Open the chain at ``path`` for writing; make an empty one if neither it nor its head exists."""
        path = path.resolve()
        with _named(path):
            if not path.exists():
                _create(path)
            connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        chain = cls(path, connection, clock)
        try:
            with _named(path):
                connection.execute("PRAGMA synchronous=FULL")
            with chain.writing():  # the lock keeps others from adding rows between reading the head and the rows
                chain._take_in()
        except BaseException:
            connection.close()
            raise
        return chain

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open the chain at ``path`` for reading only, also from a medium that cannot be written."""
        path = path.resolve()
        if not path.is_file():
            raise LedgerError(f"{path}: there is no ledger; name the folder that holds {path.name}")
        address = f"file:{quote(str(path))}?mode=ro"
        if not os.access(path.parent, os.W_OK) and not _wal(path).exists():
            address += "&immutable=1"  # SQLite needs a file beside it otherwise
        with _named(path):
            connection = sqlite3.connect(address, uri=True, timeout=_WAIT_S, isolation_level=None)
        chain = cls(path, connection, time.time)
        try:
            chain._take_in()
        except BaseException:
            connection.close()
            raise
        return chain

    @property
    def head(self) -> Head:
        """The head of what this process has read so far; worth noting where nobody can change it."""
        return self._head

    @property
    def head_path(self) -> Path:
        """The file beside the chain that holds its head."""
        return self.path.with_suffix(".head")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the file alone; on leaving, commit and sync what was appended, then move the head. Undone on errors."""
        with _named(self.path):
            database = self._database()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
            self._anchor()

    def append(self, entry: str) -> int:
        """Add a text inside :meth:`writing`, after :meth:`news` was read there; return its number."""
        number = self._head.rows + 1
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        row = (number, at, entry, link(self._head.digest, number, at, entry))
        with _named(self.path):
            self._database().execute("INSERT INTO rows VALUES (?, ?, ?, ?)", row)
        return number

    def news(self) -> list[Row]:
        """Return the rows that were committed since the last call, each checked against the chain."""
        known = self._head
        with _named(self.path):
            found = [Row(*row) for row in self._database().execute(_SELECT, (known.rows,))]
        if known.rows:
            if not found or (found[0].number, found[0].digest) != (known.rows, known.digest):
                raise _tampered(self.path, known.rows, "was there before and is another one or gone now")
            found = found[1:]
        self._head = self._check(found, known)
        unread, self._unread = self._unread, []
        return unread + found

    def verify(self) -> int:
        """Recompute the whole chain from the file; return the number of rows.

        Raises :class:`LedgerError` that names the first bad row: changed, missing, moved, or cut off at the end.
        """
        found, head = self._recomputed()
        known = self._head
        if known.rows > len(found) or (known.rows and found[known.rows - 1].digest != known.digest):
            raise _tampered(self.path, known.rows, "was there before and is another one or gone now")
        return head.rows

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _take_in(self) -> None:
        """Read and check everything, when the file is opened."""
        self._unread, self._head = self._recomputed()

    def _recomputed(self) -> tuple[list[Row], Head]:
        """Return all rows and their head, checked against one another and against the head that is noted."""
        noted = self._noted()  # before the rows: others may append meanwhile
        with _named(self.path):
            schema = dict(self._database().execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
            found = [Row(*row) for row in self._database().execute(_SELECT, (_LEAST,))]
        for name in sorted(schema.keys() | _SCHEMA.keys()):
            if schema.get(name) != _SCHEMA.get(name):
                raise _tampered(self.path, 0, f"the table or trigger {name!r} that protects rows is not as it was made")
        head = self._check(found, Head())
        if noted is None and found:
            if self._noted() is not None:  # the first row came, and its head, while this process looked
                return self._recomputed()
            raise _tampered(self.path, len(found), f"rows exist but their head {self.head_path.name} is gone")
        if noted is not None and noted.rows > len(found):
            raise _tampered(
                self.path,
                len(found) + 1,
                f"is gone: {self.head_path.name} counts {noted.rows} rows, found {len(found)}",
            )
        if noted is not None and noted.digest != (found[noted.rows - 1].digest if noted.rows else GENESIS):
            raise _tampered(
                self.path, noted.rows, f"has not the digest in {self.head_path.name}: rewritten up to there"
            )
        return found, head

    def _database(self) -> sqlite3.Connection:
        if os.getpid() != self._pid:  # SQLite loses data when a connection is carried over a fork
            raise LedgerError(f"{self.path}: was opened by another process; open it again in this one")
        return self._connection

    def _check(self, rows: list[Row], head: Head) -> Head:
        for row in rows:
            expected = head.rows + 1
            if row.number != expected:
                raise _tampered(self.path, expected, f"is missing; the next one found is row {row.number}")
            try:
                digest = link(head.digest, row.number, row.time, row.entry)
            except (TypeError, ValueError):
                digest = ""
            if row.digest != digest:
                raise _tampered(self.path, row.number, "or one before it was changed: its digest does not follow")
            head = Head(row.number, row.digest)
        return head

    def _noted(self) -> Head | None:
        try:
            values = json.loads(self.head_path.read_bytes())
            head = Head(int(values["rows"]), str(values["digest"]))
            if head.rows < 0:
                raise ValueError(f"expected a number of rows, found {head.rows}")
            return head
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LedgerError(
                f"{self.head_path}: cannot be read ({error}); restore it from a backup, or end this ledger and begin "
                "another one with what is left of the budget"
            ) from error

    def _anchor(self) -> None:
        """Write the head of the newest committed row; under the lock, so that heads never go back."""
        database = self._database()
        database.execute("BEGIN IMMEDIATE")
        try:
            last = database.execute("SELECT number, digest FROM rows ORDER BY number DESC LIMIT 1").fetchone()
            head = Head(*last) if last else Head()
            if self._noted() != head:
                text = canonical({"rows": head.rows, "digest": head.digest}) + "\n"
                write_synced(self.head_path, text.encode())
        finally:
            database.execute("ROLLBACK")


_LEAST = -(2**63)  # the smallest number that SQLite can hold
_SELECT = "SELECT number, time, entry, digest FROM rows WHERE number >= ? ORDER BY number"


def write_synced(path: Path, data: bytes) -> None:
    """Write a file whole: under another name, synced to disk, then renamed, and the rename synced too."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> None:
    """Make an empty chain, which appears under its name only when it is whole."""
    if path.with_suffix(".head").exists():
        raise LedgerError(
            f"{path}: is gone, but {path.with_suffix('.head').name} beside it says that it held rows; restore it from "
            "a backup, or remove that file to begin another ledger with what is left of the budget"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("BEGIN")
            for statement in _SCHEMA.values():
                database.execute(statement)
            database.execute("COMMIT")
        with contextlib.suppress(FileExistsError):  # another process was first: its file is as good
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _tampered(path: Path, number: int, what: str) -> LedgerError:
    where = f"row {number} {what}" if number else what
    return LedgerError(
        f"{path}: {where}. The ledger was changed from outside or its disk is failing; keep the file as evidence, "
        "restore a backup whose head is the newest one noted, or end this ledger and begin another with what is left "
        "of the budget"
    )


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into an error that names the file and the next step."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(
            f"{path}: the ledger cannot be read or written ({error}), so nothing may leave; free disk space, make the "
            "folder writable for this user, end the process that locks the file, or restore it from a backup"
        ) from error
