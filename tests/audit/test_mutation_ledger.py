"""Ledgers that are broken in one way each: every check below passes on the sound one and notices the broken one."""

import contextlib
import hashlib
import itertools
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloister.errors import LedgerError
from cloister.privacy import chain as chains
from cloister.privacy import spool as spools
from cloister.privacy.chain import GENESIS, canonical, link
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.settings import Budget
from cloister.privacy.spool import Spool

EVENT = Event(kind=EventKind.GAUSSIAN, noise_multiplier=1.0, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)
BUDGET = Budget(epsilon=3, delta=1e-5)


def cost(events: Sequence[Event], delta: float) -> float:
    return float(len(events))


def release(round: int, run: str = "r", content: str = "") -> Entry:
    about: dict[str, Any] = {"task": "t", "unit": EVENT.unit, "relation": EVENT.relation, "kinds": {"arrays": 9}}
    content = content or hashlib.sha256(f"{run} {round}".encode()).hexdigest()
    return Entry(kind=EntryKind.RELEASE, run=run, round=round, events=(EVENT,), content=content, **about)


# Killed sites ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app() -> Iterator[ModuleType]:
    """The site and the machine of the integration tests, which die between any two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "integration" / "apps"))
        import ledger_site

        yield ledger_site
        sys.modules.pop("ledger_site", None)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: what is synced is simulated here."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def dies_well(app: ModuleType, make: Callable[[Path], Any], folder: Path, *, power: bool = False) -> bool:
    """Return whether the site survives a kill before each of its effects."""
    for start in (3, 1, 2, 4):  # most gaps are wider than one effect: look into every fourth first
        for number in itertools.count(start, 4):
            survived = app.survives(make(folder / str(number) / "site"), number, power=power)
            if survived is None:
                break
            if not survived:
                return False
    return True


class AppendsBeforeStaging(Spool):
    """A release whose row is written first: its bytes may be lost while it counts."""

    def release(self, entry: Entry, request: str, data: bytes) -> bytes:
        self._ledger.append(replace(entry, content=hashlib.sha256(data).hexdigest()))
        self.commit(entry.run, entry.round, request, self.stage(entry.run, entry.round, request, data))
        return data


class TrustsWhatIsStaged(Spool):
    """Sends staged bytes again without asking the ledger whether they count."""

    def find(self, run: str, round: int, request: str) -> bytes | None:
        for path, name in self._files(run):
            if (int(name["round"]), name["request"], name["torn"]) == (round, request, ""):
                return path.read_bytes()
        return None


class ForgetsWhatItSent(Spool):
    """Draws the noise of a repeated round again."""

    def find(self, run: str, round: int, request: str) -> bytes | None:
        return None


class CountsARoundOnce(Ledger):
    """Takes a repeated round for granted: not refused, not counted."""

    def admit(self, *arguments: Any, **options: Any) -> None:
        with contextlib.suppress(LedgerError):
            super().admit(*arguments, **options)

    def append(self, entry: Entry) -> int:
        try:
            return super().append(entry)
        except LedgerError:
            return len(self.records())


def sends_before_appending(app: ModuleType, folder: Path) -> Any:
    """Return a site whose release leaves before its row is in the ledger."""

    class Site(app.Site):  # type: ignore[misc, name-defined]
        def release(self, kept: Spool, round: int, data: bytes) -> None:
            content = kept.stage("r", round, app.request(round), data)
            self.send(round, data)
            kept._ledger.append(replace(app.entry(round), content=content))
            kept.commit("r", round, app.request(round), content)

    return Site(folder)


BROKEN_SITES: dict[str, Callable[[ModuleType, Path], Any]] = {
    "append after the release": sends_before_appending,
    "append before staging": lambda app, folder: app.Site(folder, spool=AppendsBeforeStaging),
    "staged bytes sent without a row": lambda app, folder: app.Site(folder, spool=TrustsWhatIsStaged),
    "repeated round refused, its bytes forgotten": lambda app, folder: app.Site(folder, spool=ForgetsWhatItSent),
    "repeated round not counted": lambda app, folder: app.Site(
        folder, spool=ForgetsWhatItSent, ledger=CountsARoundOnce
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN_SITES)
def test_a_site_with_another_order_is_caught(app: ModuleType, folder: Path, name: str) -> None:
    assert not dies_well(app, lambda site: BROKEN_SITES[name](app, site), folder)


def unsynced(path: Path, data: bytes) -> None:
    """Write a file that a loss of power empties."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def renamed_only(path: Path, data: bytes) -> None:
    """Sync what a file holds, and not that it is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "write"),
    [(spools, unsynced), (spools, renamed_only), (chains, unsynced)],
    ids=["bytes not synced", "name not synced", "head not synced"],
)
def test_a_site_that_does_not_sync_is_caught(
    app: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, write: Any
) -> None:
    monkeypatch.setattr(module, "write_synced", write)
    assert not dies_well(app, app.Site, folder, power=True)


# Budgets --------------------------------------------------------------------------------------------------------------


class ChecksAfterSpending(Ledger):
    """Asks whether what was spent is within the budget, without what is about to be."""

    def _check_budget(self, run: str, round: int, events: Sequence[Event]) -> None:
        if self._cost(self.events(), 1e-5) > BUDGET.epsilon:
            raise LedgerError("overspent")


class ForgetsOtherRuns(Ledger):
    """A budget for each run by itself."""

    def _check_budget(self, run: str, round: int, events: Sequence[Event]) -> None:
        own = [event for entry in self.entries() if entry.run == run for event in entry.events]
        if self._cost([*own, *events], 1e-5) > BUDGET.epsilon:
            raise LedgerError("overspent")


class AdmitsWithoutLock(Ledger):
    """Checks the budget when a round is admitted, and not again when it is written down."""

    def append(self, entry: Entry) -> int:
        with self._chain.writing():
            self._refresh()
            return self._chain.append(canonical(entry.values()))


class RefusesNothingAtTheLimit(Ledger):
    """Compares the wrong way round, so that nan is affordable."""

    def _check_budget(self, run: str, round: int, events: Sequence[Event]) -> None:
        if self._cost((*self.events(), *events), 1e-5) > BUDGET.epsilon:
            raise LedgerError("overspent")


def keeps_within(ledger: type[Ledger], path: Path) -> bool:
    """Return whether two processes' ledgers, which alternate between their steps, stay within the budget."""
    with ledger.open(path, cost=cost) as one, ledger.open(path, cost=cost) as other:
        for round in range(1, 6):
            for books, run in ((one, "a"), (other, "b")):
                with contextlib.suppress(LedgerError):
                    books.admit(run, round, (EVENT,), BUDGET)
            for books, run in ((one, "a"), (other, "b")):
                with contextlib.suppress(LedgerError):
                    books.admit(run, round, (EVENT,), BUDGET) if round == 1 else None
                    books.append(release(round, run))
        return cost(one.events(), 1e-5) <= BUDGET.epsilon


