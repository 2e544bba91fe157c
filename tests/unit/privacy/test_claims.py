"""Claims: whose epsilon it is, what people lose on several clients, and that the words say what was assumed."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from cloister.privacy.accounting import epsilon
from cloister.privacy.claims import SERVER, claim, of_person
from cloister.privacy.plan import Plan

SUBJECT: dict[str, Any] = {
    "unit": "subject",
    "mechanism": "dp-sgd",
    "sampler": "poisson",
    "rate": 0.05,
    "sample_size": 8,
    "steps": 10,
    "noise_multiplier": 1.5,
    "clip": {"bound": 1.0},
}
CLIENT: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "central",
    "sampler": "poisson",
    "rate": 0.01,
    "population": 1000,
    "noise_multiplier": 1.0,
    "clip": {"bound": 1.0},
}
SECURE: dict[str, Any] = {"secure": {"size": 1000, "adversaries": 0.05}}
SHARES: dict[str, Any] = {
    **{key: value for key, value in CLIENT.items() if key != "rate"},
    **SECURE,
    "trust": "distributed",
    "sampler": "all",
    "relation": "zero-out",
}


def test_a_person_on_several_clients_loses_at_each_of_them() -> None:
    # Horizontal composition: q = 0.05, z = 1.5, 100 steps on each of m clients, delta = 1e-5.
    people = {"a": ("x",), "b": ("x", "y"), "c": ("x", "y", "z", "w"), "d": tuple("stuvwxyz")}
    ledgers = {name: Plan.of(SUBJECT).events(10) for name in "stuvwxyz"}
    found = claim(Plan.of(SUBJECT), 1e-5, rounds=10, events_by_client=ledgers, subjects=people)
    assert found.worst == found.epsilon == pytest.approx(4.8886, abs=1e-3)
    assert found.median == pytest.approx((2.3486 + 3.3604) / 2, abs=1e-3)
    assert found.subjects == 4
    assert found.epsilon_rdp > found.epsilon
    assert found.accountant == "pld"
    assert "Of 4 people, by the clients they are on, the worst loses 4.889, the median 2.854." in found.text


def test_where_it_is_not_known_who_is_where_the_declared_worst_case_counts_and_is_said() -> None:
    plan = Plan.of({**SUBJECT, "clients": 4})
    found = claim(plan, 1e-5, rounds=10)
    assert found.worst == found.epsilon == pytest.approx(3.3604, abs=1e-3)
    assert (found.median, found.subjects) == (None, 0)
    assert "is not known: a person is counted on 4 client(s), the declared worst case" in found.text


def test_the_declared_worst_case_takes_the_longest_ledgers() -> None:
    plan = Plan.of({**SUBJECT, "clients": 2})
    ledgers = {"x": plan.events(1), "y": plan.events(10), "z": plan.events(3), "never": ()}
    assert claim(plan, 1e-5, rounds=10, events_by_client=ledgers).epsilon == epsilon(plan.events(10) * 2, 1e-5)
    alone = {"y": plan.events(10)}
    assert claim(plan, 1e-5, rounds=10, events_by_client=alone).epsilon == epsilon(plan.events(10), 1e-5)


def test_what_the_ledger_holds_goes_before_what_was_planned() -> None:
    plan = Plan.of(SUBJECT)
    ledgers = {"x": plan.events(4), "y": plan.events(2)}
    found = claim(plan, 1e-5, rounds=10, events_by_client=ledgers, subjects={"a": ("x", "y"), "b": ("y", "elsewhere")})
    assert found.worst == epsilon(plan.events(6), 1e-5)
    assert found.median == pytest.approx((epsilon(plan.events(6), 1e-5) + epsilon(plan.events(2), 1e-5)) / 2)


def test_people_are_counted_on_the_clients_that_they_are_said_to_be_on_before_there_are_ledgers() -> None:
    found = claim(Plan.of(SUBJECT), 1e-5, rounds=10, subjects={"a": ("north",), "b": ("north", "south")})
    assert found.worst == pytest.approx(2.3486, abs=1e-3)


def test_disjoint_records_compose_in_parallel() -> None:
    plan = Plan.of({**SUBJECT, "unit": "example", "sampled": "records"})
    ledgers = {"x": plan.events(4), "y": plan.events(10)}
    found = claim(plan, 1e-5, rounds=10, events_by_client=ledgers, subjects={"a": ("x", "y")})
    assert found.epsilon == pytest.approx(1.6716, abs=1e-3)
    assert (found.worst, found.median, found.subjects) == (None, None, 0)
    assert "a person with many of them loses more" in found.text


def test_a_person_on_several_clients_moves_their_sum_as_a_group() -> None:
    # 5 clients drawn with q = 0.01, z = 1, 200 rounds, delta = 1e-5.
    found = claim(Plan.of(CLIENT), 1e-5, rounds=200, subjects={"a": tuple("vwxyz"), "b": ("x",), "c": ("y",)})
    assert found.epsilon == found.median == pytest.approx(0.9125, abs=1e-3)
    assert found.worst == pytest.approx(5.3053, abs=1e-3)
    declared = claim(Plan.of({**CLIENT, "clients": 5}), 1e-5, rounds=200)
    assert declared.epsilon == pytest.approx(0.9125, abs=1e-3)
    assert declared.worst == pytest.approx(5.3053, abs=1e-3)


def test_a_person_in_uploads_that_are_noised_one_by_one_loses_at_each() -> None:
    plan = Plan.of({**CLIENT, "trust": "local", "sampler": "all", "rate": 1.0, "noise_multiplier": 4.0})
    ledgers = {"x": plan.events(1), "y": plan.events(1)}
    found = claim(plan, 1e-6, rounds=1, events_by_client=ledgers, subjects={"a": ("x", "y")})
    assert found.epsilon == pytest.approx(1.060702, abs=1e-5)
    assert found.worst == epsilon(plan.events(2), 1e-6)
    assert found.accountant == "exact"
    assert found.sampler == "all"


def test_what_has_no_formula_is_not_claimed() -> None:
    subset = {**CLIENT, "sampler": "without-replacement", "rate": 1.0, "sample_size": 10, "relation": "replace-one"}
    found = claim(Plan.of(subset), 1e-5, rounds=20, subjects={"a": ("x", "y"), "b": ("x",)})
    assert found.accountant == "rdp"
    assert math.isfinite(found.epsilon)
    assert found.worst == math.inf
    assert "For a person on several clients there is no formula, and nothing is claimed." in found.text


@pytest.mark.parametrize("values", [{}, {"clip": {"bound": 1.0}}])
def test_without_noise_nothing_is_claimed(values: dict[str, Any]) -> None:
    found = claim(Plan.of(values), 1e-5, rounds=3, subjects={"a": ("x",)})
    assert (found.epsilon, found.accountant, found.worst) == (math.inf, "none", None)
    assert claim(Plan.of(values), 1e-5, rounds=3, events_by_client={}).epsilon == math.inf
    assert found.values()["epsilon"] is None
    assert found.text.startswith("Nothing is claimed")


def test_a_release_without_noise_voids_the_claim_of_whoever_is_in_it() -> None:
    plan = Plan.of(SUBJECT)
    ledgers = {"x": plan.events(1), "y": Plan.none().events(1)}
    found = claim(plan, 1e-5, rounds=1, events_by_client=ledgers, subjects={"a": ("x",), "b": ("y",)})
    assert found.worst == found.epsilon == math.inf
    found = claim(plan, 1e-5, rounds=1, events_by_client=ledgers, subjects={"a": ("x",)})
    assert math.isfinite(found.epsilon)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (SUBJECT, "against everybody, the server included"),
        (CLIENT, "against everybody but the server, which sees single updates"),
        ({**CLIENT, **SECURE}, "against everybody but the server, which sees their sum without the noise"),
        (SHARES, "a malicious server with up to 5% of the clients included, who see sums alone"),
        ({**SUBJECT, "unit": "session", "clients": 2}, "counted on 2 client(s). A person with several sessions"),
        ({**CLIENT, "relation": "zero-out"}, "One client, replaced by nothing"),
        (SUBJECT, "One subject, added or removed, changes what anybody can tell by at most epsilon"),
        (SUBJECT, "at delta 1e-05 (accountant pld; by RDP"),
    ],
)
def test_the_words_say_who_is_protected_against_whom(values: dict[str, Any], words: str) -> None:
    assert words in claim(Plan.of(values), 1e-5, rounds=2).text


def test_values_are_json_and_say_the_same() -> None:
    found = claim(Plan.of(SUBJECT), 1e-5, rounds=10)
    values = json.loads(json.dumps(found.values(), allow_nan=False))
    assert values["unit"] == "subject"
    assert values["epsilon"] == found.epsilon
    assert values["text"] == found.text


def test_the_events_of_a_person_are_hers_alone() -> None:
    local, central = Plan.of(SUBJECT), Plan.of(CLIENT)
    ledgers = {"x": local.events(1), "y": local.events(2)}
    assert of_person(local, ledgers, ("y", "elsewhere")) == local.events(2)
    (event,) = central.events(3)
    assert of_person(central, {SERVER: (event,)}, ("x", "y")) == (replace(event, group=2),)
