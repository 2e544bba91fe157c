"""The plan: what it refuses, that it survives being written down, and what it makes of its values."""

import json
from typing import Any

import pytest
import tomli_w

from cloister.errors import CloisterError, ConfigError, PlanError
from cloister.privacy.events import EventKind, Relation, Sampler, Unit
from cloister.privacy.plan import Plan

CLIENTS: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "central",
    "sampler": "poisson",
    "rate": 0.1,
    "population": 1000,
    "noise_multiplier": 1.0,
    "clip": {"bound": 0.5},
}
LOCAL = {**CLIENTS, "trust": "local", "sampler": "all", "rate": 1.0}
STEPS: dict[str, Any] = {
    "unit": "subject",
    "mechanism": "dp-sgd",
    "sampler": "poisson",
    "rate": 0.05,
    "sample_size": 8,
    "steps": 10,
    "records": 4,
    "noise_multiplier": 1.5,
    "clip": {"bound": 2},
}
MATRIX = {
    **CLIENTS,
    "mechanism": "matrix",
    "sampler": "min-separation",
    "rate": 1.0,
    "matrix": {"separation": 4, "bands": 4},
}
ADAPTIVE = {**CLIENTS, "clip": {"kind": "adaptive", "bound": 1.0, "bits_noise": 5.0}}
CENTRES = {"bound": 1.0, "noise_multiplier": 2.0, "count_multiplier": 4.0, "every": 3}
PER_LAYER = {**CLIENTS, "clip": {"kind": "per-layer", "per_layer": {"stem.": 3, "head.": 4}}}
ALL = [{}, CLIENTS, LOCAL, STEPS, MATRIX, ADAPTIVE, PER_LAYER, {**STEPS, "centres": CENTRES}]


@pytest.mark.parametrize("values", ALL)
def test_a_plan_survives_json_and_toml(values: dict[str, Any]) -> None:
    plan = Plan.of(values)
    assert Plan.of(json.loads(json.dumps(plan.values()))) == plan
    assert tomli_w.dumps(plan.values())
    assert Plan.of(json.loads(json.dumps(plan.values()))).digest == plan.digest


def test_the_digest_is_of_the_values_and_not_of_how_they_were_written() -> None:
    assert Plan.of({**STEPS, "clip": {"bound": 2.0}}).digest == Plan.of(STEPS).digest
    assert len({Plan.of(values).digest for values in ALL}) == len(ALL)
    assert Plan.of({**STEPS, "noise_multiplier": 1.5000001}).digest != Plan.of(STEPS).digest
    # Canonical JSON by SHA-256; a change here breaks every ledger and every agreement between server and site.
    assert Plan.none().digest == "cfa01eeb3b47f8c1c537b6f1b336e699c7c6505e2b4d95636589e912b3b9e4a9"


@pytest.mark.parametrize(
    ("values", "error", "problem"),
    [
        ({"unti": "client"}, ConfigError, "unknown key 'unti'; did you mean 'unit'"),
        ({"clip": {"bond": 1.0}}, ConfigError, "unknown key 'clip.bond'; did you mean 'bound'"),
        ({"unit": "camera"}, ConfigError, "unit.*example.*subject"),
        ({"rate": "0.1"}, ConfigError, "rate"),
        ({"noise_multiplier": -1.0}, ConfigError, "noise_multiplier"),
        ({"noise_multiplier": float("nan")}, ConfigError, "noise_multiplier"),
        ({"clip": {"bound": float("inf")}}, ConfigError, "bound"),
        ({**CLIENTS, "clip": {"bound": 0.0}}, ConfigError, "clip.bound"),
        ({"mechanism": "gaussian"}, PlanError, "expected a .plan.clip. with a bound under mechanism gaussian"),
        ({**STEPS, "steps": 0}, PlanError, "steps: expected at least 1"),
        ({**LOCAL, "rate": 0.5}, PlanError, "only poisson has a rate"),
        ({**LOCAL, "sampler": "fixed", "sample_size": 2000}, PlanError, "found 2000 of 1000"),
        ({**MATRIX, "mechanism": "gaussian"}, PlanError, "expected mechanism matrix, found gaussian"),
        ({**CLIENTS, "mechanism": "matrix"}, PlanError, "expected a .plan.matrix."),
        ({**MATRIX, "clip": {"kind": "adaptive"}}, PlanError, "a bound that stays, found adaptive"),
        ({**CLIENTS, "weighting": "capped"}, PlanError, "weight_cap"),
        ({**CLIENTS, "clip": {"kind": "per-layer"}}, PlanError, "clip.per_layer"),
        ({**CLIENTS, "clip": {"per_layer": {"a": 1.0}}}, PlanError, "clip.per_layer"),
        ({**ADAPTIVE, "noise_multiplier": 10.0}, PlanError, "expected a noise multiplier above 0 and below 10"),
    ],
)
def test_what_is_no_plan_is_refused(values: dict[str, Any], error: type[CloisterError], problem: str) -> None:
    with pytest.raises(error, match=problem):
        Plan.of(values)


