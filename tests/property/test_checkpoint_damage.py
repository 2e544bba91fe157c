"""Whatever single byte of a checkpoint changes, what is read is what was written: this round's, or the one before."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.server.checkpoint import Checkpoint, latest, save

RATES = [0.1 * number for number in range(100)]
PARTS = ("arrays.safetensors", "strategy.safetensors", "state.json")


def make(number: int) -> Checkpoint:
    arrays = {"w": np.arange(6, dtype=np.float32) * number, "n": np.array(number)}
    return Checkpoint(round=number, arrays=arrays, strategy={"m": np.array([0.5])}, state={"rates": RATES})


def text(checkpoint: Checkpoint) -> str:
    arrays = [{key: values.tolist() for key, values in it.items()} for it in (checkpoint.arrays, checkpoint.strategy)]
    return repr([checkpoint.round, *map(sorted, (part.items() for part in arrays)), checkpoint.state])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for number in (1, 2):
        save(folder, make(number))
    return folder


@given(part=st.sampled_from(PARTS), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_changed_byte_is_never_believed(folder: Path, part: str, place: float, change: int) -> None:
    path = folder / "round-000002" / part
    content = path.read_bytes()
    at = int(place * len(content))
    try:
        path.write_bytes(content[:at] + bytes([content[at] ^ change]) + content[at + 1 :])
        found = latest(folder)
    finally:
        path.write_bytes(content)
    assert found is not None
    assert text(found) == text(make(found.round))


@given(part=st.sampled_from(PARTS), keep=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_is_never_believed(folder: Path, part: str, keep: float) -> None:
    path = folder / "round-000002" / part
    content = path.read_bytes()
    try:
        path.write_bytes(content[: int(keep * len(content))])
        found = latest(folder)
    finally:
        path.write_bytes(content)
    assert found is not None
    assert found.round == 1
    assert latest(folder).round == 2
