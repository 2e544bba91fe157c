"""Integer noise of a given variance, in exact arithmetic: discrete Gaussian and Skellam.

Integers are what a secure sum can add, and nothing about them is rounded: what is drawn has the distribution that the
proof is about, which floating-point noise has not (:mod:`cloister.privacy.integers`).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PrivacyError
from cloister.privacy.integers import bernoulli_exp, discrete_laplace, successes
from cloister.privacy.noise import NoiseSource

MOST_GAUSSIAN = 1 << 24
"""The largest standard deviation of :func:`discrete_gaussian`: squares of what it draws fit into 64 bits."""

MOST_SKELLAM = 1 << 15
"""The largest standard deviation of :func:`skellam`: its table has about 14 times as many rows."""

_WORD = 63  # bits of a draw from the noise source
_REACH = 14  # standard deviations that a table covers: what lies beyond has a probability below 2^-126
_GUARD = 128  # bits by which the smallest entry of a table is known exactly


def discrete_gaussian(std: int, n: int, source: NoiseSource) -> NDArray[np.int64]:
    """Return ``n`` integers, each y with probability proportional to exp(-y^2 / (2 std^2)).

    ``std``: an integer from 1 to 2^24. The variance is at most ``std``^2, and less than that by an amount that no
    double tells for a ``std`` of 2 or more.
    Raises :class:`PrivacyError` for another ``std``: noise that is off is not noise.
    Source: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy", arXiv 2004.00010,
    algorithm 3, with t = std in place of std + 1: then the probabilities are fractions of 2 std^2, not of 2 std^2 t^2.
    """
    _check(std, MOST_GAUSSIAN)
    drawn, missing = np.zeros(n, np.int64), np.arange(n)
    while missing.size:
        proposed = discrete_laplace(1, std, missing.size, source)
        distance = np.minimum(np.abs(np.abs(proposed) - std), (1 << 31) - 1)  # further is e^-128 away
        kept = _exponential_coins(distance**2, 2 * std**2, source)
        drawn[missing[kept]] = proposed[kept]
        missing = missing[~kept]
    return drawn


def skellam(std: int, n: int, source: NoiseSource) -> NDArray[np.int64]:
    """Return ``n`` integers, each the difference of two Poisson numbers of mean ``std``^2 / 2; its variance is std^2.

    ``std``: an integer from 1 to 2^15. A sum of such draws is such a draw, with the sum of the variances.
    Each is looked up in a table of cumulative probabilities of its size, in integers of 126 bits made by integer
    arithmetic, and gets a sign.

    Guarantee: within 2^-120 of the exact distribution, in total variation.
    Raises :class:`PrivacyError` for another ``std``. Source: Skellam 1946; Agarwal, Kairouz and Liu 2021, "The Skellam
    Mechanism for Differentially Private Federated Learning", arXiv 2110.04995.
    """
    _check(std, MOST_SKELLAM)
    high, low = _skellam_table(std)
    words = source.integers(1 << _WORD, n)
    size = np.searchsorted(high, words, side="right").astype(np.int64)
    edges = np.flatnonzero(high[np.maximum(size - 1, 0)] == words)  # more bits decide on which side of the edge
    for index in edges:
        first = np.searchsorted(high, words[index], side="left")
        rest = source.integers(1 << _WORD, 1)[0]
        size[index] = first + np.count_nonzero(low[first : size[index]] <= rest)
    return np.where(source.integers(2, n) == 1, -size, size)


def _exponential_coins(numerators: NDArray[np.int64], denominator: int, source: NoiseSource) -> NDArray[np.bool_]:
    """Return draws that are true with probability exp(-numerator / denominator), for fractions of any size."""
    whole, rest = np.divmod(numerators, denominator)
    result = bernoulli_exp(rest, denominator, source)
    large = np.flatnonzero(result & (whole > 0))  # exp(-whole): so many successes of exp(-1) in a row
    result[large] = successes(large.size, source) >= whole[large]
    return result


@lru_cache(maxsize=2)
def _skellam_table(std: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return Pr[|X| <= k] 2^126 for k = 0, 1, ..., rounded down, as words of 63 bits: the high ones and the low ones.

    Pr[X = k] = e^-x I_k(x) with x = std^2, I_k the modified Bessel function. Those obey I_(k-1) = I_(k+1) + 2k I_k / x;
    from far outside inwards every error shrinks against the values (Miller's method), and what they add up to,
    I_0 + 2 I_1 + 2 I_2 + ... = e^x, makes probabilities of them.
    """
    x = std * std
    last = _REACH * std + 60  # for the smallest std tails are longer than a Gaussian's
    values = [0] * (last + 2)
    values[last] = 1 << _GUARD
    for k in range(last, 0, -1):
        values[k - 1] = values[k + 1] + 2 * k * values[k] // x
    total = 2 * sum(values) - values[0]
    running, high, low = -values[0], np.empty(last, np.int64), np.empty(last, np.int64)
    for k in range(last):  # the last row would be 1: it is where the others are not
        running += 2 * values[k]
        cumulative = (running << 2 * _WORD) // total
        high[k], low[k] = cumulative >> _WORD, cumulative & ((1 << _WORD) - 1)
    return high, low


def _check(std: int, most: int) -> None:
    if type(std) is not int or not 1 <= std <= most:
        raise PrivacyError(f"noise: expected an integer standard deviation from 1 to {most}, found {std}")