def test_a_plan_without_keys_claims_nothing() -> None:
    plan = Plan.none()
    assert (plan.noisy, plan.central, plan.local, plan.private_steps) == (False, False, False, False)
    assert [event.kind for event in plan.events(3)] == [EventKind.NONE]
    assert plan.client_stages() == plan.server_stages() == ()


def test_who_adds_noise_follows_from_mechanism_and_trust() -> None:
    assert (Plan.of(CLIENTS).central, Plan.of(CLIENTS).local) == (True, False)
    assert (Plan.of(LOCAL).central, Plan.of(LOCAL).local) == (False, True)
    assert (Plan.of(STEPS).private_steps, Plan.of(STEPS).local) == (True, True)


def test_client_noise_at_the_server_is_one_sampled_event_for_each_round() -> None:
    (event,) = Plan.of(CLIENTS).events(7)
    assert (event.kind, event.noise_multiplier, event.count) == (EventKind.GAUSSIAN, 1.0, 7)
    assert (event.sampler, event.rate, event.group, event.unit) == (Sampler.POISSON, 0.1, 1, Unit.CLIENT)


def test_an_upload_noised_by_the_client_is_not_amplified() -> None:
    (event,) = Plan.of({**LOCAL, "sampler": "poisson", "rate": 0.1}).events(7)
    assert (event.sampler, event.rate, event.count) == (Sampler.ALL, 1.0, 7)


def test_private_steps_count_steps() -> None:
    (event,) = Plan.of(STEPS).events(7)
    assert (event.count, event.rate, event.group) == (70, 0.05, 1)
    (event,) = Plan.of({**STEPS, "sampled": "records"}).events(7)
    assert (event.count, event.group) == (70, 4)
    (event,) = Plan.of({**STEPS, "unit": "example", "sampled": "records", "records": 1}).events(7)
    assert event.group == 1


def test_fixed_batches_count_epochs_and_a_round_starts_a_new_one() -> None:
    fixed = {**STEPS, "sampler": "fixed", "rate": 1.0, "relation": "zero-out", "sample_size": 4, "population": 10}
    (event,) = Plan.of(fixed).events(5)  # 10 steps of a third of an epoch each
    assert (event.sampler, event.rate, event.count) == (Sampler.FIXED, 1.0, 5 * 4)


def test_a_matrix_mechanism_is_one_event_from_the_first_round_on() -> None:
    plan = Plan.of(MATRIX)
    assert plan.events(0) == ()
    assert plan.events(1) == plan.events(50)
    assert (plan.events(1)[0].count, plan.events(1)[0].sampler) == (1, Sampler.ALL)
    assert plan.increment(1, 50) == ()


@pytest.mark.parametrize("values", ALL)
def test_increments_add_up_to_the_events(values: dict[str, Any]) -> None:
    plan = Plan.of(values)
    counts: dict[str, int] = {}
    for before in range(10):
        for event in plan.increment(before, before + 1):
            key = str({**event.values(), "count": 1})
            counts[key] = counts.get(key, 0) + event.count
    assert counts == {str({**event.values(), "count": 1}): event.count for event in plan.events(10)}


