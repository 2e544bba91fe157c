"""Lower bounds on epsilon from how well an attack tells two worlds apart, and how membership attacks are scored.

A mechanism with (epsilon, delta) limits every test between neighbouring data sets: ``TPR <= e^eps FPR + delta`` and
``TNR <= e^eps FNR + delta``. An attack that does better disproves the claim; counts come with confidence limits, so a
sound mechanism is accused no more often than ``1 - confidence``.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from cloister.errors import AuditError

Scores = NDArray[np.float64]
"""One score per target; a member's should be higher."""

_MOST = 1000.0
"""Where the search for an epsilon ends; nothing observable is above ``log`` of the number of trials."""


def binomial_log_probabilities(trials: int, success: float) -> Scores:
    """Return ``log Pr[B = k]`` for ``k = 0..trials``, ``B`` binomial with probability ``success`` in (0, 1)."""
    count = np.arange(trials + 1)
    values: Scores = _log_choices(trials) + count * math.log(success) + count[::-1] * math.log1p(-success)
    return values


@lru_cache(maxsize=8)
def _log_choices(trials: int) -> Scores:
    """Return the logarithms of the binomial coefficients, kept because searches ask for the same ones again."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    choices: Scores = logs[-1] - logs - logs[::-1]
    return choices


def upper_limit(successes: int, trials: int, error: float) -> float:
    """Return the Clopper-Pearson upper limit of a probability: true unless a chance of at most ``error`` occurred.

    Raises :class:`AuditError` unless ``0 <= successes <= trials``, ``trials >= 1``.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise AuditError(f"audit counts: expected 0 to {trials} of at least 1 trial, found {successes} of {trials}")
    if successes == trials:
        return 1.0

    def tail(success: float) -> float:
        return float(np.exp(binomial_log_probabilities(trials, success)[: successes + 1]).sum())

    return bisect(lambda success: tail(success) > error, successes / trials, 1.0)


def bisect(low_side: Callable[[float], bool], low: float, high: float) -> float:
    """Return where ``low_side`` turns from true (towards ``low``) to false, to 50 halvings of the interval."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if low_side(middle) else (low, middle)
    return (low + high) / 2


def epsilon_lower_bound(
    true_positives: int,
    positives: int,
    false_positives: int,
    negatives: int,
    *,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Return an epsilon that the mechanism does not stay below, from the counts of one test fixed beforehand.

    ``true_positives`` of ``positives`` members and ``false_positives`` of ``negatives`` non-members were called
    members, in independent runs. ``log((1 - FNR - delta) / FPR)`` with both rates at their Clopper-Pearson upper
    limits, ``(1 - confidence) / 2`` each, or the same with the worlds exchanged; at least 0.

    Guarantee: above the true epsilon with probability at most ``1 - confidence``.
    Raises :class:`AuditError` for impossible counts. Jagielski, Ullman and Oprea, NeurIPS 2020; Nasr et al., IEEE S&P
    2021.
    """
    error = (1 - confidence) / 2
    missed = upper_limit(positives - true_positives, positives, error)
    false = upper_limit(false_positives, negatives, error)
    found = [
        math.log(gain / cost) for gain, cost in ((1 - missed - delta, false), (1 - false - delta, missed)) if gain > 0
    ]
    return max(0.0, *found) if found else 0.0


def epsilon_from_scores(
    members: Scores,
    nonmembers: Scores,
    *,
    delta: float,
    confidence: float = 0.95,
    rates: Sequence[float] = (0.0, 0.01, 0.05, 0.2),
) -> float:
    """Return the best lower bound over thresholds that leave ``rates`` of the other world's scores beyond them.

    Thresholds are order statistics of one world, whose exceedance probability has exactly the distribution that the
    Clopper-Pearson limit assumes, and are judged on the other world. The error is divided by the number of
    thresholds, in both directions, so choosing the best is no cheating.

    ``members`` and ``nonmembers``: independent scores of either world. Raises :class:`AuditError` if one is empty.
    """
    _check(members, nonmembers)
    each = 1 - (1 - confidence) / (2 * len(rates))
    best = 0.0
    for high, low in ((members, nonmembers), (-nonmembers, -members)):
        ranked = np.sort(low)[::-1]
        for rate in rates:
            beyond = min(int(rate * len(low)), len(low) - 1)
            found = int((high > ranked[beyond]).sum())
            best = max(best, epsilon_lower_bound(found, len(high), beyond, len(low), delta=delta, confidence=each))
    return best


def gaussian_delta(mean: float, std_in: float, std_out: float, epsilon: float) -> float:
    """Return the least delta with which N(``mean``, ``std_in``^2) and N(0, ``std_out``^2) are ``epsilon``-close.

    The larger of the two hockey-stick divergences. Equal deviations: the Gaussian mechanism with noise multiplier
    ``std / mean`` (Balle and Wang, ICML 2018, theorem 8).
    """
    forth = _hockey_stick(mean, std_in, std_out, epsilon)
    back = _hockey_stick(mean, std_out, std_in, epsilon)  # the same two after x -> mean - x
    return max(forth, back, 0.0)


