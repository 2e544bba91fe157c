"""From an experiment's [plan] to the plan that is carried out, and to what a run may claim from its ledgers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cloister.clients.task import Protection
from cloister.errors import PlanError
from cloister.models.spec import Group
from cloister.privacy.accounting import epsilon
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.plan import Plan
from cloister.server.book import Book
from cloister.simulations import planning
from cloister.simulations.claims import DELTA, privacy_of
from cloister.strategies.config import StrategyConfig

SUBJECT: dict[str, Any] = {
    "unit": "subject",
    "mechanism": "dp-sgd",
    "sampler": "all",
    "steps": 2,
    "sample_size": 8,
    "noise_multiplier": 20.0,
    "clip": {"bound": 1.0},
}
CENTRAL: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "central",
    "sampler": "poisson",
    "rate": 0.5,
    "noise_multiplier": 2.0,
    "clip": {"bound": 1.0},
}


def experiment(plan: dict[str, Any], **strategy: Any) -> Any:
    config = {"name": "fedavg", "weighting": "uniform", "fraction": 1.0, "cohort_size": None, "evaluate_fraction": 0.0}
    return SimpleNamespace(
        name="toy", task="camera", rounds=3, plan=plan, selection="", strategy=SimpleNamespace(**{**config, **strategy})
    )


def task(count: int = 40, units: frozenset[Unit] = frozenset(Unit)) -> Any:
    return SimpleNamespace(
        clients=lambda: [f"cam{number}" for number in range(count)],
        protection=lambda: Protection(units=units, normalisation="group"),
        subjects=lambda: {"anna": ["cam0", "cam1"], "ben": ["cam2"]},
    )


def strategy() -> Any:
    return SimpleNamespace(groups={"w": Group.SHARED}, exchanges=(), takes_noise=True)


def check(plan: dict[str, Any], asked: Any = None, of: Any = None) -> None:
    asked, of = asked or experiment(plan), of or task()
    planning.check(planning.plan_of(asked, of), asked, of, strategy())


def test_what_is_left_open_is_the_experiments_and_the_worst_case() -> None:
    made = planning.plan_of(experiment(SUBJECT), task(7))
    assert (made.rounds, made.clients, made.population) == (3, 7, 0)
    assert planning.plan_of(experiment({**SUBJECT, "clients": 2}), task(7)).clients == 2
    drawn = planning.plan_of(experiment(CENTRAL), task(40))
    assert (drawn.population, drawn.clients) == (40, 1)


def test_noise_is_found_for_a_unit_on_all_its_clients() -> None:
    budget = {"epsilon": 2.0, "delta": 1e-5}
    made = planning.plan_of(experiment({**SUBJECT, "noise_multiplier": 0.0, "budget": budget}), task(4))
    assert 1.999 < epsilon(made.events(3) * 4, 1e-5) <= 2.0
    with pytest.raises(PlanError, match="to find it from, found neither"):
        planning.plan_of(experiment({**SUBJECT, "noise_multiplier": 0.0}), task(4))


def test_a_sound_plan_passes() -> None:
    check(SUBJECT)
    check(CENTRAL)


@pytest.mark.parametrize(
    ("plan", "asked", "reason"),
    [
        (SUBJECT, {"evaluate_fraction": 0.5}, "clients evaluate on private records"),
        (SUBJECT, {"weighting": "examples"}, "number of records"),
        (CENTRAL, {"name": "moon", "weighting": "sqrt"}, "weights by sqrt"),
        (SUBJECT, {"name": "moon"}, "adds moon to local training"),
        (CENTRAL, {"fraction": 0.1}, "asks for a cohort of its own"),
        ({**CENTRAL, "population": 50}, {}, "but there are 40 clients"),
    ],
)
def test_what_the_experiment_declares_counts_against_the_plan(
    plan: dict[str, Any], asked: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        check(plan, experiment(plan, **asked))


def test_a_task_that_cannot_bound_a_unit_is_refused_it() -> None:
    with pytest.raises(PlanError, match="cannot bound what one subject contributes"):
        check(SUBJECT, of=task(units=frozenset({Unit.CLIENT})))


def test_a_local_plan_does_not_draw_the_cohort() -> None:
    asked = experiment(SUBJECT, fraction=0.5)
    made = planning.plan_of(asked, task())
    assert planning.facts(made, asked, task(), strategy()).drawn is Sampler.WITHOUT_REPLACEMENT
    drawn = planning.plan_of(experiment(CENTRAL), task())
    assert planning.facts(drawn, experiment(CENTRAL), task(), strategy()).drawn is Sampler.POISSON


# What is claimed


def prepared(plan: dict[str, Any], count: int = 40) -> Any:
    asked, of = experiment(plan), task(count)
    made = planning.plan_of(asked, of)
    return SimpleNamespace(experiment=asked, task=of, plan=made, clients=tuple(of.clients()))


def settle(folder: Path, run: str, plan: Plan, rounds: int) -> None:
    book = Book(folder, run=run, plan=plan, task="camera")
    for number in range(1, rounds + 1):
        book.settle(number, lambda: {"w": np.zeros(2)})


def test_the_claim_is_of_this_runs_rows_in_the_servers_ledger(tmp_path: Path) -> None:
    ready = prepared(CENTRAL)
    settle(tmp_path / "server", "other", ready.plan, 3)
    settle(tmp_path / "server", "mine", ready.plan, 2)
    (found,) = privacy_of(ready, tmp_path, "mine").claims
    assert found["epsilon"] == pytest.approx(epsilon(ready.plan.events(2), DELTA), rel=1e-6)


def test_a_person_loses_what_her_clients_ledgers_say_together(tmp_path: Path) -> None:
    ready = prepared(SUBJECT)
    for client, rounds in (("cam0", 3), ("cam1", 2), ("cam2", 1), ("cam3", 3)):
        settle(tmp_path / "clients" / client, "mine", ready.plan, rounds)
    (found,) = privacy_of(ready, tmp_path, "mine").claims
    about = {"unit": Unit.SUBJECT, "relation": Relation.ADD_REMOVE}
    once = Event(kind=EventKind.GAUSSIAN, noise_multiplier=20.0, **about)
    assert found["worst"] == pytest.approx(epsilon([once] * 10, DELTA), rel=1e-6)  # anna: 2 steps in 3 + 2 rounds
    assert found["median"] == pytest.approx((epsilon([once] * 10, DELTA) + epsilon([once] * 2, DELTA)) / 2, rel=1e-6)


def test_nothing_is_claimed_without_noise(tmp_path: Path) -> None:
    assert privacy_of(prepared({"unit": "client"}), tmp_path, "mine").claims == []


def test_a_buffer_is_what_a_noisy_sum_is_divided_by_and_nobody_draws_it() -> None:
    buffered = experiment({**CENTRAL, "sampler": "all", "rate": 1.0, "relation": "zero-out"})
    buffered.strategy = StrategyConfig.parse({"name": "fedbuff", "buffer": 7}, "test")
    made = planning.plan_of(buffered, task())
    assert (made.sample_size, made.population, made.cohort) == (7, 40, 7.0)
    (event,) = made.events(3)
    assert (event.sampler, event.count) == (Sampler.ALL, 3)
    found = planning.facts(made, buffered, task(), strategy())
    assert (found.asynchronous, found.drawn) == (True, Sampler.ALL)
    check(buffered.plan, buffered)
    buffered.plan = CENTRAL
    with pytest.raises(PlanError, match="draws by poisson do not count"):
        check(CENTRAL, buffered)
    assert planning.plan_of(experiment({**CENTRAL, "sampler": "all", "rate": 1.0}), task()).cohort == 40.0
