"""Sweeps: which points there are, what is kept of each, and going on after an interruption or a failure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloister.errors import ConfigError, EvaluationError, RunError
from cloister.simulations import sweep
from cloister.simulations.experiment import Experiment
from cloister.simulations.progress import Display
from cloister.simulations.record import Privacy, RunRecord

SERIES = [
    {"name": "bare"},
    {"name": "noisy", "vary": "settings.noise", "values": [1, 2.5], "set": {"settings": {"rate": 7}}},
]


def experiment(series: Sequence[Any] = SERIES, **more: Any) -> Experiment:
    values = {
        "name": "toy",
        "title": "Toy",
        "task": "t",
        "rounds": 3,
        "strategy": {"name": "fedavg"},
        "settings": {"rate": 1, "noise": 0},
        "sweep": {"x": "settings.noise", "y": ["rank1"], "audits": ["one-run"], "series": list(series), **more},
    }
    return Experiment.parse(values, "test")


def record(**more: Any) -> RunRecord:
    return RunRecord(experiment="toy", preset="p", engine="local", seed=0, **more)


def executed(tmp_path: Path, run_point: Any, chosen: Experiment | None = None) -> RunRecord:
    kept = record()
    with Display(Console(quiet=True)) as display:
        sweep.execute(chosen or experiment(), tmp_path, kept, run_point, display)
    return kept


def test_points_are_the_experiment_with_overrides_and_the_same_draws() -> None:
    points = sweep.settings(experiment())
    assert [point.name for point in points] == ["bare", "noisy-1", "noisy-2.5"]
    assert [point.experiment.settings for point in points] == [
        {"rate": 1, "noise": 0},
        {"rate": 7, "noise": 1},
        {"rate": 7, "noise": 2.5},
    ]
    assert {point.experiment.name for point in points} == {"toy"}
    assert all(point.experiment.sweep is None for point in points)
    assert points[1].experiment.title == "Toy: noisy-1"


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], "twice"),
        ([{"name": "a", "vary": "settings.noise"}], "together"),
        ([{"name": "a", "values": [1]}], "together"),
        ([], "at least 1"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(series: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep.settings(experiment(series))


def test_what_is_measured_is_kept_by_point(tmp_path: Path) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def run_point(chosen: Experiment, folder: Path, audits: Sequence[str]) -> RunRecord:
        asked.append((folder.name, tuple(audits)))
        audit = {
            "audit": "one-run",
            "name": "one-run",
            "epsilon": 0.5,
            "tpr_at_fpr": {"0.01": 0.2},
            "numbers": {"n": 3.0},
        }
        privacy = Privacy(claims=[{"epsilon": 4.0}], audits=[audit])
        return record(final={"rank1": float(chosen.settings["noise"])}, privacy=privacy)

    found = executed(tmp_path, run_point).sweep
    assert found is not None
    assert asked == [("bare", ("one-run",)), ("noisy-1", ("one-run",)), ("noisy-2.5", ("one-run",))]
    assert [(point.x, point.folder) for point in found.points] == [
        (None, "points/bare"),
        (1.0, "points/noisy-1"),
        (2.5, "points/noisy-2.5"),
    ]
    assert found.points[2].metrics == {
        "rank1": 2.5,
        "epsilon": 4.0,
        "one-run.epsilon": 0.5,
        "one-run.tpr@0.01": 0.2,
        "one-run.n": 3.0,
    }
    assert RunRecord.load(tmp_path).sweep == found


def test_epsilon_as_an_axis_is_what_was_claimed(tmp_path: Path) -> None:
    def run_point(chosen: Experiment, folder: Path, audits: Sequence[str]) -> RunRecord:
        claims = [{"epsilon": 9.5}] if folder.name != "bare" else []
        return record(final={"rank1": 0.5}, privacy=Privacy(claims=claims))

    found = executed(tmp_path, run_point, experiment(x="epsilon")).sweep
    assert found is not None
    assert [point.x for point in found.points] == [None, 9.5, 9.5]


def test_a_model_that_learned_nothing_is_a_point_without_a_score(tmp_path: Path) -> None:
    def run_point(chosen: Experiment, folder: Path, audits: Sequence[str]) -> RunRecord:
        if folder.name == "noisy-1":
            raise EvaluationError("features are collapsed")
        return record(final={"rank1": 0.5})

    found = executed(tmp_path, run_point).sweep
    assert found is not None
    assert [(point.note, point.metrics) for point in found.points] == [
        ("", {"rank1": 0.5}),
        ("features are collapsed", {}),
        ("", {"rank1": 0.5}),
    ]


def test_what_was_done_before_an_error_is_kept(tmp_path: Path) -> None:
    def run_point(chosen: Experiment, folder: Path, audits: Sequence[str]) -> RunRecord:
        if folder.name == "noisy-2.5":
            raise RunError("disk full")
        return record(final={"rank1": 0.5})

    with pytest.raises(RunError, match="disk full"):
        executed(tmp_path, run_point)
    kept = RunRecord.load(tmp_path).sweep
    assert kept is not None
    assert [point.name for point in kept.points] == ["bare", "noisy-1"]
