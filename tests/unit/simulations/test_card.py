"""The model card: what was protected, for whom, at which epsilon, what attacks found, what was not protected."""

from typing import Any

from cloister.privacy.plan import Plan
from cloister.simulations import card
from cloister.simulations.record import Deviation, Privacy, RunRecord

PLAN = {"unit": "subject", "mechanism": "dp-sgd", "steps": 2, "noise_multiplier": 1.0, "clip": {"bound": 1.0}}
CLAIM: dict[str, Any] = {
    "unit": "subject",
    "relation": "add-remove",
    "sampler": "poisson",
    "accountant": "pld",
    "epsilon": 4.125,
    "delta": 1e-5,
    "text": "Of 9 people the worst loses 4.1.",
}
AUDIT: dict[str, Any] = {
    "audit": "one-run",
    "name": "one-run",
    "unit": "subject",
    "statistic": "weight",
    "passed": True,
    "text": "1000 canaries.",
    "epsilon": 1.25,
    "delta": 1e-5,
    "confidence": 0.95,
    "claimed": 4.125,
    "tpr_at_fpr": {},
    "numbers": {},
    "pictures": [],
}


def record(privacy: Privacy, **more: Any) -> RunRecord:
    gone = [Deviation(topic="width", paper="64", run="16", why="two cores")]
    values = {"experiment": "toy", "preset": "tiny", "engine": "local", "seed": 3, "final": {"rank1": 0.25}}
    return RunRecord(**{**values, "deviations": gone, "settings": {"task": "camera"}, **more}, privacy=privacy)


def test_a_claim_stands_with_its_unit_its_bound_and_what_is_not_protected() -> None:
    text = card.render(record(Privacy(plan=Plan.of(PLAN).values(), claims=[CLAIM], audits=[AUDIT])), loadable=True)
    assert "**ε = 4.12 at δ = 1e-05** per subject, relation add-remove, sampler poisson, accountant pld." in text
    assert "- every person, with all of her records at all clients" in text
    assert "| one-run | subject | 1.25 | 4.12 | 1000 canaries. |" in text
    assert "- what can be learned about somebody from the model whether or not she took part" in text
    assert "from_pretrained" in text
    assert "- Rank-1: 25.0 %" in text
    assert "- width: 64 in the paper, 16 here. two cores" in text
    assert "next to nothing" not in text


def test_a_large_epsilon_is_called_what_it_is() -> None:
    claim = {**CLAIM, "epsilon": 4000.0}
    assert "next to nothing" in card.render(record(Privacy(plan=Plan.of(PLAN).values(), claims=[claim])), loadable=True)


def test_without_a_claim_the_card_says_so() -> None:
    text = card.render(record(Privacy(), unfinished="2 of 4 rounds are done"), loadable=False)
    assert "**No formal privacy guarantee is claimed.**" in text
    assert "- anybody: nothing was noised" in text
    assert "This run was not attacked" in text
    assert "**Not finished:** 2 of 4 rounds are done." in text
    assert "the network is that of the task `camera`" in text


def test_under_a_secure_sum_the_card_says_who_saw_what() -> None:
    client = {"unit": "client", "mechanism": "gaussian", "noise_multiplier": 1.0, "clip": {"bound": 1.0}}
    secure = {"secure": {"size": 1000}, "population": 100}
    texts = {
        trust: card.render(
            record(Privacy(plan=Plan.of({**plan, **secure}).values(), claims=[CLAIM] if plan else [])), loadable=True
        )
        for trust, plan in {
            "central": {**client, "trust": "central"},
            "distributed": {**client, "trust": "distributed", "relation": "zero-out"},
        }.items()
    }
    assert "which sees the sum of the clients' clipped updates and adds the noise" in texts["central"]
    assert "which is trusted with sums without noise" in texts["central"]
    assert "from everybody who sees the sums of rounds, the server included" in texts["distributed"]
    assert "if more clients than the plan's share collude" in texts["distributed"]
