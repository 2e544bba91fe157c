"""LiRA: its statistics, its scores where the answer is known, and membership of a mean."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import auc, tpr_at_fpr
from cloister.privacy.audits.lira import (
    audit_lira,
    by_subject,
    leave_one_out,
    lira_scores,
    log_odds,
    over_rounds,
    prototype_margin,
)
from cloister.privacy.audits.one_run import one_run_bound
from cloister.privacy.events import Unit


def test_log_odds_are_those_of_the_softmax_and_do_not_saturate() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5))
    labels = np.arange(20) % 5
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(20), labels]
    assert log_odds(logits, labels) == pytest.approx(np.log(p / (1 - p)))
    assert log_odds(np.array([[1000.0, 0.0]]), np.array([0])) == pytest.approx(1000.0)


def test_prototype_margin() -> None:
    prototypes = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    embeddings = np.array([[5.0, 0.0], [1.0, 1.0]])
    assert prototype_margin(embeddings, prototypes, np.array([0, 2])) == pytest.approx([1.0, -2 * math.sqrt(0.5)])


def test_a_persons_records_are_summed() -> None:
    statistics = np.array([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    assert by_subject(statistics, np.array([1, 0, 1, 0])).tolist() == [[10.0, 5.0], [2.0, 2.0]]


def test_rounds_are_joined() -> None:
    scores = np.array([[1.0, -2.0], [3.0, -1.0]])
    assert over_rounds(scores, "sum").tolist() == [4.0, -3.0]
    assert over_rounds(scores, "max").tolist() == [3.0, -1.0]


def test_the_online_score_is_the_log_likelihood_ratio() -> None:
    generator = np.random.default_rng(1)
    membership = np.arange(200)[:, None] % 2 == np.arange(3)[None, :] % 2
    statistics = generator.normal(np.where(membership, 2.0, 0.0), np.where(membership, 0.5, 1.0))
    observed = np.array([1.0, 2.0, -1.0])
    expected = []
    for target in range(3):
        inside, outside = (statistics[membership[:, target] == world, target] for world in (True, False))
        worlds = [NormalDist(w.mean(), w.std(ddof=1)) for w in (inside, outside)]
        expected.append(math.log(worlds[0].pdf(observed[target]) / worlds[1].pdf(observed[target])))
    assert lira_scores(statistics, membership, observed) == pytest.approx(expected)
    outside = statistics[~membership[:, 0], 0]
    offline = lira_scores(statistics, membership, observed, offline=True)
    assert offline[0] == pytest.approx((observed[0] - outside.mean()) / outside.std(ddof=1))


def hard_and_easy(shadows: int, targets: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets of very different difficulty, which move by 2 deviations when they are members."""
    generator = np.random.default_rng(2)
    difficulty = generator.normal(0, 10, targets)
    membership = generator.random((shadows + 1, targets)) < 0.5
    statistics = difficulty + 2.0 * membership + generator.normal(size=membership.shape)
    return statistics[1:], membership[1:], statistics[0], membership[0]


def test_scores_calibrated_per_target_find_what_one_threshold_cannot() -> None:
    statistics, membership, observed, members = hard_and_easy(64)
    expected = 1 - NormalDist().cdf(NormalDist().inv_cdf(0.99) - 2)  # two known Gaussians 2 deviations apart
    for offline in (False, True):
        scores = lira_scores(statistics, membership, observed, offline=offline)
        assert tpr_at_fpr(scores[members], scores[~members], 0.01) == pytest.approx(expected, abs=0.12)
    assert tpr_at_fpr(observed[members], observed[~members], 0.01) < 0.05


def test_with_few_shadows_all_targets_share_one_deviation() -> None:
    statistics, membership, observed, members = hard_and_easy(12)
    enough = (membership.sum(0) >= 2) & ((~membership).sum(0) >= 2)
    scores = lira_scores(statistics[:, enough], membership[:, enough], observed[enough])
    found, others = scores[members[enough]], scores[~members[enough]]
    assert auc(found, others) > 0.85
    assert tpr_at_fpr(found, others, 0.01) > 0.2


def mean_of_members(z: float, people: int = 300, records: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Statistics ``[models, people * records]`` of models that are the noisy mean of their members' records."""
    generator = np.random.default_rng(3)
    data = generator.normal(size=(people * records, 400)) + np.repeat(generator.normal(size=(people, 400)), records, 0)
    membership = generator.random((24, people)) < 0.5
    models = np.repeat(membership, records, 1) @ data / len(data)
    models += z * generator.normal(size=models.shape)
    return models @ data.T, membership, np.repeat(np.arange(people), records)


def test_people_are_found_by_the_sum_of_their_records() -> None:
    statistics, membership, subjects = mean_of_members(0.08)
    each = leave_one_out(statistics, np.repeat(membership, 3, 1))
    people = leave_one_out(by_subject(statistics, subjects), membership)
    members = np.repeat(membership, 3, 1)
    assert auc(people[membership], people[~membership]) > auc(each[members], each[~members]) + 0.02
    assert auc(each[members], each[~members]) > 0.6


def test_the_audit_disproves_a_claim_and_noise_restores_it() -> None:
    for z, caught in ((0.01, True), (50.0, False)):
        statistics, membership, subjects = mean_of_members(z)
        scores = leave_one_out(by_subject(statistics, subjects), membership)
        result = audit_lira(scores, membership, unit=Unit.SUBJECT, statistic="inner product", delta=1e-5, claimed=0.5)
        assert result.passed is not caught
        assert (result.tpr_at_fpr["0.01"] > 0.2) is caught
        single = audit_lira(
            scores[0], membership[0], unit=Unit.SUBJECT, statistic="inner product", delta=1e-5, claimed=None
        )
        assert single.passed
        assert single.epsilon is not None
        assert (single.epsilon > 0.5) is caught


def test_the_best_of_several_models_is_paid_for() -> None:
    members = np.arange(400) % 2 == 0
    named: dict[str, Any] = {"unit": Unit.EXAMPLE, "statistic": "", "delta": 0.0, "claimed": None}
    scores = np.where(members, 1.0, -1.0) + np.arange(400) / 1000
    found = audit_lira(np.stack([scores, -scores]), np.stack([members, members]), **named)
    assert found.epsilon == pytest.approx(one_run_bound(400, 400, 400, 0.0, 0.05 / 4 / 2))
    assert found.numbers["auc"] == pytest.approx(0.5)
    assert found.numbers["models"] == 2


def test_what_cannot_be_audited_is_refused() -> None:
    ones, bits = np.ones((4, 3)), np.eye(4, 3) > 0
    with pytest.raises(AuditError, match=r"found \(4, 3\), \(4, 3\) and \(4,\)"):
        lira_scores(ones, bits, np.ones(4))
    with pytest.raises(AuditError, match="at least 2 shadow models with each target, found 1 for target 0"):
        lira_scores(ones, bits, np.ones(3))
    with pytest.raises(AuditError, match="with 3 members"):
        audit_lira(np.ones(3), np.ones(3, dtype=bool), unit=Unit.SUBJECT, statistic="", delta=0.0, claimed=None)
