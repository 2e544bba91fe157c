"""What noise in shares costs: published formulae on published settings, and divergences worked out by summation."""

import math
from typing import Any

import numpy as np
import pytest
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from scipy import special

from cloister.errors import PlanError
from cloister.privacy import accounting
from cloister.privacy.accounting import epsilon
from cloister.privacy.distributed import rounded_norm
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.shared_noise import closeness, renyi

ORDERS = np.array([*range(2, 129), 256.0])
GAUSSIAN, SKELLAM = EventKind.DISCRETE_GAUSSIAN, EventKind.SKELLAM


def shared(kind: EventKind, multiplier: float, l2: float, **values: Any) -> Event:
    common: dict[str, Any] = {"unit": Unit.CLIENT, "relation": Relation.ZERO_OUT, "dimension": 1, "shares": 1, "l1": l2}
    return Event(**{**common, "kind": kind, "noise_multiplier": multiplier, "l2": l2, **values})


def gaussian(multiplier: float, **values: Any) -> Event:
    common: dict[str, Any] = {"unit": Unit.CLIENT, "relation": Relation.ZERO_OUT}
    return Event(**{**common, "kind": EventKind.GAUSSIAN, "noise_multiplier": multiplier, **values})


@pytest.mark.parametrize(
    ("step", "std", "norm", "expected"),
    [
        (1e-2, 0.1, 1.631318, {GAUSSIAN: 8.4103, SKELLAM: 8.4111}),
        (1e-3, 0.1, 1.008718, {GAUSSIAN: 4.7965, SKELLAM: 4.7965}),
        (1e-4, 0.1, 1.000133, {GAUSSIAN: 4.7534, SKELLAM: 4.7534}),
        (1e-3, 0.05, 1.008718, {GAUSSIAN: 10.9068, SKELLAM: 10.9068}),
        (1e-4, 0.2, 1.000133, {GAUSSIAN: 2.1683, SKELLAM: 2.1683}),
    ],
)
def test_one_sum_of_a_hundred_clients_costs_what_the_formulae_say(
    step: float, std: float, norm: float, expected: dict[EventKind, float]
) -> None:
    l2 = rounded_norm(1 / step, 65536)
    assert l2 * step == pytest.approx(norm, abs=1e-6)
    values = {"l1": l2 * min(256, l2), "dimension": 65536, "shares": 100}
    for kind, cost in expected.items():
        event = shared(kind, 10 * std / step / l2, l2, **values)
        assert compute_epsilon(ORDERS, renyi(event, ORDERS), 1e-5)[0] == pytest.approx(cost, abs=1e-4)
        assert cost * 0.99 < epsilon([event], 1e-5) <= cost + 1e-4  # with more orders


def divergence(weights: np.ndarray, shift: int, order: float) -> float:
    """The Renyi divergence between a distribution on the integers, by its logarithms, and the same one shifted."""
    terms = order * weights[shift:] + (1 - order) * weights[:-shift]
    return float(special.logsumexp(terms) - special.logsumexp(weights)) / (order - 1)


@pytest.mark.parametrize("std", [0.71, 0.8, 1.0, 2.0])
@pytest.mark.parametrize("shares", [1, 2, 5])
def test_bounds_for_discrete_gaussians_hold_and_are_close(std: float, shares: int) -> None:
    """Also where tau is not small: noise of less than a step, which no plan uses."""
    values = np.arange(-60, 61)
    one = np.exp(-(values**2) / (2 * std**2))
    total = np.array([1.0])
    for _ in range(shares):
        total = np.convolve(total, one / one.sum())
    weights = np.log(total[total > 1e-250])
    for shift in (1, 2):
        for order in (1.5, 2.0, 4.0, 6.0):
            multiplier = std * math.sqrt(shares) / shift
            one_coordinate = shared(GAUSSIAN, multiplier, shift, shares=shares)
            exact = divergence(weights, shift, order)
            found = float(renyi(one_coordinate, np.array([order]))[0])
            assert exact <= found * (1 + 1e-9)
            tau = closeness(shares, std**2 * shares)
            assert found <= exact * 1.001 + order / 2 * (2 / multiplier + tau) * tau
            # A unit that changes four coordinates: divergences add.
            wide = shared(
                GAUSSIAN, multiplier / 2, 2.0 * shift, l1=4.0 * shift, dimension=4, shares=shares, relation="zero-out"
            )
            assert 4 * exact <= float(renyi(wide, np.array([order]))[0]) * (1 + 1e-9)


@pytest.mark.parametrize("variance", [0.1, 0.5, 1.0, 4.0, 25.0])
def test_bounds_for_skellam_noise_hold_at_every_order(variance: float) -> None:
    values = np.arange(-150, 151)
    weights = np.log(np.maximum(special.ive(np.abs(values), variance), 1e-305))
    weights = weights[weights > -600]
    for shift in (1, 2, 3):
        for order in (1.25, 2.0, 2.5, 3.0, 6.5, 10.0):
            event = shared(SKELLAM, math.sqrt(variance) / shift, shift, shares=7)
            exact, found = divergence(weights, shift, order), float(renyi(event, np.array([order]))[0])
            assert exact <= found * (1 + 1e-9)
            if (variance, order, shift) == (25, 2, 1):
                assert found < exact * 1.1


