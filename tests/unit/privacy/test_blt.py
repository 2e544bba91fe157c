"""Buffered linear Toeplitz matrices: close to the best, with few buffers; sensitivity and errors of the very matrix."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.blt import Buffered, buffered
from cloister.privacy.matrix import banded, sensitivity


@pytest.mark.parametrize(
    ("rounds", "buffers", "best", "excess"),
    [
        (8, 2, 1.718379, 1e-4),
        (64, 2, 2.388848, 0.002),
        (64, 3, 2.388848, 1e-4),
        (512, 2, 3.051841, 0.015),
        (512, 4, 3.051841, 1e-4),
        (1024, 2, 3.272554, 0.02),
        (1024, 3, 3.272554, 0.002),
        (1024, 4, 3.272554, 2e-4),
    ],
)
def test_few_buffers_come_close_to_the_optimum(rounds: int, buffers: int, best: float, excess: float) -> None:
    found = buffered(rounds, buffers, separation=rounds, participations=1)
    cost = found.sensitivity(separation=rounds, participations=1) * found.errors().maximum ** 0.5
    assert best - 1e-6 <= cost <= best * (1 + excess)


@pytest.mark.parametrize(("rounds", "separation", "excess"), [(64, 8, 0.07), (256, 32, 0.07), (500, 50, 0.07)])
def test_several_participations_cost_little_more_than_with_bands(rounds: int, separation: int, excess: float) -> None:
    pattern = {"separation": separation, "participations": rounds // separation}
    found, bands = buffered(rounds, 3, **pattern), banded(rounds, separation, **pattern)
    single = buffered(rounds, 3, separation=rounds, participations=1)

    def cost(factor: object) -> float:
        return factor.sensitivity(**pattern) ** 2 * factor.errors().maximum  # type: ignore[attr-defined,no-any-return]

    assert cost(found) < cost(bands) * (1 + excess)
    assert cost(found) < 0.9 * cost(single)  # the pattern is looked at, not only the number of rounds
    assert found == buffered(rounds, 3, **pattern)  # deterministic


@pytest.mark.parametrize("separation", [64, 16])
def test_no_step_from_the_fit_is_better(separation: int) -> None:
    pattern = {"separation": separation, "participations": 64 // separation}

    def cost(scales: tuple[float, ...], decays: tuple[float, ...]) -> float:
        factor = Buffered(64, scales, decays)
        return math.log(factor.sensitivity(**pattern) ** 2 * factor.errors().maximum)

    found = buffered(64, 2, **pattern)
    least = cost(found.scales, found.decays)
    for factors in itertools.product((0.97, 1.0, 1.03), repeat=4):
        scales = tuple(scale * factor for scale, factor in zip(found.scales, factors[:2], strict=True))
        decays = tuple(1 - (1 - decay) * factor for decay, factor in zip(found.decays, factors[2:], strict=True))
        assert cost(scales, decays) >= least - 1e-7


def test_a_matrix_by_hand() -> None:
    factor = Buffered(4, scales=(0.25, 0.25), decays=(0.5, 0.1))
    assert factor.column() == pytest.approx([1.0, 0.5, 0.15, 0.065])
    assert factor.depth == 2
    # Two participations, two rounds apart: the columns (1, .5, .15, .065) and (0, 0, 1, .5).
    assert factor.sensitivity(separation=2, participations=2) ** 2 == pytest.approx(1 + 0.25 + 1.15**2 + 0.565**2)
    # C^-1 = (1, -.5, .1, -.04); its prefix sums are 1, .5, .6, .56.
    assert factor.errors() == pytest.approx((1.9236, (4 + 3 * 0.25 + 2 * 0.36 + 0.3136) / 4))


def test_one_round_needs_no_memory_of_the_past() -> None:
    found = buffered(1, 2, separation=1, participations=1)
    assert found.column() == pytest.approx([1.0])
    assert found.sensitivity(separation=1, participations=1) == 1


@settings(max_examples=30)
@given(
    rounds=st.integers(1, 40),
    buffers=st.integers(1, 4),
    separation=st.integers(1, 12),
    participations=st.integers(1, 12),
)
def test_every_fit_has_a_column_whose_sensitivity_is_exact(
    rounds: int, buffers: int, separation: int, participations: int
) -> None:
    found = buffered(rounds, buffers, separation=separation, participations=participations)
    pattern = {"rounds": rounds, "separation": separation, "participations": participations}
    assert found.sensitivity(separation=separation, participations=participations) == sensitivity(
        found.column(), **pattern
    )
    assert np.diff(found.column()).max(initial=0) <= 0
    assert 0 <= min(found.decays) <= max(found.decays) < 1
    assert min(found.scales) > 0
    assert sum(found.scales) < 1
    # Never worse than independent noise, which is a matrix of this kind whose scales are 0.
    independent = min(participations, -(-rounds // separation)) * rounds
    cost = found.sensitivity(separation=separation, participations=participations) ** 2 * found.errors().maximum
    assert cost <= independent * 1.001


@pytest.mark.parametrize("buffers", [0, -1, 9])
def test_numbers_of_buffers_out_of_range_are_refused(buffers: int) -> None:
    with pytest.raises(PlanError, match=f"buffers: expected 1 to 8, found {buffers}"):
        buffered(10, buffers, separation=1, participations=1)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(PlanError, match="separation: expected at least 1, found 0"):
        buffered(10, 2, separation=0, participations=1)
