"""What every engine must do. One suite, run on worker processes and on Ray actors."""

import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from cloister.errors import CloisterError, EngineError
from cloister.flower import array_record, views
from cloister.models.spec import Group
from cloister.randomness import SeedTree
from cloister.simulations.engines.grid import EngineGrid, Nodes, NumberedNames
from cloister.strategies.config import StrategyConfig
from cloister.strategies.registry import build
from cloister.strategies.rounds import RoundResult

APPS = Path(__file__).parent / "apps"
Open = Callable[..., EngineGrid]


@pytest.fixture(autouse=True)
def _apps_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    logging.getLogger("flwr").setLevel(logging.ERROR)


class Kept:
    """One Ray executor that outlives a test: an actor takes seconds to start."""

    def __init__(self) -> None:
        from cloister.simulations.engines.ray import RayExecutor

        self.executor = RayExecutor(app="echo_app:app", run_config={"flavour": "plain"}, actors=2, threads=1)

    def grid(self, nodes: Nodes, app: str) -> EngineGrid:
        from cloister.simulations.engines.ray import ray_grid

        if app != "echo_app:app":
            return ray_grid(nodes, app=app, run_config={}, workers=1)
        grid = EngineGrid(nodes, self.executor)
        grid.close = lambda: None  # type: ignore[method-assign]
        return grid


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Kept]:
    import ray

    ray.init(address="local", num_cpus=6, resources={"site:a": 1}, log_to_driver=False, include_dashboard=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APPS))
        yield Kept()
    ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def open_engine(request: pytest.FixtureRequest) -> Open:
    kept: Kept | None = request.getfixturevalue("ray_cluster") if request.param == "ray" else None

    def make(count: int = 6, workers: int = 2, app: str = "echo_app:app", **nodes: Any) -> EngineGrid:
        clients = Nodes(names=NumberedNames(count), **nodes)
        if kept is not None:
            return kept.grid(clients, app)
        from cloister.simulations.engines.local import local_grid

        return local_grid(clients, app=app, run_config={"flavour": "plain"}, workers=workers)

    return make


def ask(action: str, node: int, **config: Any) -> Message:
    return Message(RecordDict({"config": ConfigRecord(config)}), dst_node_id=node, message_type=f"query.{action}")


def expected_fedavg(rounds: int, clients: int) -> dict[str, np.ndarray]:
    """The weighted mean as a bare loop computes it, in the order of the nodes."""
    sys.path.insert(0, str(APPS))
    import echo_app

    sys.path.pop(0)
    model = echo_app.make_model()
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    for _ in range(rounds):
        results = []
        for partition in range(clients):
            model.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
            examples = echo_app.fit(model, partition)
            results.append((examples, {key: value.numpy().copy() for key, value in model.state_dict().items()}))
        total = sum(examples for examples, _ in results)
        for key in state:
            parts = [values[key] * (examples / total) for examples, values in results]
            state[key] = parts[0]
            for part in parts[1:]:
                state[key] = state[key] + part
    return state


def test_flowers_fedavg_runs_unmodified_and_equals_a_bare_loop(open_engine: Open) -> None:
    import echo_app

    for workers in (1, 2, 3):
        with open_engine(workers=workers) as grid:
            initial = ArrayRecord(echo_app.make_model().state_dict())
            result = FedAvg(min_available_nodes=6).start(grid, initial, num_rounds=2)
        for key, values in expected_fedavg(2, 6).items():
            np.testing.assert_array_equal(result.arrays[key].numpy(), values)


