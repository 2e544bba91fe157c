"""Clipping: norms, layers, values that are not finite, and the adaptive bound."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from cloister.errors import PlanError
from cloister.privacy.clipping import ClipBound, clip_flat, clip_per_layer, layer_of, sensitivity, split_noise
from cloister.privacy.noise import NoiseSource

UPDATE = {"body.weight": np.array([[3.0, 0.0]], np.float32), "body.bias": np.float32([4.0]), "head": np.array([12.0])}


def norm(update: dict[str, Any], prefix: str = "") -> float:
    parts = [np.asarray(values, np.float64).ravel() for name, values in update.items() if name.startswith(prefix)]
    return float(np.linalg.norm(np.concatenate(parts)))


def test_flat_scales_the_whole_to_the_bound() -> None:
    clipped = clip_flat(UPDATE, 6.5)  # the norm is 13
    assert clipped.bit == -0.5
    for name, values in UPDATE.items():
        np.testing.assert_allclose(clipped.values[name], values / 2, rtol=1e-6)
        assert clipped.values[name].dtype == values.dtype
        assert clipped.values[name].shape == values.shape


@pytest.mark.parametrize("bound", [13.0, 20.0])
def test_what_is_within_the_bound_stays_as_it_is(bound: float) -> None:
    clipped = clip_flat(UPDATE, bound)
    assert clipped.bit == 0.5
    assert all(np.array_equal(clipped.values[name], values) for name, values in UPDATE.items())


def test_each_layer_is_scaled_to_its_own_bound_by_the_longest_prefix() -> None:
    clipped = clip_per_layer(UPDATE, {"": 6.0, "body": 100.0, "body.": 2.5})
    np.testing.assert_allclose(clipped.values["body.weight"], [[1.5, 0.0]], rtol=1e-6)  # norm 5 to 2.5
    np.testing.assert_allclose(clipped.values["body.bias"], [2.0], rtol=1e-6)
    np.testing.assert_allclose(clipped.values["head"], [6.0], rtol=1e-6)
    assert clipped.bit == -0.5
    assert clip_per_layer(UPDATE, {"": 12.0, "body": 5.0}).bit == 0.5
    assert clip_per_layer(UPDATE, {"": 11.0, "body": 5.0}).bit == -0.5


def test_the_sensitivity_of_layers_is_the_root_of_the_sum_of_squares() -> None:
    bounds = {"": 6.0, "body": 2.5, "tail": 4.0}
    assert sensitivity(bounds) == pytest.approx(math.sqrt(36 + 6.25 + 16))
    assert sensitivity({"": 3.0}) == 3.0
    clipped = clip_per_layer({**UPDATE, "tail": np.array([1e9])}, bounds)
    assert norm(clipped.values) == pytest.approx(sensitivity(bounds), rel=1e-6)  # it is reached


def test_a_zero_update_stays_zero() -> None:
    for update in ({"a": np.zeros(3)}, {"a": np.zeros((0, 2))}, {}):
        clipped = clip_flat(update, 1.0)
        assert clipped.bit == 0.5
        assert all(not values.any() for values in clipped.values.values())
        assert np.isfinite(norm({"x": np.zeros(1), **clipped.values}))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_an_update_that_is_not_finite_becomes_zeros_everywhere(bad: float) -> None:
    update = {"a.x": np.array([1.0, bad]), "b": np.ones((2, 2), np.float32)}
    for clipped in (clip_flat(update, 1.0), clip_per_layer(update, {"a": 1.0, "b": 1.0})):
        assert clipped.bit == 0.0
        assert list(clipped.values) == ["a.x", "b"]
        for name, values in clipped.values.items():
            assert not values.any()
            assert (values.dtype, values.shape) == (update[name].dtype, update[name].shape)


def test_tensors_of_torch_are_clipped_alike() -> None:
    update = {name: torch.from_numpy(np.asarray(values)) for name, values in UPDATE.items()}
    update["body.bias"].requires_grad_()
    for bounds in ({"": 6.5}, {"": 1.0, "body": 5.0}):
        clipped, expected = clip_per_layer(update, bounds), clip_per_layer(UPDATE, bounds)
        assert clipped.bit == expected.bit
        for name, values in clipped.values.items():
            assert values.dtype == update[name].dtype
            assert not values.requires_grad
            np.testing.assert_allclose(values.numpy(), expected.values[name], rtol=1e-6)
    assert not clip_flat({"a": torch.tensor([1.0, math.nan])}, 1.0).values["a"].any()


def test_the_update_itself_is_not_changed() -> None:
    before = {name: values.copy() for name, values in UPDATE.items()}
    clip_flat(UPDATE, 0.1)
    assert all(np.array_equal(UPDATE[name], values) for name, values in before.items())


UPDATES = st.fixed_dictionaries(
    {
        name: arrays(dtype, 3, elements=st.floats(-(2.0**99), 2.0**99, width=32))
        for name, dtype in (("a.x", np.float32), ("a.y", np.float64), ("b", np.float32))
    }
)
BOUNDS = st.floats(1e-3, 1e3)


@given(update=UPDATES, bound=BOUNDS)
def test_no_norm_is_above_the_bound_not_even_by_rounding(update: dict[str, Any], bound: float) -> None:
    clipped = clip_flat(update, bound)
    assert norm(clipped.values) <= bound
    assert clipped.bit == (0.5 if norm(update) <= bound else -0.5)
    if clipped.bit < 0:
        assert norm(clipped.values) == pytest.approx(bound, rel=1e-6)


@given(updates=st.lists(UPDATES, min_size=1, max_size=4), other=UPDATES, a=BOUNDS, b=BOUNDS)
def test_one_update_moves_a_sum_by_at_most_the_sensitivity(
    updates: list[dict[str, Any]], other: dict[str, Any], a: float, b: float
) -> None:
    bounds = {"a": a, "b": b}

    def total(group: list[dict[str, Any]]) -> np.ndarray:
        clipped = [clip_per_layer(update, bounds).values for update in group]
        rows = [np.concatenate([values.astype(np.float64) for values in each.values()]) for each in clipped]
        return np.sum([np.zeros(9), *rows], axis=0)

    bound = sensitivity(bounds) * (1 + 1e-12)
    assert np.linalg.norm(total(updates) - total(updates[1:])) <= bound  # removed
    assert np.linalg.norm(total(updates) - total([other, *updates[1:]])) <= 2 * bound  # replaced
    bits = [clip_per_layer(update, bounds).bit for update in updates]
    assert max(abs(bit) for bit in bits) <= 0.5


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_bounds_that_bound_nothing_are_refused(bound: float) -> None:
    for attempt in (lambda: clip_flat(UPDATE, bound), lambda: clip_per_layer(UPDATE, {"": 1.0, "head": bound})):
        with pytest.raises(PlanError, match="expected positive, finite bounds"):
            attempt()
    with pytest.raises(PlanError, match="expected positive, finite bounds"):
        sensitivity({})


def test_an_entry_without_a_bound_is_refused_by_name() -> None:
    assert layer_of("body.weight", ["b", "body", "head"]) == "body"
    with pytest.raises(PlanError, match="found none for 'head' among \\['body'\\]"):
        clip_per_layer(UPDATE, {"body": 1.0})


@pytest.mark.parametrize("values", [np.array([1]), np.float16([1.0]), torch.tensor([1]), torch.ones(1).bfloat16()])
def test_types_that_cannot_be_noised_are_refused(values: Any) -> None:
    with pytest.raises(PlanError, match=r"expected float32 or float64 for 'counter', found (int|b?float)"):
        clip_flat({"counter": values}, 1.0)


# The adaptive bound. Norms are lognormal(0, 0.3), whose median is 1.

NORMS = np.sort(np.random.default_rng(0).lognormal(0, 0.3, 100_000))


def trajectory(start: float, rounds: int = 60) -> list[float]:
    """The bound after each round in which everybody takes part and no noise is added."""
    bound = ClipBound(bound=start, cohort=len(NORMS))
    found = [bound.bound]
    for _ in range(rounds):
        within = np.searchsorted(NORMS, bound.bound, side="right")
        bound = bound.after(0.5 * within - 0.5 * (len(NORMS) - within))
        found.append(bound.bound)
    return found


def test_the_bound_climbs_from_below_in_published_steps() -> None:
    found = trajectory(0.1)
    assert [found[round] for round in (10, 20, 30, 60)] == pytest.approx([0.2718, 0.7151, 0.9818, 0.9988], abs=6e-5)


@pytest.mark.parametrize("start", [0.1, 10.0])
def test_the_bound_ends_at_the_median_from_either_side(start: float) -> None:
    assert trajectory(start)[-1] == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("quantile", [0.2, 0.9])
def test_the_bound_finds_other_quantiles(quantile: float) -> None:
    bound = ClipBound(bound=1.0, quantile=quantile, learning_rate=0.5, cohort=10.0)
    for _ in range(200):
        bound = bound.after(10 * (float((bound.bound >= NORMS).mean()) - 0.5))
    assert bound.bound == pytest.approx(np.quantile(NORMS, quantile), rel=1e-3)


@pytest.mark.parametrize("start", [0.1, 10.0])
def test_the_bound_finds_the_median_of_real_updates_under_noise(start: float) -> None:
    cohort, noise = 100, NoiseSource(bytes(32))
    lengths = np.exp(0.3 * stats.norm.ppf((np.arange(cohort) + 0.5) / cohort))
    bound = ClipBound(bound=start, cohort=cohort)
    for _ in range(100):
        bits = sum(clip_flat({"a": np.array([0.0, length])}, bound.bound).bit for length in lengths)
        bound = bound.after(bits + float(noise.gaussian((), cohort / 20)))
    assert bound.bound == pytest.approx(1.0, rel=0.1)


def test_a_client_that_does_not_come_does_not_move_the_bound() -> None:
    assert ClipBound(bound=2.0, cohort=10.0).after(0.0).bound == 2.0
    failed = clip_flat({"a": np.array([math.nan])}, 2.0)
    assert ClipBound(bound=2.0, cohort=10.0).after(failed.bit).bound == 2.0


def test_the_split_of_the_noise() -> None:
    assert split_noise(1.0, 5.0) == pytest.approx(1.005038, abs=1e-6)
    assert split_noise(1.0, 5.0, spread=2.0) == pytest.approx((1 - 1 / 25) ** -0.5)


@given(z=st.floats(0.1, 10), excess=st.floats(1.01, 100), spread=st.sampled_from([1.0, 2.0]))
def test_update_and_bits_together_cost_the_whole(z: float, excess: float, spread: float) -> None:
    bits = z * excess * spread / 2
    update = split_noise(z, bits, spread=spread)
    assert update > z
    # Two Gaussians compose by adding 1 / multiplier^2; a bit moves by spread / 2.
    assert update**-2 + (bits / (spread / 2)) ** -2 == pytest.approx(z**-2)


@pytest.mark.parametrize(("z", "bits_noise"), [(2.0, 1.0), (3.0, 1.0), (0.0, 1.0), (math.nan, 1.0), (1.0, 0.0)])
def test_bits_that_cost_more_than_the_whole_are_refused(z: float, bits_noise: float) -> None:
    with pytest.raises(PlanError, match="put more noise on the bits"):
        split_noise(z, bits_noise)


def test_the_state_survives_a_checkpoint() -> None:
    bound = ClipBound(bound=0.1, quantile=0.4, learning_rate=0.3, cohort=7.0).after(1.25)
    assert ClipBound.of(json.loads(json.dumps(bound.values()))) == bound
    with pytest.raises(PlanError, match="expected the numbers"):
        ClipBound.of({"bound": 1.0})


@pytest.mark.parametrize(
    "wrong", [{"bound": 0.0}, {"bound": math.inf}, {"quantile": 1.0}, {"learning_rate": -1.0}, {"cohort": math.nan}]
)
def test_an_adaptive_rule_that_finds_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=f"expected {next(iter(wrong))} above 0"):
        ClipBound(**{"bound": 1.0, "cohort": 10.0, **wrong})


@pytest.mark.parametrize("bits", [math.nan, math.inf, -math.inf, 1e9, -1e9])
def test_bits_that_no_cohort_sends_are_refused(bits: float) -> None:
    with pytest.raises(PlanError, match="expected a noised sum of bits between -5 and 5"):
        ClipBound(bound=1.0, cohort=10.0).after(bits)