def gaussian_epsilon(mean: float, std_in: float, std_out: float, delta: float) -> float:
    """Return the epsilon of an attacker who sees N(``mean``, ``std_in``^2) or N(0, ``std_out``^2).

    An estimate where the three numbers are estimates: see :func:`gaussian_epsilon_lower_bound`. Andrew et al., ICLR
    2024 (One-shot empirical privacy estimation), section 4. Raises :class:`AuditError` for deviations not above 0.
    """
    if not (std_in > 0 and std_out > 0 and math.isfinite(mean) and 0 < delta < 1):
        raise AuditError(
            f"two Gaussians: expected a finite mean, deviations above 0 and delta in (0, 1), found {mean}, {std_in}, "
            f"{std_out}, {delta}; use more canaries"
        )
    if gaussian_delta(abs(mean), std_in, std_out, 0.0) <= delta:
        return 0.0
    return bisect(lambda epsilon: gaussian_delta(abs(mean), std_in, std_out, epsilon) > delta, 0.0, _MOST)


def gaussian_epsilon_lower_bound(
    members: Scores, nonmembers: Scores, *, delta: float, confidence: float = 0.95
) -> float:
    """Return a lower bound on the epsilon of two Gaussians of which independent draws are given.

    The difference of means at its lower limit over the larger deviation at its upper limit, the error divided by
    four; with one deviation for both worlds, the larger, epsilon is never more than with the true two.

    Guarantee: above the true epsilon with probability at most ``1 - confidence`` where both worlds are Gaussian.
    Raises :class:`AuditError` with fewer than 8 draws of either.
    """
    _check(members, nonmembers, least=8)
    error = (1 - confidence) / 4
    deviations = [_deviation_upper_limit(draws, error) for draws in (members, nonmembers)]
    spread = math.hypot(
        *(value / math.sqrt(len(d)) for value, d in zip(deviations, (members, nonmembers), strict=True))
    )
    shift = abs(float(members.mean() - nonmembers.mean())) - NormalDist().inv_cdf(1 - error) * spread
    if shift <= 0:
        return 0.0
    return gaussian_epsilon(shift, max(deviations), max(deviations), delta)


def tpr_at_fpr(members: Scores, nonmembers: Scores, fpr: float) -> float:
    """Return the highest true-positive rate of a threshold whose false-positive rate is at most ``fpr``.

    Carlini et al., IEEE S&P 2022, section III. Raises :class:`AuditError` if either array is empty.
    """
    _check(members, nonmembers)
    ranked = np.sort(nonmembers)[::-1]
    beyond = math.floor(fpr * len(ranked) + 1e-9)
    if beyond >= len(ranked):
        return 1.0
    return float((members > ranked[beyond]).mean())


def roc(members: Scores, nonmembers: Scores) -> tuple[Scores, Scores]:
    """Return false- and true-positive rates at every threshold, both ascending from 0 to 1."""
    _check(members, nonmembers)
    cuts = np.unique(np.concatenate([members, nonmembers]))[::-1]
    false = 1 - np.searchsorted(np.sort(nonmembers), cuts) / len(nonmembers)
    true = 1 - np.searchsorted(np.sort(members), cuts) / len(members)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def auc(members: Scores, nonmembers: Scores) -> float:
    """Return the probability that a member's score is above a non-member's; ties count half. 0.5 is guessing."""
    return float(np.trapezoid(*roc(members, nonmembers)[::-1]))


def _check(members: Scores, nonmembers: Scores, least: int = 1) -> None:
    for name, scores in (("members", members), ("non-members", nonmembers)):
        if scores.ndim != 1 or len(scores) < least or not np.isfinite(scores).all():
            raise AuditError(
                f"audit scores of {name}: expected at least {least} finite numbers in one row, found shape "
                f"{scores.shape}; audit more targets, or look for non-finite values in the model"
            )


def _deviation_upper_limit(draws: Scores, error: float) -> float:
    """Return the upper limit of a Gaussian's standard deviation: (n - 1) s^2 / sigma^2 is chi-square."""
    freedom = len(draws) - 1

    def cumulative(value: float) -> float:
        half = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
        return float(torch.special.gammainc(half[0], half[1]))

    quantile = bisect(lambda value: cumulative(value) < error, 0.0, float(freedom))
    return float(draws.std(ddof=1)) * math.sqrt(freedom / quantile)


def _hockey_stick(mean: float, std_p: float, std_q: float, epsilon: float) -> float:
    """Return ``P(A) - e^eps Q(A)`` for P = N(mean, std_p^2), Q = N(0, std_q^2), A = {log p/q > eps}."""
    square = 0.5 / std_q**2 - 0.5 / std_p**2
    line = mean / std_p**2
    constant = math.log(std_q / std_p) - 0.5 * (mean / std_p) ** 2 - epsilon
    # log p/q - eps = square x^2 + line x + constant, positive on A
    if abs(std_p / std_q - 1) < 1e-12:
        if line == 0:
            return 0.0
        pieces = [(-constant / line, math.inf)]
    else:
        discriminant = line**2 - 4 * square * constant
        if discriminant <= 0:
            return 0.0
        half = -0.5 * (line + math.copysign(math.sqrt(discriminant), line))
        low, high = sorted((half / square, constant / half))
        pieces = [(low, high)] if square < 0 else [(-math.inf, low), (high, math.inf)]
    total = 0.0
    for low, high in pieces:
        own = _log_mass((low - mean) / std_p, (high - mean) / std_p)
        other = epsilon + _log_mass(low / std_q, high / std_q)
        if other < own:
            total += math.exp(own) * -math.expm1(other - own)
    return total


def _log_mass(low: float, high: float) -> float:
    """Return ``log Pr[low < X < high]`` of a standard normal, exact far in either tail."""
    if low > 0:
        low, high = -high, -low
    ends = torch.tensor([low, high], dtype=torch.float64)
    below, upto = torch.special.log_ndtr(ends).tolist()
    if below == -math.inf:
        return float(upto)
    if below >= upto:
        return -math.inf
    return float(upto + math.log(-math.expm1(below - upto)))
