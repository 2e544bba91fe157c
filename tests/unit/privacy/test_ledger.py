"""The ledger: what is admitted, what is refused before it is spent, and that two processes share one budget."""

import math
import multiprocessing
import sqlite3
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import LedgerError
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.settings import Budget

pytestmark = pytest.mark.usefixtures("no_sync")
CONTENT = "ab" * 32


def event(count: int = 1, unit: Unit = Unit.SUBJECT, relation: Relation = Relation.ADD_REMOVE) -> Event:
    return Event(kind=EventKind.GAUSSIAN, noise_multiplier=1.0, count=count, unit=unit, relation=relation)


def cost(events: Sequence[Event], delta: float) -> float:
    """A price that can be added in one's head: one per use, more for a smaller delta."""
    return sum(event.count for event in events) * (1.0 if delta >= 1e-5 else 10.0)


def release(round: int, *, run: str = "r", events: tuple[Event, ...] | None = None, **changes: Any) -> Entry:
    events = (event(),) if events is None else events
    about = {"unit": events[0].unit, "relation": events[0].relation} if events else {"unit": Unit.SUBJECT}
    values = {"relation": Relation.ADD_REMOVE, "task": "t", "kinds": {"arrays": 9}, "content": CONTENT, **about}
    return Entry(kind=EntryKind.RELEASE, run=run, round=round, events=events, **{**values, **changes})


def budget(epsilon: float, delta: float = 1e-5) -> Budget:
    return Budget(epsilon=epsilon, delta=delta)


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(tmp_path / FILE_NAME, cost=cost, clock=lambda: 60.0) as ledger:
        yield ledger


def test_entries_come_back_after_a_restart(ledger: Ledger, tmp_path: Path) -> None:
    written = [
        release(1),
        Entry.refusal("weaker noise", run="r", round=2),
        release(2, events=()),
        release(1, run="other", events=(event(3, Unit.CLIENT), event(4, Unit.CLIENT))),
    ]
    assert [ledger.append(entry) for entry in written] == [1, 2, 3, 4]
    ledger.close()
    with Ledger.open(tmp_path / FILE_NAME) as again:
        assert list(again.entries()) == written
        assert again.events() == (event(), event(3, Unit.CLIENT), event(4, Unit.CLIENT))
        assert again.events(Unit.CLIENT) == (event(3, Unit.CLIENT), event(4, Unit.CLIENT))
        assert {record.time for record in again.records()} == {"1970-01-01T00:01:00Z"}
        assert again.verify() == 4
        assert again.head.rows == 4


def test_the_budget_covers_all_runs(ledger: Ledger) -> None:
    for run in ("a", "b", "c"):
        ledger.admit(run, 1, (event(),), budget(3))
        ledger.append(release(1, run=run))
    with pytest.raises(LedgerError, match=r"run d, round 1 would bring the total of unit subject .* epsilon 4 .* is 3"):
        ledger.admit("d", 1, (event(),), budget(3))
    ledger.admit("d", 1, (event(1, Unit.CLIENT),), budget(3))  # another unit, another budget
    assert len([entry for entry in ledger.entries() if entry.kind is EntryKind.RELEASE]) == 3


def test_exactly_the_budget_may_be_spent_and_nothing_above(ledger: Ledger) -> None:
    ledger.admit("r", 1, (event(5),), budget(5))
    with pytest.raises(LedgerError, match="epsilon 6"):
        ledger.admit("r", 1, (event(5), event()), budget(5))
    with pytest.raises(LedgerError, match="epsilon 50"):  # at the budget's own delta
        ledger.admit("r", 1, (event(5),), budget(5, delta=1e-6))


@pytest.mark.parametrize("price", [math.inf, math.nan])
def test_what_has_no_price_is_not_affordable(tmp_path: Path, price: float) -> None:
    with Ledger.open(tmp_path / FILE_NAME, cost=lambda events, delta: price) as ledger:
        with pytest.raises(LedgerError, match="nothing may leave"):
            ledger.admit("r", 1, (event(),), budget(1e300))
        ledger.admit("r", 1, (event(),), None)


def test_an_accountant_that_fails_admits_nothing(tmp_path: Path) -> None:
    def fail(events: Sequence[Event], delta: float) -> float:
        raise ZeroDivisionError

    with Ledger.open(tmp_path / FILE_NAME, cost=fail) as ledger:
        with pytest.raises(ZeroDivisionError):
            ledger.admit("r", 1, (event(),), budget(1))
        with pytest.raises(ZeroDivisionError):
            ledger.append(release(1))
        assert [entry.kind for entry in ledger.entries()] == [EntryKind.BUDGET]


def test_a_release_that_was_not_admitted_is_refused_too(ledger: Ledger) -> None:
    ledger.admit("r", 1, (event(2),), budget(2))
    with pytest.raises(LedgerError, match="epsilon 3"):
        ledger.append(release(1, events=(event(3),)))
    ledger.append(release(1, events=(event(2),)))
    with pytest.raises(LedgerError, match="epsilon 3"):
        ledger.append(release(2))
    assert len(ledger.events()) == 1


def test_what_another_process_spent_after_the_admission_counts(ledger: Ledger, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / FILE_NAME, cost=cost) as other:
        ledger.admit("a", 1, (event(),), budget(1))
        other.admit("b", 1, (event(),), budget(1))
        other.append(release(1, run="b"))
        with pytest.raises(LedgerError, match="epsilon 2"):
            ledger.append(release(1, run="a"))
        assert len(ledger.events()) == len(other.events()) == 1


