"""The server's books: one release per round, written down before it is used."""

from pathlib import Path

import numpy as np
import pytest

from cloister.errors import LedgerError, PrivacyError
from cloister.flower import NDArray
from cloister.privacy.entries import Entry
from cloister.privacy.events import Event
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.plan import Plan
from cloister.privacy.sealing import KEY_NAME
from cloister.server.book import Book

PLAN = Plan.of(
    {
        "unit": "client",
        "mechanism": "gaussian",
        "trust": "central",
        "sampler": "poisson",
        "rate": 0.5,
        "population": 40,
        "rounds": 6,
        "noise_multiplier": 1.5,
        "clip": {"bound": 2.0},
    }
)


def book(folder: Path, plan: Plan = PLAN, run: str = "run-1") -> Book:
    return Book(folder, run=run, plan=plan, task="camera")


def events(folder: Path, run: str = "run-1") -> tuple[Event, ...]:
    with Ledger.open(folder / FILE_NAME) as ledger:
        return ledger.events(run=run)


def release(value: float) -> dict[str, NDArray]:
    return {"sum/w": np.full((3, 2), value), "bits": np.asarray(value)}


def test_a_round_is_released_once_and_then_repeated(tmp_path: Path) -> None:
    first = book(tmp_path).settle(1, lambda: release(1.5))
    again = book(tmp_path).settle(1, lambda: release(99.0))
    for name in ("sum/w", "bits"):
        assert first[name].tobytes() == again[name].tobytes() == release(1.5)[name].tobytes()
        assert first[name].shape == release(1.5)[name].shape
    assert len(events(tmp_path)) == 1


def test_every_round_is_one_event_of_the_plan(tmp_path: Path) -> None:
    for number in (1, 2, 4):  # round 3 was void: its cohort was drawn all the same, and the plan counts it
        book(tmp_path).settle(number, lambda: release(0.0))
    assert sum(event.count for event in events(tmp_path)) == 4
    assert {(event.rate, event.noise_multiplier) for event in events(tmp_path)} == {(0.5, 1.5)}


def test_a_matrix_mechanism_is_one_event_for_all_rounds(tmp_path: Path) -> None:
    plan = Plan.of({**PLAN.values(), "mechanism": "matrix", "sampler": "all", "rate": 1.0, "matrix": {"separation": 2}})
    for number in (1, 2, 3):
        book(tmp_path, plan).settle(number, lambda: release(0.0))
    assert [event.count for event in events(tmp_path)] == [1]


def test_what_the_ledger_did_not_take_is_neither_used_nor_found_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Ledger, entry: Entry) -> int:
        raise LedgerError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        with pytest.raises(LedgerError, match="disk full"):
            book(tmp_path).settle(1, lambda: release(1.0))
    assert events(tmp_path) == ()
    assert book(tmp_path).settle(1, lambda: release(2.0))["bits"] == 2.0
    assert len(events(tmp_path)) == 1


def test_an_earlier_round_is_not_released_again(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        book(tmp_path).settle(number, lambda: release(1.0))
    with pytest.raises(LedgerError, match="round 1"):
        book(tmp_path).settle(1, lambda: release(2.0))


def test_runs_do_not_share_noise_or_releases(tmp_path: Path) -> None:
    one, other = book(tmp_path), book(tmp_path, run="run-2")
    assert (one.noise.gaussian(4, 1.0) != other.noise.gaussian(4, 1.0)).all()
    one.settle(1, lambda: release(1.0))
    assert other.settle(1, lambda: release(2.0))["bits"] == 2.0
    assert len(events(tmp_path)) == len(events(tmp_path, "run-2")) == 1


def test_the_key_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    first = book(tmp_path).noise.gaussian(4, 1.0)
    assert (book(tmp_path).noise.gaussian(4, 1.0) == first).all()
    key = tmp_path / KEY_NAME
    assert key.stat().st_mode & 0o077 == 0
    key.chmod(0o644)
    with pytest.raises(PrivacyError):
        _ = book(tmp_path).noise


def test_a_ledger_that_was_tampered_with_stops_the_run(tmp_path: Path) -> None:
    book(tmp_path).settle(1, lambda: release(1.0))
    raw = bytearray((tmp_path / FILE_NAME).read_bytes())
    place = raw.rfind(b"noise_multiplier")
    assert place > 0
    raw[place + len('noise_multiplier":')] ^= 0x03
    (tmp_path / FILE_NAME).write_bytes(raw)
    with pytest.raises(LedgerError):
        book(tmp_path).settle(2, lambda: release(1.0))
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / FILE_NAME).verify()
