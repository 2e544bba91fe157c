"""The baseline without federation: message i carries model i."""

from types import SimpleNamespace

import numpy as np
from flwr.app import Error, Message, RecordDict

from cloister.flower import array_record, views


def test_every_client_trains_its_own_model_as_if_alone(lab: SimpleNamespace) -> None:
    together = lab.run(lab.FakeGrid(lab.clients()), {"name": "local-only"}, 3)
    for name in lab.NAMES:
        alone = lab.run(lab.FakeGrid(lab.clients([name])), {"name": "fedavg"}, 3)
        for key, values in views(together.result.client_arrays[name]).items():
            np.testing.assert_allclose(values, alone.arrays[key], rtol=1e-5, atol=1e-6)
    assert lab.same(together.arrays, lab.model())  # nobody averages


def test_a_client_that_fails_a_round_keeps_its_model(lab: SimpleNamespace) -> None:
    def moody(message: Message) -> RecordDict | Error:
        broken = message.content["config"]["server-round"] == 2
        return Error(1, "out") if broken else lab.trained(message, "cam2")

    grid = lab.FakeGrid(lab.clients(cam2=moody))
    done = lab.run(grid, {"name": "local-only"}, 3)
    models = [views(result.client_arrays["cam2"]) for result in done.rounds]
    assert lab.same(models[0], models[1])
    assert not lab.same(models[1], models[2])
    sent = [m for m in grid.sent if grid.names[m.metadata.dst_node_id] == "cam2"]
    assert lab.same(views(sent[2].content["arrays"]), models[0])
    assert lab.same(views(sent[0].content["arrays"]), lab.model())


def test_client_names_with_slashes_survive_a_checkpoint(lab: SimpleNamespace) -> None:
    clients = {"site/cam1": lambda message: lab.trained(message, "cam1")}
    grid = lab.FakeGrid(clients)
    done = lab.run(grid, {"name": "local-only"}, 1)
    other = lab.make(grid, {"name": "local-only"})
    other.restore(done.strategy.state())
    assert lab.same(views(other.client_arrays()["site/cam1"]), views(done.result.client_arrays["site/cam1"]))


def test_evaluation_uses_each_clients_own_model(lab: SimpleNamespace) -> None:
    seen = {}

    def client(name: str):  # noqa: ANN202
        def answer(message: Message) -> RecordDict:
            if message.metadata.message_type == "evaluate":
                seen[name] = views(message.content["arrays"])
                return Error(1, "unimportant")
            return lab.trained(message, name)

        return answer

    grid = lab.FakeGrid({name: client(name) for name in lab.NAMES})
    done = lab.run(grid, {"name": "local-only", "evaluate_fraction": 1.0}, 1)
    assert all(lab.same(seen[name], views(done.result.client_arrays[name])) for name in lab.NAMES)


def test_a_variance_is_checked_against_the_clients_own_model(lab: SimpleNamespace) -> None:
    def breathing(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        changes = views(content["arrays"])
        grows = message.content["config"]["server-round"] % 2 == 1
        changes["bn.running_var"] = np.full(16, 50 if grows else -48, np.float32)
        return RecordDict({**content, "arrays": array_record(changes)})

    done = lab.run(lab.FakeGrid({"cam1": breathing}), {"name": "local-only"}, 3)
    assert all(result.outcomes["cam1"].accepted for result in done.rounds)
    assert views(done.result.client_arrays["cam1"])["bn.running_var"].tolist() == [53] * 16
