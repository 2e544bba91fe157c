"""Logging to TensorBoard, beside the run record."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import Round
from cloister.simulations.tracking import check, tracker

ENTRY = Round(
    round=3,
    seconds=1.5,
    metrics={"map": 0.25, "rank1": None},
    client_metrics={"cam1": {"loss": 0.5, "norm": None}},
)


def experiment(tracking: str) -> Experiment:
    return Experiment.load("reid-ci", preset="tiny").model_copy(update={"tracking": tracking})


def events(folder: Path) -> Iterator[bytes]:
    """The records of the event files: length, its checksum, data, its checksum (TFRecord)."""
    for path in folder.glob("events*"):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield content[12 : 12 + length]
            content = content[12 + length + 4 :]


def test_tensorboard_gets_every_number_under_its_name_and_round(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with tracker(experiment("tensorboard"), tmp_path) as log:
        log(ENTRY)
        log(ENTRY.model_copy(update={"round": 4, "metrics": {}, "client_metrics": {}}))
    found = [Event.FromString(record) for record in events(tmp_path / "tensorboard")]
    values = {(it.step, value.tag): value.simple_value for it in found for value in it.summary.value}
    assert values == {(3, "map"): 0.25, (3, "cam1/loss"): 0.5, (3, "seconds"): 1.5, (4, "seconds"): 1.5}


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"tracking: tensorboard .*pip install cloister\[tracking\]"):
        check(experiment("tensorboard"))
    check(experiment(""))


def test_without_tracking_nothing_is_written(tmp_path: Path) -> None:
    with tracker(experiment(""), tmp_path) as log:
        log(ENTRY)
    assert list(tmp_path.iterdir()) == []
