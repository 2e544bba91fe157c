"""From an evaluator's scores to the run record: numbers into JSON, the retrievals' images into PNG files."""

import io
from pathlib import Path

from PIL import Image

from cloister.server.evaluation.scores import CameraScores, ReidScores, Retrieval, Retrieved
from cloister.simulations.record import CameraMatrix, Evaluation, RetrievedImage, write_whole
from cloister.simulations.record import Retrieval as RetrievalEntry

FOLDER = "retrievals"


def keep(scores: ReidScores, run: Path) -> Evaluation:
    """Return ``scores`` as part of a run record; the images of its retrievals are written to ``RUN/retrievals/``.

    Raises :class:`RunError` where an image cannot be written.
    """
    return Evaluation(
        per_draw=[dict(values) for values in scores.per_draw],
        camera_matrix={name: _matrix(found, scores.camera_names) for name, found in scores.camera_matrix.items()},
        retrievals=[_retrieval(found, number, run) for number, found in enumerate(scores.retrievals, start=1)],
    )


def _matrix(found: CameraScores, names: dict[int, str]) -> CameraMatrix:
    return CameraMatrix(
        queries=[names[camera] for camera in found.queries],
        galleries=[names[camera] for camera in found.galleries],
        cells={name: [list(row) for row in rows] for name, rows in found.cells.items()},
        query_cameras={names[camera]: dict(metrics) for camera, metrics in found.query_cameras.items()},
        worst=names[found.worst],
    )


def _retrieval(found: Retrieval, number: int, run: Path) -> RetrievalEntry:
    return RetrievalEntry(
        query=_image(found.query, f"{number:02d}-query.png", run),
        results=[
            _image(image, f"{number:02d}-{rank:02d}.png", run) for rank, image in enumerate(found.results, start=1)
        ],
        average_precision=found.average_precision,
        first_hit=found.first_hit,
        direction=found.direction,
    )


def _image(found: Retrieved, name: str, run: Path) -> RetrievedImage:
    buffer = io.BytesIO()
    Image.fromarray(found.pixels).save(buffer, format="PNG")
    write_whole(run / FOLDER / name, buffer.getvalue())
    return RetrievedImage(
        file=f"{FOLDER}/{name}",
        source=found.path,
        identity=found.identity,
        camera=found.camera,
        correct=found.correct,
        similarity=found.similarity,
    )
