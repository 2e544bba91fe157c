"""What events cost: the numbers of the literature, of dp-accounting, and of formulae worked out by hand."""

import builtins
import importlib
import logging
import math
from typing import Any

import numpy as np
import pytest

from cloister.errors import PlanError
from cloister.privacy import accounting, composition, mixtures
from cloister.privacy.accounting import calibrate, delta, epsilon, merge
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.plan import Plan


def gaussian(noise: float, rate: float = 1.0, count: int = 1, **values: Any) -> Event:
    sampler = Sampler.POISSON if rate < 1 else Sampler.ALL
    common: dict[str, Any] = {"kind": EventKind.GAUSSIAN, "unit": Unit.SUBJECT, "relation": Relation.ADD_REMOVE}
    own = {"noise_multiplier": noise, "rate": rate, "count": count, "sampler": sampler}
    return Event(**{**common, **own, **values})


def response(epsilon: float, categories: int, relation: Relation, count: int = 1) -> Event:
    kind = EventKind.RANDOMISED_RESPONSE
    return Event(kind=kind, epsilon=epsilon, categories=categories, count=count, unit=Unit.CLIENT, relation=relation)


@pytest.mark.parametrize(
    ("noise", "rate", "count", "at", "pld", "rdp"),
    [
        (1.1, 0.01, 1000, 1e-5, 1.5154, 1.7118),
        (1.1, 256 / 60000, 14062, 1e-5, 2.3817, 2.5966),
        (1.0, 0.05, 200, 1e-4, 3.9993, 4.5950),
        (2.0, 0.1, 100, 1e-5, 2.3374, 2.5806),
        (1.5, 1 / 6, 50, 1e-3, 2.9152, 3.4151),
        (0.6, 1e-4, 1500, 1e-8, 0.9871, 2.7829),
        (4.0, 1.0, 100, 1e-5, 13.2067, 14.1322),
        (1.0, 0.01, 1000, 1e-5, 1.8282, None),  # DP-SGD beside amplified banded noise, n = 1000, b = 10:
        (1.0, 0.1, 100, 1e-5, 7.0466, None),
    ],
)
def test_poisson_samples_cost_what_dp_accounting_says(
    noise: float, rate: float, count: int, at: float, pld: float, rdp: float | None
) -> None:
    events = [gaussian(noise, rate, count)]
    assert epsilon(events, at) == pytest.approx(pld, abs=1e-3)
    if rdp is not None:
        assert epsilon(events, at, accountant="rdp") == pytest.approx(rdp, abs=1e-3)


@pytest.mark.parametrize(
    ("noise", "at", "expected"),
    [(1.0, 1e-5, 4.377178), (4.0, 1e-6, 1.060702), (0.5, 1e-5, 9.997256), (2.0, 1e-5, 1.993091), (0.25, 1e-5, 24.3816)],
)
def test_noise_on_everybody_has_a_closed_form(noise: float, at: float, expected: float) -> None:
    assert epsilon([gaussian(noise)], at) == pytest.approx(expected, abs=1e-4)
    assert accounting.answering([gaussian(noise)]) == "exact"


@pytest.mark.parametrize(
    ("at", "expected"),
    [(1e-10, {0.81: 8.9222, 1.0: 10.0343, 0.1: 2.8818}), (1e-5, {0.81: 6.2533, 1.0: 7.0772, 0.1: 1.9142})],
)
def test_zero_concentrated_privacy_converts_as_published(at: float, expected: dict[float, float]) -> None:
    # rho-zCDP has the RDP of a Gaussian with rho = 1 / (2 z^2); tree aggregation of height h costs rho = h / (2 z^2).
    for rho, cost in expected.items():
        assert epsilon([gaussian((2 * rho) ** -0.5)], at, accountant="rdp") == pytest.approx(cost, abs=1e-3)
    tree = gaussian(math.sqrt(1 / (2 * 0.81)) * math.sqrt(4) / math.sqrt(4))
    assert epsilon([tree], at, accountant="rdp") == pytest.approx(expected[0.81], abs=1e-3)


def test_subsets_without_replacement_cost_more_than_poisson_draws_of_the_same_size() -> None:
    values: dict[str, Any] = {"sampler": Sampler.WITHOUT_REPLACEMENT, "sample_size": 50, "population": 1000}
    subset = gaussian(1.0, count=200, relation=Relation.REPLACE_ONE, **values)
    assert epsilon([subset], 1e-4) == pytest.approx(8.1282, abs=1e-3)
    assert accounting.answering([subset]) == "rdp"
    assert epsilon([gaussian(1.0, 0.05, 200)], 1e-4) < 4


