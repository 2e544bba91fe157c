"""FedAvg and its neighbours: closed forms, and the identities between them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from cloister.errors import ConfigError
from cloister.flower import array_record, views
from cloister.models.spec import Group
from cloister.randomness import SeedTree
from cloister.strategies.averaging import local_progress
from cloister.strategies.config import FedBNConfig, FedNovaConfig
from cloister.strategies.registry import build


def deltas(lab: SimpleNamespace) -> tuple[list[dict[str, np.ndarray]], np.ndarray, list[int]]:
    """What the six honest clients reply in round 1: changes, examples, steps."""
    message = Message(
        RecordDict({"arrays": lab.initial("fedavg"), "config": lab.config(releases=[])}),
        dst_node_id=2,
        message_type="train",
    )
    replies = [lab.trained(message, name) for name in lab.NAMES]
    examples = np.array([reply["metrics"]["num-examples"] for reply in replies], np.float64)
    return [views(reply["arrays"]) for reply in replies], examples, [reply["metrics"]["steps"] for reply in replies]


@pytest.mark.parametrize(
    ("weighting", "power"), [("examples", 1.0), ("sqrt", 0.5), ("uniform", 0.0)], ids=["examples", "sqrt", "uniform"]
)
def test_fedavg_is_the_weighted_mean(lab: SimpleNamespace, weighting: str, power: float) -> None:
    grid = lab.FakeGrid(lab.clients())
    found = lab.run(grid, {"name": "fedavg", "weighting": weighting}, 1).arrays
    changes, examples, _ = deltas(lab)
    for key, start in lab.model().items():
        expected = start + np.average([change[key] for change in changes], axis=0, weights=examples**power)
        np.testing.assert_allclose(found[key], np.rint(expected) if start.dtype.kind == "i" else expected, rtol=2e-6)


def test_integer_counters_stay_integer_and_round_to_nearest(lab: SimpleNamespace) -> None:
    def counting(count: int) -> Any:
        def answer(message: Message) -> RecordDict:
            content = lab.trained(message, "cam1")
            changes = {**views(content["arrays"]), "bn.num_batches_tracked": np.array(count, np.int64)}
            return RecordDict({**content, "arrays": array_record(changes)})

        return answer

    grid = lab.FakeGrid({"a": counting(3), "b": counting(4), "c": counting(4)})
    found = lab.run(grid, {"name": "fedavg"}, 1).arrays["bn.num_batches_tracked"]
    assert found.dtype == np.int64
    assert found == 4  # 11 / 3 = 3.67


def test_pooled_moments_are_those_of_the_pooled_data(lab: SimpleNamespace) -> None:
    draw = np.random.default_rng(0)
    data = {name: draw.normal(loc=5.0 * place, size=(30 + 40 * place, 16)) for place, name in enumerate("abc")}

    def client(name: str) -> Any:
        def answer(message: Message) -> RecordDict:
            received = views(message.content["arrays"])
            content = lab.trained(message, "cam1")
            changes = views(content["arrays"])
            changes["bn.running_mean"] = (data[name].mean(0) - received["bn.running_mean"]).astype(np.float32)
            changes["bn.running_var"] = (data[name].var(0) - received["bn.running_var"]).astype(np.float32)
            content["arrays"] = array_record(changes)
            content["metrics"]["num-examples"] = len(data[name])
            return content

        return answer

    pooled = np.concatenate(list(data.values()))
    clients = {name: client(name) for name in data}
    found = lab.run(lab.FakeGrid(clients), {"name": "fedavg"}, 2, pooled=lab.POOLED).arrays
    np.testing.assert_allclose(found["bn.running_mean"], pooled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["bn.running_var"], pooled.var(0), rtol=1e-5)
    averaged = lab.run(lab.FakeGrid(clients), {"name": "fedavg"}, 2).arrays
    assert (averaged["bn.running_var"] < 0.5 * pooled.var(0)).all()  # what averaging the variances misses


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_local_progress_counts_what_torchs_sgd_does_to_a_constant_gradient(
    steps: int, momentum: float, nesterov: bool
) -> None:
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=1.0, momentum=momentum, nesterov=nesterov and momentum > 0)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimiser.step()
    config = FedNovaConfig(momentum=momentum, nesterov=nesterov)
    assert local_progress(steps, config) == pytest.approx(-weight.item(), rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_normalises_parameters_and_averages_buffers(lab: SimpleNamespace, momentum: float) -> None:
    found = lab.run(lab.FakeGrid(lab.clients()), {"name": "fednova", "momentum": momentum, "nesterov": False}, 1).arrays
    changes, examples, steps = deltas(lab)
    share = examples / examples.sum()
    progress = np.array([sum(sum(momentum**k for k in range(t)) for t in range(1, tau + 1)) for tau in steps])
    for key, start in lab.model().items():
        stacked = np.stack([change[key] for change in changes])
        if lab.GROUPS[key] is Group.SHARED:
            expected = start + (share @ progress) * np.tensordot(share / progress, stacked, 1)
            np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-6)
        elif start.dtype.kind == "f":
            np.testing.assert_allclose(found[key], start + np.tensordot(share, stacked, 1), rtol=1e-5, atol=1e-6)
        else:
            assert found[key] == 3


@pytest.mark.parametrize("pooled", [False, True])
def test_fednova_with_equal_steps_is_fedavg(lab: SimpleNamespace, pooled: bool) -> None:
    def client(name: str) -> Any:
        def answer(message: Message) -> RecordDict:
            content = lab.trained(message, name)
            content["metrics"]["steps"] = 12
            return content

        return answer

    keywords = {"pooled": lab.POOLED} if pooled else {}
    clients = {name: client(name) for name in lab.NAMES}
    nova = lab.run(lab.FakeGrid(clients), {"name": "fednova"}, 3, **keywords).arrays
    fedavg = lab.run(lab.FakeGrid(clients), {"name": "fedavg"}, 3, **keywords).arrays
    for key, values in fedavg.items():
        np.testing.assert_allclose(nova[key], values, rtol=1e-5, atol=1e-6)


def claiming(lab: SimpleNamespace, name: str, steps: int, scale: float = 1.0) -> Any:
    def answer(message: Message) -> RecordDict:
        content = lab.trained(message, name)
        content["metrics"]["steps"] = steps
        found = views(content["arrays"])
        scaled = {key: np.asarray(values * scale, dtype=values.dtype) for key, values in found.items()}
        return RecordDict({**content, "arrays": array_record(scaled)})

    return answer


def test_fednova_moves_no_further_than_the_norm_bound_whatever_steps_are_claimed(lab: SimpleNamespace) -> None:
    clients = lab.clients(cam2=claiming(lab, "cam2", 900_000, scale=0.0))
    start = lab.model()
    shared = [key for key in start if lab.GROUPS[key] is Group.SHARED and start[key].dtype.kind == "f"]

    def moved(**limits: float) -> float:
        done = lab.run(lab.FakeGrid(clients), {"name": "fednova", "limits": limits}, 1)
        return float(np.sqrt(sum(np.square(done.arrays[key] - start[key]).sum() for key in shared)))

    outcomes = lab.run(lab.FakeGrid(clients), {"name": "fednova"}, 1).rounds[0].outcomes
    bound = 1.01 * max(outcome.norm for outcome in outcomes.values())
    assert moved() > 100 * bound
    assert moved(max_norm=bound) <= bound * (1 + 1e-5)


def test_a_claim_of_too_many_steps_is_refused(lab: SimpleNamespace) -> None:
    clients = lab.clients(cam2=claiming(lab, "cam2", 2**53))
    done = lab.run(lab.FakeGrid(clients), {"name": "fednova"}, 1)
    expected = f"metrics['steps']: expected an integer from 1 to 1000000, found {2**53}"
    assert done.rounds[0].outcomes["cam2"].reason == expected


def test_fednova_refuses_a_reply_without_steps(lab: SimpleNamespace) -> None:
    def stepless(message: Message) -> RecordDict:
        content = lab.trained(message, "cam2")
        del content["metrics"]["steps"]
        return content

    nova = lab.run(lab.FakeGrid(lab.clients(cam2=stepless)), {"name": "fednova"}, 1)
    assert nova.rounds[0].outcomes["cam2"].reason.startswith("metrics['steps']: expected an integer from 1")
    fedavg = lab.run(lab.FakeGrid(lab.clients(cam2=stepless)), {"name": "fedavg"}, 1)
    assert fedavg.rounds[0].outcomes["cam2"].accepted


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"name": "fedprox", "mu": 0.0}, {"proximal-mu": 0.0}),
        ({"name": "fedprox"}, {"proximal-mu": 0.01}),
        ({"name": "moon", "mu": 0.0}, {"moon-mu": 0.0, "moon-temperature": 0.5}),
        ({"name": "moon", "temperature": 0.2}, {"moon-mu": 1.0, "moon-temperature": 0.2}),
        (
            {"name": "fedrcl"},
            {"fedrcl-weight": 1.0, "fedrcl-temperature": 0.05, "fedrcl-threshold": 0.7, "fedrcl-clip": 10.0},
        ),
    ],
)
def test_client_side_methods_are_fedavg_with_their_scalars_sent(
    lab: SimpleNamespace, settings: dict[str, Any], sent: dict[str, float]
) -> None:
    grids = lab.FakeGrid(lab.clients()), lab.FakeGrid(lab.clients())
    method = lab.run(grids[0], settings)
    fedavg = lab.run(grids[1], {"name": "fedavg"})
    assert lab.same(method.arrays, fedavg.arrays)
    for message, plain in zip(grids[0].sent, grids[1].sent, strict=True):
        assert dict(message.content["config"]) == {**plain.content["config"], **sent}
        assert set(message.content) == set(plain.content)


def test_every_message_says_what_round_it_is(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    strategy = lab.make(grid, {"name": "fedavg"})
    strategy.start(grid, lab.initial("fedavg"), 3, train_config=lab.config(task="camera", seed=3))
    told = [dict(message.content["config"]) for message in grid.sent]
    assert told[0] == {"server-round": 1, "rounds": 3, "task": "camera", "seed": 3, "releases": []}
    assert [config["server-round"] for config in told] == [1] * 6 + [2] * 6 + [3] * 6
    assert grid.sent[0].content["arrays"] is grid.sent[5].content["arrays"]  # one model, not six copies


def test_fedbn_never_sees_batchnorm(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    found = lab.run(grid, {"name": "fedbn"})
    assert set(found.arrays) == {"conv.weight", "head.weight"}
    assert all(set(message.content["arrays"]) == {"conv.weight", "head.weight"} for message in grid.sent)


@pytest.mark.parametrize("travelling", ["bn.weight", "bn.running_mean", "bn.num_batches_tracked"])
def test_fedbn_refuses_a_model_whose_batchnorm_travels(lab: SimpleNamespace, travelling: str) -> None:
    groups = {**lab.groups_for("fedbn"), travelling: Group.SHARED}
    with pytest.raises(ConfigError, match=f"expected BatchNorm entries whose group is LOCAL.*{travelling}"):
        build(FedBNConfig(), groups=groups, seeds=SeedTree(experiment="x", seed=0))


def test_fedbn_refuses_a_model_without_batchnorm() -> None:
    with pytest.raises(ConfigError, match="found no BatchNorm entry"):
        build(FedBNConfig(), groups={"weight": Group.SHARED}, seeds=SeedTree(experiment="x", seed=0))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"a": np.zeros(1, np.float32)}, r"missing \['b'\]"),
        ({"a": np.zeros(1, np.float32), "b": np.zeros(1, bool)}, "'b': expected floating-point or signed"),
        ({"a": np.zeros(1), "b": np.zeros(1), "local": np.zeros(1)}, r"unexpected \['local'\]"),
    ],
)
def test_a_model_that_does_not_fit_its_groups_is_refused(
    lab: SimpleNamespace, arrays: dict[str, np.ndarray], problem: str
) -> None:
    grid = lab.FakeGrid(lab.clients())
    groups = {"a": Group.SHARED, "b": Group.BUFFER, "local": Group.LOCAL}
    with pytest.raises(ConfigError, match=problem):
        lab.make(grid, {"name": "fedavg"}, groups=groups).start(grid, array_record(arrays), 1)
