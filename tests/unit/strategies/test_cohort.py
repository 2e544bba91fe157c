"""Who is drawn: by name, from the seed tree, from pools of any size, without waiting forever."""

import tracemalloc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cloister.strategies.cohort import Client, Cohort, assemble, draw
from cloister.strategies.quorum import QuorumConfig


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_same_names_are_drawn_whatever_the_node_ids(lab: SimpleNamespace) -> None:
    one, other = lab.FakeGrid(lab.clients()), lab.FakeGrid(lab.clients())
    other.names = {1000 - node_id: name for node_id, name in one.names.items()}
    drawn = [draw(grid, list(grid.names), fraction=0.5, size=None, generator=generator()) for grid in (one, other)]
    names = [[client.name for client in cohort.clients] for cohort in drawn]
    assert names[0] == names[1]
    assert len(names[0]) == 3


@pytest.mark.parametrize(
    ("fraction", "size", "expected"),
    [(1.0, None, 6), (0.5, None, 3), (0.34, None, 2), (0.01, None, 1), (1.0, 4, 4), (1.0, 99, 6)],
)
def test_the_size_of_the_cohort(lab: SimpleNamespace, fraction: float, size: int | None, expected: int) -> None:
    grid = lab.FakeGrid(lab.clients())
    cohort = draw(grid, list(grid.names), fraction=fraction, size=size, generator=generator())
    assert len(cohort.clients) == cohort.asked == expected
    assert len(set(cohort.clients)) == expected
    assert cohort.pool == 6


def test_canonical_order_is_by_name_then_node() -> None:
    unsorted = [Client("b", 1), Client("a", 9), Client("a", 2)]
    assert sorted(unsorted) == [Client("a", 2), Client("a", 9), Client("b", 1)]


def test_every_client_is_drawn_equally_often(lab: SimpleNamespace) -> None:
    grid, counts = lab.FakeGrid(lab.clients()), dict.fromkeys(lab.NAMES, 0)
    source = generator()
    for _ in range(2000):
        for client in draw(grid, list(grid.names), fraction=0.5, size=None, generator=source).clients:
            counts[client.name] += 1
    # Binomial(2000, 1/2): five standard deviations are 112.
    assert all(abs(count - 1000) < 112 for count in counts.values())


class HugeGrid:
    """A million nodes; anything that would touch them all fails."""

    def __init__(self) -> None:
        self.asked = 0

    def get_node_ids(self) -> range:
        return range(1, 1_000_001)

    def get_nodes(self) -> Any:
        raise AssertionError("a million NodeInfo objects")

    def name_of(self, node_id: int) -> str:
        self.asked += 1
        return f"phone-{node_id}"


def test_a_million_nodes_cost_what_the_cohort_costs() -> None:
    grid = HugeGrid()
    tracemalloc.start()
    cohort = draw(grid, grid.get_node_ids(), fraction=1.0, size=50, generator=generator())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cohort.clients) == grid.asked == 50
    assert cohort.pool == 1_000_000
    assert peak < 200_000  # bytes


def test_plain_flower_nodes_without_a_name_are_called_by_their_id(lab: SimpleNamespace) -> None:
    grid = lab.PlainGrid(lab.clients())
    node_id = next(iter(grid.names))
    grid.names[node_id] = ""
    cohort = draw(grid, sorted(grid.names), fraction=1.0, size=None, generator=generator())
    assert f"node-{node_id}" in [client.name for client in cohort.clients]


def test_two_nodes_with_one_name_are_both_left_out(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    impostor = list(grid.names)[3]
    assert grid.names[impostor] == "cam4"
    grid.names[impostor] = "cam1"
    done = lab.run(grid, {"name": "fedavg"}, 1)
    assert done.rounds[0].cohort == ("cam1", "cam2", "cam3", "cam5", "cam6")
    assert done.rounds[0].outcomes["cam1"].reason == "not asked: 2 nodes carry this name"
    assert len(grid.sent) == 4


def test_it_waits_for_nodes_that_are_coming_online(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    everyone, grid.names = grid.names, {}

    def sleep(seconds: float) -> None:
        grid.now += seconds
        grid.names = dict(list(everyone.items())[: int(grid.now)])

    quorum = QuorumConfig(nodes=3, online_s=10.0)

    def choose(ids: Sequence[int]) -> Cohort:
        return draw(grid, ids, fraction=1.0, size=None, generator=generator())

    cohort = assemble(grid, quorum, choose, size=None, clock=lambda: grid.now, sleep=sleep)
    assert len(cohort.clients) == 3
    assert grid.now == pytest.approx(3.0)


def test_a_cohort_size_is_waited_for_and_then_done_without(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    settings = {"name": "fedavg", "cohort_size": 8, "quorum": {"replies": 0.75, "online_s": 5.0}}
    done = lab.run(grid, settings, 1)
    assert len(done.rounds[0].cohort) == 6
    assert done.rounds[0].void == ""  # 6 of the 8 wanted
    assert grid.now >= 5.0
    strict = {**settings, "quorum": {"replies": 0.8, "online_s": 5.0}}
    (void,) = lab.run(lab.FakeGrid(lab.clients()), strict, 1).rounds
    assert "expected at least 7 valid replies from a cohort of 8, found 6" in void.void


def test_rounds_draw_differently_and_a_seed_always_the_same(lab: SimpleNamespace) -> None:
    one = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedavg", "cohort_size": 3}, 6)
    two = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedavg", "cohort_size": 3}, 6)
    cohorts = [done.cohort for done in one.rounds]
    assert cohorts == [done.cohort for done in two.rounds]
    assert len(set(cohorts)) > 2
