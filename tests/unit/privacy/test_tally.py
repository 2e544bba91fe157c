"""Counting a transcript's rounds: what follows on what, what costs, and what a repeated round adds."""

from typing import Any

import pytest

from cloister.errors import PlanError
from cloister.privacy.plan import Plan
from cloister.privacy.tally import Tally
from cloister.privacy.transcript import Commitment, Header, Round

LOCAL: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "local",
    "noise_multiplier": 2.0,
    "clip": {"bound": 1.0},
}
CENTRAL = {**LOCAL, "trust": "central", "sampler": "poisson", "rate": 0.5, "population": 40}
MATRIX = {
    **LOCAL,
    "mechanism": "matrix",
    "trust": "central",
    "sampler": "min-separation",
    "population": 4,
    "matrix": {"kind": "banded", "bands": 2, "separation": 2},
}
SUBJECT = {**LOCAL, "unit": "subject", "clients": 2}


def digest(number: float) -> str:
    return f"{int(number * 10):064x}"


def header(plan: dict[str, Any]) -> Header:
    return Header(
        run="r",
        experiment="e",
        experiment_digest=digest(0),
        code=digest(0),
        task="t",
        rounds=4,
        plan=Plan.of(plan).values(),
        delta=1e-5,
        server=digest(1),
        model=digest(0),
    )


def entry(tally: Tally, number: int, *clients: str, void: bool = False, reply: float = 1, **more: Any) -> Round:
    hidden = tally.plan.central
    values: dict[str, Any] = {
        "round": number,
        "void": void,
        "hidden": hidden,
        "cohort": () if hidden else clients,
        "commitments": {} if hidden else {name: Commitment(digest=digest(reply)) for name in clients},
        "layout": digest(9),
        "events": tally.events(number, void=void),
        "before": tally.model,
        "model": tally.model if void else digest(number),
        **more,
    }
    return Round(**values)


def run(tally: Tally, *rounds: Round) -> list[tuple[str, str]]:
    problems = []
    for each in rounds:
        problems += [(problem.what, problem.client) for problem in tally.follows(each)]
        tally.add(each)
    return problems


def test_each_client_is_counted_for_the_rounds_that_it_was_asked_in() -> None:
    tally = Tally(header(LOCAL))
    for number, clients in ((1, "ab"), (2, "a"), (3, "ab"), (4, "ac")):
        assert run(tally, entry(tally, number, *clients)) == []
    plan = Plan.of(LOCAL)
    assert tally.epsilon() == pytest.approx(cost(plan, 4))


def cost(plan: Plan, rounds: int, times: int = 1) -> float:
    from cloister.privacy.accounting import epsilon

    return epsilon(plan.events(rounds) * times, 1e-5)


def test_a_person_is_counted_on_as_many_clients_as_the_plan_declares() -> None:
    tally = Tally(header(SUBJECT))
    for number in (1, 2, 3):
        assert run(tally, entry(tally, number, "a", "b", "c")) == []
    assert tally.epsilon() == pytest.approx(cost(Plan.of(SUBJECT), 3, 2))


def test_central_noise_is_counted_once_a_round_and_names_nobody() -> None:
    tally = Tally(header(CENTRAL))
    for number in (1, 2):
        assert run(tally, entry(tally, number)) == []
    assert tally.epsilon() == pytest.approx(cost(Plan.of(CENTRAL), 2))
    named = entry(tally, 3, cohort=("a",), hidden=True)
    assert run(tally, named) == [("who took part", "")]


def test_a_void_round_costs_what_left_the_clients_and_nothing_of_the_servers() -> None:
    local, central = Tally(header(LOCAL)), Tally(header(CENTRAL))
    assert run(local, entry(local, 1, "a", void=True), entry(local, 1, "a")) == []
    assert local.epsilon() == pytest.approx(cost(Plan.of(LOCAL), 1))
    assert run(central, entry(central, 1, void=True)) == []
    assert run(central, entry(central, 2)) == []
    assert central.epsilon() == pytest.approx(cost(Plan.of(CENTRAL), 2))  # the ledger appends both in round 2


def test_a_matrix_is_one_event_that_belongs_to_the_first_release() -> None:
    tally = Tally(header(MATRIX))
    first = entry(tally, 1)
    assert len(first.events) == 1
    assert run(tally, first) == []
    second = entry(tally, 2)
    assert second.events == ()
    assert run(tally, second) == []


