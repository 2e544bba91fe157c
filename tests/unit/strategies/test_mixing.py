"""Clipping, bucketing and nearest-neighbour mixing, before a rule."""

from typing import Any

import numpy as np
import pytest

from cloister.errors import QuorumError
from cloister.strategies import mixing, rules

X = np.array([(1, 1), (1.3, 0.9), (0.9, 1.2), (1.1, 1.05), (1, 0.8), (8, -8), (7.5, -8.5)])


def draw() -> np.random.Generator:
    return np.random.default_rng(3)


def prepared(vectors: np.ndarray, malicious: int, **more: Any) -> tuple[np.ndarray, int]:
    return mixing.prepared(vectors, malicious, **{"radius": "none", "mixing": "none", "generator": draw(), **more})


def test_nearest_neighbour_mixing_and_then_the_median_of_seven_vectors() -> None:
    mixed, malicious = prepared(X, 2, mixing="nnm")
    np.testing.assert_allclose(rules.median(mixed, malicious), (1.06, 0.99), atol=1e-12)


def test_a_vector_is_mixed_with_its_own_nearest_ones_only() -> None:
    line = np.array([[0.0], [1.0], [3.0], [10.0], [100.0]])
    np.testing.assert_allclose(mixing.nearest_neighbour_mixing(line, 3)[:, 0], [0.5, 0.5, 2.0, 6.5, 55.0], rtol=1e-12)


def test_buckets_are_means_of_pairs_that_hold_everybody_once() -> None:
    rows = 2.0 ** np.arange(7)[:, np.newaxis]
    found = mixing.bucketing(rows, draw())
    order = draw().permutation(7)
    expected = [rows[order[:2]].mean(), rows[order[2:4]].mean(), rows[order[4:6]].mean(), rows[order[6]].mean()]
    np.testing.assert_allclose(found[:, 0], expected)
    assert found[:3].sum() * 2 + found[3, 0] == pytest.approx(127)


def test_one_hostile_vector_spoils_one_bucket() -> None:
    rows = np.ones((8, 3))
    rows[5] = 1e9
    assert (mixing.bucketing(rows, draw()).max(axis=1) > 2).sum() == 1


def test_clipping_shortens_long_vectors_only() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(mixing.clip(rows, 1.0), [[0.6, 0.8], [0.3, 0.4], [0, 0]])


@pytest.mark.parametrize(("malicious", "expected"), [(0, 7.0), (1, 6.0), (2, 5.0), (3, 4.0)])
def test_arc_clips_to_the_longest_that_is_left(malicious: int, expected: float) -> None:
    # n = 7: k = floor(2 f (n - f) / n) = 0, 1, 2, 3 of the longest are clipped to the next one's length.
    rows = np.diag(np.arange(1.0, 8.0))
    assert mixing.arc_radius(rows, malicious) == expected
    found, _ = prepared(rows, malicious, radius="arc")
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.minimum(np.arange(1.0, 8.0), expected))


def test_arc_rounds_down() -> None:
    assert mixing.arc_radius(np.diag(np.arange(1.0, 11.0)), 3) == 6.0  # k = floor(2 * 3 * 7 / 10) = 4


def test_clipping_comes_before_mixing() -> None:
    rows = np.array([[1.0], [1.0], [1.0], [1.0], [-1e9]])
    found, _ = prepared(rows, 1, radius=1.0, mixing="bucketing")
    assert found.min() >= -1


@pytest.mark.parametrize("how", ["none", "bucketing", "nnm"])
def test_vectors_that_are_not_finite_are_dropped_first_and_counted(how: str) -> None:
    rows = np.concatenate([[[np.nan, 1.0]], X, [[np.inf, 1.0]]])
    found, malicious = prepared(rows, 3, mixing=how, radius="arc")
    alone, _ = prepared(X, 1, mixing=how, radius="arc")
    assert malicious == 1
    np.testing.assert_array_equal(found, alone)


def test_an_honest_majority_is_needed() -> None:
    with pytest.raises(QuorumError, match=r"rule mixing: expected at least 5 vectors for f = 2 \(2f \+ 1\), found 4"):
        prepared(X[:4], 2, mixing="nnm")


@pytest.mark.parametrize(
    ("vectors", "how", "replies"), [(5, "none", 5), (5, "nnm", 5), (5, "bucketing", 9), (1, "nnm", 3), (1, "none", 2)]
)
def test_how_many_replies_leave_enough_vectors(vectors: int, how: Any, replies: int) -> None:
    assert mixing.replies_for(vectors, 1, radius="none", mixing=how) == replies
    assert len(prepared(np.ones((replies, 2)), 1, mixing=how)[0]) >= vectors
    if vectors > 1:
        assert len(prepared(np.ones((replies - 1, 2)), 1, mixing=how)[0]) < vectors
    else:
        with pytest.raises(QuorumError, match=f"expected at least {replies} vectors for f = 1"):
            prepared(np.ones((replies - 1, 2)), 1, mixing=how)
