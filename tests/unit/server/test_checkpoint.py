"""Checkpoints: what comes back, how many are kept, and that a damaged or half-written one is never taken for whole."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from cloister.errors import RunError
from cloister.server import checkpoint
from cloister.server.checkpoint import Checkpoint, latest, rounds, save

pytestmark = pytest.mark.usefixtures("no_sync")
PARTS = ("arrays.safetensors", "strategy.safetensors", "state.json")


def make(number: int, **arrays: np.ndarray) -> Checkpoint:
    return Checkpoint(
        round=number,
        arrays={"w": np.full((2, 3), number, np.float32), **arrays},
        strategy={"rule/m": np.array([number, 0.5])},
        state={"strategy": {"void_rounds": number, "rate": 0.1, "name": "fedavg", "none": None}},
    )


def loaded(folder: Path) -> Checkpoint:
    found = latest(folder)
    assert found is not None
    return found


def same(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(
        (one[key].dtype, one[key].shape, one[key].tobytes())
        == (other[key].dtype, other[key].shape, other[key].tobytes())
        for key in one
    )


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of rounds 3 and 4."""
    for number in (3, 4):
        save(tmp_path, make(number))
    return tmp_path


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {
        "scalar": np.array(0.5),
        "counter": np.array(7, np.int64),
        "labels": np.array([3, 1], np.int64),
        "half": np.ones((2, 2), np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(12, dtype=np.float32)[::3],
        "nan": np.array([np.nan, -0.0, np.inf]),
    }
    written = make(12, **arrays)
    path = save(tmp_path, written)
    assert path == tmp_path / "round-000012"
    found = loaded(tmp_path)
    assert found.round == 12
    assert found.state == written.state
    assert same(found.arrays, written.arrays)
    assert same(found.strategy, written.strategy)


def test_a_strategy_without_arrays(tmp_path: Path) -> None:
    save(tmp_path, Checkpoint(round=1, arrays={"w": np.ones(2)}, strategy={}, state={}))
    found = loaded(tmp_path)
    assert (found.strategy, found.state) == ({}, {})


def test_floats_of_the_state_are_exact(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, float(np.float32(0.1))]
    save(tmp_path, Checkpoint(round=1, arrays={}, strategy={}, state={"values": values, "by": {1: 2.0}}))
    assert loaded(tmp_path).state == {"values": values, "by": {"1": 2.0}}


def test_two_are_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        save(tmp_path, make(number))
        assert rounds(tmp_path) == [max(1, number - 1), number][-number:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000004", "round-000005"]


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nothing") is None
    assert rounds(tmp_path / "nothing") == []


def test_a_round_that_is_run_again_replaces_its_checkpoint(two: Path) -> None:
    save(two, make(4, more=np.ones(1)))
    assert rounds(two) == [3, 4]
    assert "more" in loaded(two).arrays


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["short", "empty", "gone", "flipped", "other"])
def test_a_damaged_newest_falls_back(two: Path, part: str, damage: str) -> None:
    path = two / "round-000004" / part
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        path.write_bytes((two / "round-000003" / part).read_bytes())  # whole, but of another round
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"short": content[:-3], "empty": b"", "flipped": flipped}[damage])
    found = loaded(two)
    assert found.round == 3
    assert same(found.arrays, make(3).arrays)


def test_a_number_of_the_state_that_changed_falls_back(two: Path) -> None:
    path = two / "round-000004" / "state.json"
    assert '"rate": 0.1' in path.read_text()
    path.write_text(path.read_text().replace('"rate": 0.1', '"rate": 0.7'))
    assert loaded(two).round == 3


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}", '{"round": 4}', "{", "\udcff"])
def test_a_state_that_is_none_falls_back(two: Path, text: str) -> None:
    (two / "round-000004" / "state.json").write_bytes(text.encode(errors="surrogateescape"))
    assert loaded(two).round == 3


def test_all_damaged_is_an_error_that_names_them(two: Path) -> None:
    for number in (3, 4):
        (two / f"round-00000{number}" / "arrays.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint can be read \(round 4: .*damaged.*; round 3: .*start the run"):
        latest(two)


def test_what_is_not_complete_is_no_checkpoint(two: Path) -> None:
    shutil.copytree(two / "round-000004", two / ".round-000005.partial")
    (two / "round-7").mkdir()
    (two / "round-000009.old").mkdir()
    assert rounds(two) == [3, 4]
    assert loaded(two).round == 4


def test_what_a_killed_process_left_of_a_round_is_written_over(two: Path) -> None:
    left = two / ".round-000005.partial"
    left.mkdir()
    (left / "junk").write_text("")
    save(two, make(5))
    assert sorted(path.name for path in (two / "round-000005").iterdir()) == sorted(PARTS)
    assert not left.exists()


@pytest.mark.parametrize("step", ["_save_arrays", "_digest", "_write_synced"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_failed_write_leaves_those_before(
    two: Path, step: str, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}

    def fails(*arguments: Any) -> None:
        raise failure

    monkeypatch.setattr(checkpoint, step, fails)
    with pytest.raises(RunError, match=r"round-000005: cannot be written .*No space left.*`cloister resume`"):
        save(two, make(5))
    assert {path: path.read_bytes() for path in two.rglob("*") if path.is_file()} == before
    assert rounds(two) == [3, 4]
    monkeypatch.undo()
    assert loaded(two).round == 4


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/round-000001: cannot be written"):
        save(tmp_path / "file", make(1))


def test_the_name_appears_when_everything_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is synced before the rename, and the folder after it."""
    events: list[str] = []
    rename = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(name_of(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: events.append(f"-> {Path(new).name}") or rename(old, new))
    save(tmp_path, make(1))
    assert events == [*PARTS, "-> round-000001", tmp_path.name]


def name_of(descriptor: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name


def test_the_digests_are_sha256_of_the_files(two: Path) -> None:
    text = (two / "round-000004" / "state.json").read_text()
    for part in PARTS[:2]:
        assert hashlib.sha256((two / "round-000004" / part).read_bytes()).hexdigest() in text