def test_laplace_noise_costs_its_epsilon() -> None:
    laplace = gaussian(1.0, kind=EventKind.LAPLACE)
    assert epsilon([laplace], 1e-6) == pytest.approx(1.0, abs=1e-3)
    assert epsilon([laplace], 1e-6, accountant="rdp") == pytest.approx(1.0051, abs=1e-3)
    assert epsilon([gaussian(3.0, kind=EventKind.LAPLACE, group=3)], 1e-6) == pytest.approx(1.0, abs=1e-3)
    sampled = gaussian(1.0, 0.1, 1, kind=EventKind.LAPLACE)
    assert epsilon([sampled], 1e-9) == pytest.approx(math.log(1 + 0.1 * math.expm1(1)), abs=1e-3)


@pytest.mark.parametrize(("group", "expected"), [(1, 0.9125), (5, 5.3053), (20, 26.7804)])
def test_records_of_one_person_cost_as_a_mixture(group: int, expected: float) -> None:
    assert epsilon([gaussian(1.0, 0.01, 200, group=group)], 1e-5) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("sites", "expected"), [(1, 1.6716), (2, 2.3486), (4, 3.3604), (8, 4.8886)])
def test_a_person_on_several_sites_loses_at_each(sites: int, expected: float) -> None:
    assert epsilon([gaussian(1.5, 0.05, 100)] * sites, 1e-5) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "count", "target", "at", "expected"),
    [
        (0.01, 1000, 1.0, 1e-5, 1.4146),
        (0.05, 200, 8.0, 1e-4, 0.7312),
        (0.1, 100, 2.0, 1e-5, 2.2477),
        (1 / 6, 50, 8.0, 1e-3, 0.8427),
    ],
)
def test_noise_is_calibrated_to_a_budget(rate: float, count: int, target: float, at: float, expected: float) -> None:
    noise = calibrate(lambda noise: (gaussian(noise, rate, count),), target, at)
    assert noise == pytest.approx(expected, abs=1e-3)
    assert target * (1 - 1e-4) <= epsilon([gaussian(noise, rate, count)], at) <= target


@pytest.mark.parametrize(
    ("target", "at", "expected"),
    [(1.0, 1e-5, 3.730632), (0.5, 1e-6, 8.057618), (8.0, 1e-5, 0.600229), (0.1, 1e-8, 45.937360)],
)
def test_noise_on_everybody_is_calibrated_too(target: float, at: float, expected: float) -> None:
    assert calibrate(lambda noise: (gaussian(noise),), target, at) == pytest.approx(expected, rel=1e-4)


def test_what_no_noise_can_save_is_said() -> None:
    with pytest.raises(PlanError, match=r"expected epsilon 1 at delta 1e-05, found 4.377.*other\s+releases"):
        calibrate(lambda noise: (gaussian(1.0), gaussian(noise)), 1.0, 1e-5)
    with pytest.raises(PlanError, match="finite positive epsilon"):
        calibrate(lambda noise: (gaussian(noise),), 0.0, 1e-5)


def test_a_plan_calibrates_itself_to_its_worst_subject() -> None:
    values: dict[str, Any] = {
        "mechanism": "dp-sgd",
        "sampler": "poisson",
        "rate": 0.05,
        "sample_size": 4,
        "steps": 10,
        "clip": {},
    }
    plan = Plan.of({**values, "clients": 3}).calibrate(4.0, 1e-5, rounds=5)
    assert plan.noise_multiplier > 0
    assert plan.values() == {**Plan.of({**values, "clients": 3}).values(), "noise_multiplier": plan.noise_multiplier}
    assert 3.99 < epsilon(plan.events(5) * 3, 1e-5) <= 4.0
    alone = Plan.of({**values, "clients": 3}).calibrate(4.0, 1e-5, rounds=5, clients=1)
    assert 3.99 < epsilon(alone.events(5), 1e-5) <= 4.0
    assert alone.noise_multiplier < plan.noise_multiplier


def test_delta_is_the_inverse_of_epsilon() -> None:
    for events in ([gaussian(1.1, 0.01, 1000)], [gaussian(1.0)], [gaussian(1.0, 0.01, 200, group=5)]):
        assert delta(events, epsilon(events, 1e-5)) == pytest.approx(1e-5, rel=1e-3)
    assert delta([gaussian(1.1, 0.01, 1000)], 1.7118, accountant="rdp") == pytest.approx(1e-5, rel=1e-2)


