from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.contributions import bounded, bounded_shared, pseudonym

KEY = bytes(range(32))
UNITS = st.lists(st.sampled_from("abcde"), max_size=40)


def test_pseudonyms_are_hmac_sha256() -> None:
    """RFC 4231, test case 1."""
    expected = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    assert pseudonym(b"\x0b" * 20, "Hi There") == expected
    assert pseudonym(b"\x0c" * 20, "Hi There") != expected


def test_a_short_key_is_refused_and_not_shown() -> None:
    for call in (lambda: pseudonym(b"secret", "a"), lambda: bounded(["a"], 1, b"secret")):
        with pytest.raises(PlanError, match="at least 16 bytes, found 6") as caught:
            call()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("call", [lambda: bounded(["a"], 0, KEY), lambda: bounded_shared([["a"]], 0)])
def test_a_bound_below_one_is_refused(call: object) -> None:
    with pytest.raises(PlanError, match="at least 1, found 0"):
        call()  # type: ignore[operator]


@given(units=UNITS, most=st.integers(1, 6))
def test_each_unit_keeps_as_many_as_it_may(units: list[str], most: int) -> None:
    kept = bounded(units, most, KEY)
    assert kept.dtype == np.int64
    assert list(kept) == sorted(set(kept))
    assert Counter(units[index] for index in kept) == {u: min(n, most) for u, n in Counter(units).items()}


@given(units=UNITS, most=st.integers(1, 4), places=st.lists(st.integers(0, 40), max_size=10))
def test_a_unit_that_arrives_changes_nothing_for_others(units: list[str], most: int, places: list[int]) -> None:
    without = list(enumerate(units))
    grown: list[tuple[int, str]] = list(without)
    for place in places:
        grown.insert(min(place, len(grown)), (-1, "new"))
    kept = bounded([unit for _, unit in grown], most, KEY)
    assert [grown[index][0] for index in kept if grown[index][0] >= 0] == list(bounded(units, most, KEY))


def test_the_key_decides_which_records_stay() -> None:
    choices = {tuple(bounded(["a"] * 20, 5, bytes([number] * 16))) for number in range(10)}
    assert len(choices) == 10


def test_every_record_stays_equally_often() -> None:
    """300 keys, 3 of 10: each place 90 times, standard deviation 7.9; 5.5 of them are exceeded once in 10^6 at most."""
    counts = Counter(int(i) for n in range(300) for i in bounded(["a"] * 10, 3, n.to_bytes(16, "big")))
    assert all(abs(counts[place] - 90) < 44 for place in range(10))


GRAPHS = st.lists(st.lists(st.sampled_from("abcd"), max_size=3), max_size=25)


@given(owners=GRAPHS, most=st.integers(1, 4))
def test_shared_records_never_exceed_the_bound_and_none_is_left_that_would_fit(
    owners: list[list[str]], most: int
) -> None:
    kept = set(map(int, bounded_shared(owners, most)))
    used = Counter(person for index in kept for person in set(owners[index]))
    assert all(count <= most for count in used.values())
    for index in set(range(len(owners))) - kept:
        assert any(used[person] >= most for person in owners[index])


def test_a_crowd_is_left_out_when_one_of_it_is_full() -> None:
    owners = [["a"], ["a", "b"], ["b"], ["b", "c"], ["c"], []]
    assert list(bounded_shared(owners, 1)) == [0, 2, 4, 5]
    assert list(bounded_shared(owners, 2)) == [0, 1, 2, 4, 5]


def test_the_caveat_is_real_one_persons_edge_changes_what_others_keep() -> None:
    """Why the graph must be public: adding ``a`` to a record of ``b`` removes that record."""
    assert list(bounded_shared([["a"], ["b"]], 1)) == [0, 1]
    assert list(bounded_shared([["a"], ["b", "a"]], 1)) == [0]
