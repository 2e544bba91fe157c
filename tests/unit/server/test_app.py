"""The server's side of a run, on a grid in this process: rounds, evaluation, checkpoints, resume."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from torch import nn

from cloister.errors import QuorumError, RunError, WeightsError
from cloister.flower import array_record, assign_id, set_identity, views
from cloister.models.spec import Group, ModelSpec
from cloister.randomness import SeedTree
from cloister.server import checkpoint
from cloister.server.app import Assignment, RoundReport, build_model, load_arrays, make_app, serve
from cloister.strategies.config import StrategyConfig
from cloister.strategies.registry import build

pytestmark = pytest.mark.usefixtures("no_sync")
GROUPS = {"weight": Group.SHARED, "bias": Group.LOCAL, "count": Group.BUFFER}


class Net(nn.Module):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, generator=generator))
        self.bias = nn.Parameter(torch.full((2,), 0.5))
        self.register_buffer("count", torch.tensor(0))


class Spec(ModelSpec):
    def build(self, generator: torch.Generator) -> nn.Module:
        return Net(generator)

    def groups(self, model: nn.Module) -> dict[str, Group]:
        return GROUPS


class Grid:
    """Two clients that answer at once. Adds the round's number to every entry."""

    def __init__(self, names: Iterable[str] = ("cam1", "cam2")) -> None:
        set_identity(run_id=1, node_id=1)
        self.names = dict(enumerate(names, 5))
        self.sent: list[Message] = []
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.names)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node_id, name=name) for node_id, name in self.names.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            identifiers.append(f"m{len(self.sent)}")
            assign_id(message, identifiers[-1])
            self.sent.append(message)
            self._replies[identifiers[-1]] = self.answer(message)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(identifier) for identifier in message_ids]

    def answer(self, message: Message) -> Message:
        number = int(message.content["config"]["server-round"])
        arrays = views(message.content["arrays"])
        deltas = {name: np.full_like(values, number) for name, values in arrays.items()}
        metrics = MetricRecord({"num-examples": 4, "steps": 1, "loss": 1.0 / number})
        return Message(RecordDict({"arrays": array_record(deltas), "metrics": metrics}), reply_to=message)

    @property
    def configs(self) -> list[dict[str, Any]]:
        return [dict(message.content["config"]) for message in self.sent]


