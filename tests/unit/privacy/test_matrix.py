"""Toeplitz factorisations: published numbers, brute force over all patterns of participation, dense algebra."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.matrix import Banded, Vector, banded, errors, inverse, loss, optimal, sensitivity


def dense(column: Vector, rounds: int) -> Vector:
    """Return the Toeplitz matrix with this first column."""
    return np.array(
        [[column[i - j] if 0 <= i - j < len(column) else 0.0 for j in range(rounds)] for i in range(rounds)]
    )


def patterns(rounds: int, separation: int, participations: int) -> list[tuple[int, ...]]:
    """Return every set of rounds in which a unit may take part, found by trying all."""
    return [
        chosen
        for size in range(1, participations + 1)
        for chosen in itertools.combinations(range(rounds), size)
        if all(later - earlier >= separation for earlier, later in itertools.pairwise(chosen))
    ]


@st.composite
def columns(draw: Any, most: int = 7) -> Vector:
    """Columns that start at 1, stay positive and never increase."""
    ratios = draw(st.lists(st.floats(0.01, 1.0), max_size=most - 1))
    return np.concatenate([[1.0], np.cumprod(ratios)])


def test_the_optimal_column_and_its_inverse_for_eight_rounds() -> None:
    published = [1, 0.5, 0.375, 0.3125, 0.2734375, 0.24609375, 0.22558594, 0.20947266]
    backwards = [1, -0.5, -0.125, -0.0625, -0.0390625, -0.02734375, -0.02050781, -0.01611328]
    column = optimal(8)
    assert column == pytest.approx(published, abs=5e-9)
    assert inverse(column, 8) == pytest.approx(backwards, abs=5e-9)
    assert inverse(column, 8)[1:] == pytest.approx(np.diff(column))  # the closed form


@pytest.mark.parametrize(("rounds", "cost"), [(8, 1.718379), (64, 2.388848), (512, 3.051841), (1024, 3.272554)])
def test_sensitivity_and_error_of_the_optimal_column(rounds: int, cost: float) -> None:
    column = optimal(rounds)
    squared = sensitivity(column, rounds=rounds, separation=rounds, participations=1) ** 2
    assert squared == pytest.approx(cost, abs=1e-6)
    assert errors(column, rounds).maximum == pytest.approx(cost, abs=1e-6)
    assert math.sqrt(squared * errors(column, rounds).maximum) == pytest.approx(cost, abs=1e-6)


@pytest.mark.parametrize("rounds", [8, 64, 512, 1024])
def test_independent_noise_has_the_error_of_all_rounds(rounds: int) -> None:
    independent = Banded(rounds, (1.0,))
    assert independent.sensitivity(separation=rounds, participations=1) == 1
    assert independent.errors() == pytest.approx((rounds, (rounds + 1) / 2))


@pytest.mark.parametrize(("separation", "squared"), [(1, 43.407985), (2, 12.758704), (4, 4.299740), (8, 1.718379)])
def test_sensitivity_by_separation(separation: int, squared: float) -> None:
    found = sensitivity(optimal(8), rounds=8, separation=separation, participations=8)
    assert found**2 == pytest.approx(squared, abs=1.5e-6)


def test_sensitivity_of_four_bands() -> None:
    column = np.array([1, 0.5, 0.375, 0.3125])
    assert sensitivity(column, rounds=16, separation=4, participations=4) ** 2 == pytest.approx(5.953125, abs=1e-12)


@given(column=columns(), rounds=st.integers(1, 7), separation=st.integers(1, 7), participations=st.integers(1, 7))
def test_no_pattern_of_participation_has_a_larger_sensitivity(
    column: Vector, rounds: int, separation: int, participations: int
) -> None:
    matrix = dense(column, rounds)
    worst = max(
        float(np.linalg.norm(matrix[:, list(chosen)] @ np.array(signs)))
        for chosen in patterns(rounds, separation, participations)
        for signs in itertools.product((1, -1), repeat=len(chosen))
    )
    found = sensitivity(column, rounds=rounds, separation=separation, participations=participations)
    assert found == pytest.approx(worst, rel=1e-12)


@given(column=columns(), rounds=st.integers(1, 12))
def test_inverse_and_errors_are_those_of_dense_algebra(column: Vector, rounds: int) -> None:
    backwards = np.linalg.inv(dense(column, rounds))
    assert inverse(column, rounds) == pytest.approx(backwards[:, 0], abs=1e-9)
    rows = ((np.tril(np.ones((rounds, rounds))) @ backwards) ** 2).sum(axis=1)
    found = errors(column, rounds)
    assert found.maximum == pytest.approx(rows.max(), rel=1e-9)
    assert found.mean == pytest.approx(rows.mean(), rel=1e-9)


@given(column=columns(), separation=st.integers(1, 9), participations=st.integers(1, 9))
def test_the_gradient_is_that_of_small_steps(column: Vector, separation: int, participations: int) -> None:
    weights = np.linspace(1.0, 0.3, 9)

    def value(point: Vector) -> float:
        return loss(point, weights, separation=separation, participations=participations)[0]

    _, slope = loss(column, weights, separation=separation, participations=participations)
    steps = 1e-6 * np.eye(len(column))
    measured = [(value(column + step) - value(column - step)) / 2e-6 for step in steps]
    assert slope == pytest.approx(measured, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("rounds", "bands", "separation", "gain"),
    [(64, 4, 4, 0.06), (1000, 10, 10, 0.2), (256, 16, 16, 0.11), (100, 20, 50, 0.015), (256, 32, 8, 0.17)],
)
def test_bands_are_better_than_the_optimal_column_cut_off(
    rounds: int, bands: int, separation: int, gain: float
) -> None:
    participations = -(-rounds // separation)
    pattern = {"separation": separation, "participations": participations}
    found = banded(rounds, bands, **pattern)
    cut = Banded(rounds, tuple(optimal(bands)))
    independent = Banded(rounds, (1.0,))

    def cost(factor: Banded) -> float:
        return factor.sensitivity(**pattern) ** 2 * factor.errors().mean

    assert cost(found) < (1 - gain) * cost(cut)
    assert cost(found) < cost(independent)
    assert len(found.column) == bands
    assert found == banded(rounds, bands, **pattern)  # deterministic


def test_no_step_from_the_optimal_bands_is_better() -> None:
    found = np.array(banded(64, 4, separation=4, participations=16).column)
    weights = np.arange(64, 0, -1) / 64
    least, _ = loss(found, weights, separation=4, participations=16)
    for step in itertools.product((-1e-3, 0, 1e-3), repeat=3):
        assert loss(found + np.array([0, *step]), weights, separation=4, participations=16)[0] >= least - 1e-9


def test_streamed_noise_by_hand() -> None:
    # C = (2, 1, 1/2 on the diagonals) and Z = 2, 4, 6, 8: x = 1, 3/2, 2, 21/8, each from the two outputs before it.
    factor, memory = Banded(4, (2.0, 1.0, 0.5)), np.zeros((2, 1))
    noise = [factor.step(memory, round, lambda round=round: np.array([2.0 * round + 2])) for round in range(4)]  # type: ignore[misc]
    assert np.concatenate(noise) == pytest.approx([1.0, 1.5, 2.0, 2.625])
    assert memory[:, 0] == pytest.approx([2.0, 2.625])


def test_one_band_is_independent_noise() -> None:
    assert banded(10, 1, separation=1, participations=10) == Banded(10, (1.0,))


@pytest.mark.parametrize("bands", [0, -1, 11])
def test_bands_that_no_matrix_has_are_refused(bands: int) -> None:
    with pytest.raises(PlanError, match=f"bands: expected 1 to 10 .* found {bands}"):
        banded(10, bands, separation=1, participations=1)


@pytest.mark.parametrize("name", ["rounds", "separation", "participations"])
def test_counts_below_one_are_refused(name: str) -> None:
    counts = {"rounds": 4, "separation": 2, "participations": 2, name: 0}
    with pytest.raises(PlanError, match=f"{name}: expected at least 1, found 0"):
        sensitivity(np.ones(1), **counts)


@pytest.mark.parametrize("column", [[1.0, -0.5], [0.5, 1.0], [1.0, float("nan")], [0.0, 0.0], [float("inf"), 1.0]])
def test_columns_without_a_closed_form_are_refused(column: list[float]) -> None:
    with pytest.raises(PlanError, match="nowhere negative and never increases"):
        sensitivity(np.array(column), rounds=4, separation=1, participations=2)
