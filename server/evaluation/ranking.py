"""Retrieval metrics under the rule sets of the five visible-infrared data sets, vectorised over queries.

For one query, let the kept gallery images be ranked by distance and let ``p_1 < ... < p_m`` be the positions of its
true matches. Then ``AP = mean_j(j / p_j)`` and ``INP = m / p_m``; mAP and mINP are means over *valid* queries, those
with at least one true match left. Rank-k is the share of valid queries whose first true match is at position k or
better; at identity level all images of one identity collapse to the best of them before positions are counted.

Sources: Zheng et al., "Scalable Person Re-identification", ICCV 2015 (AP); Ye et al., "Deep Learning for Person
Re-identification", TPAMI 2021 (INP); Wu et al., "RGB-Infrared Cross-Modality Person Re-identification", ICCV 2017 (the
SYSU-MM01 rules).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloister.errors import EvaluationError

NDArray = np.ndarray[Any, np.dtype[Any]]

RANKS = (1, 5, 10, 20)
"""The k of every Rank-k that is reported."""

_SMALLEST_SPREAD = 1e-6
_SMALLEST_NORM = 1e-6

TIED_SHARE = 0.05
"""The share of ties up to which a score is given; beyond it there is an error."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Identity and camera number of each image: two int arrays ``[N]``."""

    identities: NDArray
    cameras: NDArray

    def take(self, places: NDArray) -> "Labels":
        """Return the labels at ``places`` (an index or boolean array)."""
        return Labels(identities=self.identities[places], cameras=self.cameras[places])


def _keep_all(query: Labels, gallery: Labels) -> NDArray:
    return np.zeros((len(query.identities), len(gallery.identities)), dtype=bool)


def _drop_room_of_camera_3(query: Labels, gallery: Labels) -> NDArray:
    dropped: NDArray = np.logical_and.outer(query.cameras == 3, gallery.cameras == 2)
    return dropped


