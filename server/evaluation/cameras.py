"""Scores camera by camera: which camera's queries are found among which camera's images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cloister.errors import EvaluationError
from cloister.server.evaluation.ranking import Labels, Ranking, Rules, rank, summarise
from cloister.server.evaluation.scores import CameraScores

NDArray = np.ndarray[Any, np.dtype[Any]]
CELLS = ("rank1", "map")
"""The metrics that a camera matrix has."""


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


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
