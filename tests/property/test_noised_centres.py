"""One unit, whatever its records, moves the sums and counts behind class centres by no more than is claimed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.privacy.local import bounded_sums

CLASSES, WIDTH, BOUND = 3, 2, 1.5
NUMBERS = st.one_of(st.floats(-10, 10), st.sampled_from([1e8, -1e30, float("nan"), float("inf")]))
RECORDS = st.lists(st.tuples(st.tuples(NUMBERS, NUMBERS), st.integers(0, CLASSES - 1)), max_size=8)
CONTRIBUTIONS = st.integers(1, 3)


def totals(units: dict[str, list[Any]], contributions: int, shuffled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The sums and the counts of these units' records, which come unit by unit or all mixed."""
    records = [(name, *record) for name, unit in units.items() for record in unit]
    if shuffled:  # by place in the unit, so that each unit's own records keep their order
        places = [place for unit in units.values() for place in range(len(unit))]
        records = [records[index] for index in np.argsort(places, kind="stable")]
    return bounded_sums(
        np.array([record[1] for record in records], np.float64).reshape(-1, WIDTH),
        np.array([record[2] for record in records], np.int64),
        np.array([record[0] for record in records], dtype="U8"),
        classes=CLASSES,
        bound=BOUND,
        contributions=contributions,
    )


def assert_moved_at_most(one: Any, other: Any, contributions: int, times: int) -> None:
    limit = times * (1 + 1e-9)
    assert np.linalg.norm(one[0] - other[0]) <= BOUND * limit
    assert np.linalg.norm(one[1] - other[1]) <= contributions * limit


@given(others=st.lists(RECORDS, max_size=4), own=RECORDS, new=RECORDS, contributions=CONTRIBUTIONS)
def test_neighbouring_data_sets_are_within_the_sensitivity(
    others: list[Any], own: list[Any], new: list[Any], contributions: int
) -> None:
    rest = {f"other{number}": records for number, records in enumerate(others)}
    without = totals(rest, contributions)
    with_own = totals({"own": own, **rest}, contributions)
    with_new = totals({"own": new, **rest}, contributions, shuffled=True)
    for found in (without, with_own, with_new):
        assert all(np.isfinite(values).all() for values in found)
    assert_moved_at_most(with_own, without, contributions, times=1)  # added, removed, or zeroed out
    assert_moved_at_most(with_own, with_new, contributions, times=2)  # replaced


@given(units=st.dictionaries(st.text("abc", min_size=1, max_size=3), RECORDS, max_size=5), contributions=CONTRIBUTIONS)
def test_the_order_of_units_does_not_matter(units: dict[str, Any], contributions: int) -> None:
    one, other = totals(units, contributions), totals(units, contributions, shuffled=True)
    for values, same in zip(one, other, strict=True):
        np.testing.assert_allclose(values, same, rtol=1e-9, atol=1e-9)


def test_the_sensitivity_is_reached_in_one_class_and_over_several() -> None:
    one_class = [((8.0, 6.0), 0)] * 2
    sums, counts = totals({"own": one_class}, 2)
    assert np.linalg.norm(sums) == pytest.approx(BOUND)
    assert counts[0] == pytest.approx(2 * BOUND / 20)
    small = [((0.1, 0.0), label) for label in (0, 1, 2) for _ in range(2)]
    sums, counts = totals({"own": small}, 2)
    np.testing.assert_allclose(counts, np.full(3, 2 / np.sqrt(3)))  # two records in each of three classes, norm 2
    np.testing.assert_allclose(sums[:, 0], 0.1 * counts)
