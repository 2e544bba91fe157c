"""The exact Gaussian mechanism: published numbers, an independent high-precision reference, and round trips."""

import math

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.gaussian import exact_delta, exact_epsilon, exact_noise_multiplier

EPSILONS = st.floats(1e-4, 1e3)
DELTAS = st.floats(-100, math.log10(0.5)).map(lambda exponent: 10**exponent)
NOISE = st.floats(-1.5, 4).map(lambda exponent: 10**exponent)


def reference(noise_multiplier: float, epsilon: float) -> mpmath.mpf:
    """Theorem 8 of Balle and Wang 2018, as printed, in numbers of 60 digits."""
    with mpmath.workdps(60):
        z, eps = mpmath.mpf(noise_multiplier), mpmath.mpf(epsilon)
        return mpmath.ncdf(1 / (2 * z) - eps * z) - mpmath.exp(eps) * mpmath.ncdf(-1 / (2 * z) - eps * z)


@pytest.mark.parametrize(
    ("epsilon", "delta", "expected"),
    [
        (1, 1e-5, 3.730632),
        (0.5, 1e-6, 8.057618),
        (2, 1e-5, 1.993812),
        (8, 1e-5, 0.600229),
        (0.1, 1e-8, 45.937360),
    ],
)
def test_noise_multipliers_for_a_price(epsilon: float, delta: float, expected: float) -> None:
    assert exact_noise_multiplier(epsilon, delta) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("noise_multiplier", "delta", "expected"),
    [
        (1, 1e-5, 4.377178),
        (4, 1e-6, 1.060702),
        (0.5, 1e-5, 9.997256),
        (2, 1e-5, 1.993091),
        (0.25, 1e-5, 24.3816),  # mu-GDP with mu = 4
        (math.sqrt(2 * math.log(1.25 / 1e-5)) / 20, 1e-5, 25.4426),  # the classic formula's answer for epsilon 20
    ],
)
def test_prices_of_a_noise_multiplier(noise_multiplier: float, delta: float, expected: float) -> None:
    assert exact_epsilon(noise_multiplier, delta) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("epsilon", "delta"), [(1, 1e-5), (0.5, 1e-6), (2, 1e-5), (0.1, 1e-8)])
def test_the_classic_formula_wastes_noise_for_small_epsilons(epsilon: float, delta: float) -> None:
    assert exact_noise_multiplier(epsilon, delta) < 0.85 * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


@pytest.mark.parametrize(
    ("noise_multiplier", "epsilon"),
    [
        (1, 0),
        (1, 1),
        (0.7, 3.3),
        (1e-3, 504263.9),  # e^epsilon has two hundred thousand digits
        (1e-2, 100.0),  # delta is near 1
        (3, 11.9),  # delta is near 1e-280
        (25.717, 1.355),  # both arguments are far out, and near to one another
        (1e6, 1e-7),  # the two terms agree in their first digits
        (1e10, 0),
        (37.0, 0.9),  # on both sides of the change from erfc to its series
        (49.99, 0.7),
        (50.01, 0.7),
    ],
)
def test_delta_agrees_with_high_precision_arithmetic(noise_multiplier: float, epsilon: float) -> None:
    expected = float(reference(noise_multiplier, epsilon))
    assert exact_delta(noise_multiplier, epsilon) == pytest.approx(expected, rel=1e-9)


@given(noise_multiplier=NOISE, price=st.floats(0, 600))
def test_delta_agrees_with_high_precision_arithmetic_everywhere(noise_multiplier: float, price: float) -> None:
    # -log(delta) is about half the square of epsilon * noise - 1 / (2 * noise)
    epsilon = (math.sqrt(2 * price) + 0.5 / noise_multiplier) / noise_multiplier
    assert exact_delta(noise_multiplier, epsilon) == pytest.approx(
        float(reference(noise_multiplier, epsilon)), rel=1e-9, abs=1e-300
    )


@given(epsilon=EPSILONS, delta=DELTAS)
def test_the_noise_for_a_price_costs_that_price(epsilon: float, delta: float) -> None:
    noise_multiplier = exact_noise_multiplier(epsilon, delta)
    assert exact_epsilon(noise_multiplier, delta) == pytest.approx(epsilon, rel=1e-8)
    assert exact_delta(noise_multiplier, epsilon) == pytest.approx(delta, rel=1e-8)


@given(noise_multiplier=NOISE, delta=DELTAS)
def test_the_price_of_a_noise_asks_for_no_more_than_that_noise(noise_multiplier: float, delta: float) -> None:
    epsilon = exact_epsilon(noise_multiplier, delta)
    assert exact_delta(noise_multiplier, epsilon) <= delta * (1 + 1e-9)
    if epsilon > 0:
        assert exact_noise_multiplier(epsilon, delta) == pytest.approx(noise_multiplier, rel=1e-8)


@given(noise_multiplier=NOISE, delta=DELTAS, factor=st.floats(1.01, 10))
def test_more_noise_and_more_delta_cost_less(noise_multiplier: float, delta: float, factor: float) -> None:
    epsilon = exact_epsilon(noise_multiplier, delta)
    assert exact_epsilon(noise_multiplier * factor, delta) <= epsilon
    assert exact_epsilon(noise_multiplier, min(delta * factor, 0.999)) <= epsilon


def test_epsilon_is_0_where_delta_alone_pays() -> None:
    assert exact_epsilon(100, 0.01) == 0.0
    assert exact_delta(100, 0) < 0.01
    assert exact_delta(1, 0) == pytest.approx(math.erf(1 / math.sqrt(8)))  # total variation


@pytest.mark.parametrize("delta", [1e-300, 5e-324])
def test_the_smallest_deltas_have_finite_prices(delta: float) -> None:
    epsilon = exact_epsilon(1.0, delta)
    assert 37 < epsilon < 40
    assert exact_epsilon(1e8, delta) < 1e-5
    assert exact_noise_multiplier(1e-6, delta) > 1e6


@pytest.mark.parametrize(
    ("noise_multiplier", "epsilon", "expected"),
    [(1e-200, 1.0, 1), (1e200, 1.0, 0), (1.0, 1e300, 0), (1e-300, 1e300, 1), (1e100, 1e50, 0), (1e-100, 1e199, 1)],
)
def test_extreme_values_neither_overflow_nor_fail(noise_multiplier: float, epsilon: float, expected: float) -> None:
    assert exact_delta(noise_multiplier, epsilon) == expected


def test_the_price_agrees_with_the_privacy_loss_distribution() -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.GaussianDpEvent(1.3))
    assert exact_epsilon(1.3, 1e-6) == pytest.approx(accountant.get_epsilon(1e-6), abs=1e-3)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_values_that_no_mechanism_has_are_refused(value: float) -> None:
    with pytest.raises(PlanError, match="expected noise_multiplier to be a positive, finite number"):
        exact_delta(value, 1.0)
    with pytest.raises(PlanError, match="expected noise_multiplier"):
        exact_epsilon(value, 1e-5)
    with pytest.raises(PlanError, match="expected delta to be a number above 0 and below 1"):
        exact_epsilon(1.0, value)
    with pytest.raises(PlanError, match="expected delta"):
        exact_noise_multiplier(1.0, value)
    if value:
        with pytest.raises(PlanError, match="expected epsilon to be a finite number of at least 0"):
            exact_delta(1.0, value)
        with pytest.raises(PlanError, match="expected epsilon"):
            exact_noise_multiplier(value, 1e-5)


def test_a_delta_of_1_is_refused() -> None:
    with pytest.raises(PlanError, match="below 1, found 1"):
        exact_epsilon(1.0, 1.0)
