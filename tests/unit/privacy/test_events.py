"""Events: what they refuse, and that they survive being written down."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit

GAUSSIAN: dict[str, Any] = {
    "kind": EventKind.GAUSSIAN,
    "noise_multiplier": 1.0,
    "unit": Unit.SUBJECT,
    "relation": Relation.ADD_REMOVE,
}
SHARED: dict[str, Any] = {"kind": EventKind.SKELLAM, "l1": 30.0, "l2": 10.0, "dimension": 16, "shares": 3}


@given(
    noise=st.floats(1e-3, 1e3),
    count=st.integers(1, 10**6),
    rate=st.floats(1e-6, 1.0),
    group=st.integers(1, 50),
    unit=st.sampled_from(Unit),
    relation=st.sampled_from(Relation),
)
def test_an_event_survives_json(
    noise: float, count: int, rate: float, group: int, unit: Unit, relation: Relation
) -> None:
    event = Event(
        kind=EventKind.GAUSSIAN,
        noise_multiplier=noise,
        count=count,
        sampler=Sampler.POISSON,
        rate=rate,
        group=group,
        unit=unit,
        relation=relation,
    )
    assert Event.of(json.loads(json.dumps(event.values()))) == event


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier: expected a positive number, found 0.0"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier"),
        ({"count": 0}, "count: expected at least 1"),
        ({"sampler": Sampler.POISSON, "rate": 0.0}, "rate: expected a probability above 0"),
        ({"sampler": Sampler.POISSON, "rate": 1.5}, "rate"),
        ({"sampler": Sampler.FIXED, "rate": 0.1}, "rate: expected 1 for sampler fixed, found 0.1"),
        ({"group": 0}, "group"),
        ({"sampler": Sampler.WITHOUT_REPLACEMENT}, "sample_size: expected 1 to population, found 0 of 0"),
        ({"kind": EventKind.RANDOMISED_RESPONSE}, "epsilon, categories"),
        ({"shares": 1}, "l1, l2, dimension, shares: belong to discrete-gaussian and skellam"),
        ({**SHARED, "l2": 0.0}, "l1, l2: expected 0 < l2 <= l1, finite, found 30.0, 0.0"),
        ({**SHARED, "l1": 9.0}, "l1, l2: expected 0 < l2 <= l1, finite, found 9.0, 10.0"),
        ({**SHARED, "l1": float("inf")}, "l1, l2"),
        ({**SHARED, "shares": 0}, "dimension, shares: expected at least 1, found 16, 0"),
        ({**SHARED, "noise_multiplier": 0.0}, "noise_multiplier"),
    ],
)
def test_values_that_no_mechanism_has_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        Event(**{**GAUSSIAN, **values})


@pytest.mark.parametrize("kind", [EventKind.SKELLAM, EventKind.DISCRETE_GAUSSIAN])
def test_noise_in_shares_survives_json(kind: EventKind) -> None:
    event = Event(**{**GAUSSIAN, **SHARED, "kind": kind, "count": 7})
    values = json.loads(json.dumps(event.values()))
    assert Event.of(values) == event
    assert (values["l1"], values["l2"], values["dimension"], values["shares"]) == (30.0, 10.0, 16, 3)
    with pytest.raises(PlanError, match="expected the keys"):
        Event.of({key: value for key, value in values.items() if key != "shares"})


def test_events_without_shares_are_written_down_as_they_always_were() -> None:
    """Ledgers and plans have digests over these very characters."""
    assert json.dumps(Event(**GAUSSIAN).values()) == (
        '{"kind": "gaussian", "noise_multiplier": 1.0, "count": 1, "sampler": "all", "rate": 1.0, "group": 1, '
        '"sample_size": 0, "population": 0, "epsilon": 0.0, "categories": 0, "unit": "subject", '
        '"relation": "add-remove"}'
    )
    with pytest.raises(PlanError, match="expected the keys"):
        Event.of({**Event(**GAUSSIAN).values(), "shares": 0})


@pytest.mark.parametrize(
    "values", [{}, {"kind": ["skellam"]}, {"kind": "gaussian"}, {**Event(**GAUSSIAN).values(), "extra": 1}]
)
def test_what_is_no_event_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="privacy event: "):
        Event.of(values)


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PlanError, match="magic"):
        Event.of({**Event(**GAUSSIAN).values(), "kind": "magic"})
