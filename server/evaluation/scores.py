"""What an evaluation hands back: metrics, every repetition, scores camera by camera, and a few retrievals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloister.errors import EvaluationError
from cloister.server.evaluation.ranking import Labels, Ranking, Rules, rank, summarise

NDArray = np.ndarray[Any, np.dtype[Any]]
CELLS = ("rank1", "map")
"""The metrics that a camera matrix has."""
_TOP = 10


@dataclass(frozen=True, kw_only=True)
class CameraScores:
    """Scores of one search direction by camera number.

    ``cells`` maps ``rank1`` and ``map`` to rows, one per query camera, of fractions, one per gallery camera: queries of
    the one searched among the images of the other alone. None where the rules leave no valid query.
    ``query_cameras`` has each query camera's scores against the whole gallery. ``worst`` is the one with the lowest
    Rank-1 (then mAP) of these.
    """

    queries: list[int]
    galleries: list[int]
    cells: dict[str, list[list[float | None]]]
    query_cameras: dict[int, dict[str, float]]
    worst: int


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """One image of a retrieval: ``pixels`` uint8 ``[H, W, 3]``; ``correct`` is None for the query itself."""

    path: str
    identity: int
    camera: str
    pixels: NDArray
    correct: bool | None
    similarity: float | None


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """A query and its up to ten best-ranked gallery images. ``first_hit``: rank of the first true match, by image."""

    direction: str
    query: Retrieved
    results: list[Retrieved]
    average_precision: float
    first_hit: int


@dataclass(frozen=True, kw_only=True)
class ReidScores:
    """Everything that :class:`~cloister.server.evaluation.reid.ReidEvaluator` finds out.

    ``metrics``: means over the repetitions, fractions in [0, 1]: ``rank1``, ``rank5``, ``rank10``, ``rank20``, ``map``,
    ``minp``, ``worst_camera_rank1``, ``worst_camera_map`` for infrared queries in a visible gallery, and the same
    after ``rgb2ir/`` for the other direction. ``per_draw``: the same per repetition, except for the worst camera's.
    ``camera_matrix`` by direction, cameras numbered as on disk; ``camera_names`` says what to call them.
    """

    metrics: dict[str, float]
    per_draw: list[dict[str, float]]
    camera_matrix: dict[str, CameraScores]
    camera_names: dict[int, str]
    retrievals: list[Retrieval]


def cell_scores(
    distance: NDArray, query: Labels, gallery: Labels, rules: Rules
) -> dict[tuple[int, int], dict[str, float]]:
    """Return the metrics of every (query camera, gallery camera) that has a valid query."""
    found = {}
    for there in np.unique(gallery.cameras):
        columns = np.flatnonzero(gallery.cameras == there)
        # Ties were judged on the whole gallery; among a handful of images one tie would be a large share.
        ranking = rank(distance[:, columns], query, gallery.take(columns), rules, refuse_ties=False)
        for here in np.unique(query.cameras):
            among = query.cameras == here
            if (ranking.valid & among).any():
                found[int(here), int(there)] = summarise(ranking, among)
    return found


def row_scores(ranking: Ranking, query: Labels) -> dict[int, dict[str, float]]:
    """Return the metrics of every query camera that has a valid query, against the whole gallery."""
    cameras = [int(camera) for camera in np.unique(query.cameras[ranking.valid])]
    return {camera: summarise(ranking, query.cameras == camera) for camera in cameras}


def camera_scores(
    cells: Sequence[dict[tuple[int, int], dict[str, float]]], rows: Sequence[dict[int, dict[str, float]]]
) -> CameraScores:
    """Return the mean over repetitions of what :func:`cell_scores` and :func:`row_scores` found in each."""
    pairs = {pair for repetition in cells for pair in repetition}
    queries = sorted({camera for repetition in rows for camera in repetition})
    galleries = sorted({there for _, there in pairs})
    if not queries:
        raise EvaluationError("no query camera has a valid query; check the test split")
    matrix = {
        name: [
            [_mean([cell[here, there][name] for cell in cells if (here, there) in cell]) for there in galleries]
            for here in queries
        ]
        for name in CELLS
    }
    whole = {
        camera: mean_metrics([repetition[camera] for repetition in rows if camera in repetition]) for camera in queries
    }
    worst = min(queries, key=lambda camera: (whole[camera]["rank1"], whole[camera]["map"], camera))
    return CameraScores(queries=queries, galleries=galleries, cells=matrix, query_cameras=whole, worst=worst)


def mean_metrics(repetitions: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over repetitions that all have the same ones."""
    return {name: float(np.mean([values[name] for values in repetitions])) for name in repetitions[0]}


def choose_queries(ranking: Ranking, identities: NDArray, count: int) -> list[int]:
    """Return the places of ``count`` valid queries: half of the best by average precision, then half of the worst.

    Each shows another identity as long as there are enough; equal precisions go by place.
    """
    places = np.flatnonzero(ranking.valid)
    order = places[np.argsort(-ranking.average_precision[places], kind="stable")].tolist()
    taken: dict[int, int] = {}
    for part, many in ((order, (count + 1) // 2), (order[::-1], count // 2)):
        goal = len(taken) + many
        for place in part:
            if len(taken) < goal:
                taken.setdefault(int(identities[place]), int(place))
    return sorted(taken.values(), key=lambda place: (-ranking.average_precision[place], place))


def top(ranking: Ranking, query: int) -> NDArray:
    """Return the gallery places of a query's best ten, or of all that the rules keep if those are fewer."""
    best: NDArray = ranking.order[query, : min(_TOP, int(ranking.kept[query]))]
    return best


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