def test_a_release_without_noise_has_no_epsilon() -> None:
    bare = Event(kind=EventKind.NONE, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)
    assert epsilon([gaussian(1.0), bare], 1e-5) == math.inf
    assert epsilon([gaussian(1.0), bare], 1e-5, accountant="rdp") == math.inf
    assert delta([bare], 1.0) == 1.0


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert delta([], 0.0) == 0.0


def test_equal_events_are_merged_and_noise_on_everybody_is_joined() -> None:
    events = [gaussian(1.0, 0.1), gaussian(1.0, 0.1, 4), gaussian(2.0, 0.1), gaussian(3.0), gaussian(8.0, group=2)]
    merged = merge(events)
    assert sorted(event.count for event in merged) == [1, 1, 5]
    (joint,) = (event for event in merged if event.rate == 1)
    assert joint.noise_multiplier == pytest.approx((1 / 9 + 1 / 16) ** -0.5)
    assert merge(reversed(events)) == merged


@pytest.mark.parametrize("change", [{"unit": Unit.CLIENT}, {"relation": Relation.ZERO_OUT}])
def test_events_that_have_no_cost_in_common_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=f"expected events of one {next(iter(change))}"):
        epsilon([gaussian(1.0, 0.1), gaussian(1.0, 0.1, **change)], 1e-5)


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_that_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(PlanError, match="delta: expected a number above 0 and below 1"):
        epsilon([gaussian(1.0)], bad)


def test_a_fixed_batch_is_never_accounted_as_a_poisson_draw() -> None:
    # An epoch of 20 fixed batches costs what one noisy sum over everybody does, not what 20 draws at 1/20 do.
    fixed = gaussian(1.0, count=10, sampler=Sampler.FIXED)
    assert epsilon([fixed], 1e-5) == epsilon([gaussian(1.0, count=10)], 1e-5) == pytest.approx(17.8566, abs=1e-4)
    assert epsilon([gaussian(1.0, 1 / 20, 200)], 1e-5) < 5


def test_replacing_is_adding_and_removing_at_once() -> None:
    """Noise is relative to what one unit changes, 2 clips; the draw does not tell which of the two is there."""
    replaced = gaussian(0.5, 0.1, 50, relation=Relation.REPLACE_ONE)  # standard deviation 1 clip
    added = epsilon([gaussian(1.0, 0.1, 50)], 1e-5)
    assert added < epsilon([replaced], 1e-5) < epsilon([gaussian(0.5, 0.1, 50)], 1e-5)
    assert epsilon([replaced], 1e-5) < epsilon([replaced], 1e-5, accountant="rdp")
    nearly = gaussian(1.0, 1 - 1e-9, relation=Relation.REPLACE_ONE)
    assert epsilon([nearly], 1e-5) == pytest.approx(4.377178, abs=1e-3)
    everybody = gaussian(1.0, relation=Relation.REPLACE_ONE)
    assert epsilon([everybody], 1e-5) == pytest.approx(4.377178, abs=1e-6)


def test_leaving_a_place_empty_costs_what_removing_does() -> None:
    for event in (gaussian(1.0, 0.05, 200), gaussian(1.0)):
        empty = Event.of({**event.values(), "relation": "zero-out"})
        assert epsilon([empty], 1e-4) == epsilon([event], 1e-4)


