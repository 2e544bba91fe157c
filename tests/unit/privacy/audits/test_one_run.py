"""The one-run audit: published bounds, the best share of guesses, and coverage."""

import math

import numpy as np
import pytest

from cloister.errors import AuditError
from cloister.privacy.audits.one_run import audit_one_run, one_run_bound


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "epsilon"),
    [
        (1000, 1000, 500, 1e-5, 0.0),
        (1000, 1000, 600, 1e-5, 0.2972),
        (1000, 1000, 900, 1e-5, 2.0206),
        (100, 100, 90, 1e-5, 1.6304),
        (1000, 100, 100, 1e-5, 3.4654),
        (1000, 200, 190, 1e-5, 2.3936),
        (1000, 100, 95, 0.0, 2.1724),
        (5000, 500, 495, 1e-5, 3.8122),
    ],
)
def test_published_bounds(m: int, r: int, v: int, delta: float, epsilon: float) -> None:
    assert one_run_bound(m, r, v, delta) == pytest.approx(epsilon, abs=1e-4)


def test_without_delta_the_bound_is_a_binomial_test() -> None:
    """All of r right: success^r = beta."""
    success = 0.05 ** (1 / 40)
    assert one_run_bound(40, 40, 40, 0.0) == pytest.approx(math.log(success / (1 - success)), abs=1e-9)
    assert one_run_bound(40, 40, 0, 1e-5) == 0.0


def test_more_delta_or_more_canaries_weaken_the_bound() -> None:
    plain = one_run_bound(100, 100, 95, 0.0)
    assert one_run_bound(100, 100, 95, 1e-4) < plain
    assert one_run_bound(1000, 100, 95, 1e-4) < one_run_bound(100, 100, 95, 1e-4)


def test_the_best_share_is_paid_for() -> None:
    coins = np.arange(1000) < 500
    told = audit_one_run(coins.astype(float), coins, delta=1e-5)
    assert (told.canaries, told.made, told.right) == (1000, 1000, 1000)
    assert told.epsilon == pytest.approx(one_run_bound(1000, 1000, 1000, 1e-5, 0.05 / 4))
    few = np.where(np.arange(1000) % 500 < 50, coins * 2.0 - 1.0, 0.0)  # 50 of each are told, the others score 0
    coins = np.where(few == 0, np.arange(1000) % 2 == 0, coins)
    found = audit_one_run(few, coins, delta=1e-5)
    assert (found.made, found.right) == (100, 100)
    assert found.epsilon == pytest.approx(one_run_bound(1000, 100, 100, 1e-5, 0.05 / 4))


def test_scores_upside_down_find_nothing() -> None:
    coins = np.arange(200) % 2 == 0
    assert audit_one_run(-coins.astype(float), coins, delta=1e-5).epsilon == 0.0


@pytest.mark.slow
def test_the_bound_holds_on_randomised_response() -> None:
    """Epsilon 1, told by 400 canaries: 300 repetitions at 5 % each exceed it over 36 times with probability 1e-6."""
    generator, truth, high = np.random.default_rng(3), math.e / (1 + math.e), 0
    for _ in range(300):
        coins = generator.random(400) < 0.5
        answers = np.where(generator.random(400) < truth, coins, ~coins)
        found = audit_one_run(answers + generator.random(400) / 10, coins, delta=0.0)
        high += found.epsilon > 1.0
    assert high <= 36


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(AuditError, match="right <= guesses <= canaries, found 5, 4, 10"):
        one_run_bound(10, 4, 5, 0.0)
    with pytest.raises(AuditError, match="finite scores"):
        audit_one_run(np.array([1.0, np.inf]), np.array([True, False]), delta=0.0)
    with pytest.raises(AuditError, match="shapes"):
        audit_one_run(np.ones(3), np.ones(2, dtype=bool), delta=0.0)
