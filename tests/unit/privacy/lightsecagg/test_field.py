"""The field against Python's own integers, at the edges where words would overflow."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloister.privacy.lightsecagg.field import PRIME, centred, integers, inverse, product, reduced, uniform

EDGES = [0, 1, PRIME - 1, PRIME, PRIME + 1, 2 * PRIME, 2**31, 2**32 - 1, 2**62, (PRIME - 1) ** 2, 2**64 - 1]


def test_the_prime_is_the_mersenne_prime() -> None:
    assert PRIME == 2147483647
    assert all(PRIME % divisor for divisor in range(2, 46341))  # to its square root


@given(st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 2**64 - 1)), max_size=40))
def test_any_word_is_reduced_to_its_remainder(words: list[int]) -> None:
    values = np.array(words, np.uint64)
    result = reduced(values)
    assert result is values
    assert result.tolist() == [word % PRIME for word in words]


@pytest.mark.parametrize("width", [0, 1, 5, 2**15 - 1, 2**15 + 1])
def test_products_are_exact_for_the_largest_elements(width: int) -> None:
    for terms in (1, 2, 3, 4, 7, 64):  # three largest products and an element are the most that fit a word
        matrix, rows = np.full((2, terms), PRIME - 1, np.uint64), np.full((terms, width), PRIME - 1, np.uint64)
        assert product(matrix, rows).shape == (2, width)
        assert (product(matrix, rows) == (terms * (PRIME - 1) ** 2) % PRIME).all()


def test_products_are_those_of_python(lsa: SimpleNamespace) -> None:
    matrix, rows = uniform(35, lsa.source("a")).reshape(5, 7), uniform(77, lsa.source("b")).reshape(7, 11)
    expected = matrix.astype(object) @ rows.astype(object) % PRIME
    assert (product(matrix, rows) == expected.astype(np.uint64)).all()


@given(st.lists(st.integers(-(PRIME // 2), PRIME // 2), max_size=20))
def test_signed_integers_come_back(values: list[int]) -> None:
    elements = integers(np.array(values, np.int64))
    assert (elements < PRIME).all()
    assert centred(elements).tolist() == values


@given(st.integers(1, PRIME - 1))
def test_an_element_times_its_inverse_is_one(element: int) -> None:
    assert element * inverse(element) % PRIME == 1


def test_the_prime_itself_has_no_inverse() -> None:
    with pytest.raises(ValueError, match="not invertible"):
        inverse(PRIME)


def test_uniform_elements_are_uniform(lsa: SimpleNamespace) -> None:
    drawn = uniform(200_000, lsa.source("uniform"))
    assert drawn.max() < PRIME
    counts = np.bincount((drawn * np.uint64(64) // np.uint64(PRIME)).astype(np.int64), minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-6
