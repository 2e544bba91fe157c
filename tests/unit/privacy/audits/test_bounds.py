"""Lower bounds on epsilon: published and closed-form values, coverage, and refusals."""

import math

import numpy as np
import pytest
from scipy import stats

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import (
    auc,
    epsilon_from_scores,
    epsilon_lower_bound,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_epsilon_lower_bound,
    roc,
    tpr_at_fpr,
    upper_limit,
)


@pytest.mark.parametrize(
    ("counts", "epsilon"),
    [
        ((900, 1000, 10, 1000), 3.8720),
        ((1000, 1000, 0, 1000), 5.6006),
        ((500, 500, 0, 500), 4.9056),
        ((100, 100, 0, 100), 3.2813),
        ((50, 1000, 10, 1000), 0.7120),
        ((990, 1000, 100, 1000), 3.8720),  # the first, with the worlds exchanged
        ((500, 1000, 500, 1000), 0.0),
    ],
)
def test_bounds_from_counts(counts: tuple[int, int, int, int], epsilon: float) -> None:
    assert epsilon_lower_bound(*counts, delta=1e-5) == pytest.approx(epsilon, abs=1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 1000), (1, 10), (37, 100), (99, 100), (100, 100)])
def test_upper_limits_are_beta_quantiles(successes: int, trials: int) -> None:
    expected = stats.beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0
    assert upper_limit(successes, trials, 0.025) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("z", "delta", "epsilon"), [(1, 1e-5, 4.377178), (4, 1e-6, 1.060702), (0.5, 1e-5, 9.997256), (2, 1e-5, 1.993091)]
)
def test_equal_deviations_give_the_exact_gaussian_mechanism(z: float, delta: float, epsilon: float) -> None:
    assert gaussian_epsilon(1.0, z, z, delta) == pytest.approx(epsilon, abs=1e-6)
    assert gaussian_epsilon(-1.0, z, z, delta) == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize(("mean", "std_in", "std_out"), [(1.0, 0.7, 1.0), (0.4, 1.3, 0.9), (0.0, 1.0, 2.0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_unequal_deviations_agree_with_quadrature(mean: float, std_in: float, std_out: float, epsilon: float) -> None:
    line = np.linspace(-30, 30, 600_001)
    inside, outside = stats.norm.pdf(line, mean, std_in), stats.norm.pdf(line, 0, std_out)
    expected = max(
        np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), line) for p, q in ((inside, outside), (outside, inside))
    )
    assert gaussian_delta(mean, std_in, std_out, epsilon) == pytest.approx(expected, abs=1e-8)


def test_the_same_gaussian_twice_costs_nothing() -> None:
    assert gaussian_epsilon(0.0, 1.0, 1.0, 1e-5) == 0.0


@pytest.mark.slow
def test_the_gaussian_bound_holds_and_is_close() -> None:
    """500 repetitions of a true epsilon of 4.377: at a chance of 5 % each, over 52 failures have probability 1e-6."""
    generator, true = np.random.default_rng(1), gaussian_epsilon(1.0, 1.0, 1.0, 1e-5)
    found = [
        gaussian_epsilon_lower_bound(generator.normal(1, 1, 50), generator.normal(0, 1, 50), delta=1e-5)
        for _ in range(500)
    ]
    assert sum(value > true for value in found) <= 52
    large = gaussian_epsilon_lower_bound(generator.normal(1, 1, 10**5), generator.normal(0, 1, 10**5), delta=1e-5)
    assert 0.95 * true < large < true


@pytest.mark.slow
def test_the_bound_over_thresholds_holds_and_is_close() -> None:
    """Randomised response with epsilon 1: scores are bits, spread by a little noise so that none are equal."""
    generator, truth = np.random.default_rng(2), math.e / (1 + math.e)
    found = []
    for _ in range(100):
        bits = [(generator.random(1000) < rate) + generator.random(1000) / 10 for rate in (truth, 1 - truth)]
        found.append(epsilon_from_scores(bits[0], bits[1], delta=0.0, rates=(0.0, 0.1, 1 - truth)))
    assert sum(value > 1.0 for value in found) <= 18  # 5 expected at most
    assert np.median(found) > 0.75


def test_perfectly_told_apart_scores_are_bounded_by_their_number_only() -> None:
    members, others = np.arange(1000, 2000.0), np.arange(1000.0)
    single = epsilon_lower_bound(1000, 1000, 0, 1000, delta=1e-5, confidence=1 - 0.05 / 8)
    assert epsilon_from_scores(members, others, delta=1e-5) == pytest.approx(single)
    assert epsilon_from_scores(others, members, delta=1e-5) == 0.0


def test_true_positives_at_a_false_positive_rate() -> None:
    others = np.arange(1000.0)
    members = np.concatenate([np.full(30, 2000.0), np.full(20, 998.5), np.zeros(50)])
    assert tpr_at_fpr(members, others, 0.0) == 0.3
    assert tpr_at_fpr(members, others, 0.001) == 0.5
    assert tpr_at_fpr(members, others, 1.0) == 1.0
    assert tpr_at_fpr(others, others, 0.01) == pytest.approx(0.01)


def test_the_curve_and_its_area() -> None:
    members, others = np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0])
    false, true = roc(members, others)
    assert false.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert true.tolist() == pytest.approx([0.0, 1 / 3, 1.0, 1.0])
    assert auc(members, others) == pytest.approx((2 * 1 + 4 * 1 - 2 * 0.5) / 6)


def test_impossible_counts_and_scores_are_refused() -> None:
    with pytest.raises(AuditError, match="found 11 of 10"):
        upper_limit(11, 10, 0.05)
    with pytest.raises(AuditError, match="deviations above 0"):
        gaussian_epsilon(1.0, 0.0, 1.0, 1e-5)
    with pytest.raises(AuditError, match="of members"):
        tpr_at_fpr(np.array([]), np.ones(3), 0.1)
    with pytest.raises(AuditError, match="of non-members"):
        auc(np.ones(3), np.array([np.nan]))
    with pytest.raises(AuditError, match="at least 8"):
        gaussian_epsilon_lower_bound(np.ones(3), np.ones(9), delta=1e-5)
