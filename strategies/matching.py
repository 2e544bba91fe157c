"""Which identities of different clients, each privately numbered, are the same person: matching by class centres.

Source: the uCI protocol of L2RW's successor, github.com/Joey623/L2RWPlus. Groups, and every sum over them, are the same
bit for bit whatever numbers and order the clients give their identities: rows are put in order by content first.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cloister.flower import NDArray
from cloister.strategies.centres import Rows

Truth = Callable[[str, int], Hashable]


@dataclass(frozen=True, order=True, slots=True)
class Member:
    """One identity of one client, under the client's own label."""

    client: str
    label: int


Matches = tuple[tuple[Member, ...], ...]


def match_identities(released: Mapping[str, Rows], tau: float) -> Matches:
    """Return groups of two or more identities held to be one person, never two of one client.

    Centres are compared by cosine. For each pair of clients the mutual nearest neighbours with cosine >= ``tau`` become
    edges; edges are taken in order of falling cosine and join groups, unless the joined group would hold two identities
    of one client.
    """
    members: list[Member] = []
    units: dict[str, tuple[int, NDArray]] = {}
    for client, rows in sorted(released.items()):
        order = sorted(range(len(rows.labels)), key=[row.tobytes() for row in rows.values].__getitem__)
        values = rows.values[order].astype(np.float64)
        units[client] = len(members), values / np.linalg.norm(values, axis=1, keepdims=True)
        members += [Member(client, int(rows.labels[row])) for row in order]
    edges = [edge for first, second in combinations(units.values(), 2) for edge in _edges(first, second, tau)]
    return _join(members, sorted(edges))


def _edges(first: tuple[int, NDArray], second: tuple[int, NDArray], tau: float) -> list[tuple[float, int, int]]:
    (start_a, a), (start_b, b) = first, second
    if not len(a) or not len(b):
        return []
    cosine = a @ b.T
    nearest = cosine.argmax(axis=1)
    back = cosine.argmax(axis=0)
    mutual = np.flatnonzero(back[nearest] == np.arange(len(a)))
    best = cosine[mutual, nearest[mutual]]
    return [
        (-float(value), start_a + int(row), start_b + int(nearest[row]))
        for row, value in zip(mutual, best, strict=True)
        if value >= tau
    ]


def _join(members: Sequence[Member], edges: Sequence[tuple[float, int, int]]) -> Matches:
    groups: dict[int, list[int]] = {index: [index] for index in range(len(members))}
    home = list(range(len(members)))
    for _, one, other in edges:
        keep, gone = sorted((home[one], home[other]))
        clients = [members[index].client for index in (*groups[keep], *groups[gone])]
        if keep == gone or len(set(clients)) < len(clients):
            continue
        for index in groups[gone]:
            home[index] = keep
        groups[keep] += groups.pop(gone)
    found = [tuple(members[index] for index in sorted(group)) for group in groups.values() if len(group) > 1]
    return tuple(sorted(found))


def audit(groups: Matches, released: Mapping[str, Rows], truth: Truth) -> dict[str, float]:
    """Return how well ``groups`` agree with ``truth(client, label)``, the person behind an identity. For audit only.

    ``matching-precision``: share of grouped pairs that are one person; ``matching-recall``: share of the pairs that are
    one person that were grouped; ``matching-false-singles``: share of the people known to one client only that were
    grouped with somebody. A share of nothing is left out.
    """
    person = {
        Member(client, int(label)): truth(client, int(label))
        for client, rows in released.items()
        for label in rows.labels
    }
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    right = sum(person[one] == person[other] for one, other in pairs)
    places: dict[Hashable, list[Member]] = {}
    for member, who in person.items():
        places.setdefault(who, []).append(member)
    true_pairs = sum(len(held) * (len(held) - 1) // 2 for held in places.values())
    singles = {held[0] for held in places.values() if len(held) == 1}
    grouped = {member for group in groups for member in group}
    shares = {
        "matching-precision": (right, len(pairs)),
        "matching-recall": (right, true_pairs),
        "matching-false-singles": (len(singles & grouped), len(singles)),
    }
    return {name: part / whole for name, (part, whole) in shares.items() if whole}
