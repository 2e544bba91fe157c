"""Integer noise against its exact probabilities."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy import special, stats

from cloister.errors import PrivacyError
from cloister.privacy.discrete import (
    MOST_GAUSSIAN,
    MOST_SKELLAM,
    _exponential_coins,
    _skellam_table,
    discrete_gaussian,
    skellam,
)
from cloister.privacy.noise import NoiseSource

LIMIT = 1e-6  # keys are fixed: a p-value below this is a defect, not chance
DRAWS = 100_000
Draw = Callable[[int, int, NoiseSource], np.ndarray]


@pytest.fixture
def noise() -> NoiseSource:
    return NoiseSource(bytes(range(32)))


def probabilities(draw: Draw, std: int, values: np.ndarray) -> np.ndarray:
    """Written down from the definitions; of Skellam noise, e^-x I_k(x) with x the variance."""
    if draw is skellam:
        return np.asarray(special.ive(np.abs(values), std**2))
    every = np.arange(-40 * std - 1, 40 * std + 2)
    return np.asarray(np.exp(-(values**2) / (2 * std**2)) / np.exp(-(every**2) / (2 * std**2)).sum())


@pytest.mark.parametrize("std", [1, 2, 5, 47])
@pytest.mark.parametrize("draw", [discrete_gaussian, skellam])
def test_draws_have_their_exact_probabilities(noise: NoiseSource, draw: Draw, std: int) -> None:
    found = draw(std, DRAWS, noise)
    assert found.dtype == np.int64
    edge = math.ceil(3.5 * std)
    values = np.arange(-edge, edge + 1)
    expected = probabilities(draw, std, values)
    tail = (1 - expected.sum()) / 2
    observed = [(found < -edge).sum(), *(np.count_nonzero(found == value) for value in values), (found > edge).sum()]
    assert stats.chisquare(observed, DRAWS * np.array([tail, *expected, tail])).pvalue > LIMIT


@pytest.mark.parametrize(
    ("draw", "std"),
    [
        (discrete_gaussian, 3052),
        (discrete_gaussian, MOST_GAUSSIAN),
        (skellam, 3052),
        pytest.param(skellam, MOST_SKELLAM, marks=pytest.mark.slow),
    ],
)
def test_wide_draws_are_nearly_normal(noise: NoiseSource, draw: Draw, std: int) -> None:
    found = draw(std, DRAWS, noise)
    edges = stats.norm.ppf(np.linspace(0, 1, 101)) * std  # the two kinds differ from this by far less than is seen
    assert stats.chisquare(np.histogram(found, edges)[0]).pvalue > LIMIT
    assert found.var() == pytest.approx(std**2, rel=5 * math.sqrt(2 / DRAWS))
    assert abs(found.mean()) < 5 * std / math.sqrt(DRAWS)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 5 / math.sqrt(DRAWS)


def test_variance_is_never_above_that_of_the_parameter(noise: NoiseSource) -> None:
    for std in (1, 2, 5):
        values = np.arange(-40 * std, 40 * std + 1)
        exact = float((values**2 * probabilities(discrete_gaussian, std, values)).sum())
        assert exact <= std**2 * (1 + 1e-12)
        assert discrete_gaussian(std, DRAWS, noise).var() == pytest.approx(exact, rel=5 * math.sqrt(2 / DRAWS))
        skewed = skellam(std, DRAWS, noise)
        assert skewed.var() == pytest.approx(std**2, rel=5 * math.sqrt((2 + 1 / std**2) / DRAWS))  # excess kurtosis


def test_skellam_noise_is_a_difference_of_poisson_numbers_and_closed_under_sums(noise: NoiseSource) -> None:
    # 3^2 + 4^2 = 5^2: sums of draws and of variances.
    found = skellam(3, DRAWS, noise) + skellam(4, DRAWS, noise)
    theirs = np.arange(-400, 401)
    poisson = stats.poisson.pmf(np.arange(400), 12.5)
    expected = np.convolve(poisson, poisson[::-1])  # from -399 to 399
    np.testing.assert_allclose(expected, special.ive(np.abs(theirs[1:-1]), 25), atol=1e-14)
    edge = 17
    counts = [np.count_nonzero(found == value) for value in range(-edge, edge + 1)]
    inside = expected[399 - edge : 400 + edge]
    counts.append(DRAWS - sum(counts))
    assert stats.chisquare(counts, DRAWS * np.array([*inside, 1 - inside.sum()])).pvalue > LIMIT


@pytest.mark.parametrize("std", [1, 2, 47, 500])
def test_the_table_holds_the_probabilities_to_the_last_digit_of_a_double(std: int) -> None:
    high, low = _skellam_table(std)
    rows = [(int(first) << 63) + int(second) for first, second in zip(high, low, strict=True)]
    assert all(before <= after < 1 << 126 for before, after in pairwise(rows))
    found = [float(rows[0] / (1 << 126))]
    found += [(after - before) / (1 << 127) for before, after in pairwise(rows)]
    expected = special.ive(np.arange(len(rows)), std**2)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-37)
    assert (1 << 126) - rows[-1] < 1 << 6  # beyond the table lies next to nothing


class Scripted:
    """In place of a noise source: the integers that it is told, one call after the other."""

    def __init__(self, *answers: list[int]) -> None:
        self.answers = list(answers)

    def integers(self, bound: int, n: int) -> np.ndarray:
        answer = np.array(self.answers.pop(0), np.int64)
        assert len(answer) == n
        assert bound in (2, 1 << 63)
        return answer


def test_a_word_on_an_edge_of_the_table_is_decided_by_further_bits() -> None:
    high, low = _skellam_table(5)
    edge, below = int(high[3]), int(low[3])
    words = [edge - 1, edge, edge, edge + 1, 0]
    drawn = skellam(5, 5, Scripted(words, [below - 1], [below], [0, 0, 1, 1, 0]))  # type: ignore[arg-type]
    assert drawn.tolist() == [3, 3, -4, -4, 0]
    # Where rows differ in their low words only, one word decides between all of them.
    last = int(np.flatnonzero(high[1:] == high[:-1])[0])
    words, rest = [int(high[last])], [int(low[last + 1]) - 1]
    assert skellam(5, 1, Scripted(words, rest, [0]))[0] == last + 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 3), (2, 3), (3, 3), (5, 2), (7, 1)])
def test_coins_of_an_exponential_of_any_size(noise: NoiseSource, numerator: int, denominator: int) -> None:
    found = _exponential_coins(np.full(DRAWS, numerator), denominator, noise)
    assert stats.binomtest(int(found.sum()), DRAWS, math.exp(-numerator / denominator)).pvalue > LIMIT


@pytest.mark.parametrize(("draw", "most"), [(discrete_gaussian, MOST_GAUSSIAN), (skellam, MOST_SKELLAM)])
def test_noise_that_is_off_or_does_not_fit_is_refused(noise: NoiseSource, draw: Draw, most: int) -> None:
    assert draw(3, 0, noise).shape == (0,)
    for std in (0, -1, most + 1, 1.5, True):
        with pytest.raises(PrivacyError, match=f"an integer standard deviation from 1 to {most}"):
            draw(std, 1, noise)  # type: ignore[arg-type]