@pytest.mark.parametrize(
    "relation", [Relation.ADD_REMOVE, Relation.REPLACE_ONE, Relation.ZERO_OUT], ids=lambda it: str(it)
)
def test_randomised_response_costs_its_epsilon_and_less_against_a_uniform_answer(relation: Relation) -> None:
    found = epsilon([response(1.5, 4, relation)], 1e-9)
    answered = math.exp(1.5) / (math.exp(1.5) + 3)
    expected = math.log(answered * 4) if relation is Relation.ZERO_OUT else 1.5
    assert found == pytest.approx(expected, abs=1e-3)
    assert epsilon([response(1.5, 4, relation, count=2)], 1e-9) == pytest.approx(2 * expected, abs=1e-3)
    assert epsilon([response(1.5, 4, relation)], 1e-9, accountant="rdp") >= expected - 1e-3


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({"kind": EventKind.RANDOMISED_RESPONSE, "epsilon": 1.0, "categories": 2, "rate": 0.5}, "count every answer"),
        ({"kind": EventKind.LAPLACE, "sampler": Sampler.WITHOUT_REPLACEMENT}, "Laplace noise has no formula without"),
        ({"group": 2, "sampler": Sampler.WITHOUT_REPLACEMENT}, "groups of records have no formula without"),
        ({"kind": EventKind.LAPLACE, "group": 2, "rate": 0.5}, "one record added or removed only"),
        ({"kind": EventKind.LAPLACE, "relation": Relation.REPLACE_ONE, "rate": 0.5}, "one record added or removed"),
        ({"group": 2, "relation": Relation.REPLACE_ONE, "rate": 0.5}, "take relation add-remove"),
    ],
)
def test_events_without_a_formula_are_refused(event: dict[str, Any], problem: str) -> None:
    values = {"sampler": Sampler.POISSON, "sample_size": 1, "population": 10, **event}
    with pytest.raises(PlanError, match=problem):
        epsilon([gaussian(1.0, **values)], 1e-5)


def test_the_worst_case_of_a_mixture_is_that_of_dp_accounting() -> None:
    losses = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    event = gaussian(1.0, 0.3, 20, group=4)
    pair = mixtures.of_group(event)
    means, shares = zip(*pair.upper, strict=True)
    theirs = losses.from_mixture_gaussian_mechanism(
        pair.deviation, means, shares, value_discretization_interval=1e-2
    ).self_compose(20)
    ours = composition._composed((event,), 1e-2)
    for at in (1e-3, 1e-6):
        assert ours.get_epsilon_for_delta(at) == pytest.approx(theirs.get_epsilon_for_delta(at), rel=1e-6)


def test_renyi_divergences_by_quadrature_are_those_of_the_published_sum() -> None:
    # Mironov, Talwar, Zhang 2019, for integer orders: a group of one record.
    noise, rate = 1.1, 0.05
    found = mixtures.renyi(mixtures.of_group(gaussian(noise, rate, group=1)), np.array([2.0, 5.0, 24.0]))
    for order, value in zip((2, 5, 24), found, strict=True):
        terms = [
            math.comb(order, k) * (1 - rate) ** (order - k) * rate**k * math.exp(k * (k - 1) / (2 * noise**2))
            for k in range(order + 1)
        ]
        assert value == pytest.approx(math.log(math.fsum(terms)) / (order - 1), rel=1e-9)


def test_ten_thousand_events_are_composed_as_the_few_kinds_that_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    grids, distribution = [], composition._distribution

    def counted(event: Event, interval: float) -> Any:
        grids.append(interval)
        return distribution(event, interval)

    monkeypatch.setattr(composition, "_distribution", counted)
    events = [gaussian(1.0 + 0.25 * (index % 3), 0.01) for index in range(9_000)]
    events += [gaussian(50.0 + index) for index in range(1_000)]
    composition._composed.cache_clear()
    assert 0 < epsilon(events, 1e-6) < 30
    assert len(grids) == 4 * len(set(grids)) <= 16  # three sampled kinds and all noise on everybody, on four grids


def test_a_hopeless_plan_is_answered_too() -> None:
    assert 1e5 < epsilon([gaussian(0.05, 0.1, 10_000)], 1e-5) < 1e6
    assert delta([gaussian(0.05, 0.1, 10_000)], 10.0) == pytest.approx(1.0, abs=1e-6)


@pytest.fixture
def without_dp_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("dp_accounting"):
            raise ImportError("No module named 'dp_accounting'")
        return builtins.__import__(name, *rest)

    accounting._cost.cache_clear()
    composition._composed.cache_clear()
    composition._single.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)


@pytest.mark.usefixtures("without_dp_accounting")
def test_a_client_without_the_extra_is_told_to_install_it() -> None:
    assert epsilon([gaussian(1.0)], 1e-5) == pytest.approx(4.377178, abs=1e-6)  # needs nothing but arithmetic
    with pytest.raises(PlanError, match=r"pip install 'cloister\[privacy\]'"):
        epsilon([gaussian(1.0, 0.123, 17)], 1e-5)


def test_orders_that_do_not_converge_are_left_out_quietly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        composition._rdp.cache_clear()
        epsilon([gaussian(1.5, 1 / 6, 50)], 1e-3, accountant="rdp")
    assert not caplog.records
