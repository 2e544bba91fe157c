"""From what a run produced to its record."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from torch import nn

from cloister.clients.task import ClientRow
from cloister.flower import array_record
from cloister.privacy.plan import Plan
from cloister.server.app import Finish, RoundReport
from cloister.simulations import recording
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import Client, Rejection, RunRecord, traffic_totals
from cloister.strategies.rounds import Outcome, RoundResult, Traffic

KINDS = {
    "cam1": Traffic(down={"arrays": 100}, up={"arrays": 100, "centres": 7}),
    "cam2": Traffic(down={"arrays": 100, "centres": 5}, up={}),
}


def outcome(examples: int, steps: int = 0, **metrics: float) -> Outcome:
    return Outcome(accepted=True, examples=examples, steps=steps, metrics=metrics)


def done(number: int, outcomes: Mapping[str, Outcome] | None = None, scores: Any = None, **more: Any) -> RoundReport:
    outcomes = outcomes if outcomes is not None else {"cam1": outcome(30, steps=3), "cam2": outcome(10, steps=1)}
    values = {"metrics": {}, "traffic": {}, "arrays": ArrayRecord(), "client_arrays": {}, "void": ""}
    result = RoundResult(number=number, cohort=tuple(outcomes), outcomes=outcomes, **{**values, **more})
    return RoundReport(result=result, scores=scores)


def new(*clients: str) -> RunRecord:
    rows = [Client(name=name) for name in clients]
    return RunRecord(experiment="toy", preset="tiny", engine="local", seed=0, clients=rows)


class Judge:
    """Scores a model by its one weight."""

    def __init__(self, **extra: Any) -> None:
        self.extra = extra
        self.training: list[bool] = []

    def evaluate(self, model: nn.Module) -> Any:
        self.training.append(model.training)
        return SimpleNamespace(metrics={"map": model.weight.item(), "rank1": 2 * model.weight.item()}, **self.extra)


def prepared(evaluator: Any = None) -> Any:
    return SimpleNamespace(evaluator=evaluator)


def finish(weight: float = 0.25, **clients: float) -> Finish:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    arrays = {name: array_record({"weight": np.array([[value]], np.float32)}) for name, value in clients.items()}
    return Finish(model=model, client_arrays=arrays)


# Rounds


def test_a_round_is_its_cohort_its_metrics_and_its_seconds() -> None:
    outcomes = {
        "cam1": outcome(30, steps=3, loss=1.0),
        "cam2": Outcome(accepted=False, reason="not finite", metrics={"loss": 9.0}),
    }
    report = done(
        3,
        outcomes,
        SimpleNamespace(metrics={"map": 0.5, "accuracy": 0.9}),
        metrics={"loss": 1.0, "accuracy": 0.1},
        evaluation={"accuracy": 0.2, "own": 0.3},
        seconds={"wait": 2.0, "evaluate": 0.5},
    )
    entry = recording.round_entry(report)
    assert (entry.round, entry.seconds, entry.cohort) == (3, 2.5, ["cam1", "cam2"])
    assert entry.metrics == {"loss": 1.0, "accuracy": 0.9, "own": 0.3, "map": 0.5}  # the server's scores win
    assert entry.client_metrics == {"cam1": {"loss": 1.0}}
    assert entry.rejected == [Rejection(client="cam2", reason="not finite")]
    assert entry.stages == {"wait": 2.0, "evaluate": 0.5}


def test_bytes_of_rounds_add_up_per_client_and_kind() -> None:
    record = new("cam1", "cam2")
    for number in (1, 2, 3):
        recording.add_round(record, done(number, traffic=KINDS), Plan.none())
    assert record.traffic["cam1"].model_dump() == {"down": {"arrays": 300}, "up": {"arrays": 300, "centres": 21}}
    assert record.traffic["cam2"].model_dump() == {"down": {"arrays": 300, "centres": 15}, "up": {}}
    assert traffic_totals(record.traffic) == (321, 615)


def test_a_round_that_is_run_again_replaces_what_was_recorded_of_it() -> None:
    record = new()
    for number in (1, 2, 3, 2):
        recording.add_round(record, done(number, metrics={"loss": float(number)}), Plan.none())
    assert [entry.round for entry in record.rounds] == [1, 2]


def test_weights_and_steps_come_from_the_first_round_that_everybody_finished() -> None:
    record = new("cam1", "cam2")
    recording.add_round(record, done(1, {"cam1": outcome(30, steps=3), "cam2": Outcome(accepted=False)}), Plan.none())
    assert [client.weight for client in record.clients] == [None, None]
    recording.add_round(record, done(2), Plan.none())
    recording.add_round(record, done(3, {"cam1": outcome(1, steps=9), "cam2": outcome(1, steps=9)}), Plan.none())
    assert [(client.weight, client.steps) for client in record.clients] == [(0.75, 3), (0.25, 1)]


# The end


def test_the_final_scores_are_those_of_the_last_round() -> None:
    record, judge = new(), Judge()
    scores = SimpleNamespace(metrics={"map": 0.75})
    recording.finish(record, Path(), prepared(judge), finish(), scores)
    assert record.final == {"map": 0.75}
    assert judge.training == []


def test_without_them_the_model_is_evaluated() -> None:
    record, judge = new(), Judge()
    recording.finish(record, Path(), prepared(judge), finish(0.25), None)
    assert record.final == {"map": 0.25, "rank1": 0.5}
    assert judge.training == [False]


def test_without_an_evaluator_the_last_round_stands() -> None:
    record = new()
    recording.finish(record, Path(), prepared(), finish(), None)
    assert record.final == {}
    for number in (1, 2):
        recording.add_round(record, done(number, metrics={"loss": float(number), "odd": float("nan")}), Plan.none())
    recording.finish(record, Path(), prepared(), finish(), None)
    assert record.final == {"loss": 2.0}


def test_what_the_evaluator_shows_is_in_the_record(tmp_path: Path) -> None:
    asked: list[Path] = []

    def describe(folder: Path) -> dict[str, Any]:
        asked.append(folder)
        return {"per_draw": [{"map": 0.5}]}

    record = new()
    recording.finish(record, tmp_path, prepared(Judge()), finish(), SimpleNamespace(metrics={}, describe=describe))
    assert asked == [tmp_path]
    assert record.evaluation.per_draw == [{"map": 0.5}]


def test_the_round_chosen_by_validation_stands_beside_the_last() -> None:
    record = new()
    for number, (test, validation) in enumerate([(0.3, 0.2), (0.2, 0.8), (0.9, 0.5)], 1):
        scores = SimpleNamespace(metrics={"map": test, "validation/map": validation})
        recording.add_round(record, done(number, scores=scores), Plan.none())
    recording.finish(record, Path(), prepared(Judge()), finish(), scores)
    assert record.final["map"] == 0.9
    assert record.baselines == {"validation-selected": {"map": 0.2}}


# Baselines


def test_one_model_gives_one_line() -> None:
    record = new()
    recording.add_baseline(record, "pooled", prepared(Judge()), finish(0.5), {"loss": 1.0})
    assert record.baselines == {"pooled": {"map": 0.5, "rank1": 1.0}}


def test_one_model_per_client_gives_a_line_each_and_their_mean() -> None:
    record = new()
    recording.add_baseline(record, "local-only", prepared(Judge()), finish(9.0, cam1=0.25, cam2=0.75), {})
    assert record.baselines == {
        "local-only": {"map": 0.5, "rank1": 1.0},
        "local-only/cam1": {"map": 0.25, "rank1": 0.5},
        "local-only/cam2": {"map": 0.75, "rank1": 1.5},
    }


def test_without_an_evaluator_a_baseline_has_the_metrics_of_its_rounds() -> None:
    record, metrics = new(), {"accuracy": 0.5}
    recording.add_baseline(record, "local-only", prepared(), finish(9.0, cam1=0.25), metrics)
    metrics["accuracy"] = 0.0
    assert record.baselines == {"local-only": {"accuracy": 0.5}}


# The rest


def test_client_logs_are_the_last_lines_of_each(tmp_path: Path) -> None:
    assert recording.client_logs(tmp_path) == ""
    for client, lines in (("cam2", 5), ("cam1", 1)):
        (tmp_path / client).mkdir()
        text = "".join(f"round {number}: {client}\n" for number in range(lines))
        (tmp_path / client / "errors.log").write_text(text)
    (tmp_path / "cam3").mkdir()
    assert recording.client_logs(tmp_path, lines=2).splitlines() == [
        "What the clients' own logs say:",
        f"  cam1 ({tmp_path / 'cam1' / 'errors.log'}):",
        "    round 0: cam1",
        f"  cam2 ({tmp_path / 'cam2' / 'errors.log'}):",
        "    round 3: cam2",
        "    round 4: cam2",
    ]


def test_what_the_task_says_of_its_clients_is_taken_over() -> None:
    task: Any = SimpleNamespace(
        table=lambda: [ClientRow(name="cam1", records=12, subjects=3, modality="infrared", scene="indoor")]
    )
    assert recording.client_rows(task)[0].model_dump() == {
        **{"name": "cam1", "records": 12, "subjects": 3, "modality": "infrared", "scene": "indoor"},
        **{"steps": None, "weight": None},
    }


def test_settings_are_plain_json() -> None:
    experiment = Experiment.load("reid-ci", preset="tiny")
    values = recording.plain_settings(experiment)
    assert values["settings"]["model"]["blocks"] == [1, 1, 1, 1]
    assert Experiment.parse(values, "record") == experiment
    assert new().model_copy(update={"settings": values}) == RunRecord.model_validate(
        {**new().model_dump(), "settings": values}
    )


def test_the_time_is_utc_and_says_so() -> None:
    parsed = datetime.datetime.fromisoformat(recording.now())
    assert parsed.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - parsed) < datetime.timedelta(seconds=5)


def test_under_central_noise_the_record_says_nothing_of_who_took_part() -> None:
    plan = Plan.of(
        {
            "unit": "client",
            "mechanism": "gaussian",
            "trust": "central",
            "population": 6,
            "noise_multiplier": 1.0,
            "clip": {"bound": 1.0},
        }
    )
    outcomes = {"cam1": outcome(30, steps=3), "cam2": Outcome(accepted=False, reason="too long")}
    record = new()
    recording.add_round(record, done(1, outcomes, traffic=KINDS), plan)
    text = record.model_dump_json()
    assert record.rounds[0].round == 1
    for name in ("cam1", "cam2", "too long"):
        assert name not in text
