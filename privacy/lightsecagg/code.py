"""The code of masks: one share per user, any U of which give a sum of masks back, any T of which say nothing.

A mask is cut into U - T parts, T uniformly random parts are added, and one polynomial of degree below U takes these
parts as its values at the points N + 1 to N + U. A user's share is the polynomial's value at its place, 1 to N. Codes
are linear: the weighted sum of shares is the share of the weighted sum.

Source: So et al. 2022, arXiv 2109.14236, section 4.1 (encoding) and 4.3 (one-shot decoding); Lagrange interpolation.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.field import PRIME, Elements, inverse, product, uniform
from cloister.privacy.lightsecagg.terms import Terms
from cloister.privacy.noise import NoiseSource


def encode(mask: Elements, terms: Terms, source: NoiseSource) -> Elements:
    """Return one share of ``mask`` (size,) per user, (users, length): row i belongs to the user at place i + 1.

    ``source`` is secret and makes the random parts. Raises :class:`SecureSumError` for a mask of another size.

    Guarantee: any ``colluders`` rows are uniform whatever the mask is.
    """
    if mask.shape != (terms.size,):
        raise SecureSumError(f"LightSecAgg: expected a mask of {terms.size} entries, found shape {mask.shape}")
    parts = np.zeros((terms.survivors, terms.length), np.uint64)
    parts[: terms.parts].reshape(-1)[: terms.size] = mask
    parts[terms.parts :] = uniform(terms.colluders * terms.length, source).reshape(terms.colluders, terms.length)
    return product(encoding(terms), parts)


def decode(shares: Elements, places: Sequence[int], terms: Terms) -> Elements:
    """Return the mask, or sum of masks, (size,) whose shares (survivors, length) the users at ``places`` hold.

    Raises :class:`SecureSumError` unless there are exactly ``survivors`` shares of as many places.
    """
    wanted = (terms.survivors, terms.length)
    if shares.shape != wanted or len(set(places)) != len(places) or len(places) != terms.survivors:
        raise SecureSumError(
            f"LightSecAgg: expected shares of shape {wanted} from {terms.survivors} users, found {shares.shape} from "
            f"{len(set(places))}; wait for more answers"
        )
    for place in places:
        terms.check_place(place)
    return product(lagrange(places, _points(terms.users, terms.survivors)[: terms.parts]), shares).reshape(-1)[
        : terms.size
    ]


def encoding(terms: Terms) -> Elements:
    """Return the code's matrix (users, survivors): shares = matrix @ parts. The last T columns are the random parts'.

    Any T rows of those columns are an invertible matrix (a scaled Cauchy matrix), which is why T shares say nothing.
    """
    return _encoding(terms.users, terms.survivors)


def lagrange(nodes: Sequence[int], points: Sequence[int]) -> Elements:
    """Return the matrix (points, nodes) that takes a polynomial's values at ``nodes`` to those at ``points``.

    Entry (x, k) is the product over l != k of (x - node_l) / (node_k - node_l). Nodes differ from one another and,
    modulo the prime, from the points.
    """
    scales = []
    for node in nodes:
        scale = 1
        for other in nodes:
            if other != node:
                scale = scale * (node - other) % PRIME
        scales.append(inverse(scale))
    matrix = np.empty((len(points), len(nodes)), np.uint64)
    for row, point in zip(matrix, points, strict=True):
        whole = 1
        for node in nodes:
            whole = whole * (point - node) % PRIME
        row[:] = [whole * scale * inverse(point - node) % PRIME for node, scale in zip(nodes, scales, strict=True)]
    return matrix


@lru_cache(maxsize=4)
def _encoding(users: int, survivors: int) -> Elements:
    matrix = lagrange(_points(users, survivors), range(1, users + 1))
    matrix.flags.writeable = False
    return matrix


def _points(users: int, survivors: int) -> range:
    """The points at which the polynomial takes the parts: behind the users' places, never one of them."""
    return range(users + 1, users + survivors + 1)
