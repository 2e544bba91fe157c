"""Tree aggregation: levels, sensitivity against brute force, and an estimator that is the best linear one."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.matrix import Vector
from cloister.privacy.tree import Tree


def nodes(tree: Tree) -> list[tuple[int, int, int]]:
    """Return (first round, end, level) of every complete node in order of completion, leaves first."""
    found = []
    for start in range(0, tree.rounds, tree.restart):
        size = min(tree.restart, tree.rounds - start)
        for level in range(size.bit_length()):
            width = 1 << level
            found += [(start + at, start + at + width, level) for at in range(0, size - width + 1, width)]
    return sorted(found, key=lambda node: (node[1], node[2]))


def incidence(tree: Tree) -> Vector:
    """Return the matrix of nodes by rounds: 1 where the round is below the node."""
    return np.array([[start <= round < end for round in range(tree.rounds)] for start, end, _ in nodes(tree)], float)


def streamed(tree: Tree) -> Vector:
    """Return the matrix of rounds by nodes that takes the nodes' noise to the noise that each round adds."""
    count = len(nodes(tree))
    draws: Iterator[Vector] = iter(np.eye(count))
    memory = np.zeros((tree.depth, count))
    rows = [tree.step(memory, round, lambda: next(draws).copy()) for round in range(tree.rounds)]
    assert next(draws, None) is None  # every node was drawn once
    return np.array(rows)


def best(tree: Tree) -> Vector:
    """Return how the best linear estimate of each prefix sum weighs the nodes, by least squares over nodes inside."""
    matrix, ends = incidence(tree), np.array([end for _, end, _ in nodes(tree)])
    rows = []
    for end in range(1, tree.rounds + 1):
        inside = ends <= end
        row = np.zeros(len(ends))
        row[inside] = np.ones(end) @ np.linalg.pinv(matrix[inside, :end])
        rows.append(row)
    return np.array(rows)


TREES = [Tree(1, 1), Tree(2, 2), Tree(8, 8), Tree(13, 13), Tree(16, 4), Tree(17, 5), Tree(6, 1), Tree(31, 31)]


@pytest.mark.parametrize("tree", TREES)
def test_the_estimate_is_the_best_linear_one(tree: Tree) -> None:
    prefixes = np.cumsum(streamed(tree), axis=0)
    assert prefixes == pytest.approx(best(tree), abs=1e-12)
    assert tree.errors() == pytest.approx(((prefixes**2).sum(1).max(), (prefixes**2).sum(1).mean()))


@pytest.mark.parametrize("tree", TREES)
def test_without_honaker_a_prefix_is_the_sum_of_few_nodes(tree: Tree) -> None:
    plain = Tree(tree.rounds, tree.restart, honaker=False)
    prefixes = np.cumsum(streamed(plain), axis=0)
    assert set(np.unique(prefixes.round(12))) <= {0.0, 1.0}
    assert prefixes @ incidence(plain) == pytest.approx(np.tril(np.ones((tree.rounds, tree.rounds))))
    assert plain.errors() == pytest.approx(((prefixes**2).sum(1).max(), (prefixes**2).sum(1).mean()))
    assert tree.errors().maximum <= plain.errors().maximum


@pytest.mark.parametrize("tree", TREES)
def test_every_estimate_is_unbiased(tree: Tree) -> None:
    sums = np.cumsum(streamed(tree), axis=0) @ incidence(tree)
    assert sums == pytest.approx(np.tril(np.ones((tree.rounds, tree.rounds))), abs=1e-12)


@pytest.mark.parametrize(("rounds", "height"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (1000, 10), (1024, 11)])
def test_one_participation_costs_the_height(rounds: int, height: int) -> None:
    assert height == math.ceil(math.log2(rounds + 1))
    found = Tree(rounds, rounds).sensitivity(separation=rounds, participations=1)
    assert found**2 == pytest.approx(height)
    # Kairouz et al.: rho = h / (2 z^2), z a node's standard deviation over the clip. Here 1 / (2 multiplier^2).
    z, multiplier = 3.0, 3.0 / found
    assert 1 / (2 * multiplier**2) == pytest.approx(height / (2 * z**2))


def test_a_restart_per_epoch_adds_the_height() -> None:
    assert Tree(64, 16).sensitivity(separation=16, participations=4) ** 2 == pytest.approx(4 * 5)
    # One tree, whose large nodes hold all four: levels 1 to 16 once per participation, then 2 x 4 and 4 x 4.
    assert Tree(64, 64).sensitivity(separation=16, participations=4) ** 2 == pytest.approx(5 * 4 + 2 * 4 + 4 * 4)


def worst(tree: Tree, separation: int, participations: int) -> float:
    matrix = incidence(tree)
    return max(
        float((matrix[:, list(chosen)].sum(axis=1) ** 2).sum())
        for size in range(1, participations + 1)
        for chosen in itertools.combinations(range(tree.rounds), size)
        if all(later - earlier >= separation for earlier, later in itertools.pairwise(chosen))
    )


@settings(max_examples=60)
@given(
    rounds=st.integers(1, 9), restart=st.integers(1, 9), separation=st.integers(1, 9), participations=st.integers(1, 4)
)
def test_the_sensitivity_is_never_too_small(rounds: int, restart: int, separation: int, participations: int) -> None:
    tree = Tree(rounds, min(restart, rounds))
    most = min(participations, -(-rounds // separation))
    found = tree.sensitivity(separation=separation, participations=participations) ** 2
    truth = worst(tree, separation, most)
    assert found >= truth - 1e-9
    if most == 1 or (tree.restart == separation and rounds % separation == 0):
        assert found == pytest.approx(truth)


@pytest.mark.parametrize("restart", [0, -1, 9])
def test_a_restart_out_of_range_is_refused(restart: int) -> None:
    with pytest.raises(PlanError, match=f"restart: expected 1 to 8 .* found {restart}"):
        Tree(8, restart)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(PlanError, match="participations: expected at least 1, found 0"):
        Tree(8, 8).sensitivity(separation=1, participations=0)
