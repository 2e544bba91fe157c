"""What a report shows of a re-identification run's evaluation: camera matrices and retrieval strips. No HTML here."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cloister.simulations.auditing.findings import results
from cloister.simulations.record import CameraMatrix, Number, Retrieval, RetrievedImage, RunRecord
from cloister.simulations.report_words import direction_label

_STRIP_HEIGHT_PX = 160


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a camera matrix: two scores as text and the shade (0 to 1, None for an empty cell)."""

    first: str
    second: str
    shade: float | None


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """One query camera: its cells, and its scores against the whole gallery."""

    camera: str
    cells: Sequence[Cell]
    whole: Cell
    worst: bool


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A camera matrix of one search direction."""

    direction: str
    galleries: Sequence[str]
    rows: Sequence[MatrixRow]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of a strip: a data URI (empty if the file is gone), its alternative text, and what stands below it."""

    uri: str
    alternative: str
    caption: str
    camera: str
    correct: bool | None


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A query and its best-ranked gallery images."""

    title: str
    query: Picture
    results: Sequence[Picture]


def matrix(direction: str, scores: CameraMatrix) -> Matrix:
    """Return the camera matrix of one direction: Rank-1, mAP and a shade by Rank-1 in each cell."""
    rank1, mean_ap = scores.cells.get("rank1", []), scores.cells.get("map", [])
    rows = []
    for index, camera in enumerate(scores.queries):
        whole = scores.query_cameras.get(camera, {})
        cells = [_cell(first, second) for first, second in zip(rank1[index], mean_ap[index], strict=True)]
        whole_cell = _cell(whole.get("rank1"), whole.get("map"))
        rows.append(MatrixRow(camera=camera, cells=cells, whole=whole_cell, worst=camera == scores.worst))
    return Matrix(direction=direction_label(direction), galleries=scores.galleries, rows=rows)


def strip(run: Path, retrieval: Retrieval) -> Strip:
    """Return a retrieval strip; its images come from the run folder, shrunk."""
    query, title = retrieval.query, f"Average precision {100 * retrieval.average_precision:.0f} %"
    title += f", first right answer at rank {retrieval.first_hit}"
    results = [
        Picture(
            uri=_data_uri(run, result),
            alternative=f"Rank {place}: person {result.identity}, {result.camera}, "
            + ("right" if result.correct else "wrong"),
            caption=str(place),
            camera=result.camera,
            correct=bool(result.correct),
        )
        for place, result in enumerate(retrieval.results, start=1)
    ]
    picture = Picture(
        uri=_data_uri(run, query),
        alternative=f"Query: person {query.identity}, {query.camera}",
        caption="query",
        camera=query.camera,
        correct=None,
    )
    return Strip(title=title, query=picture, results=results)


def _cell(rank1: Number, mean_ap: Number) -> Cell:
    return Cell(first=_points(rank1), second=_points(mean_ap), shade=rank1)


def _points(value: Number) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def _data_uri(run: Path, image: RetrievedImage) -> str:
    path = (run / image.file).resolve()
    if not path.is_relative_to(run.resolve()):  # a record from elsewhere must not put this machine's files into a page
        return ""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return ""
    picture.thumbnail((_STRIP_HEIGHT_PX, _STRIP_HEIGHT_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def audits(run: Path, record: RunRecord) -> list[Picture]:
    """Return the pictures of a run's audits; one whose file is gone, or lies outside the run's folder, is left out."""
    found = []
    for audit in results(record.privacy.audits):
        for name in audit.pictures:
            path = (run / name).resolve()
            if path.is_relative_to(run.resolve()) and path.is_file():
                uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
                found.append(Picture(uri=uri, alternative=audit.text, caption=audit.name, camera="", correct=None))
    return found
