"""The ledger of a site: every release and every refusal, written and synced before anything leaves.

It holds events, never epsilons: what they cost depends on all of them together and is computed when somebody asks.
One per site, over all runs. The order that makes it a guarantee, not a diary, is the caller's and is kept in one
place, :meth:`cloister.privacy.spool.Spool.release`: the event is in the ledger, on disk, before the release leaves.

A release that would bring the total over the budget is refused twice: by :meth:`Ledger.admit` before the work is
done, and by :meth:`Ledger.append` under the lock, where no other process can spend in between.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cloister.errors import LedgerError
from cloister.privacy.accounting import epsilon
from cloister.privacy.chain import Chain, Head, canonical
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, Unit
from cloister.privacy.settings import Budget

FILE_NAME = "ledger.sqlite"

Cost = Callable[[Sequence[Event], float], float]


@dataclass(frozen=True)
class Record:
    """An entry as it stands in the ledger. ``number`` counts from 1; ``time`` is UTC, ISO 8601."""

    number: int
    time: str
    entry: Entry
    digest: str


class Ledger:
    """An append-only, hash-chained list of entries in one file, shared by all processes of a site.

    Guarantee: the events of everything that was released by way of it are in it, over all runs and after ``kill -9``
    at any moment; while a budget is in force for a unit, ``cost`` of all its events stays within it; a round of a run
    is released once (the same bytes may be sent again). Every method raises :class:`LedgerError`, and what ``cost``
    raises passes; nothing may leave after either.
    """

    def __init__(self, chain: Chain, cost: Cost) -> None:
        """Wrap an open chain; use :meth:`open` or :meth:`read`."""
        self._chain = chain
        self._cost = cost
        self._records: list[Record] = []
        self._rounds: dict[tuple[str, str], int] = {}
        self._contents: set[tuple[str, int, str]] = set()
        self._events: dict[Unit, list[Event]] = {}
        self._budgets: dict[Unit, Budget | None] = {}
        self._afforded: tuple[Any, ...] = ()
        try:
            self._refresh()
        except BaseException:
            chain.close()
            raise

    @classmethod
    def open(cls, path: Path, *, cost: Cost = epsilon, clock: Callable[[], float] = time.time) -> Self:
        """Open the ledger at ``path``, made if there is none, and verify it. ``cost(events, delta)`` is an epsilon."""
        return cls(Chain.open(path, clock=clock), cost)

    @classmethod
    def read(cls, path: Path, *, cost: Cost = epsilon) -> Self:
        """Open the ledger at ``path`` to look at it, and verify it; :meth:`append` is refused."""
        return cls(Chain.read(path), cost)

    def append(self, entry: Entry) -> int:
        """Write an entry, synced to disk when this returns; return its number.

        A release is refused when its round is not above the last one of its run and message, or when it would
        overspend the budget in force.
        """
        with self._chain.writing():
            self._refresh()
            if entry.kind is EntryKind.RELEASE:
                if not entry.content:
                    raise LedgerError(
                        f"{self._chain.path}: a release needs the SHA-256 of its bytes; use Spool.release"
                    )
                self._check_round(entry.run, entry.message, entry.round)
                self._check_budget(entry.run, entry.round, entry.events)
            number = self._chain.append(canonical(entry.values()))
        self._refresh()
        return number

    def admit(
        self, run: str, round: int, events: Sequence[Event], budget: Budget | None, *, message: str = "train"
    ) -> None:
        """Refuse, before any work is done, a round that was released already or that the budget does not cover.

        ``events``: what the round will do to one unit, all of one unit and relation. ``budget``: the site's for that
        unit, over all runs, None for none; a change of it is written down. Refuses when ``cost`` of all events of the
        unit, these included, would exceed ``budget.epsilon`` at ``budget.delta``.
        """
        self._refresh()
        self._check_round(run, message, round)
        units = {event.unit for event in events}
        if len(units) > 1:
            raise LedgerError(
                f"run {run}, round {round}: expected events of one unit, found {', '.join(sorted(units))}"
            )
        for unit in units:
            self._declare(unit, budget)
        self._check_budget(run, round, events)

    def records(self) -> tuple[Record, ...]:
        """Return all rows, oldest first."""
        self._refresh()
        return tuple(self._records)

    def entries(self) -> tuple[Entry, ...]:
        """Return what all rows say, oldest first."""
        return tuple(record.entry for record in self.records())

    def events(self, unit: Unit | None = None, *, run: str = "") -> tuple[Event, ...]:
        """Return the events of all releases, oldest first; of one unit or one run alone where they are given."""
        entries = (entry for entry in self.entries() if run in ("", entry.run))
        return tuple(event for entry in entries for event in entry.events if unit is None or event.unit is unit)

    def last_round(self, run: str, message: str = "train") -> int:
        """Return the last round of a run that was released, 0 if none was."""
        self._refresh()
        return self._rounds.get((run, message), 0)

    def budget(self, unit: Unit) -> Budget | None:
        """Return the budget in force for a unit: the last one written down."""
        self._refresh()
        return self._budgets.get(unit)

    def released(self, run: str, round: int, content: str) -> bool:
        """Return whether the bytes with this SHA-256 are in the ledger as a release of this round of this run."""
        self._refresh()
        return (run, round, content) in self._contents

    def verify(self) -> int:
        """Recompute the whole chain; return the number of rows. Raises :class:`LedgerError`: the first bad row."""
        rows = self._chain.verify()
        self._refresh()
        return rows

    @property
    def head(self) -> Head:
        """The head of the chain: worth noting outside the site, as proof of everything up to it."""
        self._refresh()
        return self._chain.head

    def close(self) -> None:
        """Close the file."""
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _refresh(self) -> None:
        """Take in what this and other processes have committed since the last look."""
        for row in self._chain.news():
            try:
                entry = Entry.of(json.loads(row.entry))
            except (LedgerError, ValueError) as error:
                self.close()  # what cannot be read cannot be counted: from here on nothing is admitted
                raise LedgerError(f"{self._chain.path}: row {row.number}: {error}") from error
            self._records.append(Record(row.number, row.time, entry, row.digest))
            if entry.kind is EntryKind.RELEASE and entry.unit:
                self._rounds[entry.run, entry.message] = entry.round
                self._contents.add((entry.run, entry.round, entry.content))
                self._events.setdefault(entry.unit, []).extend(entry.events)
            elif entry.kind is EntryKind.BUDGET and entry.unit:
                self._budgets[entry.unit] = entry.budget

    def _declare(self, unit: Unit, budget: Budget | None) -> None:
        """Write down that another budget is in force from here on; nothing if it is the one already."""
        if self._budgets.get(unit) == budget:
            return
        with self._chain.writing():
            self._refresh()
            if self._budgets.get(unit) != budget:  # another process of this site may have been first
                entry = Entry(kind=EntryKind.BUDGET, unit=unit, budget=budget, note="the site's budget changed")
                self._chain.append(canonical(entry.values()))
        self._refresh()

    def _check_round(self, run: str, message: str, round: int) -> None:
        last = self._rounds.get((run, message), 0)
        if round <= last:
            raise LedgerError(
                f"{self._chain.path}: run {run}, {message} round {round}: expected a round above {last}, the last one "
                "released. Only the same request is answered again, with the same bytes; start a new run"
            )

    def _check_budget(self, run: str, round: int, events: Sequence[Event]) -> None:
        """Raise unless the budget in force covers all events of the unit and these."""
        if not events:
            return
        unit = events[0].unit
        budget, before = self._budgets.get(unit), self._events.get(unit, [])
        if budget is None or self._afforded == (unit, budget, len(before), tuple(events)):
            return
        relations = {event.relation for event in (*before, *events)}
        if len(relations) > 1:
            raise LedgerError(
                f"{self._chain.path}: run {run}, round {round}: unit {unit} has events under the relations "
                f"{', '.join(sorted(relations))}, whose costs do not add up; ask for "
                f"relation {(before or events)[0].relation}"
            )
        total = self._cost((*before, *events), budget.delta)
        if not total <= budget.epsilon:
            raise LedgerError(
                f"{self._chain.path}: run {run}, round {round} would bring the total of unit {unit} over all runs to "
                f"epsilon {total:.4g} at delta {budget.delta:g}, the budget is {budget.epsilon:g}; nothing may leave. "
                "Ask for fewer rounds or more noise; only the site's owner can raise the budget in its policy"
            )
        self._afforded = (unit, budget, len(before), tuple(events))
