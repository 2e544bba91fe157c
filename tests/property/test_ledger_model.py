"""Whatever two processes of a site do in whatever order, the ledger holds what a simple model says it does."""

import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloister.errors import LedgerError
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.settings import Budget
from cloister.privacy.spool import Spool

pytestmark = pytest.mark.slow
handles = st.integers(0, 1)
runs = st.sampled_from(["a", "b"])
steps = st.sampled_from([1, 1, 1, 1, 2, 0, -1])  # from a run's last round to the one asked for


def cost(events: Sequence[Event], delta: float) -> float:
    return float(sum(event.count for event in events))


def event(count: int) -> Event:
    return Event(
        kind=EventKind.GAUSSIAN, noise_multiplier=1.0, count=count, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE
    )


class _Unsynced(sqlite3.Connection):
    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        return super().execute(statement.replace("synchronous=FULL", "synchronous=OFF"), *arguments)


class LedgerModel(RuleBasedStateMachine):
    """Two open ledgers on one file, a budget in force, and what was sent for each request."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.patches = [
            mock.patch("os.fsync"),
            mock.patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=_Unsynced)),
        ]
        for patch in self.patches:
            patch.start()
        self.ledgers = [self.open(), self.open()]
        self.budget: float | None = None
        self.spent: list[int] = []
        self.last: dict[str, int] = {}
        self.sent: dict[tuple[str, int], bytes] = {}
        self.rows = 0

    def open(self) -> Ledger:
        return Ledger.open(self.folder / FILE_NAME, cost=cost)

    def spool(self, handle: int) -> Spool:
        return Spool(self.folder / "spool", self.ledgers[handle])

    def affordable(self, count: int) -> bool:
        return self.budget is None or sum(self.spent) + count <= self.budget

    @rule(handle=handles, run=runs, step=steps, count=st.integers(1, 3), budget=st.none() | st.integers(1, 40))
    def admit(self, handle: int, run: str, step: int, count: int, budget: int | None) -> None:
        round = max(1, self.last.get(run, 0) + step)
        wanted = None if budget is None else Budget(epsilon=budget, delta=1e-5)
        repeated = round <= self.last.get(run, 0)
        if not repeated:
            self.rows += self.budget != budget
            self.budget = budget
        try:
            self.ledgers[handle].admit(run, round, (event(count),), wanted)
        except LedgerError:
            assert repeated or not self.affordable(count)
        else:
            assert not repeated
            assert self.affordable(count)

    @rule(handle=handles, run=runs, step=steps, count=st.integers(1, 3), data=st.binary(max_size=4))
    def release(self, handle: int, run: str, step: int, count: int, data: bytes) -> None:
        round = max(1, self.last.get(run, 0) + step)
        about: dict[str, Any] = {"task": "t", "unit": Unit.SUBJECT, "relation": Relation.ADD_REMOVE}
        entry = Entry(
            kind=EntryKind.RELEASE, run=run, round=round, kinds={"arrays": 1}, events=(event(count),), **about
        )
        allowed = round > self.last.get(run, 0) and self.affordable(count)
        try:
            self.spool(handle).release(entry, f"{round:064x}", data)
        except LedgerError:
            assert not allowed
        else:
            assert allowed
            self.rows += 1
            self.spent.append(count)
            self.last[run] = round
            self.sent[run, round] = data

    @rule(handle=handles, run=runs, back=st.integers(-1, 3))
    def ask_again(self, handle: int, run: str, back: int) -> None:
        round = max(1, self.last.get(run, 0) - back)
        kept = round > self.last.get(run, 0) - 2
        assert self.spool(handle).find(run, round, f"{round:064x}") == (self.sent.get((run, round)) if kept else None)
        assert self.spool(handle).find(run, round, f"{99:064x}") is None

    @rule(handle=handles)
    def refuse(self, handle: int) -> None:
        self.ledgers[handle].append(Entry.refusal("no", run="a", round=1))
        self.rows += 1

    @rule(handle=handles)
    def restart(self, handle: int) -> None:
        self.ledgers[handle].close()
        self.ledgers[handle] = self.open()

    @invariant()
    def both_agree_with_the_model(self) -> None:
        for ledger in self.ledgers:
            assert [event.count for event in ledger.events(Unit.SUBJECT)] == self.spent
            assert ledger.verify() == self.rows
            budget = ledger.budget(Unit.SUBJECT)
            assert (budget and budget.epsilon) == self.budget

    def teardown(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        for patch in self.patches:
            patch.stop()
        shutil.rmtree(self.folder)


TestLedgerModel = LedgerModel.TestCase
TestLedgerModel.settings = settings(max_examples=8, stateful_step_count=30, deadline=None)
