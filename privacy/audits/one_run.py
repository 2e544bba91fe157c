"""Auditing with one run: many canaries, each in or out by a fair coin, guessed from the run's result.

Steinke, Nasr and Jagielski, NeurIPS 2023 (Privacy auditing with one (1) training run). A canary is one unit of the
claim (a record, a person, a client) that is put into training with probability 1/2, independently of all others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import Scores, binomial_log_probabilities, bisect

_MOST = 50.0
"""Where the search ends: above it, the chance of a wrong guess is below the precision of a float."""


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """``right`` of ``made`` guesses about ``canaries`` canaries, and the epsilon that they disprove being below."""

    canaries: int
    made: int
    right: int
    epsilon: float


def one_run_bound(m: int, r: int, v: int, delta: float, beta: float = 0.05) -> float:
    """Return an epsilon that the mechanism does not stay below when ``v`` of ``r`` guesses were right.

    ``m``: canaries, each included with probability 1/2; ``r``: how many were guessed, a number fixed beforehand, the
    others abstained from. The largest epsilon with ``p(epsilon) <= beta``, where ``p`` bounds the chance of so many
    right guesses (section 5): ``p = Pr[B >= v] + 2 m delta max_i Pr[v > B >= v - i] / i`` with ``B ~ Binomial(r,
    e^eps / (1 + e^eps))``.

    Guarantee: above the true epsilon with probability at most ``beta``. Raises :class:`AuditError` unless ``0 <= v <=
    r <= m``, ``r >= 1``.
    """
    if not 0 <= v <= r <= m or r < 1:
        raise AuditError(f"one-run audit: expected right <= guesses <= canaries, found {v}, {r}, {m}")
    if _chance(m, r, v, delta, 0.0) > beta:
        return 0.0
    return bisect(lambda epsilon: _chance(m, r, v, delta, epsilon) <= beta, 0.0, _MOST)


def audit_one_run(
    scores: Scores,
    included: NDArray[np.bool_],
    *,
    delta: float,
    beta: float = 0.05,
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
) -> Guesses:
    """Guess the canaries with the highest scores in and those with the lowest out, and return the best bound.

    ``scores``: one per canary ``[m]``, higher for more likely in. ``included``: the coins, bool ``[m]``. For each of
    ``fractions``, that share of the canaries is guessed, half as in, half as out. Each is judged at ``beta`` divided
    by their number, so the best of them may be chosen after the fact.

    Raises :class:`AuditError` for shapes that do not match, fewer than 2 canaries, or scores that are not finite.
    """
    if scores.shape != included.shape or scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
        raise AuditError(
            f"one-run audit: expected finite scores and coins of at least 2 canaries, found shapes {scores.shape} and "
            f"{included.shape}; a canary without a score cannot be judged"
        )
    order, best = np.argsort(-scores, kind="stable"), Guesses(canaries=len(scores), made=0, right=0, epsilon=-1.0)
    for fraction in fractions:
        half = max(1, int(fraction * len(scores)) // 2)
        right = int(included[order[:half]].sum() + (~included[order[-half:]]).sum())
        epsilon = one_run_bound(len(scores), 2 * half, right, delta, beta / len(fractions))
        if epsilon > best.epsilon:
            best = Guesses(canaries=len(scores), made=2 * half, right=right, epsilon=epsilon)
    return best


def _chance(m: int, r: int, v: int, delta: float, epsilon: float) -> float:
    """Return ``p(epsilon)``, the largest probability of at least ``v`` right guesses under (epsilon, delta)."""
    success = 1 / (1 + math.exp(-epsilon))
    chances = np.exp(binomial_log_probabilities(r, success))
    below = np.cumsum(chances[:v][::-1]) / np.arange(1, v + 1)  # Pr[v > B >= v - i] / i for i = 1..v
    slack = 2 * m * delta * float(below.max()) if v else 0.0
    return float(chances[v:].sum()) + slack
