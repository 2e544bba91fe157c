"""Linkage of class centres: a centre is a biometric template, and whoever gets it can search for its person.

Two attacks. A centre that a client sent is searched for in a gallery of pictures that the attacker has; and the
centres of two clients, whose numbering of people is private, are matched with one another.

The rows of a classification head's update are centres too: descent on the cross-entropy adds to a person's row the
features of her pictures. Pass them as centres to see what a client gives away that sends none.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import Scores, auc, binomial_log_probabilities
from cloister.privacy.audits.lira import unit_rows
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.events import Unit

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

_CHANCE = 0.01
"""Probability below which that many links are not made by chance."""


def similarities(queries: Array, gallery: Array) -> Scores:
    """Return the cosines ``[Q, G]`` of queries ``[Q, D]`` with a gallery ``[G, D]``.

    Raises :class:`AuditError` for shapes that do not match or values that are not finite.
    """
    shapes_match = queries.ndim == gallery.ndim == 2 and queries.shape[1] == gallery.shape[1]
    if not shapes_match or not len(gallery) or not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise AuditError(
            f"linkage: expected finite embeddings [Q, D] and [G, D], found {queries.shape} and {gallery.shape}; "
            "centres and gallery must come from the same network"
        )
    cosines: Scores = unit_rows(queries) @ unit_rows(gallery).T
    return cosines


def rank_one(scores: Scores, queries: Labels, gallery: Labels) -> NDArray[np.bool_]:
    """Return for each row of ``scores`` ``[Q, G]`` whether its highest entry shows the person asked for."""
    hits: NDArray[np.bool_] = gallery[scores.argmax(1)] == queries
    return hits


def audit_centres(centres: Array, people: Labels, gallery: Array, gallery_people: Labels) -> AuditResult:
    """Search a gallery for the person of each centre, as the server or another client can who has pictures.

    ``centres`` ``[P, D]``: as they leave the client, noised or not. ``people`` ``[P]`` and ``gallery_people`` ``[G]``:
    who is shown, known to the auditor only; centres of people who are not in the gallery are left out.

    Numbers: ``rank-1``, the share of centres whose best match is their person; ``chance``, the same for a random
    match; ``auc``, the probability that a picture of the person is nearer than one of somebody else. Passes if no
    more centres are linked than happens by chance with probability 0.01. Raises :class:`AuditError` if the gallery
    shows nobody whose centre is given.
    """
    present = np.isin(people, gallery_people)
    if not present.any():
        raise AuditError(
            "linkage: expected centres of people in the gallery, found none; use a gallery of people whom the client "
            "has seen"
        )
    scores = similarities(centres[present], gallery)
    same = people[present][:, None] == gallery_people[None, :]
    return _judge(scores, same, "centre-linkage", "cosine of a centre with pictures in a gallery", "centres")


def audit_pairs(first: Array, first_people: Labels, second: Array, second_people: Labels) -> AuditResult:
    """Match the centres of two clients with one another, as a server can to whom both are private labels.

    ``[P, D]`` and ``[Q, D]`` with who they show; only people whom both clients saw can be linked. Numbers and the
    judgement as in :func:`audit_centres`, with the second client's centres as the gallery.
    """
    shared = np.isin(first_people, second_people)
    if not shared.any():
        raise AuditError("linkage: expected people whom both clients have seen, found none; nothing can be linked")
    scores = similarities(first[shared], second)
    same = first_people[shared][:, None] == second_people[None, :]
    return _judge(scores, same, "centre-pairs", "cosine of two clients' centres", "people on two clients")


def _judge(scores: Scores, same: NDArray[np.bool_], name: str, statistic: str, what: str) -> AuditResult:
    if same.all():
        raise AuditError(
            "linkage: expected somebody else in the gallery, found one person only; nobody can be confused"
        )
    hits = same[np.arange(len(scores)), scores.argmax(1)]
    chance = float(same.mean(1).mean())
    lucky = float(np.exp(binomial_log_probabilities(len(hits), chance))[hits.sum() :].sum())
    return AuditResult(
        name=name,
        unit=Unit.SUBJECT,
        statistic=statistic,
        passed=lucky >= _CHANCE,
        numbers={
            "rank-1": float(hits.mean()),
            "chance": chance,
            "auc": auc(scores[same], scores[~same]),
            "linked": float(hits.sum()),
            "centres": float(len(hits)),
        },
        text=f"{int(hits.sum())} of {len(hits)} {what} were linked rightly (by chance {chance * len(hits):.1f}).",
    )