def test_arrays_of_every_kind_come_back_as_they_were(open_engine: Open) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        kind: generator.integers(0, 2, (3, 5)).astype(kind)
        for kind in ("float16", "float32", "float64", "int8", "int64", "bool", "complex64")
    }
    arrays |= {"scalar": np.array(7, np.int64), "empty": np.zeros((0, 4), np.float32)}
    arrays |= {"transposed": generator.normal(size=(5, 3)).T, "large": generator.normal(size=(300, 1000))}
    with open_engine() as grid:
        record = array_record(arrays)
        messages = [
            Message(RecordDict({"arrays": record}), dst_node_id=node, message_type="query.echo") for node in range(1, 7)
        ]
        replies = grid.send_and_receive(messages)
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3, 4, 5, 6]
    for reply in replies:
        for key, values in views(reply.content.array_records["arrays"]).items():
            np.testing.assert_array_equal(values, arrays[key])
            assert values.dtype == arrays[key].dtype


def test_a_long_configuration_does_not_block_the_engine(open_engine: Open) -> None:
    blob = os.urandom(3_000_000)
    with open_engine(count=4, workers=1) as grid:
        replies = grid.send_and_receive([ask("echo", node, blob=blob) for node in range(1, 5)])
    assert [reply.content["config"]["blob"] for reply in replies] == [blob] * 4


def test_nodes_know_who_they_are(open_engine: Open) -> None:
    with open_engine(config={"data": "/somewhere"}) as grid:
        reply = grid.send_and_receive([ask("who", 3)])[0].content["config"]
    assert reply["client"] == "client-2"
    assert reply["partition-id"] == 2
    assert reply["data"] == "/somewhere"
    assert reply["flavour"] == "plain"
    assert reply["node"] == 3


def test_flowers_per_node_state_follows_the_node(open_engine: Open) -> None:
    with open_engine() as grid:
        for expected in (1, 2, 3):
            replies = grid.send_and_receive([ask("count", node) for node in range(1, 7)])
            assert [reply.content["metrics"]["n"] for reply in replies] == [expected] * 6


def test_a_crash_is_survived_once(open_engine: Open, tmp_path: Path) -> None:
    with open_engine(workers=1) as grid:
        messages = [ask("die", 1, marker=str(tmp_path / "once"), always=False), ask("count", 2), ask("count", 3)]
        first, second, third = grid.send_and_receive(messages, timeout=50)
    assert first.content["config"]["survived"]
    assert [second.content["metrics"]["n"], third.content["metrics"]["n"]] == [1, 1]


def test_a_second_crash_is_an_error_reply_and_the_rest_goes_on(open_engine: Open, tmp_path: Path) -> None:
    with open_engine(workers=1) as grid:
        messages = [ask("die", 1, marker=str(tmp_path / "always"), always=True), ask("count", 2)]
        first, second = grid.send_and_receive(messages, timeout=50)
    assert first.error.code == EngineError.code
    assert "died" in first.error.reason
    assert second.content["metrics"]["n"] == 1


def test_an_exception_is_an_error_reply(open_engine: Open) -> None:
    with open_engine() as grid:
        failed, fine = grid.send_and_receive([ask("fail", 1), ask("count", 2)])
    assert failed.has_error()
    assert fine.has_content()


def test_a_hanging_client_can_be_cancelled(open_engine: Open) -> None:
    with open_engine(workers=1) as grid:
        hanging, waiting = grid.push_messages([ask("hang", 1), ask("count", 2)])
        grid.cancel([hanging])
        replies: list[Message] = []
        while not replies:
            grid.wait(30)
            replies = grid.pull_messages([hanging, waiting])
        assert [reply.metadata.src_node_id for reply in replies] == [2]


def test_a_timeout_returns_what_is_there(open_engine: Open) -> None:
    with open_engine(workers=2) as grid:
        replies = grid.send_and_receive([ask("hang", 1), ask("count", 2)], timeout=3)
    assert [reply.metadata.src_node_id for reply in replies] == [2]


def test_what_was_done_before_a_client_hangs_is_not_lost(open_engine: Open) -> None:
    with open_engine(count=40, workers=1) as grid:
        grid.send_and_receive([ask("count", node) for node in range(1, 41)])  # short jobs now travel several at once
        messages = [*(ask("count", node) for node in (1, 2, 3)), ask("hang", 4), ask("count", 5)]
        replies = grid.send_and_receive(messages, timeout=3)
    answered = [reply.metadata.src_node_id for reply in replies]
    assert answered[:3] == [1, 2, 3]
    assert 4 not in answered
    assert {reply.content["metrics"]["n"] for reply in replies} == {2}


