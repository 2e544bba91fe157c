"""What an evaluation hands back, and what a run record keeps of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cloister.errors import RunError

NDArray = np.ndarray[Any, np.dtype[Any]]
FOLDER = "retrievals"
"""Where the images of retrievals lie inside a run folder."""


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

    def describe(self, names: dict[int, str]) -> dict[str, Any]:
        """Return the scores as plain values, cameras by name."""
        return {
            "queries": [names[camera] for camera in self.queries],
            "galleries": [names[camera] for camera in self.galleries],
            "cells": self.cells,
            "query_cameras": {names[camera]: metrics for camera, metrics in self.query_cameras.items()},
            "worst": names[self.worst],
        }


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """One image of a retrieval: ``pixels`` uint8 ``[H, W, 3]``; ``correct`` is None for the query itself."""

    path: str
    identity: int
    camera: str
    pixels: NDArray
    correct: bool | None
    similarity: float | None

    def describe(self, run: Path, name: str) -> dict[str, Any]:
        """Return the image as plain values; its pixels are written to ``RUN/retrievals/<name>``."""
        path = run / FOLDER / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels).save(path)
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"{path}: cannot be written ({reason}); free disk space and resume") from error
        return {
            "file": f"{FOLDER}/{name}",
            "source": self.path,
            "identity": self.identity,
            "camera": self.camera,
            "correct": self.correct,
            "similarity": self.similarity,
        }


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """A query and its up to ten best-ranked gallery images. ``first_hit``: rank of the first true match, by image."""

    direction: str
    query: Retrieved
    results: list[Retrieved]
    average_precision: float
    first_hit: int

    def describe(self, run: Path, number: int) -> dict[str, Any]:
        """Return the retrieval as plain values; its images are written below ``run``."""
        results = enumerate(self.results, start=1)
        return {
            "query": self.query.describe(run, f"{number:02d}-query.png"),
            "results": [image.describe(run, f"{number:02d}-{rank:02d}.png") for rank, image in results],
            "average_precision": self.average_precision,
            "first_hit": self.first_hit,
            "direction": self.direction,
        }


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

    def describe(self, run: Path) -> dict[str, Any]:
        """Return the ``evaluation`` part of a run record; the retrievals' images are written below folder ``run``.

        Raises :class:`RunError` where an image cannot be written.
        """
        matrices = {name: found.describe(self.camera_names) for name, found in self.camera_matrix.items()}
        retrievals = [found.describe(run, number) for number, found in enumerate(self.retrievals, start=1)]
        return {"per_draw": self.per_draw, "camera_matrix": matrices, "retrievals": retrievals}
