"""Shamir's shares: the published polynomial, any threshold of shares and no fewer, and two kinds that never mix."""

import copy
import itertools
import pickle
import time
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from cloister.errors import SecureSumError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg import shares
from cloister.privacy.secagg.keys import Secret
from cloister.privacy.secagg.shares import KeyShare, SeedShare, join_key, join_seed, split_key, split_seed

SECRET = bytes(range(200, 232))
VECTOR = [1234567890123456000 + end for end in (838, 901, 978, 1069, 1174)]  # 1234567890123456789 + 42 x + 7 x^2


def test_a_polynomial_has_the_published_values() -> None:
    coefficients = np.array([[1234567890123456789], [42], [7]], np.uint64)
    found = shares.evaluate(coefficients, (1, 2, 3, 4, 5))
    assert found[:, 0].tolist() == VECTOR
    for places in itertools.combinations(range(1, 6), 3):
        factors = shares._factors(places)
        terms = (factor * VECTOR[place - 1] for factor, place in zip(factors, places, strict=True))
        assert sum(terms) % shares.PRIME == 1234567890123456789


def test_polynomials_are_exact_where_words_are_largest() -> None:
    p, largest = shares.PRIME, shares.LARGEST_PLACE
    numbers = [0, 1, p - 1, p - 2, (1 << 60) + 1, (1 << 30) - 1, 1 << 30, (1 << 31) - 1]
    places = [1, 2, 3, largest, largest - 1, 1 << 30, (1 << 30) - 1]
    columns = list(itertools.product(numbers, repeat=3))
    found = shares.evaluate(np.array(columns, np.uint64).T, tuple(places))
    expected = [[(a + b * x + c * x * x) % p for a, b, c in columns] for x in places]
    assert found.tolist() == expected


def test_polynomials_of_many_terms_are_exact() -> None:
    p, terms = shares.PRIME, 20_000  # sums of as many products would not fit in a double
    coefficients = np.full(terms, p - 1, np.uint64)
    places = [1, 2, 3, 1_000_003, shares.LARGEST_PLACE, shares.LARGEST_PLACE - 5]
    expected = [-(pow(x, terms, p) - 1) * pow(x - 1, -1, p) % p if x > 1 else -terms % p for x in places]
    assert shares.evaluate(coefficients[:, None], tuple(places))[:, 0].tolist() == expected


@pytest.mark.parametrize(("threshold", "count"), [(2, 2), (2, 3), (3, 5), (5, 5)])
def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not(threshold: int, count: int) -> None:
    places = [7, 1, 2**31 - 1, 12, 3][:count]
    for split, join in ((split_seed, join_seed), (split_key, join_key)):
        made = split(Secret(SECRET), threshold, places, NoiseSource.fresh())
        assert [share.place for share in made] == places
        for size in range(1, count + 1):
            for some in itertools.permutations(made, size):
                if size >= threshold:
                    assert join(some).view() == SECRET
                else:
                    with pytest.raises(SecureSumError, match="found too few"):
                        join(some)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\x80", b"\x01" + bytes(31)])
def test_every_secret_comes_back(secret: bytes) -> None:
    assert join_seed(split_seed(Secret(secret), 3, range(1, 5), NoiseSource.fresh())[1:]).view() == secret


def test_a_changed_share_is_noticed() -> None:
    made = split_seed(Secret(SECRET), 3, range(1, 6), NoiseSource.fresh())
    for index in range(shares.SHARE_BYTES):
        value = bytearray(made[0].value)
        value[index] ^= 1
        with pytest.raises(SecureSumError, match="or some that were changed"):
            join_seed([SeedShare(1, bytes(value)), *made[1:]])
    with pytest.raises(SecureSumError, match="or some that were changed"):
        join_seed([SeedShare(6, made[0].value), *made[1:]])
    other = split_seed(Secret(SECRET), 3, range(1, 6), NoiseSource.fresh())
    with pytest.raises(SecureSumError, match="or some that were changed"):
        join_seed([*made[:2], *other[2:]])