def test_a_worker_that_dies_before_its_reply_is_fetched_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.simulations.engines.local import local_grid
    from cloister.simulations.engines.memory import Peer

    memory, times = Peer.memory, iter((True,))

    def once(self: Peer, path: str) -> Any:
        if next(times, False):
            raise EngineError(f"shared memory {path}: cannot be mapped; the process is gone")
        return memory(self, path)

    arrays = array_record({"w": np.arange(5000.0)})
    with local_grid(Nodes(names=("a", "b")), app="echo_app:app", run_config={}, workers=1) as grid:
        monkeypatch.setattr(Peer, "memory", once)
        replies = grid.send_and_receive(
            [Message(RecordDict({"arrays": arrays}), dst_node_id=node, message_type="query.echo") for node in (1, 2)]
        )
    assert [views(reply.content.array_records["arrays"])["w"][-1] for reply in replies] == [4999.0, 4999.0]


def test_of_jobs_that_travel_together_only_the_one_that_crashes_fails(open_engine: Open, tmp_path: Path) -> None:
    with open_engine(count=40, workers=1) as grid:
        grid.send_and_receive([ask("count", node) for node in range(1, 41)])
        killer = ask("die", 4, marker=str(tmp_path / "always"), always=True)
        messages = [*(ask("count", node) for node in (1, 2, 3)), killer, *(ask("count", node) for node in (5, 6))]
        replies = grid.send_and_receive(messages, timeout=50)
    assert [reply.metadata.src_node_id for reply in replies if reply.has_error()] == [4]
    assert [reply.content["metrics"]["n"] for reply in replies if reply.has_content()] == [2] * 5


def test_replies_cut_short_are_refused_one_by_one_and_the_rounds_go_on(open_engine: Open) -> None:
    groups = {"weight": Group.SHARED, "bias": Group.SHARED}
    start = {"weight": np.zeros((40, 3), np.float32), "bias": np.zeros(3, np.float32)}
    config = StrategyConfig.parse({"name": "fedavg", "quorum": {"replies": 3}})
    strategy, rounds = build(config, groups=groups, seeds=SeedTree(experiment="cut", seed=0)), list[RoundResult]()
    with open_engine(count=8, workers=1, app="cut_app:app") as grid:
        pids = [worker.pid for worker in grid._executor._workers] if hasattr(grid._executor, "_workers") else []
        result = strategy.start(grid, array_record(start), 2, on_round=rounds.append)
        assert pids == ([worker.pid for worker in grid._executor._workers] if pids else [])  # nobody died of it
    for done in rounds:
        reasons = {name: outcome.reason for name, outcome in done.outcomes.items() if not outcome.accepted}
        assert set(reasons) == {"client-1", "client-2", "client-3", "client-4", "client-5"}
        for name in ("client-1", "client-2", "client-3"):
            assert "ReleaseError: [E400] arrays['bias']: cannot be decoded" in reasons[name]
        assert "expected float32 (1000000, 3) as declared, found bytes of float32 (3,)" in reasons["client-4"]
        assert "expected float64 (3,) as declared, found bytes of float32 (3,)" in reasons["client-5"]
    for values in views(result.arrays).values():
        assert (values == 2.0).all()  # of the three sound clients


def test_replies_that_nobody_fetched_hold_up_no_others(open_engine: Open) -> None:
    with open_engine() as grid:
        earlier = grid.push_messages([ask("count", 1)])
        while not grid._replies:
            grid.wait(30)
        replies = grid.send_and_receive([ask("count", node) for node in (2, 3)], timeout=30)
        assert [reply.metadata.src_node_id for reply in replies] == [2, 3]
        assert [reply.metadata.src_node_id for reply in grid.pull_messages(earlier)] == [1]


