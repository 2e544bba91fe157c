"""Properties of robust rules and of mixing that hold for any vectors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.strategies import mixing
from cloister.strategies.rules import NEEDS, RULES, krum_scores

SIZE = 12
Case = tuple[np.ndarray, int, np.random.Generator]
HOSTILE = st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e12, 1e12, 1e6, -50.0, 3.0])
robust = pytest.mark.parametrize("name", sorted(set(RULES) - {"mean"}))
every = pytest.mark.parametrize("name", sorted(RULES))


def rule(name: str, centre: np.ndarray | float = 0.0) -> Callable[[np.ndarray, int], np.ndarray]:
    """The rule with arguments that suit unit vectors around ``centre``."""
    given_centre = np.zeros(SIZE) + centre
    own: dict[str, dict[str, Any]] = {
        "multikrum": {"selected": 3},
        "centred-clipping": {"centre": given_centre, "radius": 1.0, "steps": 5},
        "fltrust": {"root": np.ones(SIZE)},
    }
    return lambda vectors, malicious: RULES[name](vectors, malicious, **own.get(name, {}))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Enough rows for Bulyan, and one more than that, so that Krum's scores are not all shared by two rows."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    malicious = draw(st.integers(1, 3))
    count = NEEDS["bulyan"].of(malicious) + draw(st.integers(1, 4))
    return generator.normal(size=(count, SIZE)), malicious, generator


@every
@settings(max_examples=25)
@given(case=cases())
def test_the_order_of_clients_does_not_matter(name: str, case: Case) -> None:
    vectors, malicious, generator = case
    order = generator.permutation(len(vectors))
    if name == "bulyan":  # its last selections are between two rows that are each other's nearest: always equal
        vectors = np.repeat(vectors[:1], len(vectors), axis=0) + 1e-3 * np.arange(len(vectors))[:, np.newaxis] ** 3
        order = np.arange(len(vectors))
    found = rule(name)(vectors[order], malicious)
    np.testing.assert_allclose(found, rule(name)(vectors, malicious), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"fltrust"}))
@settings(max_examples=25)
@given(case=cases(), shift=st.floats(-100, 100))
def test_a_common_shift_moves_the_result_along(name: str, case: Case, shift: float) -> None:
    vectors, malicious, _ = case
    found = rule(name, shift)(vectors + shift, malicious)
    np.testing.assert_allclose(found, rule(name)(vectors, malicious) + shift, rtol=1e-7, atol=1e-7)


@every
@settings(max_examples=25)
@given(case=cases())
def test_equal_vectors_give_that_vector(name: str, case: Case) -> None:
    vectors, malicious, _ = case
    same = np.repeat(np.abs(vectors[:1]), len(vectors), axis=0)
    expected = same[0]
    if name == "fltrust":  # as long as the root update
        expected = same[0] * np.sqrt(SIZE) / np.linalg.norm(same[0])
    if name == "centred-clipping":  # five steps of length 1 at most on the way from zero
        expected = same[0] * min(1.0, 5 / np.linalg.norm(same[0]))
    np.testing.assert_allclose(rule(name)(same, malicious), expected, rtol=1e-9)


@robust
@settings(max_examples=60)
@given(case=cases(), data=st.data())
def test_hostile_vectors_move_the_result_no_farther_than_honest_ones_reach(
    name: str, case: Case, data: st.DataObject
) -> None:
    vectors, malicious, generator = case
    honest = vectors[malicious:]
    values = data.draw(st.lists(HOSTILE, min_size=malicious, max_size=malicious))
    hostile = np.stack([np.where(generator.random(SIZE) < 0.7, value, 1.0) for value in values])
    mixed = np.concatenate([honest, hostile])[generator.permutation(len(vectors))]
    with np.errstate(all="ignore"):
        found = rule(name)(mixed, malicious)
    reach = float(np.linalg.norm(honest, axis=1).max())
    if name in ("fedmedian", "fedtrimmedavg", "meamed", "bulyan"):
        slack = 3 * reach if name in ("meamed", "bulyan") else 1e-9  # values near the median may be hostile ones
        assert (found >= honest.min(axis=0) - slack).all()
        assert (found <= honest.max(axis=0) + slack).all()
    bound = {"fltrust": np.sqrt(SIZE), "centred-clipping": 5.0}.get(name, 4 * reach)
    assert np.linalg.norm(found) <= bound * (1 + 1e-9)


@settings(max_examples=25)
@given(case=cases())
def test_a_mean_is_moved_anywhere(case: Case) -> None:
    vectors, _, _ = case
    vectors[0] = 1e12
    assert np.linalg.norm(RULES["mean"](vectors, 1)) > 1e10


@settings(max_examples=25)
@given(case=cases())
def test_krum_scores_are_sums_over_the_nearest_others(case: Case) -> None:
    vectors, malicious, _ = case
    for index, score in enumerate(krum_scores(vectors, malicious)):
        others = np.sort(np.linalg.norm(np.delete(vectors, index, axis=0) - vectors[index], axis=1) ** 2)
        assert score == pytest.approx(others[: len(vectors) - malicious - 2].sum(), rel=1e-9)


@settings(max_examples=25)
@given(case=cases(), shift=st.floats(-100, 100))
def test_mixing_keeps_the_mean_of_equals_and_moves_along(case: Case, shift: float) -> None:
    vectors, malicious, _ = case
    moved = mixing.nearest_neighbour_mixing(vectors + shift, malicious)
    np.testing.assert_allclose(moved, mixing.nearest_neighbour_mixing(vectors, malicious) + shift, atol=1e-8)
    spread = mixing.nearest_neighbour_mixing(vectors, malicious).std(axis=0)
    assert (spread < vectors.std(axis=0)).all()  # what it is for: honest vectors become alike
    buckets = mixing.bucketing(vectors[: len(vectors) // 2 * 2], np.random.default_rng(1))
    np.testing.assert_allclose(buckets.mean(axis=0), vectors[: len(vectors) // 2 * 2].mean(axis=0), atol=1e-12)


@settings(max_examples=40)
@given(case=cases(), data=st.data())
def test_mixing_of_honest_and_hostile_vectors_leaves_at_most_f_far_ones(case: Case, data: st.DataObject) -> None:
    vectors, malicious, generator = case
    vectors[:malicious] = data.draw(st.sampled_from([1e6, -1e6, 1e12]))
    reach = float(np.linalg.norm(vectors[malicious:], axis=1).max())
    for found in (mixing.nearest_neighbour_mixing(vectors, malicious), mixing.bucketing(vectors, generator)):
        assert (np.linalg.norm(found, axis=1) > reach * (1 + 1e-9)).sum() <= malicious
    shortened = mixing.clip(vectors, mixing.arc_radius(vectors, malicious))
    assert np.linalg.norm(shortened, axis=1).max() <= reach * (1 + 1e-9)
