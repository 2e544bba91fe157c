import errno
import json
import math
import os
from pathlib import Path

import pytest

from cloister.errors import RunError
from cloister.simulations.record import Client, Round, RunRecord, Traffic, traffic_totals, write_whole


def small() -> RunRecord:
    return RunRecord(
        experiment="reid-ci",
        preset="tiny",
        engine="local",
        seed=3,
        clients=[Client(name="cam1", records=64)],
        rounds=[Round(round=1, seconds=1.5, cohort=["cam1"], metrics={"rank1": 0.5, "loss": math.nan})],
        final={"rank1": 0.5},
        traffic={"cam1": Traffic(up={"arrays": 10, "centres": 3}, down={"arrays": 10})},
    )


def test_saved_record_loads_equal_and_has_the_stable_names(tmp_path: Path) -> None:
    path = small().save(tmp_path)
    assert RunRecord.load(tmp_path) == small()
    names = (
        "experiment preset engine seed versions rounds final privacy traffic deviations baselines clients evaluation"
    )
    assert set(names.split()) <= set(json.loads(path.read_text()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_number_that_is_not_finite_is_null_so_that_the_file_is_json(tmp_path: Path) -> None:
    path = small().save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(path.read_text(), parse_constant=refuse)["rounds"][0]["metrics"]["loss"] is None


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"experiment": "reid-ci", "pre', "corrupt JSON at line 1"),
        ("", "corrupt JSON"),
        ('{"experiment": "a", "preset": "b", "engine": "c", "seed": "0"}', "seed"),
        ('{"experiment": "a", "preset": "b", "engine": "c", "seed": 0, "round": []}', "did you mean 'rounds'"),
    ],
)
def test_a_broken_record_is_an_error_that_names_the_file(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(RunError) as caught:
        RunRecord.load(tmp_path)
    assert str(tmp_path / "record.json") in str(caught.value)
    assert found in str(caught.value)


def test_a_folder_without_a_record_is_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        RunRecord.load(tmp_path)


def test_a_full_disk_is_named_and_leaves_the_last_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = small()
    record.save(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    record.seed = 4
    with pytest.raises(RunError, match=r"record\.json: cannot be written \(No space left on device\)"):
        record.save(tmp_path)
    assert RunRecord.load(tmp_path).seed == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_whole(tmp_path / "file" / "record.json", b"{}")


def test_traffic_is_summed_by_direction() -> None:
    assert traffic_totals(small().traffic) == (13, 10)
