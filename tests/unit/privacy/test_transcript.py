"""Entries of a transcript: one text for each value, nothing else read, and digests of exactly what was sent."""

import json
from typing import Any

import numpy as np
import pytest

from cloister.errors import TranscriptError
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.plan import Plan
from cloister.privacy.transcript import (
    Commitment,
    End,
    Header,
    LedgerHead,
    ModularSum,
    Round,
    digest_of,
    entry_of,
    layout_digest,
)

A, B, C = "ab" * 32, "cd" * 32, "ef" * 32
EVENT = Event(kind=EventKind.GAUSSIAN, noise_multiplier=1.5, unit=Unit.CLIENT, relation=Relation.ADD_REMOVE)
SAMPLED = Event(
    kind=EventKind.GAUSSIAN,
    noise_multiplier=2.0,
    sampler=Sampler.POISSON,
    rate=0.25,
    unit=Unit.CLIENT,
    relation=Relation.ADD_REMOVE,
)
HEADER = Header(
    run="r",
    experiment="reid",
    experiment_digest=A,
    code=B,
    task="camera",
    rounds=4,
    plan=Plan.none().values(),
    delta=1e-5,
    server=C,
    roster={"cam1": A, "cam2": ""},
    model=C,
)
HEAD = LedgerHead(rows=7, digest=A, public=B, signature="12" * 64)
ROUND = Round(
    round=3,
    cohort=("cam1", "cam2", "cam3"),
    commitments={
        "cam1": Commitment(digest=A, signature="34" * 64, sketch="00ff", sketch_signature="56" * 64, head=HEAD),
        "cam2": Commitment(digest=B, counted=False),
    },
    layout=C,
    clip=1.0,
    events=(EVENT, SAMPLED),
    total=ModularSum(bits=32, size=9, total=A, masks=B, announced=C, kept=True, vectors=True, sketch="ab"),
    before=A,
    model=B,
)
END = End(round=4, model=B, epsilon=3.25, claimed=None)


@pytest.mark.parametrize("entry", [HEADER, ROUND, END], ids=lambda entry: entry.kind)
def test_an_entry_is_read_back_as_it_was(entry: Any) -> None:
    assert entry_of(json.loads(entry.text())) == entry
    assert "\n" not in entry.text()


def test_entries_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ROUND.round = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "rounds"}, "expected kind"),
        ({"kind": ["round"]}, "expected kind"),
        ({"round": 0}, "round"),
        ({"round": 3.0}, "round"),
        ({"round": True}, "round"),
        ({"clip": 1}, "another way"),
        ({"clip": -1.0}, "clip"),
        ({"extra": 1}, "extra"),
        ({"model": "AB" * 32}, "model"),
        ({"model": "ab" * 31}, "model"),
        ({"model": "ab" * 32 + "\n"}, "model"),
        ({"events": [{**EVENT.values(), "noise_multiplier": -1.0}]}, "noise_multiplier"),
        ({"events": [{**EVENT.values(), "kind": "poisson"}]}, "kind"),
        ({"commitments": {"cam1": {"digest": A, "signature": ""}}}, "another way"),
        ({"cohort": "cam1"}, "cohort"),
    ],
)
def test_other_values_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(TranscriptError, match=problem):
        entry_of({**ROUND.values(), **change})


def test_the_digest_of_a_reply_is_of_all_of_it() -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(3, np.int64)}
    numbers = {"loss": 0.5, "steps": 3}
    digest = digest_of(arrays, numbers)
    same = {"a": arrays["a"].copy(), "b": np.asfortranarray(arrays["b"]).astype(">f4")}
    assert digest_of(same, dict(reversed(numbers.items()))) == digest
    moved = arrays["b"].copy()
    moved[0, 0] = -0.0
    others: list[tuple[Any, Any]] = [
        ({**arrays, "b": moved}, numbers),
        ({**arrays, "b": arrays["b"].reshape(3, 2)}, numbers),
        ({**arrays, "b": arrays["b"].astype(np.float64)}, numbers),
        ({"c": arrays["b"], "a": arrays["a"]}, numbers),
        ({"b": arrays["b"]}, numbers),
        (arrays, {**numbers, "loss": 0.5000001}),
        (arrays, {}),
    ]
    assert len({digest, *(digest_of(*other) for other in others)}) == len(others) + 1


def test_values_cannot_move_from_one_array_to_the_next() -> None:
    one = {"a": np.array([1, 2], np.uint8), "b": np.array([3], np.uint8)}
    other = {"a": np.array([1], np.uint8), "b": np.array([2, 3], np.uint8)}
    assert digest_of(one) != digest_of(other)
    assert layout_digest(one) != layout_digest(other)
    assert layout_digest(one) == layout_digest({name: values + 1 for name, values in one.items()})


def test_an_array_without_entries_has_a_digest() -> None:
    assert digest_of({"a": np.zeros((0, 3), np.float32)}) != digest_of({"a": np.zeros((3, 0), np.float32)})