def _drop_same_identity_and_camera(query: Labels, gallery: Labels) -> NDArray:
    same_identity = np.equal.outer(query.identities, gallery.identities)
    dropped: NDArray = same_identity & np.equal.outer(query.cameras, gallery.cameras)
    return dropped


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How one data set ranks: which gallery images a query must not see, and what Rank-k counts.

    ``removed`` maps query and gallery labels to a boolean array ``[queries, gallery]``. ``identity_level`` counts
    identities instead of images (or tracklets) in Rank-k.
    """

    removed: Callable[[Labels, Labels], NDArray]
    identity_level: bool


RULES = {
    # Cameras 2 and 3 watch the same room, so camera 3 skips camera 2 whoever it shows. Only this way round: the
    # protocol says nothing of visible queries.
    "sysu-mm01": Rules(removed=_drop_room_of_camera_3, identity_level=True),
    "regdb": Rules(removed=_keep_all, identity_level=False),
    "llcm": Rules(removed=_drop_same_identity_and_camera, identity_level=True),
    "hitsz-vcm": Rules(removed=_drop_same_identity_and_camera, identity_level=False),
    "buptcampus": Rules(removed=_keep_all, identity_level=False),
}
"""The five rule sets by data set."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What became of each query: four arrays ``[queries]`` and the order ``[queries, gallery]``.

    ``first_hit`` is the position (from 1) of the first true match at the rules' level, ``kept`` the number of gallery
    images left. Where ``valid`` is False the query has no true match and the numbers are 0. ``order`` lists
    gallery places by rank; the first ``kept`` of a row are the ranking, the removed ones follow.
    """

    valid: NDArray
    first_hit: NDArray
    average_precision: NDArray
    inverse_negative_penalty: NDArray
    kept: NDArray
    order: NDArray


def distances(query: NDArray, gallery: NDArray) -> NDArray:
    """Return the negative cosine similarity, float32 ``[queries, gallery]`` in [-1, 1].

    ``query`` ``[Q, d]`` and ``gallery`` ``[G, d]`` are feature rows of any length that single precision can tell from
    zero and square (1e-6 to 1e19).

    Raises :class:`EvaluationError` for features that are not finite, too long, of zero length, or all the same among
    the queries or in the gallery.
    """
    units = [_unit_rows(rows, name) for name, rows in (("query", query), ("gallery", gallery))]
    result: NDArray = -(units[0] @ units[1].T)
    advice = "check that its weights were loaded and that training did not collapse"
    if result.shape[1] > 1:
        flat = np.ptp(result, axis=1) < _SMALLEST_SPREAD
        if flat.any():
            raise EvaluationError(
                f"query {int(np.argmax(flat))}: all {result.shape[1]} gallery images are equally far away "
                f"({int(flat.sum())} of {len(flat)} queries are so); the model gives one feature for every image: "
                f"{advice}"
            )
    if len(result) > 1 and (np.ptp(result, axis=0) < _SMALLEST_SPREAD).all():
        raise EvaluationError(
            f"all {len(result)} queries are equally far from each gallery image; the model gives one feature for every "
            f"query: {advice}"
        )
    return result


def rank(distance: NDArray, query: Labels, gallery: Labels, rules: Rules, *, refuse_ties: bool = True) -> Ranking:
    """Return the ranking of every query; equal distances keep the gallery's order.

    ``distance`` is ``[queries, gallery]``, smaller is nearer.

    Raises :class:`EvaluationError` where distances are not finite, or (unless ``refuse_ties`` is off) where more than
    5 % of the valid queries have a true match exactly as far away as somebody else, so that the score would depend on
    the order of files.
    """
    if not np.isfinite(distance).all():
        raise EvaluationError("distances are not finite; a metric of them would mean nothing. Check the features")
    removed = rules.removed(query, gallery)
    by_rank = np.argsort(np.where(removed, np.inf, distance), axis=1, kind="stable")
    kept = (~removed).sum(axis=1)
    places = np.arange(1, distance.shape[1] + 1)
    match = np.equal.outer(query.identities, gallery.identities) & ~removed
    hit = np.take_along_axis(match, by_rank, axis=1)
    count = hit.sum(axis=1)
    valid = count > 0
    if refuse_ties:
        _refuse_ties(np.take_along_axis(distance, by_rank, axis=1), hit, kept, valid)

    nonzero = np.maximum(count, 1)
    precision = np.cumsum(hit, axis=1) / places
    last = (hit * places).max(axis=1, initial=1)
    first = np.where(valid, np.argmax(hit, axis=1) + 1, 0)
    if rules.identity_level:
        first = np.where(valid, _identities_until(by_rank, first, gallery.identities), 0)
    return Ranking(
        valid=valid,
        first_hit=first,
        average_precision=(precision * hit).sum(axis=1) / nonzero,
        inverse_negative_penalty=np.where(valid, count / last, 0.0),
        kept=kept,
        order=by_rank,
    )


def summarise(ranking: Ranking, among: NDArray | None = None) -> dict[str, float]:
    """Return ``rank1``, ``rank5``, ``rank10``, ``rank20``, ``map``, ``minp`` as fractions in [0, 1].

    ``among`` (boolean ``[queries]``) restricts the means to some queries.

    Raises :class:`EvaluationError` where no query is valid.
    """
    chosen = ranking.valid if among is None else ranking.valid & among
    if not chosen.any():
        raise EvaluationError(
            f"none of {len(chosen)} queries has a true match in the gallery under this data set's rules; "
            "check that query and gallery come from the same split"
        )
    first = ranking.first_hit[chosen]
    metrics = {f"rank{k}": float((first <= k).mean()) for k in RANKS}
    metrics["map"] = float(ranking.average_precision[chosen].mean())
    metrics["minp"] = float(ranking.inverse_negative_penalty[chosen].mean())
    return metrics


def _unit_rows(rows: NDArray, name: str) -> NDArray:
    rows = np.asarray(rows)
    if rows.ndim != 2 or not len(rows):
        raise EvaluationError(f"{name} features: expected a non-empty array [N, d], found shape {rows.shape}")
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise EvaluationError(
            f"{name} features: row {int(np.argmax(bad))} is not finite ({int(bad.sum())} of {len(bad)} rows are so); "
            "the model diverged: lower the learning rate or evaluate an earlier round"
        )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is named
        rows = rows.astype(np.float32)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
    long = ~np.isfinite(norms[:, 0])
    if long.any():
        raise EvaluationError(
            f"{name} features: row {int(np.argmax(long))} is too long for single precision, whose squares end at 3e38 "
            f"({int(long.sum())} of {len(long)} rows are so); the model diverged: lower the learning rate or evaluate "
            "an earlier round"
        )
    if (norms < _SMALLEST_NORM).any():
        raise EvaluationError(
            f"{name} features: row {int(np.argmin(norms))} has length zero: the model is dead, or its features are too "
            "large to normalise. Check that its weights were loaded and that training neither collapsed nor diverged"
        )
    unit: NDArray = rows / norms
    return unit


def _identities_until(by_rank: NDArray, first: NDArray, identities: NDArray) -> NDArray:
    """Return how many different identities stand at or before position ``first`` (from 1) of each ranking."""
    columns = np.argsort(identities, kind="stable")
    starts = np.flatnonzero(np.diff(identities[columns], prepend=identities[columns[0]] - 1))
    position = np.empty_like(by_rank)
    np.put_along_axis(position, by_rank, np.arange(by_rank.shape[1])[None, :], axis=1)
    best = np.minimum.reduceat(position[:, columns], starts, axis=1)
    result: NDArray = (best < first[:, None]).sum(axis=1)
    return result


def _refuse_ties(ordered: NDArray, hit: NDArray, kept: NDArray, valid: NDArray) -> None:
    inside = np.arange(1, ordered.shape[1]) < kept[:, None]
    tied = ((ordered[:, 1:] == ordered[:, :-1]) & (hit[:, 1:] != hit[:, :-1]) & inside).any(axis=1) & valid
    if tied.sum() > TIED_SHARE * valid.sum():
        raise EvaluationError(
            f"{int(tied.sum())} of {int(valid.sum())} queries have a true match exactly as far away as another person; "
            "their score would depend on the order of files. Check that the features are not collapsed or rounded"
        )