def test_a_round_that_was_carried_out_again_is_counted_once() -> None:
    tally = Tally(header(LOCAL))
    assert run(tally, entry(tally, 1, "a", "b"), entry(tally, 1, "a", "b", before=digest(0))) == []
    again = entry(tally, 1, "a", "c", before=digest(0))
    assert run(tally, again) == []
    assert tally.epsilon() == pytest.approx(cost(Plan.of(LOCAL), 1))


def test_another_reply_in_the_same_round_is_a_release_that_nobody_counted() -> None:
    tally = Tally(header(LOCAL))
    again = entry(tally, 1, "a", "b", reply=2)
    assert run(tally, entry(tally, 1, "a", "b"), again) == [
        ("the same reply when the round was carried out again", "a"),
        ("the same reply when the round was carried out again", "b"),
    ]
    plain = Tally(header({}))
    again = entry(plain, 1, "a", reply=2)
    assert run(plain, entry(plain, 1, "a"), again) == []  # nothing is claimed, so nothing is lost


@pytest.mark.parametrize("number", [1, 3, 9])
def test_the_rounds_follow_one_another(number: int) -> None:
    tally = Tally(header(LOCAL))
    first = entry(tally, 1, "a")
    other = entry(tally, number, "a", before=digest(1))
    found = run(tally, first, other)
    assert [what for what, _ in found] == (["weights that were sent"] if number == 1 else ["round"])


def test_a_server_goes_back_by_a_few_rounds_and_no_further() -> None:
    tally = Tally(header(LOCAL))
    for number in range(1, 7):
        assert run(tally, entry(tally, number, "a")) == []
    assert run(tally, entry(tally, 5, "a", before=digest(4))) == []
    assert run(tally, entry(tally, 6, "a", before=digest(5))) == []
    assert run(tally, entry(tally, 2, "a", before=digest(1))) == [("round", "")]


def test_nothing_follows_on_a_round_that_was_gone_back_behind() -> None:
    tally = Tally(header(LOCAL))
    run(tally, entry(tally, 1, "a"), entry(tally, 2, "a", before=digest(1)))
    changed = entry(tally, 1, "a", before=digest(0), model=digest(7))
    assert run(tally, changed) == []
    assert run(tally, entry(tally, 3, "a", before=digest(2))) == [("weights that were sent", "")]


def test_weights_events_and_clients_must_be_those_of_the_plan() -> None:
    tally = Tally(header(LOCAL))
    good = entry(tally, 1, "a")
    other = Plan.of({**LOCAL, "noise_multiplier": 20.0}).events(1)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"before": digest(5)}, "weights that were sent"),
        ({"events": ()}, "events"),
        ({"events": other}, "events"),
        ({"events": good.events * 2}, "events"),
        ({"hidden": True}, "who took part"),
        ({"cohort": ()}, "commitment"),
    ]
    for change, what in bad:
        assert [problem.what for problem in tally.follows(good.model_copy(update=change))] == [what]
    assert list(tally.follows(good)) == []


def test_without_noise_or_rounds_nothing_is_claimed() -> None:
    plain, empty = Tally(header({})), Tally(header(LOCAL))
    run(plain, entry(plain, 1, "a"))
    assert plain.epsilon() is None
    assert empty.epsilon() is None


def test_a_plan_that_no_version_has_is_refused() -> None:
    with pytest.raises(Exception, match="mechansim"):
        Tally(header(LOCAL).model_copy(update={"plan": {"mechansim": "gaussian"}}))
    with pytest.raises(PlanError):
        Tally(header(LOCAL).model_copy(update={"plan": {"mechanism": "gaussian"}}))


def test_a_sum_with_fewer_shares_of_noise_than_are_counted_on_is_found() -> None:
    shares = {**LOCAL, "trust": "distributed", "relation": "zero-out", "population": 10, "noise_multiplier": 5.0}
    made = {**shares, "secure": {"size": 100, "dropouts": 0.25}}
    names = tuple("abcdefghij")
    for counted, problems in ((8, []), (7, [("shares of noise in the sum", "")])):
        tally = Tally(header(made))
        assert run(tally, entry(tally, 1, *names[:counted])) == problems
        assert run(tally, entry(tally, 2, *names[:3], void=True)) == []