def test_centres_are_released_in_the_first_round_and_every_third() -> None:
    plan = Plan.of({**STEPS, "centres": CENTRES})
    counts = [sum(event.count for event in plan.increment(n, n + 1) if event.rate == 1) // 2 for n in range(8)]
    assert counts == [1, 0, 0, 1, 0, 0, 1, 0]
    assert [event.noise_multiplier for event in plan.events(1)] == [1.5, 2.0, 4.0]


def test_what_a_round_costs_is_unknown_before_calibration() -> None:
    with pytest.raises(PlanError, match="call calibrate"):
        Plan.of({**CLIENTS, "noise_multiplier": 0}).events(1)
    with pytest.raises(PlanError, match="expected 0 <= before <= after, found rounds 3 to 2"):
        Plan.of(CLIENTS).increment(3, 2)


def test_adaptive_clipping_splits_the_noise_as_published() -> None:
    # Andrew et al. 2021, theorem 1: z = 1, sigma_b = 5 -> z_delta = 1.005038. The event costs z.
    plan = Plan.of({**ADAPTIVE, "rate": 0.1, "population": 1000})
    assert plan.update_multiplier == pytest.approx(1.005038, abs=1e-6)
    assert plan.events(1)[0].noise_multiplier == 1.0
    assert plan.server_stages()[0]["noise"] == plan.update_multiplier


def test_bits_noise_is_a_twentieth_of_the_cohort_where_it_is_not_given() -> None:
    plan = Plan.of({**CLIENTS, "clip": {"kind": "adaptive", "bound": 1.0}})
    assert (plan.cohort, plan.bits_noise) == (100.0, 5.0)
    assert plan.server_stages()[-1].numbers == {
        "quantile": 0.5,
        "learning_rate": 0.2,
        "bits_noise": 5.0,
        "cohort": 100.0,
    }


@pytest.mark.parametrize(
    ("values", "client", "server"),
    [
        (CLIENTS, ["clip-flat"], ["noise", "divide"]),
        (LOCAL, ["clip-flat", "noise"], []),
        (STEPS, ["unit-steps"], []),
        ({**STEPS, "sampled": "records"}, ["record-steps"], []),
        (MATRIX, ["clip-flat"], ["noise-banded", "divide"]),
        (ADAPTIVE, ["clip-adaptive", "bit"], ["noise", "divide", "adapt-clip"]),
        (PER_LAYER, ["clip-per-layer"], ["noise", "divide"]),
        ({**CLIENTS, "weighting": "capped", "weight_cap": 50}, ["clip-flat", "weight"], ["noise", "divide"]),
        ({**STEPS, "centres": CENTRES}, ["unit-steps", "centres"], []),
        ({"clip": {"bound": 1.0}, "robust": "median"}, ["clip-flat"], ["robust-median"]),
    ],
)
def test_stages_come_in_the_order_in_which_they_apply(
    values: dict[str, Any], client: list[str], server: list[str]
) -> None:
    plan = Plan.of(values)
    assert [stage.name for stage in plan.client_stages()] == client
    assert [stage.name for stage in plan.server_stages()] == server


def test_a_sum_is_divided_by_what_is_expected_and_not_by_what_came() -> None:
    assert Plan.of(CLIENTS).server_stages()[-1]["by"] == 100.0
    whole = Plan.of({**CLIENTS, "sampler": "all", "rate": 1.0})
    assert whole.server_stages()[-1]["by"] == 1000.0
    drawn = {**CLIENTS, "sampler": "without-replacement", "rate": 1.0, "sample_size": 30, "relation": "replace-one"}
    assert Plan.of(drawn).server_stages()[-1]["by"] == 30.0


@pytest.mark.parametrize(("relation", "factor"), [("add-remove", 1.0), ("zero-out", 1.0), ("replace-one", 2.0)])
def test_noise_grows_with_what_one_unit_can_change(relation: str, factor: float) -> None:
    for values in (LOCAL, {**CLIENTS, "sampler": "all", "rate": 1.0}, {**STEPS, "centres": CENTRES}):
        plan = Plan.of({**values, "relation": relation})
        noises = [
            stage[key] / (factor if key == "noise" else 1.0)  # what takes a multiplier knows the relation itself
            for stage in (*plan.client_stages(), *plan.server_stages())
            for key in ("noise", "noise_multiplier", "count_multiplier")
            if key in stage.numbers
        ]
        events = plan.events(1)
        assert noises == [event.noise_multiplier for event in events]
        assert {event.relation for event in events} == {Relation(relation)}
