"""Stable benchmarks: speed as a ratio against a bare loop or a named peer, measured in the same run.

Each result is ``{"machine": ..., "rows": [...], "targets": [{"name", "value", "bound", "met"}]}``.
"""

import importlib
import operator
import os
import platform
from typing import Any

from rich.console import Console
from rich.table import Table

from cloister.errors import ConfigError

BENCHES = {
    "engines": "cloister.bench.engines",
    "evaluation": "cloister.bench.evaluation",
    "privacy": "cloister.bench.privacy",
    "secagg": "cloister.bench.secagg",
}
ALL = "all"


def run(name: str, *, console: Console) -> dict[str, Any]:
    """Run one bench, or ``all``; show rows and targets on ``console`` and return them."""
    if name not in (*BENCHES, ALL):
        raise ConfigError(f"bench {name!r}: expected one of {', '.join(BENCHES)}, or {ALL}")
    result: dict[str, Any] = {"machine": machine(), "rows": [], "targets": []}
    for bench in BENCHES if name == ALL else [name]:
        found = importlib.import_module(BENCHES[bench]).measure(console)
        for key in ("rows", "targets"):
            console.print(_table(f"{bench}: {key}", found[key]))
            result[key] += [{"bench": bench, **line} for line in found[key]]
    return result


def target(name: str, value: float | None, bound: str) -> dict[str, Any]:
    """Return a target line. ``bound`` is ``">= x"`` or ``"<= x"``; what could not be measured (None) is not met."""
    relation, limit = bound.split()
    compare = {">=": operator.ge, "<=": operator.le}[relation]
    met = value is not None and bool(compare(value, float(limit)))
    return {"name": name, "value": None if value is None else round(value, 4), "bound": bound, "met": met}


def machine() -> str:
    """Return the machine in words: processor, cores, Python, torch."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = "/proc/cpuinfo"
    if os.path.exists(cpuinfo):
        with open(cpuinfo) as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " - ".join(_text(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value}"
