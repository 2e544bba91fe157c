"""Every rule on the seven vectors of the plane that were worked out elsewhere, and against other libraries."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum
from scipy import optimize, stats

from cloister.errors import ConfigError, QuorumError
from cloister.flower import array_record, set_identity, views
from cloister.strategies import rules
from cloister.strategies.vectors import distances, distances_from, norms, products

X = np.array([(1, 1), (1.3, 0.9), (0.9, 1.2), (1.1, 1.05), (1, 0.8), (8, -8), (7.5, -8.5)])
DRAW = np.random.default_rng(5)
SEVEN = DRAW.normal(size=(7, 40))
KEYWORDS: dict[str, dict[str, Any]] = {
    "multikrum": {"selected": 2},
    "centred-clipping": {"centre": np.zeros(2), "radius": 1.0},
    "fltrust": {"root": np.ones(2)},
}


def test_krum_scores() -> None:
    expected = [0.1025, 0.2625, 0.2825, 0.1375, 0.2125, 251.04, 256.04]
    np.testing.assert_allclose(rules.krum_scores(X, 2), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: rules.mean(X), (2.971429, -1.65)),
        (lambda: rules.krum(X, 2), (1, 1)),
        (lambda: rules.multi_krum(X, 2, selected=3), (1.033333, 0.95)),
        (lambda: rules.median(X, 2), (1.1, 0.9)),
        (lambda: rules.trimmed_mean(X, 2), (1.133333, 0.9)),
        (lambda: rules.geometric_median(X, 2, steps=100), (1.111476, 0.914258)),
        (
            lambda: rules.centred_clipping(X, 2, centre=np.array([1.1, 0.9]), radius=1.0, steps=3),
            (1.290072, 0.671725),
        ),
        (lambda: rules.fltrust(X, 2, root=np.ones(2)), (1.027546, 0.959503)),
        # By hand: per coordinate, the five values nearest to 1.1 and 0.9 are those of the five honest rows.
        (lambda: rules.mean_around_median(X, 2), (1.06, 0.99)),
        # By hand, f = 1, row 5 made honest: Krum selects rows 3, 0, 5, 1 and 2, of equals the first; medians 1.1, 1.05.
        (lambda: rules.bulyan(np.concatenate([X[:5], [(1.2, 1.15)], X[6:]]), 1), (1.1, 1.066667)),
    ],
    ids=["mean", "krum", "multi-krum", "median", "trimmed", "geometric", "clipping", "fltrust", "meamed", "bulyan"],
)
def test_seven_vectors_of_which_two_are_hostile(found: Callable[[], np.ndarray], expected: tuple[float, float]) -> None:
    assert found().dtype == np.float64
    np.testing.assert_allclose(found(), expected, atol=1e-6)


def test_the_trust_of_seven_vectors() -> None:
    trust = np.maximum(0, products(np.ones(2), X) / norms(X) / np.sqrt(2))
    np.testing.assert_allclose(trust, [1, 0.9839, 0.9899, 0.9997, 0.9939, 0, 0], atol=5e-5)


def test_coordinate_rules_are_those_of_numpy_and_scipy() -> None:
    np.testing.assert_array_equal(rules.median(SEVEN, 3), np.median(SEVEN, axis=0))
    np.testing.assert_allclose(rules.trimmed_mean(SEVEN, 2), stats.trim_mean(SEVEN, 2.1 / 7, axis=0), rtol=1e-12)
    nearest = np.argsort(np.abs(SEVEN - np.median(SEVEN, axis=0)), axis=0)[:5]
    around = np.take_along_axis(SEVEN, nearest, axis=0).mean(axis=0)
    np.testing.assert_allclose(rules.mean_around_median(SEVEN, 2), around, rtol=1e-12)


def test_of_two_values_equally_far_from_the_median_the_same_one_counts_in_any_order() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [5.0], [-3.0]])
    found = {float(rules.mean_around_median(rows[list(order)], 1)[0]) for order in permutations(range(5))}
    assert len(found) == 1


@pytest.mark.parametrize("count", range(3, 40))
def test_exactly_f_values_are_trimmed_at_each_end_whatever_n(count: int) -> None:
    line = np.arange(1.0, count + 1)[:, np.newaxis] ** 2
    for malicious in range((count - 1) // 2 + 1):
        expected = line[malicious : count - malicious].mean()
        assert rules.trimmed_mean(line, malicious)[0] == pytest.approx(expected, rel=1e-12)


def test_the_geometric_median_minimises_the_sum_of_distances() -> None:
    def total(z: np.ndarray) -> float:
        return float(np.linalg.norm(SEVEN - z, axis=1).sum())

    found = rules.geometric_median(SEVEN, 3, steps=200)
    best = optimize.minimize(total, SEVEN.mean(axis=0), method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15})
    assert total(found) <= best.fun * (1 + 1e-9)
    assert total(rules.geometric_median(SEVEN, 3)) <= best.fun * (1 + 1e-4)  # the eight steps that are the default


def test_a_geometric_median_that_is_one_of_the_vectors_divides_by_the_smoothing() -> None:
    cross = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)], dtype=np.float64)
    np.testing.assert_allclose(rules.geometric_median(cross, 2), 0, atol=1e-12)


def test_one_step_of_centred_clipping_moves_by_its_radius_at_most() -> None:
    hostile = np.concatenate([np.zeros((4, 40)), np.full((3, 40), 1e12)])
    moved = rules.centred_clipping(hostile, 3, centre=np.zeros(40), radius=2.0)
    assert np.linalg.norm(moved) == pytest.approx(2.0 * 3 / 7)  # three of seven pull by all of it, in one direction


def test_trust_is_scaled_to_the_length_of_the_root_update_and_zero_where_nobody_is_trusted() -> None:
    root = np.array([3.0, 4.0])
    np.testing.assert_allclose(rules.fltrust(1e6 * root * np.ones((3, 1)), 1, root=root), root, rtol=1e-12)
    np.testing.assert_array_equal(rules.fltrust(-X[:5], 1, root=np.ones(2)), [0, 0])
    np.testing.assert_array_equal(rules.fltrust(X, 1, root=np.zeros(2)), [0, 0])
    np.testing.assert_array_equal(rules.fltrust(np.zeros((3, 2)), 1, root=root), [0, 0])
    with pytest.raises(ConfigError, match=r"rule fltrust: expected a finite root update of shape \(2,\), found shape"):
        rules.fltrust(X, 2, root=np.array([np.nan, 1.0]))
    with pytest.raises(ConfigError, match=r"found shape \(3,\)"):
        rules.fltrust(X, 2, root=np.ones(3))


def test_bulyan_runs_krum_again_on_the_rows_that_are_left_and_flowers_does_not() -> None:
    points = np.random.default_rng(8).normal(size=(7, 1)) ** 3
    ours = rules.bulyan(points, 1)
    left, chosen = list(range(7)), []
    while len(chosen) < 5:
        gaps = np.sort(np.abs(points[left] - points[left].T) ** 2, axis=1)[:, 1 : max(1, len(left) - 3) + 1].sum(axis=1)
        chosen.append(left.pop(int(gaps.argmin())))
    values = points[chosen, 0]
    expected = values[np.argsort(np.abs(values - np.median(values)))[:3]].mean()
    assert ours[0] == pytest.approx(expected, rel=1e-12)
    record, _ = flower.Bulyan(num_malicious_nodes=1).aggregate_train(1, [_reply(point) for point in points])
    assert views(record)["w"][0] != pytest.approx(expected, rel=0.05)


def test_flowers_distances_have_no_digit_left_for_small_differences_of_long_vectors() -> None:
    close = (1e4 + 1e-2 * DRAW.normal(size=(5, 100))).astype(np.float32)
    exact = ((close[:, np.newaxis].astype(np.float64) - close) ** 2).sum(axis=-1)
    theirs = compute_distances([array_record({"w": row}) for row in close])
    np.testing.assert_allclose(distances(close), exact, rtol=1e-12)
    assert np.abs(theirs - exact).max() > 10 * exact.max()
    assert (theirs < 0).any() or (theirs.diagonal() != 0).any()


def test_a_hostile_client_owns_flowers_multi_krum_by_the_examples_it_claims() -> None:
    contents = [_content(row, 1) for row in X[:5]]
    contents[0] = _content(X[0], 10_000_000)  # selected: it sends what an honest client would, or nearly so
    chosen = select_multikrum(contents, 1, 3)
    weights = np.array([content["metrics"]["num-examples"] for content in chosen], dtype=np.float64)
    assert weights.max() / weights.sum() > 0.9999
    np.testing.assert_allclose(rules.multi_krum(X[:5], 1, selected=3), X[[0, 2, 3]].mean(axis=0))


def test_flowers_share_of_four_clients_trims_nobody() -> None:
    replies = [_reply(np.array([value])) for value in (1.0, 1.0, 1.0, 1e6)]
    record, _ = flower.FedTrimmedAvg(beta=0.2).aggregate_train(1, replies)
    assert views(record)["w"][0] > 1e5
    assert rules.trimmed_mean(np.array([[1.0], [1.0], [1.0], [1e6]]), 1)[0] == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("name", sorted(rules.RULES))
def test_a_vector_that_is_not_finite_is_dropped_and_counts_as_hostile(name: str, value: float) -> None:
    keywords = KEYWORDS.get(name, {})
    bad = np.array([[1.0, value]])
    found = rules.RULES[name](np.concatenate([X[:3], bad, X[3:]]), 2, **keywords)
    np.testing.assert_array_equal(found, rules.RULES[name](X, 1, **keywords))
    rows = np.concatenate([np.repeat(bad, 3, axis=0), X])
    with pytest.raises(QuorumError, match=f"rule {name}: expected at most malicious = 2 .* not finite, found 3 of 10"):
        rules.RULES[name](rows, 2, **keywords)


def test_flowers_median_of_one_nan_is_nan() -> None:
    replies = [_reply(np.array([value])) for value in (1.0, 2.0, 3.0, np.nan)]
    with np.errstate(invalid="ignore"):
        record, _ = flower.FedMedian().aggregate_train(1, replies)
    assert np.isnan(views(record)["w"]).all()
    assert rules.median(np.array([[1.0], [2.0], [3.0], [np.nan]]), 1)[0] == 2.0


LEAST = {"mean": 3, "fltrust": 3, "krum": 7, "multikrum": 7, "bulyan": 11}


@pytest.mark.parametrize("name", sorted(rules.RULES))
def test_too_few_vectors_for_f_are_refused_by_number(name: str) -> None:
    least, keywords = LEAST.get(name, 5), KEYWORDS.get(name, {})
    rows = np.concatenate([X, 0.9 * X])
    assert np.isfinite(rules.RULES[name](rows[:least], 2, **keywords)).all()
    wanted = rf"rule {name}: expected at least {least} vectors for f = 2 \(.*f \+ \d\), found {least - 1}; ask more"
    with pytest.raises(QuorumError, match=wanted):
        rules.RULES[name](rows[: least - 1], 2, **keywords)


def test_multi_krum_selects_no_more_than_are_honest() -> None:
    assert np.isfinite(rules.multi_krum(X, 2, selected=5)).all()
    with pytest.raises(QuorumError, match="expected at least 8 vectors for f = 2"):
        rules.multi_krum(X, 2, selected=6)


@pytest.mark.parametrize(
    ("vectors", "malicious"), [(X[0], 0), (X.astype(int), 0), (X[np.newaxis], 0), (X, -1)], ids=str
)
def test_what_is_no_matrix_is_refused(vectors: np.ndarray, malicious: int) -> None:
    with pytest.raises(ConfigError, match="stack one flattened change per client"):
        rules.median(vectors, malicious)


def test_large_vectors_are_worked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    keywords = {**KEYWORDS, "fltrust": {"root": SEVEN[0]}}
    keywords["centred-clipping"] = {"centre": SEVEN[1], "radius": 2.0}
    whole = {name: rule(SEVEN, 1, **keywords.get(name, {})) for name, rule in rules.RULES.items()}
    monkeypatch.setattr("cloister.strategies.vectors._BLOCK", 7 * 9)
    for name, rule in rules.RULES.items():
        np.testing.assert_allclose(rule(SEVEN, 1, **keywords.get(name, {})), whole[name], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(distances_from(SEVEN[0], SEVEN) ** 2, distances(SEVEN)[0], rtol=1e-12)


def test_nothing_is_written_to() -> None:
    rows = X.copy()
    rows.flags.writeable = False
    for name, rule in rules.RULES.items():
        rule(rows, 1, **KEYWORDS.get(name, {}))


def _content(row: np.ndarray, examples: int) -> RecordDict:
    return RecordDict({"arrays": _record(row), "metrics": MetricRecord({"num-examples": examples})})


def _record(row: np.ndarray) -> ArrayRecord:
    return array_record({"w": row})


def _reply(row: np.ndarray) -> Message:
    set_identity(run_id=1, node_id=1)
    message = Message(RecordDict(), dst_node_id=2, message_type="train")
    return Message(_content(row, 1), reply_to=message)
