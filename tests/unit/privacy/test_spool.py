"""The spool: bytes in are bytes out, a repeated request gets the same ones, and only what the ledger knows is sent."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.errors import LedgerError
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Relation, Unit
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.spool import Spool

pytestmark = pytest.mark.usefixtures("no_sync")
REQUEST, OTHER = "11" * 32, "22" * 32


def entry(round: int, run: str = "r", message: str = "train") -> Entry:
    return Entry(
        kind=EntryKind.RELEASE,
        run=run,
        round=round,
        message=message,
        task="t",
        unit=Unit.SUBJECT,
        relation=Relation.ADD_REMOVE,
        kinds={"arrays": 1},
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / FILE_NAME) as ledger:
        yield ledger


@pytest.fixture
def spool(ledger: Ledger, tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", ledger)


def names(spool: Spool) -> list[str]:
    return sorted(path.name for path in spool.folder.rglob("*") if path.is_file())


def test_a_release_is_in_the_ledger_by_its_digest_and_is_found_again(spool: Spool, ledger: Ledger) -> None:
    data = bytes(range(256)) * 3
    assert spool.find("r", 1, REQUEST) is None
    assert spool.release(entry(1), REQUEST, data) is data
    (row,) = ledger.entries()
    assert row.content == hashlib.sha256(data).hexdigest()
    assert Spool(spool.folder, ledger).find("r", 1, REQUEST) == data


@given(data=st.binary(max_size=2000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_bytes_in_are_bytes_out(spool: Spool, ledger: Ledger, data: bytes) -> None:
    round = len(ledger.records()) + 1
    spool.release(entry(round), REQUEST, data)
    assert spool.find("r", round, REQUEST) == data


def test_only_the_same_request_is_answered(spool: Spool) -> None:
    spool.release(entry(1), REQUEST, b"one")
    assert spool.find("r", 1, OTHER) is None
    assert spool.find("r", 2, REQUEST) is None
    assert spool.find("s", 1, REQUEST) is None


def test_bytes_that_the_ledger_does_not_know_are_never_sent(spool: Spool) -> None:
    spool.stage("r", 1, REQUEST, b"never left")
    assert spool.find("r", 1, REQUEST) is None
    spool.release(entry(1), REQUEST, b"left")
    assert spool.find("r", 1, REQUEST) == b"left"
    assert len(names(spool)) == 1  # the other attempt is gone


def test_bytes_with_a_row_are_sent_although_nothing_was_committed(spool: Spool, ledger: Ledger) -> None:
    spool.release(entry(1), REQUEST, b"one")
    content = spool.stage("r", 2, REQUEST, b"two")
    values = {**entry(2).values(), "content": content}
    ledger.append(Entry.of(values))
    assert spool.find("r", 2, REQUEST) == b"two"
    assert spool.find("r", 1, REQUEST) == b"one"
    spool.release(entry(3), REQUEST, b"three")
    assert [name[:6] for name in names(spool)] == ["000002", "000003"]


def test_a_server_that_lost_its_last_checkpoint_is_answered(spool: Spool) -> None:
    for round in range(1, 6):
        spool.release(entry(round), REQUEST, str(round).encode())
    assert [spool.find("r", round, REQUEST) for round in range(1, 6)] == [None, None, None, b"4", b"5"]
    spool.release(entry(9), REQUEST, b"9")
    assert [name[:6] for name in names(spool)] == ["000009"]


def test_what_the_ledger_refuses_is_not_sent_later(spool: Spool) -> None:
    spool.release(entry(1), REQUEST, b"one")
    with pytest.raises(LedgerError, match="above 1"):
        spool.release(entry(1), OTHER, b"again")
    assert spool.find("r", 1, OTHER) is None
    assert spool.find("r", 1, REQUEST) == b"one"


def test_training_and_evaluation_of_a_round_are_both_kept(spool: Spool) -> None:
    spool.release(entry(4), REQUEST, b"weights")
    spool.release(entry(4, message="evaluate"), OTHER, b"metrics")
    assert spool.find("r", 4, REQUEST) == b"weights"
    assert spool.find("r", 4, OTHER) == b"metrics"
    spool.release(entry(6), REQUEST, b"more")
    assert [name[:6] for name in names(spool)] == ["000006"]


def test_runs_do_not_touch_one_another(spool: Spool) -> None:
    for run in ("a", "b", "../a", "a/b", "ä" * 100):
        spool.release(entry(1, run), REQUEST, run.encode())
    spool.release(entry(9, "a"), REQUEST, b"later")
    assert spool.find("b", 1, REQUEST) == b"b"
    assert spool.find("../a", 1, REQUEST) == b"../a"
    assert {path.parent.parent for path in spool.folder.rglob("*") if path.is_file()} == {spool.folder}


def test_a_file_torn_by_a_kill_is_not_read_and_goes(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            spool.stage("r", 1, REQUEST, b"torn")
    assert spool.find("r", 1, REQUEST) is None
    spool.release(entry(1), REQUEST, b"one")
    assert [name[:7] for name in names(spool)] == ["000001-"]


def test_a_torn_copy_does_not_hide_the_whole_one(spool: Spool) -> None:
    spool.release(entry(1), REQUEST, b"one")
    (whole,) = (path for path in spool.folder.rglob("*") if path.is_file())
    whole.with_name(f".{whole.name}.1").write_bytes(b"o")
    assert spool.find("r", 1, REQUEST) == b"one"


@pytest.mark.parametrize("damage", [b"", b"on", b"onf", b"one more"])
def test_damaged_bytes_are_not_sent(spool: Spool, damage: bytes) -> None:
    spool.release(entry(1), REQUEST, b"one")
    next(path for path in spool.folder.rglob("*") if path.is_file()).write_bytes(damage)
    with pytest.raises(LedgerError, match=r"spool .*holds other bytes than were released"):
        spool.find("r", 1, REQUEST)


def test_a_request_is_a_digest(spool: Spool) -> None:
    for request in ("", "x" * 64, "../../etc", "11" * 31):
        with pytest.raises(LedgerError, match="SHA-256"):
            spool.stage("r", 1, request, b"")


def test_a_folder_that_cannot_be_written_is_named(spool: Spool, ledger: Ledger) -> None:
    spool.folder.write_text("a file in its place")
    with pytest.raises(LedgerError, match=r"spool .*cannot be written .*free disk space"):
        spool.release(entry(1), REQUEST, b"one")
    assert ledger.entries() == ()


def test_a_removed_folder_costs_the_answer_and_nothing_else(spool: Spool) -> None:
    spool.release(entry(1), REQUEST, b"one")
    for path in sorted(spool.folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    spool.folder.rmdir()
    assert spool.find("r", 1, REQUEST) is None
    with pytest.raises(LedgerError, match="above 1"):
        spool.release(entry(1), REQUEST, b"other noise")
    spool.release(entry(2), REQUEST, b"two")
