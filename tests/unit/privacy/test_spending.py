"""What a ledger adds up to, by the closed form and by Renyi differential privacy."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import PlanError
from cloister.privacy import accounting
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.settings import Budget
from cloister.privacy.spending import DELTA, spending

pytestmark = pytest.mark.usefixtures("no_sync")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / FILE_NAME) as ledger:
        yield ledger


def release(ledger: Ledger, round: int, *, run: str = "r", kind: EventKind = EventKind.GAUSSIAN, **about: Any) -> None:
    noise = {} if kind is EventKind.NONE else {"noise_multiplier": 4.0}
    where = {"unit": Unit.SUBJECT, "relation": Relation.ADD_REMOVE, **about}
    events = (Event(kind=kind, count=25, **noise, **where),)
    ledger.append(
        Entry(
            kind=EntryKind.RELEASE,
            run=run,
            round=round,
            task="t",
            kinds={"arrays": 1},
            content="ab" * 32,
            events=events,
            **where,
        )
    )


def test_all_runs_add_up_to_the_published_epsilon(ledger: Ledger) -> None:
    """A hundred Gaussians of noise multiplier 4 (dp-accounting, delta 1e-5): PLD 13.2067, RDP 14.1322."""
    for run in ("a", "b"):
        for round in (1, 2):
            release(ledger, round, run=run)
    (spent,) = spending(ledger)
    assert (spent.unit, spent.relation, spent.runs, spent.releases, spent.uses) == ("subject", "add-remove", 2, 4, 100)
    assert spent.delta == DELTA == 1e-5
    assert spent.epsilon == pytest.approx(13.2067, rel=1e-3)
    assert spent.epsilon_rdp == pytest.approx(14.1322, rel=1e-3)
    assert (spent.budget, spent.left, spent.problem) == (None, None, "")


def test_what_is_left_is_of_the_budget_in_force(ledger: Ledger) -> None:
    events = (Event(kind=EventKind.GAUSSIAN, noise_multiplier=4.0, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE),)
    ledger.admit("r", 1, events, Budget(epsilon=20, delta=1e-6))
    release(ledger, 1)
    (spent,) = spending(ledger)
    assert spent.delta == 1e-6
    assert spent.epsilon == accounting.epsilon(ledger.events(), 1e-6)
    assert spent.left == 20 - spent.epsilon
    (other,) = spending(ledger, delta=1e-3)
    assert other.epsilon is not None
    assert other.epsilon < spent.epsilon
    assert (other.budget, other.left) == (20, None)  # a budget says nothing at another delta
    (lower,) = spending(ledger, {Unit.SUBJECT: Budget(epsilon=1, delta=1e-6)})
    assert lower.left == 1 - spent.epsilon < 0


def test_units_and_relations_stand_by_themselves(ledger: Ledger) -> None:
    release(ledger, 1)
    release(ledger, 2, relation=Relation.ZERO_OUT)
    release(ledger, 3, unit=Unit.CLIENT)
    found = {(item.unit, item.relation): item.uses for item in spending(ledger)}
    assert found == {("subject", "add-remove"): 25, ("subject", "zero-out"): 25, ("client", "add-remove"): 25}


def test_a_release_without_noise_has_no_finite_epsilon(ledger: Ledger) -> None:
    release(ledger, 1, kind=EventKind.NONE)
    (spent,) = spending(ledger, {Unit.SUBJECT: Budget(epsilon=1, delta=1e-5)})
    assert (spent.epsilon, spent.left) == (math.inf, -math.inf)
    values = spent.values()
    assert (values["epsilon"], values["left"]) == (None, None)
    assert values["problem"] == "infinite: something was released without noise"


def test_what_no_accountant_covers_says_so(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> float:
        raise PlanError("accounting: install cloister[privacy]")

    release(ledger, 1)
    monkeypatch.setattr(accounting, "epsilon", fail)
    (spent,) = spending(ledger)
    assert (spent.epsilon, spent.epsilon_rdp, spent.left) == (None, None, None)
    assert "install cloister[privacy]" in spent.problem


def test_a_budget_without_releases_is_left_whole(ledger: Ledger) -> None:
    (spent,) = spending(ledger, {Unit.CLIENT: Budget(epsilon=2, delta=1e-5)})
    assert (spent.unit, spent.relation, spent.releases, spent.epsilon, spent.left) == ("client", None, 0, 0.0, 2.0)
    assert spending(ledger) == ()
