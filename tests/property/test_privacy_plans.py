"""What must hold for every plan and all events, whatever their numbers."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.privacy.accounting import calibrate, delta, epsilon, merge
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.plan import Plan

AT = 1e-5
GRID = 1 + 1e-4  # what two grids of a privacy-loss distribution may differ by

noises = st.floats(0.5, 4.0)
rates = st.sampled_from([1e-3, 0.01, 0.07, 0.3, 1.0])
counts = st.integers(1, 60)


def gaussian(noise: float, rate: float, count: int, group: int = 1) -> Event:
    return Event(
        kind=EventKind.GAUSSIAN,
        noise_multiplier=noise,
        count=count,
        sampler=Sampler.POISSON if rate < 1 else Sampler.ALL,
        rate=rate,
        group=group,
        unit=Unit.SUBJECT,
        relation=Relation.ADD_REMOVE,
    )


@pytest.mark.slow
@settings(max_examples=15)
@given(noise=noises, more=st.floats(1.01, 2.0), rate=rates, count=counts, group=st.sampled_from([1, 3]))
def test_more_noise_never_costs_more(noise: float, more: float, rate: float, count: int, group: int) -> None:
    dear = epsilon([gaussian(noise, rate, count, group)], AT)
    assert epsilon([gaussian(noise * more, rate, count, group)], AT) <= dear * GRID


@settings(max_examples=15)
@given(noise=noises, pair=st.tuples(rates, rates), count=counts)
def test_being_drawn_more_often_never_costs_less(noise: float, pair: tuple[float, float], count: int) -> None:
    rare, often = sorted(pair)
    assert epsilon([gaussian(noise, rare, count)], AT) <= epsilon([gaussian(noise, often, count)], AT) * GRID


@pytest.mark.slow
@settings(max_examples=10)
@given(noise=noises, rate=rates, count=counts, more=counts, group=st.sampled_from([1, 3]))
def test_more_events_never_cost_less(noise: float, rate: float, count: int, more: int, group: int) -> None:
    few, many = gaussian(noise, rate, count, group), gaussian(noise, rate, count + more, group)
    assert epsilon([few], AT) <= epsilon([many], AT) * GRID
    assert delta([few], 1.0) <= delta([many], 1.0) * (1 + 1e-3) + 1e-12


@pytest.mark.slow
@settings(max_examples=10)
@given(noise=noises, rate=rates, count=counts, group=st.integers(1, 6))
def test_more_records_of_one_person_never_cost_less(noise: float, rate: float, count: int, group: int) -> None:
    fewer, more = gaussian(noise, rate, count, group), gaussian(noise, rate, count, group + 1)
    assert epsilon([fewer], AT) <= epsilon([more], AT) * GRID


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from([0.7, 1.0, 2.5]), st.sampled_from([0.05, 1.0]), counts), max_size=5))
def test_counting_equal_events_together_keeps_what_they_cost(parts: list[tuple[float, float, int]]) -> None:
    whole = [gaussian(*part) for part in parts]
    split = [gaussian(noise, rate, 1) for noise, rate, count in parts for _ in range(count)]
    assert merge(split) == merge(whole)
    assert merge(merge(split)) == merge(split)
    assert epsilon(split, AT) == epsilon(whole, AT)


@pytest.mark.slow
@settings(max_examples=8)
@given(target=st.floats(0.2, 12.0), rate=rates, count=counts, clients=st.integers(1, 3))
def test_calibrated_noise_keeps_its_budget_and_wastes_little(
    target: float, rate: float, count: int, clients: int
) -> None:
    noise = calibrate(lambda z: (gaussian(z, rate, count),) * clients, target, AT)
    cost = epsilon([gaussian(noise, rate, count)] * clients, AT)
    assert cost <= target
    assert cost >= target * 0.998 or noise < 1e-2


@settings(max_examples=10)
@given(noise=st.floats(0.8, 4.0), rate=st.sampled_from([0.01, 0.05, 1.0]), count=counts)
def test_both_accountants_bound_the_same_loss(noise: float, rate: float, count: int) -> None:
    events = [gaussian(noise, rate, count)]
    assert 0 < epsilon(events, AT) <= epsilon(events, AT, accountant="rdp") * GRID


numbers = st.floats(1e-3, 1e3)
plans = st.fixed_dictionaries(
    {
        "unit": st.sampled_from([str(unit) for unit in Unit]),
        "relation": st.sampled_from([str(relation) for relation in Relation]),
        "mechanism": st.sampled_from(["none", "gaussian", "dp-sgd"]),
        "trust": st.sampled_from(["central", "local"]),
        "sampled": st.sampled_from(["units", "records"]),
        "steps": st.integers(1, 50),
        "records": st.integers(1, 50),
        "clients": st.integers(1, 50),
        "noise_multiplier": numbers,
        "weighting": st.sampled_from(["uniform", "capped"]),
        "weight_cap": numbers,
        "clip": st.one_of(
            st.fixed_dictionaries({"bound": numbers}),
            st.fixed_dictionaries(
                {"kind": st.just("per-layer"), "per_layer": st.dictionaries(st.text(max_size=5), numbers, min_size=1)}
            ),
        ),
    },
    optional={
        "population": st.integers(1, 10**6),
        "robust": st.sampled_from(["krum", "fedmedian"]),
        "centres": st.fixed_dictionaries(
            {"noise_multiplier": numbers, "count_multiplier": numbers, "every": st.integers(1, 9)}
        ),
        "budget": st.fixed_dictionaries({"epsilon": numbers, "delta": st.floats(1e-12, 0.5)}),
    },
)
samplers = st.one_of(
    st.just({"sampler": "all"}), st.fixed_dictionaries({"sampler": st.just("poisson"), "rate": st.floats(1e-6, 1.0)})
)


@given(values=plans, sampler=samplers)
def test_a_plan_is_the_same_after_being_written_down(values: dict[str, Any], sampler: dict[str, Any]) -> None:
    plan = Plan.of({**values, **sampler})
    again = Plan.of(json.loads(json.dumps(plan.values())))
    assert again == plan
    assert again.digest == plan.digest
    assert again.client_stages() == plan.client_stages()
    assert again.server_stages() == plan.server_stages()


@given(values=plans, sampler=samplers, cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6).map(sorted))
def test_what_a_ledger_appends_adds_up_to_what_the_plan_costs(
    values: dict[str, Any], sampler: dict[str, Any], cuts: list[int]
) -> None:
    plan = Plan.of({**values, **sampler})
    steps = zip([0, *cuts], cuts, strict=False)
    appended = [event for before, after in steps for event in plan.increment(before, after)]
    if not plan.noisy:
        assert sum(event.count for event in appended if event.kind is EventKind.NONE) == cuts[-1]
    elif cuts[-1] > 0:
        together, planned = merge(appended), merge(plan.events(cuts[-1]))
        assert [{**event.values(), "noise_multiplier": 0} for event in together] == [
            {**event.values(), "noise_multiplier": 0} for event in planned
        ]
        for one, other in zip(together, planned, strict=True):  # sums of squares in another order
            assert abs(one.noise_multiplier / other.noise_multiplier - 1) < 1e-9
