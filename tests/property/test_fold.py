"""Properties of the weighted sum that hold for any replies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import RunError
from cloister.strategies.fold import WeightedSum, finite

POOLED = (("mean", "var"),)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], list[tuple[dict[str, np.ndarray], float]]]:
    """Current arrays of several dtypes, and weighted changes of them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))

    def arrays() -> dict[str, np.ndarray]:
        return {
            "w": (scale * generator.normal(size=(3, 4))).astype(np.float32),
            "half": generator.normal(size=5).astype(np.float16),
            "double": generator.normal(size=()),
            "mean": generator.normal(size=6).astype(np.float32),
            "var": generator.random(6).astype(np.float32),
            "count": np.array(int(generator.integers(-9, 9)), np.int64),
        }

    weights = draw(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6))
    return arrays(), [(arrays(), weight) for weight in weights]


def moved(current: dict, replies: list, pooled: tuple = ()) -> dict[str, np.ndarray]:
    total = WeightedSum(current, current, pooled)
    for deltas, weight in replies:
        total.add(deltas, weight)
    return total.moved(sum(weight for _, weight in replies))


@given(rounds())
def test_it_is_the_weighted_mean_in_the_dtype_of_each_entry(case: tuple) -> None:
    current, replies = case
    weights = np.array([weight for _, weight in replies])
    result = moved(current, replies)
    for key, start in current.items():
        mean = np.average(np.stack([deltas[key].astype(np.float64) for deltas, _ in replies]), 0, weights)
        assert result[key].dtype == start.dtype
        assert result[key].shape == start.shape
        if start.dtype.kind == "i":
            assert abs(result[key] - (start + mean)) <= 0.5 + 1e-9
        else:
            tolerance = {2: 2e-2, 4: 1e-5, 8: 1e-12}[start.dtype.itemsize]
            spread = max(np.abs(deltas[key].astype(np.float64)).max() for deltas, _ in replies)
            np.testing.assert_allclose(
                result[key].astype(np.float64), start + mean, rtol=tolerance, atol=tolerance * (1 + spread)
            )


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(2, 40), min_size=1, max_size=5), st.floats(-50, 50))
def test_pooled_variance_is_that_of_all_samples_together(seed: int, counts: list[int], shift: float) -> None:
    generator = np.random.default_rng(seed)
    data = [generator.normal(loc=shift * place, size=(count, 3)) for place, count in enumerate(counts)]
    current = {"mean": generator.normal(size=3), "var": generator.random(3)}
    replies = [
        ({"mean": part.mean(0) - current["mean"], "var": part.var(0) - current["var"]}, float(len(part)))
        for part in data
    ]
    result, together = moved(current, replies, POOLED), np.concatenate(data)
    np.testing.assert_allclose(result["mean"], together.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result["var"], together.var(0), rtol=1e-9, atol=1e-9)


@given(rounds(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_only_ratios_of_weights_matter(case: tuple, factor: float) -> None:
    current, replies = case
    scaled = [(deltas, weight * factor) for deltas, weight in replies]
    one, other = moved(current, replies, POOLED), moved(current, scaled, POOLED)
    assert all(one[key].tobytes() == other[key].tobytes() for key in current)


@given(
    st.sampled_from([np.float16, np.float32, np.float64]), st.integers(0, 5), st.sampled_from([np.inf, -np.inf, np.nan])
)
def test_a_model_that_is_not_finite_is_named(dtype: type, place: int, wrong: float) -> None:
    largest = np.full((2, 3), np.finfo(dtype).max, dtype)
    assert finite({"w": largest, "n": np.array(3)}, 4)["w"] is largest
    largest = largest.copy()
    largest.flat[place] = wrong
    with pytest.raises(RunError, match="round 4: w: expected finite values after averaging"):
        finite({"w": largest}, 4)
