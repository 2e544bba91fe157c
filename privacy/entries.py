"""What one row of a ledger says: a release, a refusal, or a change of the budget."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self

from cloister.errors import LedgerError, PlanError
from cloister.privacy.events import Event, Relation, Unit
from cloister.privacy.settings import Budget

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 200
_LONGEST_NOTE = 4000


class EntryKind(StrEnum):
    """Something left, something was asked for and did not leave, or another budget holds from here on."""

    RELEASE = "release"
    REFUSAL = "refusal"
    BUDGET = "budget"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row.

    ``run``, ``round``, ``message`` ("train" or "evaluate"), ``task``: what was asked for. ``plan``: the plan's digest.
    ``unit``, ``relation``: what the plan protects. A release has ``kinds``, bytes per release kind; ``events``, what
    was done to one unit, all of this unit and relation; and ``content``, the SHA-256 of the very bytes that leave,
    which the spool fills in. A refusal has a ``note``, the reasons. A budget row has the ``budget`` that holds for
    ``unit`` from here on, None when it was lifted.

    Raises :class:`LedgerError` for a row that says too little or contradicts itself.
    """

    kind: EntryKind
    run: str = ""
    round: int = 0
    message: str = "train"
    task: str = ""
    plan: str = ""
    unit: Unit | None = None
    relation: Relation | None = None
    kinds: Mapping[str, int] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    content: str = ""
    budget: Budget | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse rows from which a reviewer could not tell what happened."""
        for problem, wrong in _PROBLEMS[self.kind](self).items():
            if wrong:
                raise LedgerError(f"ledger entry ({self.kind}, run {self.run!r}, round {self.round}): {problem}")

    @classmethod
    def refusal(cls, note: str, **asked: Any) -> Self:
        """Return the row of a refusal; texts that came from the server are cut to a bounded length."""
        short: dict[str, Any] = {
            key: value[:_LONGEST_NAME] if type(value) is str else value for key, value in asked.items()
        }
        return cls(kind=EntryKind.REFUSAL, note=note[:_LONGEST_NOTE], **short)

    def values(self) -> dict[str, Any]:
        """Return plain JSON values, from which :meth:`of` makes an equal entry."""
        values = {name: getattr(self, name) for name in _KEYS}
        values["kinds"] = dict(self.kinds)
        values["events"] = [event.values() for event in self.events]
        values["budget"] = self.budget.model_dump() if self.budget else None
        return {key: str(value) if isinstance(value, StrEnum) else value for key, value in values.items()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the entry that :meth:`values` described; raises :class:`LedgerError` for anything else."""
        try:
            if set(values) != _KEYS:
                raise ValueError(f"expected the keys {sorted(_KEYS)}, found {sorted(values)}")
            typed = dict(values)
            typed["kind"] = EntryKind(values["kind"])
            typed["unit"] = Unit(values["unit"]) if values["unit"] else None
            typed["relation"] = Relation(values["relation"]) if values["relation"] else None
            typed["events"] = tuple(_event(tuple(event.items())) for event in values["events"])
            typed["budget"] = Budget(**values["budget"]) if values["budget"] else None
            return cls(**typed)
        except (KeyError, TypeError, ValueError, AttributeError, PlanError) as error:
            raise LedgerError(
                f"ledger entry: cannot be read ({type(error).__name__}: {error}); it was written by another version of "
                "Cloister: read it with that one"
            ) from error


_KEYS = frozenset(item.name for item in fields(Entry))


@lru_cache(maxsize=1024)
def _event(items: tuple[tuple[str, Any], ...]) -> Event:
    """Return the event with these values: a ledger holds the same few, over and over."""
    return Event.of(dict(items))


def _release(entry: Entry) -> dict[str, bool]:
    named = 0 < len(entry.run) <= _LONGEST_NAME and entry.run.isprintable()
    return {
        f"run: expected 1 to {_LONGEST_NAME} printable characters": not named,
        "round: expected at least 1": entry.round < 1,
        f"message: expected 'train' or 'evaluate', found {entry.message!r}": entry.message not in ("train", "evaluate"),
        "task, unit, relation: expected all three": not (entry.task and entry.unit and entry.relation),
        "kinds: expected bytes per release kind": not entry.kinds or min(entry.kinds.values()) < 0,
        "content: expected the SHA-256 of what leaves": not _DIGEST.fullmatch(entry.content or "0" * 64),
        f"events: expected all of unit {entry.unit} and relation {entry.relation}": any(
            (event.unit, event.relation) != (entry.unit, entry.relation) for event in entry.events
        ),
        "budget: belongs to a budget row": entry.budget is not None,
    }


def _refusal(entry: Entry) -> dict[str, bool]:
    return {
        "note: expected the reason": not entry.note,
        "a refusal releases nothing": bool(entry.kinds or entry.events or entry.content or entry.budget),
    }


def _budget(entry: Entry) -> dict[str, bool]:
    return {
        "unit: expected the unit that the budget is for": entry.unit is None,
        "a change of the budget releases nothing": bool(entry.kinds or entry.events or entry.content),
    }


_PROBLEMS = {EntryKind.RELEASE: _release, EntryKind.REFUSAL: _refusal, EntryKind.BUDGET: _budget}