def test_changes_of_the_budget_are_written_down_once(ledger: Ledger) -> None:
    for wanted in (budget(3), budget(3), budget(5), None, None, budget(3)):
        ledger.admit("r", 1, (event(),), wanted)
        assert ledger.budget(Unit.SUBJECT) == wanted
    assert [entry.budget for entry in ledger.entries()] == [budget(3), budget(5), None, budget(3)]
    assert ledger.budget(Unit.CLIENT) is None


def test_a_lowered_budget_holds_for_what_was_spent_before(ledger: Ledger) -> None:
    ledger.admit("r", 1, (event(4),), budget(5))
    ledger.append(release(1, events=(event(4),)))
    with pytest.raises(LedgerError, match="budget is 3"):
        ledger.admit("r", 2, (event(),), budget(3))


def test_rounds_only_increase_in_each_run(ledger: Ledger) -> None:
    ledger.append(release(3))
    for round in (1, 2, 3):
        with pytest.raises(LedgerError, match=rf"run r, train round {round}: expected a round above 3"):
            ledger.admit("r", round, (), None)
        with pytest.raises(LedgerError, match="expected a round above 3"):
            ledger.append(release(round, events=()))
    ledger.append(Entry.refusal("round 3 again", run="r", round=3))
    ledger.append(release(3, message="evaluate"))
    ledger.append(release(1, run="other"))
    ledger.append(release(7))
    with pytest.raises(LedgerError, match="evaluate round 3: expected a round above 3"):
        ledger.admit("r", 3, (), None, message="evaluate")
    assert [entry.round for entry in ledger.entries()] == [3, 3, 3, 1, 7]


def test_units_and_relations_are_not_added_up(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="events of one unit"):
        ledger.admit("r", 1, (event(), event(1, Unit.CLIENT)), budget(9))
    ledger.admit("r", 1, (event(),), budget(9))
    ledger.append(release(1))
    other = event(relation=Relation.REPLACE_ONE)
    with pytest.raises(LedgerError, match="do not add up; ask for relation add-remove"):
        ledger.admit("r", 2, (other,), budget(9))
    with pytest.raises(LedgerError, match="do not add up"):
        ledger.append(release(2, events=(other,)))


def test_a_release_without_the_digest_of_its_bytes_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=r"Spool\.release"):
        ledger.append(release(1, content=""))


def test_the_accountant_is_asked_once_for_an_admitted_release(tmp_path: Path) -> None:
    asked = []

    def count(events: Sequence[Event], delta: float) -> float:
        asked.append(len(events))
        return 0.0

    with Ledger.open(tmp_path / FILE_NAME, cost=count) as ledger:
        for round in (1, 2, 3):
            ledger.admit("r", round, (event(),), budget(1))
            ledger.append(release(round))
    assert asked == [1, 2, 3]


def test_bytes_are_known_by_run_round_and_digest(ledger: Ledger) -> None:
    ledger.append(release(1))
    assert ledger.released("r", 1, CONTENT)
    assert not ledger.released("r", 1, "cd" * 32)
    assert not ledger.released("r", 2, CONTENT)
    assert not ledger.released("s", 1, CONTENT)


def test_a_row_of_another_version_is_named(ledger: Ledger, tmp_path: Path) -> None:
    with ledger._chain.writing():
        ledger._chain.append('{"kind":"later"}')
    with pytest.raises(LedgerError, match=rf"{FILE_NAME}: row 1: .*another version"):
        Ledger.open(tmp_path / FILE_NAME)
    for _ in range(2):  # its events are not known, so nothing may be released: now or when asked again
        with pytest.raises(LedgerError):
            ledger.append(release(1))
        with pytest.raises(LedgerError):
            ledger.admit("r", 1, (event(),), budget(9))


def test_a_reader_sees_what_is_written_meanwhile_and_writes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append(release(1))
    with Ledger.read(tmp_path / FILE_NAME) as reader:
        ledger.append(release(2))
        assert len(reader.entries()) == 2
        with pytest.raises(LedgerError, match="readonly"):
            reader.append(release(3))


def _spend(path: Path, run: str, start: Barrier) -> None:
    """Release rounds until the budget of 30 is spent; what a process of a site does."""
    start.wait()
    with Ledger.open(path, cost=cost) as ledger:
        for round in range(1, 40):
            try:
                ledger.admit(run, round, (event(),), budget(30))
                ledger.append(release(round, run=run))
            except LedgerError:
                return


@pytest.mark.slow
def test_processes_at_once_share_one_budget(tmp_path: Path) -> None:
    """They also make the file at once."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    path = tmp_path / FILE_NAME
    workers = [context.Process(target=_spend, args=(path, f"run {number}", start)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Ledger.read(path) as ledger:
        assert ledger.verify() == 30 + 1
        assert len(ledger.events(Unit.SUBJECT)) == 30
        rounds: dict[str, list[int]] = {}
        for entry in ledger.entries():
            rounds.setdefault(entry.run, []).append(entry.round)
        assert all(numbers == sorted(set(numbers)) for numbers in rounds.values())


def test_a_reader_is_refused_what_was_tampered_with(ledger: Ledger, tmp_path: Path) -> None:
    for round in (1, 2, 3):
        ledger.append(release(round))
    ledger.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("DROP TRIGGER no_update")
        database.execute("UPDATE rows SET entry = replace(entry, '\"arrays\":9', '\"arrays\":8') WHERE number = 2")
    database.close()
    for way in (Ledger.open, Ledger.read):
        with pytest.raises(LedgerError, match="no_update"):
            way(tmp_path / FILE_NAME)
