"""Fixed point: range, rounding without bias, and clips."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.field import PRIME, centred, reduced
from cloister.privacy.lightsecagg.numbers import FixedPoint
from cloister.privacy.noise import NoiseSource


@given(
    clip=st.floats(1e-6, 1e6),
    total_weight=st.integers(1, 10_000),
)
def test_no_sum_of_clipped_vectors_wraps_around(clip: float, total_weight: int) -> None:
    finest = FixedPoint.finest(clip=clip, total_weight=total_weight)
    source = NoiseSource(bytes(32))
    for value in (clip, -clip, 10 * clip):
        one = centred(finest.encode(np.full(3, value), source))
        assert (np.abs(one * total_weight) <= PRIME // 2).all()
        total = reduced(finest.encode(np.full(3, value), source) * np.uint64(total_weight))
        assert finest.decode(total) == pytest.approx(np.full(3, np.clip(value, -clip, clip) * total_weight), rel=1e-4)


def test_the_finest_scale_is_nearly_all_that_fits() -> None:
    finest = FixedPoint.finest(clip=2.5, total_weight=100)
    assert finest.scale == pytest.approx((PRIME // 2) // 100 / 2.5)
    with pytest.raises(SecureSumError, match=r"would wrap around; use a scale of at most 4.29497e\+06"):
        FixedPoint(clip=2.5, scale=finest.scale * 1.001, total_weight=100)


@pytest.mark.parametrize(
    "values",
    [
        {"clip": 0.0, "scale": 1.0, "total_weight": 1},
        {"clip": 1.0, "scale": float("nan"), "total_weight": 1},
        {"clip": 1.0, "scale": -1.0, "total_weight": 1},
        {"clip": 1.0, "scale": 1.0, "total_weight": 0},
    ],
)
def test_numbers_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SecureSumError, match="expected a positive clip, scale and total weight"):
        FixedPoint(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"clip": 0.0, "total_weight": 1}, {"clip": 1.0, "total_weight": 0}])
def test_the_finest_of_nothing_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(SecureSumError, match="expected a positive clip, scale and total weight"):
        FixedPoint.finest(**values)  # type: ignore[arg-type]


def test_rounding_is_to_a_neighbour_and_right_on_average(lsa: SimpleNamespace) -> None:
    coarse = FixedPoint(clip=4.0, scale=1.0, total_weight=1)
    values = np.repeat([0.3, -0.3, 2.0, 9.0, -9.0], 100_000)
    rounded = coarse.decode(coarse.encode(values, lsa.source("rounding"))).reshape(5, -1)
    assert set(np.unique(rounded[0])) == {0.0, 1.0}
    assert set(np.unique(rounded[1])) == {-1.0, 0.0}
    assert [set(np.unique(row)) for row in rounded[2:]] == [{2.0}, {4.0}, {-4.0}]
    assert rounded[:2].mean(1) == pytest.approx([0.3, -0.3], abs=5 * (0.21 / 100_000) ** 0.5)


def test_an_entry_that_is_not_finite_is_refused(lsa: SimpleNamespace) -> None:
    with pytest.raises(SecureSumError, match="expected finite entries"):
        FixedPoint(clip=1.0, scale=1.0, total_weight=1).encode(np.array([1.0, np.nan]), lsa.source())
