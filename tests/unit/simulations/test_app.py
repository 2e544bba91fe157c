"""The ServerApp of ``flwr run``: what it says of each round."""

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, RecordDict

from cloister.errors import ConfigError
from cloister.server.app import RoundReport
from cloister.simulations.app import assign, line
from cloister.strategies.rounds import Outcome, RoundResult


def done(outcomes: dict[str, Outcome], scores: Any = None, **more: Any) -> RoundReport:
    values = {"metrics": {}, "traffic": {}, "arrays": ArrayRecord(), "client_arrays": {}, "void": ""}
    result = RoundResult(number=3, cohort=tuple(outcomes), outcomes=outcomes, **{**values, **more})
    return RoundReport(result=result, scores=scores)


def test_a_round_is_one_line_with_its_metrics() -> None:
    outcomes = {"cam1": Outcome(accepted=True, examples=4), "cam2": Outcome(accepted=False, reason="found nan")}
    scores = SimpleNamespace(metrics={"rank1": 0.25, "map": float("nan")})
    report = done(outcomes, scores, metrics={"loss": 1.23456}, seconds={"wait": 1.5, "evaluate": 0.5})
    said = "round 3 of 9: 1 of 2 replies, 2.0 s; loss 1.235, rank1 0.25; cam2 left out: found nan"
    assert line(report, 9) == said
    assert line(done({"cam1": Outcome(accepted=True, examples=4)}), 9) == "round 3 of 9: 1 of 1 replies, 0.0 s"


def test_a_run_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="flwr run: set data=FOLDER"):
        assign(Context(1, 1, {}, RecordDict(), {"experiment": "reid-ci"}))