def refuses_nan(ledger: type[Ledger], path: Path) -> bool:
    """Return whether events without a price are refused."""
    with ledger.open(path, cost=lambda events, delta: float("nan")) as books:
        try:
            books.admit("r", 1, (EVENT,), BUDGET)
        except LedgerError:
            return True
        return False


@pytest.mark.parametrize("broken", [ChecksAfterSpending, ForgetsOtherRuns, AdmitsWithoutLock])
def test_a_ledger_that_overspends_is_caught(broken: type[Ledger], tmp_path: Path) -> None:
    assert keeps_within(Ledger, tmp_path / FILE_NAME)
    assert not keeps_within(broken, tmp_path / f"broken-{FILE_NAME}")


def test_a_ledger_that_affords_nan_is_caught(tmp_path: Path) -> None:
    assert refuses_nan(Ledger, tmp_path / FILE_NAME)
    assert not refuses_nan(RefusesNothingAtTheLimit, tmp_path / f"broken-{FILE_NAME}")


# Tampering ------------------------------------------------------------------------------------------------------------

Tamper = Callable[[sqlite3.Connection], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of five rows: a budget, three releases and a refusal."""
    path = tmp_path_factory.mktemp("made") / FILE_NAME
    write(path)
    return path


def write(path: Path) -> None:
    with Ledger.open(path, cost=cost, clock=lambda: 0.0) as ledger:
        ledger.admit("r", 1, (EVENT,), BUDGET)
        for round in (1, 2, 3):
            ledger.append(release(round))
        ledger.append(Entry.refusal("weaker noise", run="r", round=4))


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for item in made.parent.iterdir():
        (tmp_path / item.name).write_bytes(item.read_bytes())
    return tmp_path / FILE_NAME


def tamper(path: Path, change: Tamper) -> None:
    """Change the file as its owner can: the triggers are dropped, and are as they were afterwards."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        change(database)
        for _, statement in triggers:
            database.execute(statement)
    finally:
        database.close()


def caught(path: Path) -> str:
    """Return what opening, reading and verifying say, which must be the same; empty if nothing."""
    said = set()
    for way in (Ledger.open, Ledger.read):
        try:
            with way(path, cost=cost) as ledger:
                ledger.verify()
            said.add("")
        except LedgerError as error:
            said.add(str(error))
    assert len(said) == 1
    return said.pop()


def statement(text: str) -> Tamper:
    return lambda database: database.execute(text)


def rewrite(database: sqlite3.Connection) -> None:
    """Change row 2 and recompute every digest, as whoever knows the code can."""
    rows = database.execute("SELECT number, time, entry FROM rows ORDER BY number").fetchall()
    previous = GENESIS
    for number, at, entry in rows:
        text = entry.replace('"arrays":9', '"arrays":1') if number == 2 else entry
        previous = link(previous, number, at, text)
        database.execute("UPDATE rows SET entry = ?, digest = ? WHERE number = ?", (text, previous, number))


def swap(column: str) -> Tamper:
    def change(database: sqlite3.Connection) -> None:
        (one,), (other,) = database.execute(f"SELECT {column} FROM rows WHERE number IN (2, 3) ORDER BY number")
        database.execute(f"UPDATE rows SET {column} = ? WHERE number = 2", (other,))
        database.execute(f"UPDATE rows SET {column} = ? WHERE number = 3", (one,))

    return change


def swap_rows(database: sqlite3.Connection) -> None:
    for old, new in ((2, 9), (3, 2), (9, 3)):
        database.execute("UPDATE rows SET number = ? WHERE number = ?", (new, old))


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "time": (statement("UPDATE rows SET time = '1970-01-01T00:00:01Z' WHERE number = 3"), "row 3"),
    "entry": (
        statement("UPDATE rows SET entry = replace(entry, '\"round\":2', '\"round\":9') WHERE number = 3"),
        "row 3",
    ),
    "digest": (statement("UPDATE rows SET digest = replace(digest, 'a', 'b') WHERE number = 3"), "row 3"),
    "number": (statement("UPDATE rows SET number = 7 WHERE number = 3"), "row 3 is missing"),
    "last number": (statement("UPDATE rows SET number = 7 WHERE number = 5"), "row 5 is missing"),
    "spaces in an entry": (statement("UPDATE rows SET entry = replace(entry, ':', ': ') WHERE number = 3"), "row 3"),
    "a blob in place of a text": (statement("UPDATE rows SET entry = CAST(entry AS BLOB) WHERE number = 3"), "row 3"),
    "first row deleted": (statement("DELETE FROM rows WHERE number = 1"), "row 1 is missing"),
    "middle row deleted": (statement("DELETE FROM rows WHERE number = 3"), "row 3 is missing"),
    "rows swapped": (swap_rows, "row 2 or one before"),
    "entries swapped": (swap("entry"), "row 2 or one before"),
    "tail truncated by one": (statement("DELETE FROM rows WHERE number = 5"), "row 5 is gone"),
    "tail truncated": (statement("DELETE FROM rows WHERE number > 2"), "row 3 is gone"),
    "emptied": (statement("DELETE FROM rows"), "row 1 is gone"),
    "row put before the first": (
        statement("INSERT INTO rows SELECT 0, time, entry, digest FROM rows LIMIT 1"),
        "row 1",
    ),
    "row put in at the end": (statement("INSERT INTO rows SELECT 6, time, entry, digest FROM rows LIMIT 1"), "row 6"),
    "chain recomputed": (rewrite, "row 5 has not the digest in ledger.head"),
    "another trigger": (statement("CREATE TRIGGER more BEFORE UPDATE ON rows BEGIN SELECT 1; END"), "'more'"),
    "another table": (statement("CREATE TABLE more (x)"), "'more'"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_caught_and_the_row_is_named(path: Path, name: str) -> None:
    change, where = TAMPERED[name]
    assert caught(path) == ""
    tamper(path, change)
    message = caught(path)
    assert str(path) in message
    assert where in message


@pytest.mark.parametrize("name", ["no_update", "no_delete", "no_replace"])
def test_a_trigger_that_is_gone_is_caught(path: Path, name: str) -> None:
    database = sqlite3.connect(path)
    database.execute(f"DROP TRIGGER {name}")
    database.close()
    assert f"{name!r} that protects rows is not as it was made" in caught(path)


@pytest.mark.parametrize("field", sorted(release(1).values()))
def test_no_field_of_an_entry_can_change(path: Path, field: str) -> None:
    def change(database: sqlite3.Connection) -> None:
        values = release(2).values()
        other = {**values, field: "x" if isinstance(values[field], str) else [values[field], 1]}
        done = database.execute("UPDATE rows SET entry = ? WHERE entry = ?", (canonical(other), canonical(values)))
        assert done.rowcount == 1

    tamper(path, change)
    assert "row 3 or one before it was changed" in caught(path)


def test_a_site_that_is_running_notices_too(path: Path) -> None:
    with Ledger.open(path, cost=cost) as ledger:
        tamper(path, statement("DELETE FROM rows WHERE number = 5"))
        with pytest.raises(LedgerError, match="row 5 was there before"):
            ledger.append(release(5))
        with pytest.raises(LedgerError, match="row 5 is gone"):
            ledger.verify()


def test_who_rewrites_the_head_too_is_caught_by_a_head_noted_elsewhere(path: Path) -> None:
    """The limit of a chain without a key: the file alone cannot tell, a noted head can."""
    with Ledger.read(path) as ledger:
        noted = ledger.head
    tamper(path, rewrite)
    path.with_suffix(".head").unlink()
    assert "ledger.head is gone" in caught(path)
    database = sqlite3.connect(path)
    (digest,) = database.execute("SELECT digest FROM rows WHERE number = 5").fetchone()
    database.close()
    path.with_suffix(".head").write_text(canonical({"rows": 5, "digest": digest}))
    assert caught(path) == ""
    with Ledger.read(path) as ledger:
        assert ledger.head.rows == noted.rows
        assert ledger.head.digest != noted.digest


BROKEN_LINKS: dict[str, Callable[[str, int, str, str], str]] = {
    "time": lambda previous, number, at, entry: link(previous, number, "", entry),
    "entry": lambda previous, number, at, entry: link(previous, number, at, entry.replace('"round":9', '"round":2')),
    "spaces in an entry": lambda previous, number, at, entry: link(previous, number, at, entry.replace(" ", "")),
    "entries swapped": lambda previous, number, at, entry: link("", number, at, ""),
    "rows swapped": lambda previous, number, at, entry: link("", 0, at, entry),
}


@pytest.mark.parametrize("name", BROKEN_LINKS)
def test_a_chain_that_leaves_something_out_would_not_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """So the tests above depend on every part of a link."""
    monkeypatch.setattr(chains, "link", BROKEN_LINKS[name])
    path = tmp_path / FILE_NAME
    write(path)
    tamper(path, TAMPERED[name][0])
    assert caught(path) == ""
