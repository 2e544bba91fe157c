"""The code of masks: the toy vector, polynomials evaluated by hand, and what T colluders do not learn."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.code import decode, encode, encoding, lagrange
from cloister.privacy.lightsecagg.field import PRIME, Elements, integers, product, uniform
from cloister.privacy.lightsecagg.terms import Terms


def evaluated(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def determinant(matrix: Elements) -> int:
    """Modulo the prime, by Gaussian elimination on Python's integers."""
    rows, result = [[int(value) for value in row] for row in matrix], 1
    for column in range(len(rows)):
        pivot = next((row for row in range(column, len(rows)) if rows[row][column]), None)
        if pivot is None:
            return 0
        if pivot != column:
            rows[column], rows[pivot], result = rows[pivot], rows[column], -result
        result = result * rows[column][column] % PRIME
        scale = pow(rows[column][column], -1, PRIME)
        for row in rows[column + 1 :]:
            factor = row[column] * scale % PRIME
            row[:] = [(value - factor * above) % PRIME for value, above in zip(row, rows[column], strict=True)]
    return result % PRIME


def test_a_polynomials_values_at_nodes_give_those_at_points() -> None:
    coefficients = [1234567890, 42, 7, PRIME - 5]
    nodes, points = [6, 7, 8, 9], [1, 2, 3, 4, 5]
    given = np.array([[evaluated(coefficients, node)] for node in nodes], np.uint64)
    found = product(lagrange(nodes, points), given)
    assert found.reshape(-1).tolist() == [evaluated(coefficients, point) for point in points]


def test_the_matrix_of_the_toy_terms(lsa: SimpleNamespace) -> None:
    # Of nodes 6 to 9 at point 5: (-1)^k C(4, k + 1), the coefficients of a vanishing fourth difference.
    assert encoding(lsa.terms())[4].tolist() == [4, PRIME - 6, 4, PRIME - 1]
    assert encoding(lsa.terms()).shape == (5, 4)


def test_the_toy_sum_without_user_three(lsa: SimpleNamespace) -> None:
    """N = 5, U = 4, T = 2, d = 6, p = 2^31 - 1, points 1 to 5 and 6 to 9; user 3 drops out once its shares are out."""
    terms = lsa.terms()
    inputs = {user: integers(np.arange(6, dtype=np.int64) * user - 7) for user in range(1, 6)}
    masks = {user: uniform(6, lsa.source("mask", user)) for user in inputs}
    shares = {user: encode(masks[user], terms, lsa.source("parts", user)) for user in inputs}
    there = [1, 2, 4, 5]
    uploads = sum((inputs[user] + masks[user]) % np.uint64(PRIME) for user in there)
    answers = np.stack([sum(shares[user][place - 1] for user in there) % PRIME for place in there])
    total = (uploads + np.uint64(PRIME) * np.uint64(8) - decode(answers, there, terms)) % np.uint64(PRIME)
    plain = (1 + 2 + 4 + 5) * np.arange(6, dtype=np.int64) - 4 * 7
    assert total.tolist() == integers(plain).tolist()


@st.composite
def settings_of(draw: st.DrawFn) -> Terms:
    users = draw(st.integers(2, 12))
    colluders = draw(st.integers(0, users - 2))
    survivors = draw(st.integers(colluders + 1, users))
    uploads = draw(st.integers(colluders + 2, users))
    size = draw(st.integers(1, 40))
    return Terms(session=bytes(16), users=users, survivors=survivors, colluders=colluders, uploads=uploads, size=size)


@settings(max_examples=60)
@given(data=st.data())
def test_any_survivors_decode_a_weighted_sum_of_masks(lsa: SimpleNamespace, data: st.DataObject) -> None:
    terms = data.draw(settings_of())
    who = data.draw(st.permutations(range(1, terms.users + 1)))[: data.draw(st.integers(1, terms.users))]
    places = data.draw(st.permutations(range(1, terms.users + 1)))[: terms.survivors]
    weights = [data.draw(st.integers(1, 1000)) for _ in who]
    masks = [uniform(terms.size, lsa.source("mask", user)) for user in who]
    shares = [encode(mask, terms, lsa.source("parts", user)) for mask, user in zip(masks, who, strict=True)]

    def weighted(rows: list[Elements]) -> Elements:
        total = sum(row.astype(object) * weight for row, weight in zip(rows, weights, strict=True))
        return (total % PRIME).astype(np.uint64)  # type: ignore[union-attr]

    answers = np.stack([weighted([share[place - 1] for share in shares]) for place in places])
    assert (decode(answers, places, terms) == weighted(masks)).all()


