"""Membership inference by likelihood ratios (LiRA), of records and of people, on one model or on a run's rounds.

Carlini, Chien, Nasr, Song, Terzis and Tramer, IEEE S&P 2022 (Membership inference attacks from first principles).
Shadow models are trained with and without each target; a target's statistic under the audited model is compared with
the two Gaussians of its own shadows. Input is arrays of statistics, so any task can be audited:

1. a statistic per record: :func:`log_odds` for classifiers, :func:`prototype_margin` for embeddings;
2. for people, :func:`by_subject` sums it over a person's records;
3. :func:`lira_scores` once per round of the run, joined by :func:`over_rounds`;
4. :func:`audit_lira` says what the scores give away.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import Scores, auc, tpr_at_fpr
from cloister.privacy.audits.one_run import audit_one_run
from cloister.privacy.audits.result import AuditResult, judge
from cloister.privacy.events import Unit

Array = NDArray[np.floating[Any]]
Bits = NDArray[np.bool_]

_OWN_DEVIATION = 32
"""From so many shadow models in a world on, a target has its own deviation; below, all targets share one (as in the
paper's section VI, with few shadow models)."""


def log_odds(logits: Array, labels: NDArray[np.integer[Any]]) -> Scores:
    """Return ``log(p / (1 - p))`` of the true class, ``[n]``, from ``logits`` ``[n, C]`` (equation 4 of the paper).

    Computed from differences of logits, so that confident models do not saturate.
    """
    rows = np.arange(len(labels))
    wide = logits.astype(np.float64)
    own = wide[rows, labels].copy()
    wide[rows, labels] = -np.inf
    scores: Scores = own - np.logaddexp.reduce(wide, axis=1)
    return scores


def prototype_margin(embeddings: Array, prototypes: Array, labels: NDArray[np.integer[Any]]) -> Scores:
    """Return the cosine with the own prototype minus the best other one, ``[n]`` in [-2, 2].

    ``embeddings`` ``[n, D]``; ``prototypes`` ``[P, D]``, P >= 2, one per person; ``labels`` ``[n]`` below P.
    """
    cosines = unit_rows(embeddings) @ unit_rows(prototypes).T
    rows = np.arange(len(labels))
    own = cosines[rows, labels].copy()
    cosines[rows, labels] = -np.inf
    margins: Scores = own - cosines.max(1)
    return margins


def unit_rows(values: Array) -> Scores:
    """Return the rows of ``[n, D]`` at length 1, in double precision; zero rows stay zero."""
    wide = values.astype(np.float64)
    rows: Scores = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    return rows


def by_subject(statistics: Array, subjects: NDArray[np.integer[Any]]) -> Scores:
    """Return statistics ``[..., n]`` of records summed over each person's records, ``[..., P]``.

    ``subjects``: the person of each record, ``[n]``, numbered 0 to P - 1. Summed before the Gaussians are fitted,
    because the records of one person are not independent.
    """
    summed: Scores = statistics.astype(np.float64) @ (subjects[:, None] == np.arange(subjects.max() + 1)[None, :])
    return summed


def lira_scores(statistics: Array, membership: Bits, observed: Array, *, offline: bool = False) -> Scores:
    """Return one score per target, ``[T]``, higher for more likely a member.

    ``statistics`` and ``membership`` ``[S, T]``: each target's statistic under S shadow models, and whether it was in
    their training. ``observed`` ``[T]``: under the audited model. Online: the logarithm of the likelihood ratio
    (algorithm 1). ``offline``: only shadows without the target are used, and the score is the number of their
    deviations by which the observed statistic is above their mean (equation 5, monotone in its p-value).

    Raises :class:`AuditError` for shapes that do not match, or a target with fewer than 2 shadows in a world.
    """
    if statistics.shape != membership.shape or statistics.ndim != 2 or observed.shape != statistics.shape[1:]:
        raise AuditError(
            f"LiRA: expected statistics and membership [shadows, targets] and observed [targets], found "
            f"{statistics.shape}, {membership.shape} and {observed.shape}"
        )
    without, spread = _fit(statistics, ~membership, "without")
    distance = (observed - without) / spread
    if offline:
        return distance
    within, spread_in = _fit(statistics, membership, "with")
    nearness = (observed - within) / spread_in
    scores: Scores = 0.5 * (distance**2 - nearness**2) + np.log(spread / spread_in)
    return scores


def leave_one_out(statistics: Array, membership: Bits, *, offline: bool = False) -> Scores:
    """Return the scores ``[S, T]`` of S models of which each is audited in turn with the others as its shadows."""
    kept = ~np.eye(len(statistics), dtype=bool)
    return np.stack(
        [
            lira_scores(statistics[rest], membership[rest], observed, offline=offline)
            for rest, observed in zip(kept, statistics, strict=True)
        ]
    )


def over_rounds(scores: Array, how: Literal["sum", "max"] = "sum") -> Scores:
    """Return scores ``[rounds, ...]`` joined over the rounds: their sum (rounds as independent views) or maximum."""
    joined: Scores = (scores.sum(0) if how == "sum" else scores.max(0)).astype(np.float64)
    return joined


def audit_lira(
    scores: Scores,
    members: Bits,
    *,
    unit: Unit,
    statistic: str,
    delta: float,
    claimed: float | None,
    confidence: float = 0.95,
) -> AuditResult:
    """Judge the scores of one audited model ``[T]``, or of several ``[N, T]``, whose members are known.

    The lower bound is that of a one-run audit, the only one that allows many targets per model, and therefore asks
    that each target was a member with probability 1/2, independently of all others; with several models the best is
    taken at an error divided by N. Rates are over all models together. Raises :class:`AuditError` for shapes that do
    not match, or if all or none are members.
    """
    if scores.shape != members.shape or scores.ndim not in (1, 2) or members.all() or not members.any():
        raise AuditError(
            f"LiRA: expected scores and membership of one shape with members and others, found {scores.shape} and "
            f"{members.shape} with {int(members.sum())} members"
        )
    inside, outside = scores[members], scores[~members]
    models = list(zip(np.atleast_2d(scores), np.atleast_2d(members), strict=True))
    beta = (1 - confidence) / len(models)
    best = max((audit_one_run(row, bits, delta=delta, beta=beta) for row, bits in models), key=lambda one: one.epsilon)
    rates = {str(rate): tpr_at_fpr(inside, outside, rate) for rate in (0.001, 0.01)}
    passed, text = judge(best.epsilon, claimed)
    return AuditResult(
        name="membership",
        unit=unit,
        statistic=statistic,
        epsilon=best.epsilon,
        delta=delta,
        confidence=confidence,
        claimed=claimed,
        passed=passed,
        tpr_at_fpr=rates,
        numbers={
            "auc": auc(inside, outside),
            "guesses": float(best.made),
            "right": float(best.right),
            "targets": float(scores.shape[-1]),
            "models": float(len(models)),
        },
        text=f"LiRA finds {rates['0.01']:.1%} of the members ({unit}s) at a false-positive rate of 1 %. {text}",
    )


def _fit(statistics: Array, chosen: Bits, world: str) -> tuple[Scores, Scores]:
    """Return mean and deviation ``[T]`` of each target's chosen statistics."""
    counts = chosen.sum(0)
    if counts.min() < 2:
        target = int(counts.argmin())
        raise AuditError(
            f"LiRA: expected at least 2 shadow models {world} each target, found {int(counts.min())} for target "
            f"{target}; train more shadow models"
        )
    means = np.where(chosen, statistics, 0.0).sum(0) / counts
    squares = np.where(chosen, (statistics - means) ** 2, 0.0).sum(0)
    shared = float(squares.sum() / (counts - 1).sum())
    variances = squares / (counts - 1) if counts.min() >= _OWN_DEVIATION else np.full(len(counts), shared)
    return means, np.sqrt(np.maximum(variances, 1e-30))
