"""``cloister bench evaluation``: the metrics of one SYSU-MM01 all search (3,803 queries, gallery of 301) on one core.

The peer is the loop that published evaluation code runs: one query after another. It must come to the same scores.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from cloister.bench import target
from cloister.bench.process import NotMeasured, measured
from cloister.errors import EvaluationError
from cloister.server.evaluation.cameras import cell_scores, row_scores
from cloister.server.evaluation.ranking import RANKS, RULES, Labels, distances, rank, summarise

QUERIES, GALLERY, IDENTITIES, FEATURES = 3_803, 301, 96, 2_048
REPETITIONS = 5
PEER, OURS, WITH_CAMERAS = "one query after another", "cloister", "cloister, with the camera matrix"

_RULES = RULES["sysu-mm01"]
_VISIBLE, _INFRARED = (1, 2, 4, 5), (3, 6)
_TIMEOUT_S = 300.0
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
NDArray = np.ndarray[Any, np.dtype[Any]]


def measure(console: Console) -> dict[str, Any]:
    """Return ``rows`` (``kind``, ``seconds``: median, ``spread``, ``repetitions``, ``why``) and ``targets``.

    The measurement is a process of its own, so that NumPy can be held to one thread.
    """
    why, found = "", {}
    try:
        found = measured(["-m", "cloister.bench.evaluation"], timeout_s=_TIMEOUT_S, environment=_ONE_THREAD)
    except NotMeasured as reason:
        why = str(reason)
    rows = [_row(kind, found.get(kind, []), why) for kind in (PEER, OURS, WITH_CAMERAS)]
    seconds = {row["kind"]: row["seconds"] for row in rows}
    ours, peer = seconds[WITH_CAMERAS], seconds[PEER]
    return {
        "rows": rows,
        "targets": [
            target(f"{WITH_CAMERAS}: s", ours, "<= 1"),
            target(f"{PEER} / {OURS}", peer / seconds[OURS] if peer else None, ">= 1"),
        ],
    }


def search() -> tuple[NDArray, Labels, NDArray, Labels]:
    """Return query features and labels, and gallery features and labels: noisy copies of one vector per identity."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((IDENTITIES, FEATURES), dtype=np.float32)
    parts: list[Any] = []
    for count, cameras in ((QUERIES, _INFRARED), (GALLERY, _VISIBLE)):
        identities = np.arange(count) % IDENTITIES
        noise = generator.standard_normal((count, FEATURES), dtype=np.float32)
        places = np.arange(count) // IDENTITIES % len(cameras)
        parts += [centres[identities] + 5 * noise, Labels(identities=identities, cameras=np.array(cameras)[places])]
    return parts[0], parts[1], parts[2], parts[3]


def vectorised(query: NDArray, asked: Labels, gallery: NDArray, among: Labels) -> dict[str, float]:
    """Return the scores as the server computes them."""
    return summarise(rank(distances(query, gallery), asked, among, _RULES))


def with_cameras(query: NDArray, asked: Labels, gallery: NDArray, among: Labels) -> dict[str, float]:
    """Return the same, after also scoring every pair of cameras, as the server does for each draw."""
    distance = distances(query, gallery)
    ranking = rank(distance, asked, among, _RULES)
    cell_scores(distance, asked, among, _RULES)
    row_scores(ranking, asked)
    return summarise(ranking)


def one_by_one(query: NDArray, asked: Labels, gallery: NDArray, among: Labels) -> dict[str, float]:
    """Return the same scores from a loop over queries (SYSU-MM01: camera 3 does not search in camera 2)."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (query, gallery)]
    first, precision, penalty = [], [], []
    for row, identity, camera in zip(-(units[0] @ units[1].T), asked.identities, asked.cameras, strict=True):
        order = np.argsort(row, kind="stable")
        if camera == 3:
            order = order[among.cameras[order] != 2]
        found = among.identities[order]
        places = np.flatnonzero(found == identity) + 1
        if not len(places):
            continue
        first.append(list(dict.fromkeys(found.tolist())).index(identity) + 1)
        precision.append(np.mean(np.arange(1, len(places) + 1) / places))
        penalty.append(len(places) / places[-1])
    ranks = {f"rank{k}": float(np.mean(np.array(first) <= k)) for k in RANKS}
    return {**ranks, "map": float(np.mean(precision)), "minp": float(np.mean(penalty))}


def _row(kind: str, seconds: list[float], why: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "seconds": round(statistics.median(seconds), 4) if seconds else None,
        "spread": [round(min(seconds), 4), round(max(seconds), 4)] if seconds else None,
        "repetitions": len(seconds),
        "why": why,
    }


def _main() -> None:
    """Print the seconds of each repetition by kind, taking turns."""
    kinds: dict[str, Callable[..., dict[str, float]]] = {PEER: one_by_one, OURS: vectorised, WITH_CAMERAS: with_cameras}
    task = search()
    expected = one_by_one(*task)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(REPETITIONS):
        for kind, score in kinds.items():
            begin = time.perf_counter()
            scores = score(*task)
            seconds[kind].append(time.perf_counter() - begin)
            if any(abs(scores[name] - value) > 1e-6 for name, value in expected.items()):
                raise EvaluationError(f"{kind}: expected {expected}, found {scores}; ranking.py is wrong")
    print(json.dumps(seconds))


if __name__ == "__main__":
    _main()
