"""Contribution bounding: how few of a person's records may be used, and under which name she is counted.

A guarantee per unit needs a bound on what one unit can add. Which records stay must depend on nothing but the unit's
own records and a secret, or else one person's arrival changes what is used of another.
"""

import hmac
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError

_LEAST_KEY = 16
"""Bytes: fewer could be guessed, and with the key anyone can test a name against a pseudonym."""


def pseudonym(key: bytes, identity: str) -> str:
    """Return the pseudonymous id of a person, ``HMAC-SHA256(key, identity)`` as 64 hexadecimal digits.

    ``key``: at least 16 secret bytes, the same at every site where she must be recognised as one person. Raises
    :class:`PlanError` for a shorter key.

    Guarantee: without the key, nobody can tell whom an id stands for, nor try names against it. With the key everybody
    can: it must not leave the sites of its group. Source: RFC 2104, RFC 4231.
    """
    _check_key(key)
    return hmac.digest(key, identity.encode(), "sha256").hex()


def bounded(units: Sequence[str], most: int, key: bytes) -> NDArray[np.int64]:
    """Return the ascending indices of the records that stay when no unit may have more than ``most``.

    ``units``: the unit of each record, in the order of the records. Of a unit with more records, those with the
    smallest HMAC-SHA256 of (unit, place among the unit's own records) stay. Raises :class:`PlanError` for ``most``
    below 1 or a key of fewer than 16 bytes.

    Guarantee: adding, removing or changing one unit's records changes nothing about which records of others stay, so
    data sets that were neighbours stay neighbours.
    """
    _check_most(most)
    _check_key(key)
    places = dict[str, list[int]]()
    for index, unit in enumerate(units):
        places.setdefault(unit, []).append(index)
    kept = list[int]()
    for unit, own in places.items():
        if len(own) > most:
            marks = [hmac.digest(key, f"{place}\x1f{unit}".encode(), "sha256") for place in range(len(own))]
            own = [own[place] for place in sorted(range(len(own)), key=marks.__getitem__)[:most]]
        kept.extend(own)
    return np.array(sorted(kept), dtype=np.int64)


def bounded_shared(owners: Sequence[Sequence[Hashable]], most: int) -> NDArray[np.int64]:
    """Return the ascending indices of records to keep where one record shows several people, none more than ``most``.

    ``owners``: the people that each record shows, in a public order of the records. Greedy: a record stays if each of
    its owners still has room; one without owners always stays. No record that was left out could be added afterwards.
    Raises :class:`PlanError` for ``most`` below 1.

    Guarantee: **only if the graph is public**, that is, who is shown on which record, though not what the record looks
    like (fixed-graph neighbours: one person's records change in content, none comes or goes). One person's edges decide
    whether her neighbours' records stay, so with a private graph this selection is itself an unprotected release.
    Source: Ganesh, McKenna, McMahan, Smith and Wu, arXiv 2503.03622.
    """
    _check_most(most)
    used = dict[Hashable, int]()
    kept = list[int]()
    for index, people in enumerate(map(frozenset, owners)):
        if all(used.get(person, 0) < most for person in people):
            kept.append(index)
            for person in people:
                used[person] = used.get(person, 0) + 1
    return np.array(kept, dtype=np.int64)


def _check_most(most: int) -> None:
    if most < 1:
        raise PlanError(f"most records of one unit: expected at least 1, found {most}; set plan.records")


def _check_key(key: bytes) -> None:
    if len(key) < _LEAST_KEY:
        raise PlanError(
            f"key: expected at least {_LEAST_KEY} bytes, found {len(key)}; draw one from the operating system"
        )
