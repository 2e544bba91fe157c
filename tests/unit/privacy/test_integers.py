"""Integer noise has exactly the distribution that its proof needs."""

import math

import numpy as np
import pytest
from scipy import stats

from cloister.privacy.integers import bernoulli_exp, discrete_laplace
from cloister.privacy.noise import NoiseSource

LIMIT = 1e-6  # keys are fixed: a p-value below this is a defect, not chance
DRAWS = 100_000


@pytest.fixture
def noise() -> NoiseSource:
    return NoiseSource(bytes(range(32)))


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 1), (1, 3), (7, 8), (1, 1000), (3 << 40, 1 << 42)])
def test_bernoulli_of_an_exponential(noise: NoiseSource, numerator: int, denominator: int) -> None:
    found = bernoulli_exp(np.full(DRAWS, numerator), denominator, noise)
    expected = math.exp(-numerator / denominator)
    assert stats.binomtest(int(found.sum()), DRAWS, expected).pvalue > LIMIT


def test_each_draw_uses_its_own_fraction(noise: NoiseSource) -> None:
    found = bernoulli_exp(np.tile([0, 5], DRAWS), 5, noise).reshape(-1, 2)
    assert found[:, 0].all()
    assert stats.binomtest(int(found[:, 1].sum()), DRAWS, math.exp(-1)).pvalue > LIMIT


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 1), (2, 1), (1, 5), (3, 7), (1 << 19, 1 << 20)])
def test_discrete_laplace_has_its_probabilities(noise: NoiseSource, numerator: int, denominator: int) -> None:
    found = discrete_laplace(numerator, denominator, DRAWS, noise)
    rate = math.exp(-numerator / denominator)
    edge = int(math.log(1e-4 * (1 + rate)) / math.log(rate))  # about ten draws are expected to be beyond it
    values = np.arange(-edge, edge + 1)
    expected = (1 - rate) / (1 + rate) * rate ** np.abs(values)
    observed = [(found == value).sum() for value in values]
    observed += [(found < -edge).sum(), (found > edge).sum()]
    tail = rate ** (edge + 1) / (1 + rate)
    assert stats.chisquare(observed, DRAWS * np.array([*expected, tail, tail])).pvalue > LIMIT


def test_discrete_laplace_has_its_variance_and_no_bias(noise: NoiseSource) -> None:
    found = discrete_laplace(1, 10, DRAWS, noise)
    rate = math.exp(-0.1)
    variance = 2 * rate / (1 - rate) ** 2
    assert variance < 2 * 10**2  # below that of the continuous distribution
    assert abs(found.mean()) < 5 * math.sqrt(variance / DRAWS)
    assert found.var() == pytest.approx(variance, rel=5 * math.sqrt(5 / DRAWS))  # kurtosis near 6


def test_no_draws_are_none(noise: NoiseSource) -> None:
    assert discrete_laplace(1, 1, 0, noise).shape == (0,)
