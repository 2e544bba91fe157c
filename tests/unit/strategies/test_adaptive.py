"""Server optimisers against Flower's own classes fed the same replies, and against torch's optimiser."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import strategy as flower

from cloister.flower import array_record, views
from cloister.models.spec import Group

PAIRS = [
    ({"name": "fedadam", "learning_rate": 0.05}, lambda: flower.FedAdam(eta=0.05)),
    ({"name": "fedyogi"}, lambda: flower.FedYogi()),
    ({"name": "fedadagrad", "tau": 0.01}, lambda: flower.FedAdagrad(tau=0.01)),
    ({"name": "fedavgm", "momentum": 0.7}, lambda: flower.FedAvgM(server_momentum=0.7)),
    ({"name": "fedavgm", "learning_rate": 0.5, "momentum": 0.0}, lambda: flower.FedAvgM(server_learning_rate=0.5)),
]
ALL_SHARED = {"conv.weight": Group.SHARED, "head.weight": Group.SHARED}


def arrays(lab: SimpleNamespace) -> dict[str, np.ndarray]:
    return {key: lab.model()[key] for key in ALL_SHARED}


@pytest.mark.parametrize(("settings", "inner"), PAIRS, ids=[str(pair[0]) for pair in PAIRS])
def test_they_equal_flowers_own(lab: SimpleNamespace, settings: dict[str, Any], inner: Any) -> None:
    grid = lab.FakeGrid(lab.clients())
    strategy = lab.make(grid, settings, groups=ALL_SHARED)
    ours: list[dict[str, np.ndarray]] = []
    strategy.start(grid, array_record(arrays(lab)), 4, on_round=lambda done: ours.append(views(done.arrays)))
    theirs, current = inner(), array_record(arrays(lab))
    for number in range(1, 5):
        config = lab.config(releases=[])
        messages = list(theirs.configure_train(number, current, config, lab.PlainGrid(lab.clients())))
        for message, name in zip(messages, lab.NAMES, strict=True):
            message.metadata.__dict__["_message_id"] = name
        replies = []
        for message, name in zip(messages, lab.NAMES, strict=True):
            content = lab.trained(message, name)
            received = views(current)
            full = {key: received[key] + change for key, change in views(content["arrays"]).items()}
            replies.append(Message(RecordDict({**content, "arrays": array_record(full)}), reply_to=message))
        result, _ = theirs.aggregate_train(number, replies)
        current = array_record({key: values.astype(np.float32) for key, values in views(result).items()})
        for key, values in views(current).items():
            np.testing.assert_allclose(ours[number - 1][key], values, rtol=2e-4, atol=2e-5)


def test_fedavgm_is_torchs_sgd_with_momentum_on_the_mean_change(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    found = lab.run(grid, {"name": "fedavgm", "momentum": 0.6, "learning_rate": 0.8}, 3)
    weight = torch.from_numpy(lab.model()["head.weight"].copy()).requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=0.8, momentum=0.6)
    for number in range(1, 4):
        message = Message(
            RecordDict(
                {
                    "arrays": array_record({**lab.model(), "head.weight": weight.detach().numpy().copy()}),
                    "config": lab.config(**{"server-round": number, "releases": []}),
                }
            ),
            dst_node_id=2,
            message_type="train",
        )
        replies = [lab.trained(message, name) for name in lab.NAMES]
        examples = [reply["metrics"]["num-examples"] for reply in replies]
        changes = [views(reply["arrays"])["head.weight"] for reply in replies]
        weight.grad = -torch.from_numpy(np.average(changes, axis=0, weights=examples).astype(np.float32))
        optimiser.step()
    np.testing.assert_allclose(found.arrays["head.weight"], weight.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad", "fedavgm"])
def test_statistics_and_counters_are_averaged_not_optimised(lab: SimpleNamespace, name: str) -> None:
    optimised = lab.run(lab.FakeGrid(lab.clients()), {"name": name}, 1, pooled=lab.POOLED).arrays
    averaged = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedavg"}, 1, pooled=lab.POOLED).arrays
    for key, group in lab.GROUPS.items():
        assert (optimised[key].tobytes() == averaged[key].tobytes()) == (
            group is Group.BUFFER or name == "fedavgm"  # momentum only shows from the second round on
        )


def test_momentum_survives_a_state_whose_order_was_lost(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    done = lab.run(grid, {"name": "fedavgm"}, 2)
    memory = done.strategy.memory()
    other = lab.make(grid, {"name": "fedavgm"})
    other.remember(dict(reversed(memory.items())))
    one = done.strategy.start(grid, done.result.arrays, 3, first_round=3)
    two = other.start(grid, done.result.arrays, 3, first_round=3)
    assert lab.same(views(one.arrays), views(two.arrays))


def test_flowers_messages_do_not_reach_the_log(lab: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name in ("fedadam", "fedavgm", "fedmedian", "krum"):
        lab.run(lab.FakeGrid(lab.clients()), {"name": name})
    assert not [record for record in caplog.records if record.name == "flwr"]