def test_a_share_alone_is_uniform_whatever_the_secret() -> None:
    source = NoiseSource(bytes(32))  # a fixed key: a p-value below the limit is a defect, not chance
    for secret in (bytes(32), b"\xff" * 32):
        limbs = [
            limb / shares.PRIME
            for _ in range(400)
            for share in split_seed(Secret(secret), 2, [1, 5], source)
            for limb in share.limbs()
        ]
        assert stats.kstest(limbs[::2], "uniform").pvalue > 1e-6
        assert stats.kstest(limbs[1::2], "uniform").pvalue > 1e-6


def test_two_splits_of_one_secret_share_nothing() -> None:
    source = NoiseSource.fresh()
    one, other = (split_key(Secret(SECRET), 2, [1, 2], source) for _ in range(2))
    assert one[0].value != other[0].value


def test_the_two_kinds_never_mix() -> None:
    seeds = split_seed(Secret(SECRET), 2, [1, 2], NoiseSource.fresh())
    keys = split_key(Secret(SECRET), 2, [1, 2], NoiseSource.fresh())
    assert {type(share) for share in seeds} == {SeedShare}
    assert {type(share) for share in keys} == {KeyShare}
    assert SeedShare(1, seeds[0].value) == seeds[0] != KeyShare(1, seeds[0].value)
    with pytest.raises(SecureSumError, match="expected each to be a SeedShare, found a KeyShare"):
        join_seed([seeds[0], keys[1]])  # type: ignore[list-item]
    with pytest.raises(SecureSumError, match="expected each to be a KeyShare, found a SeedShare"):
        join_key(seeds)  # type: ignore[arg-type]


def test_shares_are_in_no_text_and_not_pickled() -> None:
    for share in split_seed(Secret(SECRET), 2, [1, 2], NoiseSource.fresh()):
        assert repr(share) == f"SeedShare(place={share.place})" == str(share)
        acts: list[Callable[[object], object]] = [pickle.dumps, copy.copy, copy.deepcopy]
        for act in acts:
            with pytest.raises(SecureSumError, match="cannot be copied or pickled"):
                act(share)


@pytest.mark.parametrize("places", [[1, 1, 2], [0, 1], [-1, 2], [1, 2**31]])
def test_places_that_would_show_or_lose_the_secret_are_refused(places: list[int]) -> None:
    with pytest.raises(SecureSumError, match="places of shares: expected different ones"):
        split_seed(Secret(SECRET), 2, places, NoiseSource.fresh())


@pytest.mark.parametrize("threshold", [-1, 0, 1, 4])
def test_thresholds_that_hide_nothing_or_lose_the_secret_are_refused(threshold: int) -> None:
    with pytest.raises(SecureSumError, match=f"threshold of shares: expected 2 to 3, found {threshold}"):
        split_seed(Secret(SECRET), threshold, [1, 2, 3], NoiseSource.fresh())


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (0, bytes(40), "place from 1"),
        (2**31, bytes(40), "place from 1"),
        (True, bytes(40), "place from 1"),
        (1, bytes(39), "40 bytes"),
        (1, bytearray(40), "40 bytes"),
        (1, bytes(32) + b"\xff" * 8, "limbs below"),
        (1, bytes(32) + shares.PRIME.to_bytes(8, "little"), "limbs below"),
    ],
)
def test_what_is_no_share_is_refused(place: int, value: bytes, match: str) -> None:
    with pytest.raises(SecureSumError, match=match):
        SeedShare(place, value)


def test_no_shares_and_repeated_places_are_refused() -> None:
    made = split_seed(Secret(SECRET), 2, [1, 2], NoiseSource.fresh())
    for some in ([], [made[0], made[0]]):
        with pytest.raises(SecureSumError, match="each of another place"):
            join_seed(some)


def test_the_coefficients_come_from_the_source_and_are_many() -> None:
    one, same = (split_seed(Secret(SECRET), 26, range(1, 52), NoiseSource(bytes(32))) for _ in range(2))
    assert one == same
    assert join_seed(one[25:]).view() == SECRET
    with pytest.raises(SecureSumError, match="found too few"):
        join_seed(one[:25])


def test_splitting_is_quick() -> None:
    secret, source = Secret(SECRET), NoiseSource.fresh()
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        split_seed(secret, 26, range(1, 52), source)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.005  # ten times the benchmark's target: this machine may be busy
