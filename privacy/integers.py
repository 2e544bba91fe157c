"""Exact draws of integer noise: uniform integers in, integers out, and no floating-point number between.

What a mechanism adds is then distributed exactly as its proof says; noise in floating point is only nearly so, and the
last bits of a sum can tell what was added (Mironov 2012, "On Significance of the Least Significant Bits for
Differential Privacy").

Source: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy", arXiv 2004.00010.
"""

import numpy as np
from numpy.typing import NDArray

from cloister.privacy.noise import NoiseSource


def discrete_laplace(numerator: int, denominator: int, n: int, noise: NoiseSource) -> NDArray[np.int64]:
    """Return ``n`` integers, each y with probability proportional to exp(-|y| numerator / denominator).

    Both are positive, the denominator at most 2^52. Algorithm 2 of the paper.
    """
    drawn, missing = np.zeros(n, np.int64), np.arange(n)
    while missing.size:
        low = noise.integers(denominator, missing.size)
        kept = bernoulli_exp(low, denominator, noise)
        size = (low + denominator * successes(missing.size, noise)) // numerator
        negative = noise.integers(2, missing.size) == 1
        kept &= ~(negative & (size == 0))  # or zero would come twice as often
        drawn[missing[kept]] = np.where(negative, -size, size)[kept]
        missing = missing[~kept]
    return drawn


def bernoulli_exp(numerators: NDArray[np.int64], denominator: int, noise: NoiseSource) -> NDArray[np.bool_]:
    """Return draws that are true with probability exp(-numerator / denominator), each fraction from 0 to 1.

    Trials succeed with probability fraction / 1, fraction / 2, ... until one fails; true where that is an odd one.
    Algorithm 1 of the paper.
    """
    result, running, trial = np.zeros(numerators.size, np.bool_), np.arange(numerators.size), 1
    while running.size:
        on = noise.integers(denominator * trial, running.size) < numerators[running]
        result[running[~on]] = trial % 2 == 1
        running, trial = running[on], trial + 1
    return result


def successes(n: int, noise: NoiseSource) -> NDArray[np.int64]:
    """Return ``n`` counts of successes, each of probability exp(-1), before the first failure."""
    counts, running = np.zeros(n, np.int64), np.arange(n)
    while running.size:
        running = running[bernoulli_exp(np.ones(running.size, np.int64), 1, noise)]
        counts[running] += 1
    return counts
