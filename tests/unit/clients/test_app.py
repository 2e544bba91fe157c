"""The ClientApp in this process: what it makes of a message, and what of a client leaves it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import nn

from cloister.clients import app as client_app
from cloister.clients.app import app, load_task
from cloister.clients.camera import CameraTask
from cloister.clients.policy import SIMULATION
from cloister.clients.state import ClientState
from cloister.clients.task import Release, Round, Task, Update
from cloister.errors import ConfigError, WeightsError
from cloister.flower import allocating, array_record, assign_id, set_identity, views
from cloister.models.spec import Group, ModelSpec
from cloister.randomness import SeedTree

INITIAL = 0.25  # of the entry that stays at a client
STEP = {"site0": 1.0, "site1": 16.0}  # what a client's training adds to its own entry; powers of two are exact
loads: list[str] = []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.mine = nn.Parameter(torch.full((2,), INITIAL))
        self.frozen = nn.Parameter(torch.full((4,), 3.0))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))


class Spec(ModelSpec):
    def build(self, generator: torch.Generator) -> nn.Module:
        return Net()

    def groups(self, model: nn.Module) -> dict[str, Group]:
        return {
            "weight": Group.SHARED,
            "mine": Group.LOCAL,
            "frozen": Group.FROZEN,
            "count": Group.BUFFER,
            "mean": Group.BUFFER,
        }


class Toy(Task[Any]):
    """Adds known numbers to every entry and reports what it found."""

    spec = Spec()

    def clients(self) -> Sequence[str]:
        return sorted(STEP)

    def load(self, client: str) -> Any:
        loads.append(client)
        return client

    def may_open(self, client: str, path: Path) -> bool:
        return self.root / "clients" not in path.parents or path.parent.name == client

    def train(self, model: Any, data: Any, round: Round) -> Update:
        assert data == round.client
        assert model.training
        if self.settings.get("exchanges"):
            model.weight = nn.Parameter(model.weight.detach().clone())
        if file := self.settings.get("opens"):
            (self.root / "clients" / file).read_text()
        found = {"mine": model.mine[0].item(), "weight": model.weight.sum().item(), "frozen": model.frozen[0].item()}
        with torch.no_grad():
            model.weight += torch.arange(6.0).reshape(2, 3) / 8
            model.mine += STEP[round.client]
            model.count += 3
            model.mean -= 0.5
        centres = {"values": np.ones((1, 2), np.float32), "labels": np.array([5])}
        releases = (Release(kind="centres", arrays=centres), Release(kind="head", arrays={"weight": np.ones(1)}))
        received = {f"got-{kind}": sum(v.sum() for v in arrays.values()) for kind, arrays in round.received.items()}
        seen = {"number": round.number, "total": round.total, "mu": round.config.get("proximal-mu", -1.0)}
        draw = {"draw": round.seeds.numpy(purpose="order", round=round.number, client=round.client).random()}
        return Update(examples=12, steps=3, metrics={**found, **received, **seen, **draw}, releases=releases)

    def evaluate(self, model: Any, data: Any, round: Round) -> tuple[int, dict[str, float]]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return 7, {"mine": model.mine[0].item(), "weight": model.weight.sum().item()}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    client_app._resident.cache_clear()
    loads.clear()
    yield
    client_app._resident.cache_clear()


def sent(**more: np.ndarray) -> dict[str, np.ndarray]:
    values = {
        "weight": np.full((2, 3), 0.5, np.float32),
        "count": np.array(10),
        "mean": np.array([1.0, 2.0]),
    }
    return {**values, **more}


def ask(
    kind: str = "train",
    number: int = 1,
    *,
    client: str = "site0",
    state: Path | None = None,
    data: Path | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    **config: Any,
) -> Message:
    set_identity(run_id=1, node_id=1)
    values = {"server-round": number, "rounds": 5, "task": f"{__name__}:Toy", "settings": json.dumps(settings or {})}
    record = ConfigRecord({**values, "experiment": "toy", "seed": 4, **config})
    content = RecordDict({"arrays": array_record(arrays or sent()), "config": record, **(extra or {})})
    message = Message(content, dst_node_id=9, message_type=kind)
    assign_id(message, "m1")
    node = {
        "client": client,
        "policy": SIMULATION,
        **({"state": str(state)} if state else {}),
        **({"data": str(data)} if data else {}),
    }
    return app(message, Context(1, 9, node, RecordDict(), {}))


def mine(**keywords: Any) -> float:
    return ask(**keywords).content["metrics"]["mine"]


# Training


def test_deltas_are_trained_minus_received_exactly() -> None:
    received = sent()
    deltas = views(ask(arrays=received).content["arrays"])
    assert list(deltas) == ["weight", "count", "mean"]
    np.testing.assert_array_equal(deltas["weight"], np.arange(6, dtype=np.float32).reshape(2, 3) / 8)
    assert deltas["count"] == 3
    assert deltas["mean"].tolist() == [-0.5, -0.5]
    for name, values in deltas.items():
        assert (values.dtype, values.shape) == (received[name].dtype, received[name].shape)
    for name, values in sent().items():  # what came in is as it was
        np.testing.assert_array_equal(received[name], values)


def test_each_message_starts_from_what_it_brings_not_from_the_training_before() -> None:
    for weight in (0.5, -2.0, 0.5):
        metrics = ask(arrays=sent(weight=np.full((2, 3), weight, np.float32))).content["metrics"]
        assert metrics["weight"] == 6 * weight


def test_deltas_are_written_into_the_engines_memory() -> None:
    slots: list[np.ndarray] = []

    def allocator(shapes: Any) -> list[np.ndarray]:
        slots.extend(np.empty(shape, dtype) for shape, dtype in shapes)
        return slots

    with allocating(allocator):
        deltas = views(ask().content["arrays"])
    assert all(any(values is slot for slot in slots) for values in deltas.values())


def test_metrics_say_examples_steps_and_what_the_task_found() -> None:
    metrics = ask(**{"proximal-mu": 0.125}).content["metrics"]
    assert (metrics["num-examples"], metrics["steps"]) == (12, 3)
    assert (metrics["number"], metrics["total"], metrics["mu"], metrics["frozen"]) == (1.0, 5.0, 0.125, 3.0)


def test_draws_come_from_the_experiments_tree() -> None:
    metrics = ask(number=3, client="site1").content["metrics"]
    tree = SeedTree(experiment="toy", seed=4)
    assert metrics["draw"] == tree.numpy(purpose="order", round=3, client="site1").random()


def test_other_arrays_reach_the_task_by_kind() -> None:
    reply = ask(extra={"centres": array_record({"values": np.ones((2, 2)), "labels": np.array([3, 4])})})
    assert reply.content["metrics"]["got-centres"] == 11.0


def test_a_release_leaves_only_where_it_was_asked_for() -> None:
    assert set(ask().content) == {"arrays", "metrics"}
    assert set(ask(releases=[]).content) == {"arrays", "metrics"}
    content = ask(releases=["centres"]).content
    assert set(content) == {"arrays", "metrics", "centres"}
    assert views(content["centres"])["labels"].tolist() == [5]
    assert set(ask(releases=["centres", "head"]).content) == {"arrays", "metrics", "centres", "head"}


# What stays at a client


def test_local_entries_stay_with_each_of_two_clients_of_one_model(tmp_path: Path) -> None:
    found = [
        [mine(number=number, client=client, state=tmp_path) for client in ("site0", "site1")] for number in (1, 2, 3)
    ]
    assert found == [[0.25, 0.25], [1.25, 16.25], [2.25, 32.25]]
    kept = ClientState(tmp_path / "site1", 4).load("local")
    assert kept is not None
    assert {name: values.tolist() for name, values in kept.items()} == {"mine": [48.25, 48.25]}


def test_a_round_that_is_run_again_gives_the_same(tmp_path: Path) -> None:
    for number in (1, 2, 2, 1, 2):
        assert mine(number=number, state=tmp_path) == INITIAL + (number - 1)


def test_without_a_folder_local_entries_start_anew_for_everyone() -> None:
    assert [mine(number=number, client=client) for number in (1, 2) for client in STEP] == [INITIAL] * 4


def test_a_client_without_memory_does_not_get_anothers(tmp_path: Path) -> None:
    mine(number=1, client="site0", state=tmp_path)
    assert mine(number=2, client="site1", state=tmp_path) == INITIAL


def test_memory_of_one_run_or_plan_does_not_flow_into_another(tmp_path: Path) -> None:
    other = '{"unit": "client"}'
    mine(number=1, state=tmp_path, run="a")
    assert mine(number=2, state=tmp_path, run="b") == INITIAL
    assert mine(number=2, state=tmp_path, run="a", plan=other) == INITIAL
    assert mine(number=2, state=tmp_path, run="a") == INITIAL + 1


def test_a_clients_data_is_loaded_once() -> None:
    for client in ("site0", "site1", "site0", "site1"):
        ask(client=client)
    assert loads == ["site0", "site1"]


def test_a_partition_number_stands_for_a_name() -> None:
    message = Message(RecordDict({"arrays": array_record(sent())}), dst_node_id=9, message_type="train")
    config = {"server-round": 1, "task": f"{__name__}:Toy", "settings": "{}", "experiment": "toy", "seed": 4}
    message.content["config"] = ConfigRecord(config)
    assign_id(message, "m1")
    assert app(message, Context(1, 9, {"partition-id": 1}, RecordDict(), {})).has_content()
    assert loads == ["site1"]
    assert app(message, Context(1, 9, {"partition-id": 2}, RecordDict(), {})).error.code == ConfigError.code


def test_training_is_guarded(tmp_path: Path) -> None:
    for client in STEP:
        (tmp_path / "clients" / client).mkdir(parents=True)
        (tmp_path / "clients" / client / "file").write_text("")
    assert ask(settings={"opens": "site0/file"}, data=tmp_path).has_content()
    assert ask(settings={"opens": "site1/file"}, data=tmp_path).error.code == 210
    assert ask(settings={"opens": "site1/file"}, data=tmp_path, client="site1").has_content()


def test_a_task_that_exchanges_the_models_tensors_is_told() -> None:
    for number in (1, 2):
        assert ask(number=number, settings={"exchanges": True}).error.code == WeightsError.code
    assert ask().has_content()


# Evaluation


def test_an_evaluation_replies_with_metrics_only(tmp_path: Path) -> None:
    content = ask("evaluate", state=tmp_path, releases=["centres"]).content
    assert set(content) == {"metrics"}
    assert dict(content["metrics"]) == {"num-examples": 7, "mine": INITIAL, "weight": 3.0}
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_follows_the_training_of_its_round(tmp_path: Path) -> None:
    for number in (1, 2):
        for client in STEP:
            ask(number=number, client=client, state=tmp_path)
        for client, step in STEP.items():
            assert mine(kind="evaluate", number=number, client=client, state=tmp_path) == INITIAL + number * step
    assert mine(kind="evaluate", number=1, state=tmp_path) == INITIAL + 1


# Bad messages


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (sent(weight=np.ones((3, 2), np.float32)), r"weight: expected shape (2, 3), found (3, 2)"),
        (sent(weight=np.ones((2, 3, 1), np.float32)), r"weight: expected shape (2, 3), found (2, 3, 1)"),
        (sent(more=np.ones(2)), "unknown ['more'], missing []"),
        (sent(mine=np.ones(2, np.float32)), "unknown ['mine'], missing []"),
        ({"weight": np.ones((2, 3), np.float32)}, "unknown [], missing ['count', 'mean']"),
    ],
)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_weights_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], said: str, kind: str, tmp_path: Path
) -> None:
    reply = ask(kind, arrays=arrays, state=tmp_path)
    assert (reply.error.code, reply.error.reason) == (300, "WeightsError (the text stays in the client's log)")
    assert said in (tmp_path / "site0" / "errors.log").read_text()
    assert mine() == INITIAL  # the client serves on


def test_a_message_without_a_configuration_is_refused() -> None:
    set_identity(run_id=1, node_id=1)
    message = Message(RecordDict({"arrays": array_record(sent())}), dst_node_id=9, message_type="train")
    assign_id(message, "m1")
    assert (
        app(message, Context(1, 9, {"client": "site0", "policy": SIMULATION}, RecordDict(), {})).error.code
        == ConfigError.code
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("camra", "expected one of camera, or module:Class"),
        ("no.such.module:Task", "No module named 'no'"),
        (f"{__name__}:NoSuchTask", "NoSuchTask"),
        (f"{__name__}:Net", "expected a subclass of cloister.clients.task.Task, found"),
        (":Task", "expected one of camera"),
        ("", "expected one of camera"),
    ],
)
def test_an_unknown_task_is_named(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(name, {}, tmp_path)
    assert f"task {name!r}" in str(caught.value)
    assert said in str(caught.value)
    assert ask(task=name).error.code == ConfigError.code


def test_a_task_is_found_by_its_short_name(tmp_path: Path) -> None:
    assert type(load_task("camera", {}, tmp_path)) is CameraTask