class Judge:
    """Scores a model by its weight, and remembers how it was shown to it."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, bool, int]] = []

    def evaluate(self, model: nn.Module) -> Any:
        self.seen.append((model.weight[0, 0].item(), model.training, torch.get_num_threads()))
        return SimpleNamespace(metrics={"accuracy": model.weight[0, 0].item()})


def assignment(**more: Any) -> Assignment:
    seeds = SeedTree(experiment="toy", seed=4)
    strategy = more.pop("strategy", "fedavgm")
    values = {
        "experiment": "toy",
        "seed": 4,
        "rounds": 3,
        "task": "toy_task:Toy",
        "settings": '{"clients": 2}',
        "spec": Spec(),
        "strategy": build(StrategyConfig.parse({"name": strategy}, "test"), groups=GROUPS, seeds=seeds),
    }
    return Assignment(**{**values, **more})


def start() -> float:
    """The first weight that everybody starts from."""
    return torch.randn(2, 3, generator=SeedTree(experiment="toy", seed=4).torch(purpose="model"))[0, 0].item()


def test_every_round_is_folded_into_the_model() -> None:
    finish = serve(Grid(), assignment(strategy="fedavg"))
    assert finish.model.weight[0, 0].item() == pytest.approx(start() + 1 + 2 + 3)
    assert finish.model.count.item() == 6
    assert finish.model.bias.tolist() == [0.5, 0.5]
    assert finish.client_arrays == {}


def test_clients_are_told_what_to_do() -> None:
    grid = Grid()
    serve(grid, assignment(rounds=2))
    assert [config["server-round"] for config in grid.configs] == [1, 1, 2, 2]
    for config in grid.configs:
        expected = {"task": "toy_task:Toy", "settings": '{"clients": 2}', "experiment": "toy", "seed": 4, "rounds": 2}
        assert {name: config[name] for name in expected} == expected
    for message in grid.sent:
        assert list(message.content["arrays"]) == ["weight", "count"]  # and nothing that stays at a client


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (2, 4, [2, 4]), (0, 4, [4]), (9, 4, [4]), (3, 3, [3])],
)
def test_evaluation_is_every_so_many_rounds_and_after_the_last(every: int, rounds: int, expected: list[int]) -> None:
    judge, reports = Judge(), list[RoundReport]()
    done = assignment(evaluator=judge, evaluate_every=every, rounds=rounds, on_round=reports.append, strategy="fedavg")
    serve(Grid(), done)
    assert [report.result.number for report in reports] == list(range(1, rounds + 1))
    assert [report.result.number for report in reports if report.scores is not None] == expected
    for (weight, training, _), number in zip(judge.seen, expected, strict=True):
        assert weight == pytest.approx(start() + sum(range(1, number + 1)))
        assert not training
    scored = [report for report in reports if report.scores is not None]
    assert [dict(report.result.server_evaluation) for report in scored] == [report.scores.metrics for report in scored]


def test_without_an_evaluator_nothing_is_scored() -> None:
    reports: list[RoundReport] = []
    serve(Grid(), assignment(on_round=reports.append))
    assert [report.scores for report in reports] == [None] * 3


def test_sums_take_one_thread_and_evaluation_all_that_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1] if threads else 6)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    judge = Judge()
    serve(Grid(), assignment(evaluator=judge, rounds=1))
    assert threads == [1, 6, 1, 6]
    assert [seen[2] for seen in judge.seen] == [6]


# Checkpoints and resume


def test_every_round_is_recorded_and_then_checkpointed(tmp_path: Path) -> None:
    seen: list[tuple[int, list[int]]] = []

    def note(report: RoundReport) -> None:
        seen.append((report.result.number, checkpoint.rounds(tmp_path)))

    serve(Grid(), assignment(folder=tmp_path, on_round=note))
    assert seen == [(1, []), (2, [1]), (3, [1, 2])]
    assert checkpoint.rounds(tmp_path) == [2, 3]


def test_a_checkpoint_keeps_what_was_recorded_up_to_its_round(tmp_path: Path) -> None:
    numbers: list[int] = []

    def note(report: RoundReport) -> dict[str, list[int]]:
        numbers.append(report.result.number)
        return {"rounds": numbers}

    serve(Grid(), assignment(folder=tmp_path, rounds=2, on_round=note))
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.state["record"] == {"rounds": [1, 2]}


def weights(finish: Any) -> bytes:
    return finish.model.weight.detach().numpy().tobytes()


@pytest.mark.parametrize("done", [1, 2])
@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_a_resumed_run_skips_what_is_done_and_ends_the_same(done: int, strategy: str, tmp_path: Path) -> None:
    whole = serve(Grid(), assignment(strategy=strategy))
    serve(Grid(), assignment(strategy=strategy, rounds=done, folder=tmp_path))
    grid, reports = Grid(), list[RoundReport]()
    resumed = assignment(strategy=strategy, folder=tmp_path, on_round=reports.append)
    assert weights(serve(grid, resumed)) == weights(whole)
    rest = list(range(done + 1, 4))
    assert [report.result.number for report in reports] == rest
    assert sorted({config["server-round"] for config in grid.configs}) == rest


class Silent(Grid):
    """Nobody answers in the rounds ``void``."""

    def __init__(self, *void: int) -> None:
        super().__init__()
        self.void = void

    def answer(self, message: Message) -> Message:
        if int(message.content["config"]["server-round"]) in self.void:
            return Message(Error(3, "no power"), reply_to=message)
        return super().answer(message)


@pytest.mark.parametrize("void", [(1,), (2,), (3,), (2, 3), (1, 2, 3)])
def test_a_resumed_run_runs_its_last_void_rounds_again(void: tuple[int, ...], tmp_path: Path) -> None:
    whole = serve(Grid(), assignment())
    if 3 in void:
        with pytest.raises(QuorumError, match=r"(?s)round 3 is void.*resume, which runs the void rounds again"):
            serve(Silent(*void), assignment(folder=tmp_path))
    else:
        serve(Silent(*void), assignment(folder=tmp_path))
    grid = Grid()
    again = serve(grid, assignment(folder=tmp_path))
    if void[-1] == 3:
        assert weights(again) == weights(whole)
        assert [config["server-round"] for config in grid.configs] == [n for n in void for _ in range(2)]
    else:  # a valid round came after: what was missed is missed
        assert grid.configs == []


def test_a_run_in_which_nobody_ever_answered_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match="round 2 is void"):
        serve(Silent(1, 2), assignment(rounds=2, folder=tmp_path))
    assert checkpoint.latest(tmp_path) is None


def test_a_finished_run_asks_nobody(tmp_path: Path) -> None:
    first = serve(Grid(), assignment(folder=tmp_path, strategy="local-only"))
    grid = Grid()
    again = serve(grid, assignment(folder=tmp_path, strategy="local-only"))
    assert grid.sent == []
    assert weights(again) == weights(first)
    assert sorted(again.client_arrays) == ["cam1", "cam2"]
    for name, record in first.client_arrays.items():
        assert views(again.client_arrays[name])["weight"].tolist() == views(record)["weight"].tolist()


def test_another_strategy_does_not_take_up_the_run(tmp_path: Path) -> None:
    serve(Grid(), assignment(folder=tmp_path, rounds=1, strategy="fedavg"))
    with pytest.raises(RunError, match="'fedadam', found one of 'fedavg'"):
        serve(Grid(), assignment(folder=tmp_path, strategy="fedadam"))


def test_a_run_of_another_model_is_named(tmp_path: Path) -> None:
    arrays: Mapping[str, np.ndarray] = {"weight": np.ones((3, 2), np.float32), "count": np.array(0)}
    state = {"strategy": {"strategy": "fedavg", "void_rounds": 0}}
    checkpoint.save(tmp_path, checkpoint.Checkpoint(round=3, arrays=arrays, strategy={}, state=state))
    with pytest.raises(WeightsError, match="weight"):
        serve(Grid(), assignment(folder=tmp_path, strategy="fedavg"))


# Models


def test_everybody_builds_the_same_model() -> None:
    one, other = build_model(assignment()), build_model(assignment())
    assert torch.equal(one.weight, other.weight)
    assert one.weight[0, 0].item() == start()
    assert not torch.equal(build_model(assignment(seed=5)).weight, one.weight)


def test_a_model_whose_entries_are_not_declared_is_refused() -> None:
    class Undeclared(Spec):
        def groups(self, model: nn.Module) -> dict[str, Group]:
            return {"weight": Group.SHARED, "bias": Group.LOCAL, "head": Group.SHARED}

    with pytest.raises(WeightsError, match=r"no group for \['count'\], no entry for \['head'\]"):
        build_model(assignment(spec=Undeclared()))


def test_loaded_arrays_are_copied() -> None:
    model = build_model(assignment())
    values = {"weight": np.ones((2, 3), np.float32), "count": np.array(7)}
    parameter = model.weight
    assert load_arrays(model, values) is model
    values["weight"][:] = 0
    assert model.weight is parameter
    assert model.weight.sum().item() == 6
    assert model.count.item() == 7
    assert model.bias.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"weight": np.ones((3, 2))}, r"weight: the model has \(2, 3\), the weights \(3, 2\)"),
        ({"count": np.ones(1)}, r"count: the model has \(\), the weights \(1,\)"),
        ({"head": np.ones(2)}, r"head: the model has no such entry, the weights \(2,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        load_arrays(build_model(assignment()), arrays)


def test_the_server_app_serves_what_is_prepared_from_its_context() -> None:
    contexts: list[Context] = []

    def prepare(context: Context) -> Assignment:
        contexts.append(context)
        return assignment(rounds=1)

    grid, context = Grid(), Context(1, 1, {}, RecordDict(), {"experiment": "toy"})
    make_app(prepare)(grid, context)
    assert contexts == [context]
    assert len(grid.sent) == 2


def test_arrays_that_a_strategy_ends_with_are_the_models(tmp_path: Path) -> None:
    serve(Grid(), assignment(folder=tmp_path))
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    finish = serve(Grid(), assignment(folder=tmp_path))
    assert saved.arrays["weight"].tobytes() == weights(finish)
