"""Entries: they come back as they were, and rows that say too little are refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import LedgerError
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.settings import Budget

CONTENT = "ab" * 32
EVENT = Event(kind=EventKind.GAUSSIAN, noise_multiplier=1.5, count=3, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)


def release(**changes: Any) -> Entry:
    values: dict[str, Any] = {
        "kind": EntryKind.RELEASE,
        "run": "r",
        "round": 1,
        "task": "camera",
        "unit": Unit.SUBJECT,
        "relation": Relation.ADD_REMOVE,
        "kinds": {"arrays": 12, "metrics": 0},
        "events": (EVENT,),
        "content": CONTENT,
    }
    return Entry(**{**values, **changes})


@pytest.mark.parametrize(
    "entry",
    [
        release(),
        release(message="evaluate", events=(), plan="cd" * 32),
        Entry(kind=EntryKind.REFUSAL, run="x\x00\ud800é", round=-1, note="noise 0.1 is below 1"),
        Entry(kind=EntryKind.BUDGET, unit=Unit.CLIENT, budget=Budget(epsilon=1 / 3, delta=1e-7)),
        Entry(kind=EntryKind.BUDGET, unit=Unit.CLIENT),
    ],
)
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    again = Entry.of(json.loads(json.dumps(entry.values())))
    assert again == entry
    assert type(again.kind) is EntryKind


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"run": ""}, "run"),
        ({"run": "a" * 201}, "run"),
        ({"run": "a\nb"}, "run"),
        ({"round": 0}, "round"),
        ({"message": "query"}, "message"),
        ({"task": ""}, "task"),
        ({"unit": None}, "task, unit"),
        ({"relation": None}, "task, unit"),
        ({"kinds": {}}, "kinds"),
        ({"kinds": {"arrays": -1}}, "kinds"),
        ({"content": "ab"}, "content"),
        ({"unit": Unit.CLIENT}, "events"),
        ({"relation": Relation.REPLACE_ONE}, "events"),
        ({"budget": Budget(epsilon=1, delta=0.1)}, "budget"),
    ],
)
def test_a_release_that_says_too_little_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(LedgerError, match=rf"release, run .*: {what}"):
        release(**changes)


@pytest.mark.parametrize("kind", [EntryKind.REFUSAL, EntryKind.BUDGET])
@pytest.mark.parametrize("more", [{"kinds": {"arrays": 1}}, {"events": (EVENT,)}, {"content": CONTENT}])
def test_only_a_release_releases(kind: EntryKind, more: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="releases nothing"):
        Entry(kind=kind, unit=Unit.SUBJECT, note="why", **more)


def test_a_refusal_needs_a_reason_and_a_budget_row_a_unit() -> None:
    with pytest.raises(LedgerError, match="reason"):
        Entry(kind=EntryKind.REFUSAL)
    with pytest.raises(LedgerError, match="unit"):
        Entry(kind=EntryKind.BUDGET)


def test_what_a_server_sends_cannot_fill_the_disk() -> None:
    entry = Entry.refusal("no " * 10_000, run="r" * 10_000, round=3, unit=Unit.CLIENT)
    assert (len(entry.run), len(entry.note), entry.round, entry.unit) == (200, 4000, 3, Unit.CLIENT)


@given(key=st.sampled_from(sorted(release().values())), value=st.sampled_from([None, 7, "x", [1], {"a": 1}]))
def test_values_of_another_shape_are_refused_or_kept(key: str, value: Any) -> None:
    values = {**release().values(), key: value}
    try:
        entry = Entry.of(values)
    except LedgerError:
        return
    assert Entry.of(entry.values()) == entry


def test_missing_and_unknown_keys_are_refused() -> None:
    values = release().values()
    for key in values:
        with pytest.raises(LedgerError, match="another version"):
            Entry.of({name: value for name, value in values.items() if name != key})
    with pytest.raises(LedgerError, match="another version"):
        Entry.of({**values, "more": 1})
