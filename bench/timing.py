"""Calls that are timed side by side in one process, and their rows."""

import statistics
import time
from collections.abc import Callable
from typing import Any

ONE_THREAD = {
    **{name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
    "CUDA_VISIBLE_DEVICES": "",
}
"""The environment of a process that is to keep to one core."""

Seconds = dict[str, list[float]]


def timed(calls: dict[str, Callable[[], Any]], repetitions: int = 5) -> Seconds:
    """Return the seconds of each repetition, the calls in turn so that a slow moment hits all of them."""
    found: Seconds = {kind: [] for kind in calls}
    for call in calls.values():
        call()
    for _ in range(repetitions):
        for kind, call in calls.items():
            begin = time.perf_counter()
            call()
            found[kind].append(time.perf_counter() - begin)
    return found


def row(kind: str, seconds: list[float], why: str) -> dict[str, Any]:
    """Return the row of what took these seconds, or could not be measured: ``why``."""
    return {
        "kind": kind,
        "seconds": round(statistics.median(seconds), 6) if seconds else None,
        "spread": [round(min(seconds), 6), round(max(seconds), 6)] if seconds else None,
        "repetitions": len(seconds),
        "why": why,
    }