def test_large_states_of_nodes_do_not_block_the_engine(open_engine: Open) -> None:
    with open_engine(count=20, workers=1) as grid:
        for expected in (1, 2, 3):
            messages = [ask("count", node, weight=400_000) for node in range(1, 21)]
            replies = grid.send_and_receive(messages, timeout=50)
            assert [reply.content["metrics"]["n"] for reply in replies] == [expected] * 20


def test_a_million_nodes_cost_nothing_until_touched(open_engine: Open) -> None:
    with open_engine(count=10**6) as grid:
        assert len(grid.get_node_ids()) == 10**6
        assert grid.name_of(10**6) == "client-999999"
        reply = grid.send_and_receive([ask("who", 10**6)])[0]
    assert reply.content["config"]["client"] == "client-999999"


def test_an_unknown_node_is_refused(open_engine: Open) -> None:
    with open_engine() as grid, pytest.raises(EngineError, match=r"expected 1\.\.6"):
        grid.push_messages([ask("who", 7)])


def test_an_app_that_does_not_load_is_named(open_engine: Open) -> None:
    with pytest.raises(CloisterError, match="no_such_app"):
        open_engine(app="no_such_app:app")


@pytest.mark.ray
def test_ray_places_a_client_at_its_site(ray_cluster: Kept) -> None:
    from cloister.simulations.engines.ray import ray_grid

    names = NumberedNames(4)
    nodes = Nodes(names=names, site=lambda name: "a" if name in ("client-1", "client-3") else "")
    with ray_grid(nodes, app="echo_app:app", run_config={}, workers=1, sites={"a": 1}) as grid:
        replies = grid.send_and_receive([ask("who", node) for node in (1, 2, 3, 4)])
    pids = [reply.content["config"]["pid"] for reply in replies]
    assert pids[0] == pids[2] != pids[1]
    assert pids[1] == pids[3]
    with pytest.raises(EngineError, match="site:b"):
        ray_grid(nodes, app="echo_app:app", run_config={}, workers=1, sites={"b": 1})


def test_memory_of_the_local_engine_is_flat_over_rounds() -> None:
    from cloister.simulations.engines.local import LocalExecutor, local_grid

    record = array_record({"weights": np.arange(250_000, dtype=np.float32)})
    with local_grid(Nodes(names=NumberedNames(20)), app="echo_app:app", run_config={}, workers=2) as grid:
        executor = grid._executor
        assert isinstance(executor, LocalExecutor)
        for _ in range(6):
            messages = [
                Message(RecordDict({"arrays": record}), dst_node_id=node, message_type="query.echo")
                for node in range(1, 21)
            ]
            waiting = set(grid.push_messages(messages))
            while waiting:
                grid.wait(30)
                for reply in grid.pull_messages(list(waiting)):
                    waiting.discard(reply.metadata.reply_to_message_id)
                    del reply
    assert len(executor._outgoing.segments) == 1  # of 1 MB, for all that was sent in six rounds
    assert len(executor._peer._maps) <= 2 * 20  # replies that waited at one time, of 120: memory follows the cohort


def gone(pid: int) -> bool:
    """Wait, without polling, until the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        os.close(descriptor)


def test_no_worker_outlives_the_grid_or_a_killed_driver() -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from flwr.app import ConfigRecord, Message, RecordDict
from cloister.simulations.engines.grid import Nodes, NumberedNames
from cloister.simulations.engines.local import local_grid
from cloister.simulations.engines.nursery import nursery

grid = local_grid(Nodes(names=NumberedNames(2)), app="echo_app:app", run_config={}, workers=2)
ask = [Message(RecordDict({"config": ConfigRecord({})}), dst_node_id=n, message_type="query.who") for n in (1, 2)]
pids = {reply.content["config"]["pid"] for reply in grid.send_and_receive(ask)} | {nursery()._process.pid}
print(*pids, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(APPS)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        assert len(pids) >= 2
        driver.kill()
    assert all(gone(pid) for pid in pids)
