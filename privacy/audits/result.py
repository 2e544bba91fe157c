"""What an audit says: one lower bound beside one claim, how it was found, and in words what it means."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from cloister.errors import AuditError
from cloister.privacy.events import Unit


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The outcome of one audit, made of plain values for the run record.

    ``name`` of the audit and ``statistic`` it thresholds. ``unit``: whose participation it guesses, or whom it
    reconstructs or links. ``epsilon``: lower bound at ``delta`` that is too high with probability at most ``1 -
    confidence``; None for attacks that bound none. ``claimed``: the epsilon claimed for the same unit and delta, None
    without a claim. ``passed``: the attack did not disprove the claim (epsilon) or did not succeed (other attacks).
    ``tpr_at_fpr``: true-positive rate by false-positive rate, membership attacks only. ``numbers``: what else was
    measured. ``pictures``: file names relative to the run's folder. ``text``: one or two sentences for a reader.

    Raises :class:`AuditError` if a number is not finite, or ``passed`` contradicts the two epsilons.
    """

    name: str
    unit: Unit
    statistic: str
    passed: bool
    text: str
    epsilon: float | None = None
    delta: float = 0.0
    confidence: float = 0.95
    claimed: float | None = None
    tpr_at_fpr: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fail closed: what cannot be judged is not a pass."""
        single = {"epsilon": self.epsilon, "delta": self.delta, "confidence": self.confidence, "claimed": self.claimed}
        for name, value in {**single, **self.tpr_at_fpr, **self.numbers}.items():
            if value is not None and not math.isfinite(value):
                raise AuditError(f"audit {self.name}: {name}: expected a finite number, found {value}")
        if self.passed and self.epsilon is not None and self.claimed is not None and self.epsilon > self.claimed:
            raise AuditError(
                f"audit {self.name}: expected passed = false, for the lower bound {self.epsilon:.4g} is above the "
                f"claim {self.claimed:.4g}"
            )

    def values(self) -> dict[str, Any]:
        """Return plain JSON values, from which :meth:`of` makes an equal result."""
        values: dict[str, Any] = {**asdict(self), "unit": str(self.unit), "pictures": list(self.pictures)}
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the result that :meth:`values` described; raises :class:`AuditError` for anything else."""
        known = {item.name for item in fields(cls)}
        if set(values) != known:
            raise AuditError(f"audit result: expected the keys {sorted(known)}, found {sorted(values)}")
        try:
            plain = json.loads(json.dumps(dict(values)))
            return cls(**{**plain, "unit": Unit(plain["unit"]), "pictures": tuple(plain["pictures"])})
        except (TypeError, ValueError) as error:
            raise AuditError(f"audit result: {error}") from error


def judge(epsilon: float, claimed: float | None) -> tuple[bool, str]:
    """Return whether a claim stands beside a lower bound, and the sentence that says so."""
    if claimed is None:
        return True, f"At least epsilon {epsilon:.2f} is spent; nothing is claimed."
    if epsilon > claimed:
        return (
            False,
            f"At least epsilon {epsilon:.2f} is spent, more than the {claimed:.2f} claimed: the claim is false.",
        )
    return True, f"At least epsilon {epsilon:.2f} is spent, which does not contradict the {claimed:.2f} claimed."