def test_between_whole_orders_skellam_noise_is_bounded_by_a_straight_line() -> None:
    event = shared(SKELLAM, 3.0, 7.0, l1=20.0)
    orders = np.array([1.5, 2.0, 2.75, 3.0])
    first, second, third, fourth = (orders - 1) * renyi(event, orders)
    assert (first, third) == (pytest.approx(second / 2), pytest.approx(0.25 * second + 0.75 * fourth))
    variance = (3 * 7) ** 2
    expected = 49 / variance + min((3 * 49 + 6 * 20) / (4 * variance**2), 3 * 20 / (2 * variance))
    assert second == pytest.approx(expected)
    # Of little noise the other term is the smaller one: variance 1/4, one step in one coordinate, order 3.
    assert renyi(shared(SKELLAM, 0.5, 1.0), np.array([3.0]))[0] == pytest.approx(3 / (2 / 4) + 3 / (2 / 4))


def test_tau_is_that_of_its_definition() -> None:
    assert closeness(1, 1.0) == 0.0
    assert closeness(2, 2.0) == pytest.approx(10 * math.exp(-(math.pi**2)))
    expected = 10 * (math.exp(-(math.pi**2) / 2) + math.exp(-4 * math.pi**2 / 6))
    assert closeness(3, 1.5) == pytest.approx(expected)
    assert closeness(1000, 9000.0) < 1e-37


def test_tau_counts_against_the_discrete_gaussian() -> None:
    """Each of the three bounds is the smallest somewhere."""
    order, l2 = 4.0, 2.0
    tau = closeness(4, 4.0)
    for dimension, l1 in ((1, 2.0), (100, 20.0), (10**9, 4.0)):
        event = shared(GAUSSIAN, 1.0, l2, l1=l1, dimension=dimension, shares=4)
        three = (
            order / 2 + tau * dimension,
            order / 2 * (1 + 2 * l1 / l2 * tau + tau**2 * dimension),
            order / 2 * (1 + math.sqrt(dimension) * tau) ** 2,
        )
        assert renyi(event, np.array([order]))[0] == pytest.approx(min(three), rel=1e-12)
        assert min(three) > order / 2


@pytest.mark.parametrize("kind", [GAUSSIAN, SKELLAM])
def test_a_person_on_several_clients_moves_the_sum_so_many_times_as_far(kind: EventKind) -> None:
    several = shared(kind, 8.0, 1000.0, l1=9000.0, dimension=256, shares=10, group=4)
    as_one = shared(kind, 2.0, 4000.0, l1=36000.0, dimension=256, shares=10)
    np.testing.assert_allclose(renyi(several, ORDERS), renyi(as_one, ORDERS), rtol=1e-12)


# In the accountant.


@pytest.mark.parametrize("kind", [GAUSSIAN, SKELLAM])
def test_they_are_answered_by_renyi_and_composed_with_gaussian_noise(kind: EventKind) -> None:
    fine = shared(kind, 2.0, 1e5, l1=1e7, dimension=1 << 16, shares=50, count=3)
    assert accounting.answering([fine]) == accounting.answering([fine, gaussian(1.0)]) == "rdp"
    together = epsilon([fine, gaussian(2.0, count=5)], 1e-5)
    alone = epsilon([gaussian(2.0, count=8)], 1e-5, accountant="rdp")
    assert alone <= together < alone * 1.01
    assert accounting.delta([fine, gaussian(2.0, count=5)], together) == pytest.approx(1e-5, rel=1e-3)
    assert epsilon([fine], 1e-5) == epsilon([fine], 1e-5, accountant="rdp") < together
    assert epsilon([fine, gaussian(1.0, kind=EventKind.NONE, noise_multiplier=0.0)], 1e-5) == math.inf


def test_noise_is_calibrated_with_them() -> None:
    def events(multiplier: float) -> tuple[Event, ...]:
        return (shared(GAUSSIAN, multiplier, 1e4, l1=1e6, dimension=1 << 14, shares=30, count=10),)

    found = accounting.calibrate(events, 4.0, 1e-5)
    assert 3.999 < epsilon(events(found), 1e-5) <= 4.0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sampler": Sampler.POISSON, "rate": 0.1}, "their draw is no secret and lessens nothing"),
        ({"sampler": Sampler.WITHOUT_REPLACEMENT, "sample_size": 5, "population": 9}, "draw is no secret"),
        ({"relation": Relation.ADD_REMOVE}, "adds no share of the noise either"),
        ({"kind": GAUSSIAN, "noise_multiplier": 0.7, "l2": 1.0}, "from a variance of 1/2 on; take more bits"),
    ],
)
def test_what_the_formulae_do_not_cover_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        epsilon(
            [shared(**{"kind": SKELLAM, "multiplier": change.pop("noise_multiplier", 1.0), "l2": 3.0, **change})], 1e-5
        )
