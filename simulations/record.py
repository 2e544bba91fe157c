"""The run record: what ``RUN/record.json`` holds, defined once for those who write it and those who read it.

Conventions:

- A metric is a number or ``None``; ``None`` stands for one that was not finite (JSON has no NaN).
- Re-identification metrics are fractions in [0, 1]: ``rank1``, ``rank5``, ``rank10``, ``rank20``, ``map``, ``minp`` for
  infrared queries in a visible gallery, the same names after ``rgb2ir/`` for the other direction.
- ``baselines`` maps a name to metrics: ``local-only`` (mean over clients), ``local-only/<client>`` (one client),
  ``pooled``, ``oracle-aligned``; other names are shown as they are.
- Bytes are counted per client, direction and release kind. Seconds are wall-clock.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
from pydantic import BeforeValidator, Field, JsonValue

from cloister.config import describe
from cloister.errors import RunError

FILE_NAME = "record.json"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Metrics = dict[str, Number]


class Entry(pydantic.BaseModel):
    """Base of every part of a run record: typed, unknown names refused, checked on assignment too."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, validate_assignment=True)


class Client(Entry):
    """One row of the client table. ``weight`` is the client's share of the average, in [0, 1]."""

    name: str
    modality: str = ""
    scene: str = ""
    subjects: int | None = None
    records: int = 0
    steps: int | None = None
    weight: Number = None


class Rejection(Entry):
    """A reply that was dropped in a round, and why."""

    client: str
    reason: str


class Round(Entry):
    """One round: its cohort, what it cost and what came out.

    ``metrics`` are the server's (evaluation, and weighted means such as ``loss``), ``client_metrics`` those
    that each client reported. ``stages`` are seconds by name: configure, wait, aggregate, evaluate, ...
    """

    round: int
    seconds: float
    cohort: list[str] = Field(default_factory=list)
    metrics: Metrics = Field(default_factory=dict)
    client_metrics: dict[str, Metrics] = Field(default_factory=dict)
    rejected: list[Rejection] = Field(default_factory=list)
    stages: dict[str, float] = Field(default_factory=dict)


class Privacy(Entry):
    """The privacy plan, what is claimed under it, and what the audits measured. Empty: nothing is claimed."""

    plan: dict[str, JsonValue] = Field(default_factory=dict)
    claims: list[dict[str, JsonValue]] = Field(default_factory=list)
    audits: list[dict[str, JsonValue]] = Field(default_factory=list)


class Transcript(Entry):
    """How far ``transcript.jsonl`` went when this record was written, and the server's public key (hex)."""

    lines: int
    digest: str
    server: str


class Point(Entry):
    """One run of a sweep: its series, its place on the x axis, everything measured; ``folder`` lies in the run's.

    ``note``: why there is no score.
    """

    series: str
    name: str
    x: Number = None
    metrics: Metrics = Field(default_factory=dict)
    folder: str = ""
    note: str = ""


class Sweep(Entry):
    """Runs of one experiment at several settings: ``y`` metrics over ``x``, one curve per series."""

    title: str = ""
    x: str = ""
    y: list[str] = Field(default_factory=list)
    logarithmic: bool = False
    points: list[Point] = Field(default_factory=list)


class Traffic(Entry):
    """Bytes of one client, by release kind: ``up`` from the client to the server, ``down`` back."""

    up: dict[str, int] = Field(default_factory=dict)
    down: dict[str, int] = Field(default_factory=dict)


class Deviation(Entry):
    """A place where the run departs from the paper's recipe: what the paper says, what the run did, and why."""

    topic: str
    paper: str
    run: str
    why: str = ""


class CameraMatrix(Entry):
    """Scores of one search direction by query camera (row) and gallery camera (column).

    A cell is ``None`` where the rules leave no valid query. ``query_cameras`` holds each query camera's scores
    against the whole gallery; ``worst`` names the one with the lowest Rank-1.
    """

    queries: list[str]
    galleries: list[str]
    cells: dict[str, list[list[Number]]]
    query_cameras: dict[str, Metrics] = Field(default_factory=dict)
    worst: str = ""


class RetrievedImage(Entry):
    """One image of a retrieval strip. ``file`` is relative to the run folder, ``source`` to the data root."""

    file: str
    source: str
    identity: int
    camera: str
    correct: bool | None = None
    similarity: Number = None


class Retrieval(Entry):
    """A query, its best-ranked gallery images, and its average precision. ``first_hit`` counts from 1."""

    query: RetrievedImage
    results: list[RetrievedImage]
    average_precision: float
    first_hit: int
    direction: str = "ir2rgb"


class Evaluation(Entry):
    """The final evaluation in detail: every draw, the camera matrices by direction, and a few retrievals."""

    per_draw: list[Metrics] = Field(default_factory=list)
    camera_matrix: dict[str, CameraMatrix] = Field(default_factory=dict)
    retrievals: list[Retrieval] = Field(default_factory=list)


class RunRecord(Entry):
    """Everything a reader needs to judge, compare and repeat a run.

    ``unfinished``: in an export, what the run still lacks ("": nothing).
    """

    schema_version: int = 1
    experiment: str
    preset: str
    engine: str
    seed: int
    title: str = ""
    protocol: str = ""
    selection: str = "last round"
    unfinished: str = ""
    command: str = ""
    started: str = ""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    clients: list[Client] = Field(default_factory=list)
    rounds: list[Round] = Field(default_factory=list)
    final: Metrics = Field(default_factory=dict)
    baselines: dict[str, Metrics] = Field(default_factory=dict)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    privacy: Privacy = Field(default_factory=Privacy)
    transcript: Transcript | None = None
    sweep: Sweep | None = None
    traffic: dict[str, Traffic] = Field(default_factory=dict)
    deviations: list[Deviation] = Field(default_factory=list)

    def save(self, folder: Path) -> Path:
        """Write ``folder/record.json`` whole or not at all, and return its path.

        Raises :class:`RunError` where the file cannot be written (disk full, no permission); the last complete
        version then still stands.
        """
        path = folder / FILE_NAME
        write_whole(path, self.model_dump_json(indent=1).encode() + b"\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the record of the run in ``folder``.

        Raises :class:`RunError` that names the file where it is missing, cut short, or not a run record.
        """
        path = folder / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RunError(f"{path}: not found; {folder} is not a run folder, or its run wrote nothing yet") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read ({error}); restore the file or run again") from error
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            raise RunError(f"{_explain(text, path, error)}\nresume or repeat the run to write it anew") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never half of one.

    Raises :class:`RunError` where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); free disk space and resume") from error


def traffic_totals(traffic: Mapping[str, Traffic]) -> tuple[int, int]:
    """Return the bytes of all clients and kinds: (up, down)."""
    up = sum(sum(client.up.values()) for client in traffic.values())
    return up, sum(sum(client.down.values()) for client in traffic.values())


def _explain(text: str, path: Path, error: pydantic.ValidationError) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as corrupt:
        return f"{path}: corrupt JSON at line {corrupt.lineno}, column {corrupt.colno} ({corrupt.msg})"
    return describe(RunRecord, error, str(path))
