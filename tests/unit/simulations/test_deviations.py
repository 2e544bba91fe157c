"""Deviations: everything in which a run is not its paper's, and nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.clients.task import Deviation
from cloister.simulations.deviations import deviations
from cloister.simulations.experiment import Experiment, names

TASK: Any = SimpleNamespace(deviations=lambda: [Deviation(topic="epochs", paper="2", run="1", why="time")])


def topics(*overrides: str, preset: str = "paper", source: str = "reid-ci") -> dict[str, tuple[str, str]]:
    found = deviations(TASK, Experiment.load(source, preset=preset, overrides=overrides))
    assert found[0].model_dump() == {"topic": "epochs", "paper": "2", "run": "1", "why": "time"}
    return {deviation.topic: (deviation.paper, deviation.run) for deviation in found[1:]}


@pytest.mark.parametrize("name", names())
def test_the_papers_preset_departs_in_nothing(name: str) -> None:
    assert set(topics(source=name)) <= {"privacy plan"}  # no paper of these has one


@pytest.mark.parametrize(
    ("override", "topic", "paper", "run"),
    [
        ("rounds=2", "rounds", "50", "2"),
        ("strategy.centres.average='diluted'", "strategy.centres.average", "present", "diluted"),
        ("strategy.weighting='uniform'", "strategy.weighting", "examples", "uniform"),
        ("strategy.fraction=0.5", "strategy.fraction", "1.0", "0.5"),
        ("evaluation.feature='pre-bn'", "evaluation.feature", "not set", "pre-bn"),
        ("evaluation.recalibrate=true", "evaluation.recalibrate", "not set", "True"),
        ("settings.data.hold_out=true", "settings.data.hold_out", "not set", "True"),
    ],
)
def test_a_changed_setting_is_listed(override: str, topic: str, paper: str, run: str) -> None:
    assert topics(override) == {topic: (paper, run)}


def test_what_changes_no_weight_is_not_listed() -> None:
    quiet = ["seed=3", "engine.workers=2", "evaluate_every=9", "strategy.quorum.deadline_s=5.0", "data='/tmp'"]
    assert topics(*quiet) == {}


def test_another_strategy_is_listed_with_its_parameters() -> None:
    found = topics("strategy={name='fednova', momentum=0.5}")
    assert found["strategy.name"] == ("l2rw", "fednova")
    assert found["strategy.momentum"] == ("not set", "0.5")


def test_a_preset_lists_its_rounds() -> None:
    assert topics(preset="tiny")["rounds"] == ("50", "64")


def test_an_experiment_of_the_users_own_says_that_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "reid-ci"\nname = "mine"\n')
    assert topics(source=str(tmp_path / "mine.toml")) == {"experiment": ("not known", "mine")}


def test_buffers_say_that_the_same_seed_gives_other_weights() -> None:
    found = deviations(TASK, Experiment.load("reid-ci", overrides=("strategy={name='fedbuff', buffer=3}",)))
    (said,) = [each for each in found if each.topic == "aggregation"]
    assert said.run == "buffers: a step after 3 replies, 8 clients train at a time"
    assert "gives other weights" in said.why
