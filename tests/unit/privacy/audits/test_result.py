"""Audit results: JSON and back, and no pass that the numbers contradict."""

import json
from typing import Any

import pytest

from cloister.errors import AuditError
from cloister.privacy.audits.result import AuditResult, judge
from cloister.privacy.events import Unit

RESULT: dict[str, Any] = {
    "name": "canary-clients",
    "unit": Unit.CLIENT,
    "statistic": "cosine",
    "passed": True,
    "text": "fine",
    "epsilon": 1.5,
    "delta": 1e-5,
    "claimed": 2.0,
    "tpr_at_fpr": {"0.01": 0.02},
    "numbers": {"auc": 0.6},
    "pictures": ("audits/canaries.png",),
}


def test_a_result_survives_json() -> None:
    result = AuditResult(**RESULT)
    assert AuditResult.of(json.loads(json.dumps(result.values()))) == result


def test_a_bound_above_the_claim_is_no_pass() -> None:
    with pytest.raises(AuditError, match=r"lower bound 2\.5 is above the claim 2"):
        AuditResult(**{**RESULT, "epsilon": 2.5})
    assert not AuditResult(**{**RESULT, "epsilon": 2.5, "passed": False}).passed


@pytest.mark.parametrize(
    "change", [{"epsilon": float("inf")}, {"numbers": {"auc": float("nan")}}, {"tpr_at_fpr": {"0.1": float("nan")}}]
)
def test_numbers_are_finite(change: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="expected a finite number"):
        AuditResult(**{**RESULT, **change})


@pytest.mark.parametrize("change", [{"extra": 1}, {"unit": "planet"}, {"pictures": None}])
def test_what_is_no_result_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="audit result"):
        AuditResult.of({**AuditResult(**RESULT).values(), **change})


@pytest.mark.parametrize(("epsilon", "claimed", "passed"), [(1.0, None, True), (1.0, 1.0, True), (1.1, 1.0, False)])
def test_judgement(epsilon: float, claimed: float | None, passed: bool) -> None:
    assert judge(epsilon, claimed)[0] is passed
