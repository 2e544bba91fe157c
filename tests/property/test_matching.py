"""Properties of identity matching that hold for any centres."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloister.strategies.centres import Rows
from cloister.strategies.matching import Member, match_identities
from cloister.strategies.uci import group_means


@st.composite
def released(draw: st.DrawFn) -> dict[str, Rows]:
    """Distinct centres of up to five clients: noisy looks at a common pool of people, or full of exact ties."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    people = generator.normal(size=(8, 6))
    noise = draw(st.sampled_from([0.01, 0.5, 3.0, None]))
    corners = np.array([corner for corner in np.ndindex(3, 3, 3) if corner != (1, 1, 1)]) - 1.0
    clients = {}
    for name in "abcde"[: draw(st.integers(1, 5))]:
        held = draw(st.lists(st.integers(0, 7), unique=True, max_size=8))
        if noise is None:
            values = corners[generator.permutation(len(corners))[: len(held)]]
        else:
            values = people[held].reshape(-1, 6) + noise * generator.normal(size=(len(held), 6))
        clients[name] = Rows(np.arange(len(held)), values.astype(np.float32))
    return clients


@given(released(), st.floats(-1, 1))
def test_no_group_holds_two_identities_of_one_client(clients: dict[str, Rows], tau: float) -> None:
    groups = match_identities(clients, tau)
    for group in groups:
        assert max(Counter(member.client for member in group).values()) == 1
        assert len(group) >= 2
    members = [member for group in groups for member in group]
    assert len(members) == len(set(members))


@given(released(), st.sampled_from([-1.0, 0.0, 0.5]), st.data())
def test_groups_and_means_do_not_depend_on_private_numbers(
    clients: dict[str, Rows], tau: float, data: st.DataObject
) -> None:
    renumbered, back = {}, {}
    for name, rows in clients.items():
        count = len(rows.labels)
        numbers = data.draw(st.permutations(range(100, 100 + count)))
        order = np.argsort(numbers)
        renumbered[name] = Rows(np.array(sorted(numbers), np.int64), rows.values[order])
        back[name] = {numbers[label]: label for label in range(count)}
    groups = match_identities(clients, tau)
    other = match_identities(renumbered, tau)
    as_first = [tuple(Member(member.client, back[member.client][member.label]) for member in group) for group in other]
    assert {frozenset(group) for group in groups} == {frozenset(group) for group in as_first}
    one = group_means(groups, clients, unmatched=True)
    two = group_means(other, renumbered, unmatched=True)
    for name, rows in two.items():
        for number, row in zip(rows.labels.tolist(), rows.values, strict=True):
            label = back[name][number]
            expected = one[name].values[np.searchsorted(one[name].labels, label)]
            assert row.tobytes() == expected.tobytes()


@given(released(), st.data())
def test_groups_do_not_depend_on_the_order_or_scale_of_releases(clients: dict[str, Rows], data: st.DataObject) -> None:
    order = data.draw(st.permutations(sorted(clients)))
    scaled = {name: Rows(clients[name].labels, clients[name].values * np.float32(4)) for name in order}
    assert match_identities(scaled, 0.0) == match_identities(clients, 0.0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_well_separated_people_are_all_found(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    people = np.eye(10, 12) * 3
    clients, truth = {}, {}
    for name in "abcde"[:count]:
        held = generator.permutation(10)[:6]
        values = people[held] + 0.01 * generator.normal(size=(6, 12))
        clients[name] = Rows(np.arange(6), values.astype(np.float32))
        truth |= {Member(name, label): int(person) for label, person in enumerate(held)}
    shared = {person for person, uses in Counter(truth.values()).items() if uses > 1}
    expected = {frozenset(member for member, who in truth.items() if who == person) for person in shared}
    assert {frozenset(group) for group in match_identities(clients, 0.5)} == expected
