"""Choosing a round by validation people: the first of the best, and never by the test."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from cloister.server.evaluation.selection import Validated, ValidatedScores, selected


def entry(test: float, validation: float | None, **more: float | None) -> dict[str, float | None]:
    return {"rank1": test, "map": test / 2, "validation/rank1": validation, "validation/map": validation, **more}


def test_the_round_with_the_best_validation_map() -> None:
    assert selected([entry(0.9, 0.1), entry(0.2, 0.7), entry(0.5, 0.3)]) == {"rank1": 0.2, "map": 0.1}


def test_the_first_of_equals() -> None:
    assert selected([entry(0.1, 0.4), entry(0.2, 0.7), entry(0.3, 0.7)]) == {"rank1": 0.2, "map": 0.1}


def test_the_best_is_by_map_not_by_rank() -> None:
    one, other = entry(0.1, 0.4), entry(0.2, 0.3)
    other["validation/rank1"] = 0.9
    assert selected([one, other]) == {"rank1": 0.1, "map": 0.05}


def test_rounds_that_were_not_validated_are_passed_over() -> None:
    rounds = [{"loss": 0.1}, entry(0.9, None), entry(0.2, 0.0), {"rank1": 0.8, "map": 0.8}]
    assert selected(rounds) == {"rank1": 0.2, "map": 0.1}


def test_without_validation_there_is_nothing_to_choose_by() -> None:
    assert selected([]) is None
    assert selected([{"rank1": 0.5, "map": 0.4}]) is None
    assert selected([entry(0.5, None)]) is None


def test_only_what_both_report_is_shown() -> None:
    assert selected([entry(0.2, 0.7, loss=1.5)]) == {"rank1": 0.2, "map": 0.1}


class Fixed:
    def __init__(self, **metrics: float) -> None:
        self.metrics = metrics
        self.models: list[nn.Module] = []

    def evaluate(self, model: nn.Module) -> Any:
        self.models.append(model)
        return SimpleNamespace(metrics=self.metrics, describe=lambda run: {"of": self.metrics, "run": run})


def test_a_validated_evaluator_scores_the_same_model_twice(tmp_path: Path) -> None:
    test, validation, model = Fixed(map=0.5, rank1=0.6), Fixed(map=0.7, rank1=0.8), nn.Linear(1, 1)
    with torch.no_grad():
        scores = Validated(test, validation).evaluate(model)
    assert isinstance(scores, ValidatedScores)
    assert test.models == validation.models == [model]
    assert scores.metrics == {"map": 0.5, "rank1": 0.6, "validation/map": 0.7, "validation/rank1": 0.8}
    assert scores.describe(tmp_path) == {"of": {"map": 0.5, "rank1": 0.6}, "run": tmp_path}
    assert selected([scores.metrics]) == {"map": 0.5, "rank1": 0.6}