@pytest.mark.parametrize(("users", "survivors", "colluders"), [(5, 4, 2), (7, 4, 3), (8, 8, 6), (9, 5, 1), (6, 5, 4)])
def test_colluders_see_the_random_parts_through_an_invertible_matrix(
    lsa: SimpleNamespace, users: int, survivors: int, colluders: int
) -> None:
    terms = lsa.terms(users=users, survivors=survivors, colluders=colluders, uploads=colluders + 2)
    random = encoding(terms)[:, terms.parts :]
    assert random.shape == (users, colluders)
    for group in combinations(range(users), colluders):
        assert determinant(random[list(group)]) != 0, group


def test_one_colluder_more_would_learn_something(lsa: SimpleNamespace) -> None:
    # T + 1 shares of one entry are T + 1 equations with T random unknowns: a combination is free of them.
    terms = lsa.terms()
    seen = encoding(terms)[:3, terms.parts :]
    free = np.array([[determinant(seen[[1, 2]]), PRIME - determinant(seen[[0, 2]]), determinant(seen[[0, 1]])]])
    free = free.astype(np.uint64)
    assert not product(free, seen).any()
    masks = [np.full(6, value, np.uint64) for value in (0, 5)]
    found = [product(free, encode(mask, terms, lsa.source("parts"))[:3]) for mask in masks]
    assert not np.array_equal(*found)
    again = product(free, encode(masks[1], terms, lsa.source("other parts"))[:3])
    assert np.array_equal(found[1], again)


def test_colluders_shares_are_as_likely_under_every_mask(lsa: SimpleNamespace) -> None:
    """For any mask there are random parts that give the colluders the shares they have seen: exactly one each."""
    terms, seen = lsa.terms(size=2), (0, 3)
    matrix = encoding(terms)
    shares = encode(integers(np.array([11, -4])), terms, lsa.source("parts"))[list(seen)]
    random = matrix[list(seen)][:, terms.parts :]
    (a, b), (c, d) = random.astype(object)
    scale = pow(int(a * d - b * c), -1, PRIME)
    inverted = np.array([[d * scale, -b * scale], [-c * scale, a * scale]], object) % PRIME
    other = np.array([[123456], [654321]], object)  # another mask
    parts = inverted @ (shares.astype(object) - matrix[list(seen)][:, : terms.parts].astype(object) @ other) % PRIME
    rebuilt = matrix.astype(object) @ np.concatenate([other, parts]) % PRIME
    assert (rebuilt[list(seen)] == shares.astype(object)).all()


def test_shares_of_a_known_mask_are_uniform_and_those_of_two_users_independent(lsa: SimpleNamespace) -> None:
    terms = lsa.terms(size=100_000)
    first, second, *_ = encode(np.zeros(terms.size, np.uint64), terms, lsa.source("parts"))
    cells = [(share * np.uint64(16) // np.uint64(PRIME)).astype(np.int64) for share in (first, second)]
    counts = np.bincount(cells[0] * 16 + cells[1], minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6
    assert not np.array_equal(first, encode(np.zeros(terms.size, np.uint64), terms, lsa.source("other parts"))[0])


def test_a_mask_needs_its_size_and_a_sum_its_survivors(lsa: SimpleNamespace) -> None:
    terms = lsa.terms()
    with pytest.raises(SecureSumError, match=r"a mask of 6 entries, found shape \(5,\)"):
        encode(np.zeros(5, np.uint64), terms, lsa.source())
    shares = np.zeros((4, 3), np.uint64)
    for places, rows in (([1, 2, 3], shares[:3]), ([1, 2, 3, 3], shares), ([1, 2, 3, 4], shares[:, :2])):
        with pytest.raises(SecureSumError, match="from 4 users"):
            decode(rows, places, terms)
    with pytest.raises(SecureSumError, match="a place from 1 to 5, found 6"):
        decode(shares, [1, 2, 3, 6], terms)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"session": b"short"}, "session: expected 16 bytes, found 5"),
        ({"users": 1}, "users: expected 2 to 16384, found 1"),
        ({"users": 2**20}, "users: expected 2 to"),
        ({"survivors": 2}, "survivors: expected more than colluders = 2"),
        ({"survivors": 6}, "at most users = 5, found 6"),
        ({"colluders": -1}, "colluders: expected 0 or more"),
        ({"uploads": 3}, r"uploads: expected colluders \+ 2 = 4"),
        ({"uploads": 6}, "to users = 5, found 6"),
        ({"size": 0}, "size: expected 1 or more"),
        ({"heaviest": 0}, "heaviest: expected a weight from 1"),
        ({"heaviest": 2**30}, "found 1073741824"),
    ],
)
def test_terms_that_hide_nothing_are_refused(lsa: SimpleNamespace, changes: dict[str, int], reason: str) -> None:
    with pytest.raises(SecureSumError, match=reason):
        lsa.terms(**changes)
