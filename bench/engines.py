"""``cloister bench engines``: clients per second of our engines, a bare loop, Flower's simulator and pfl, in one run.

Every measurement is a process of its own, so that memory and imports are clean. Our local engine takes turns with the
bare loop that it is compared with, because a shared machine drifts. A cell that cannot be measured is a row that says
why.
"""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cloister.bench import target
from cloister.bench.cells import Cell, Measured
from cloister.bench.workload import HIDDEN, POOL, build, data_of, fit

COHORTS = (50, 500)
CONTESTANTS = (("bare", 1), ("local", 1), ("local", 2), ("bare", 2), ("ray", 2), ("flwr", 2), ("pfl", 1))
"""Kind and number of workers. Two bare loops side by side show what the machine's second core is worth."""

_TAKE_TURNS = frozenset({"bare", "local"})
_MOST_TURNS, _MOST_ROUNDS = 3, 30
_START_S = 3.0  # what a process takes before its first round; for planning
_FLOWER_SLOWER = 4.0  # than the bare loop; for planning
_PATIENCE_S = 180.0  # beyond what was planned
_LARGE = 300_000  # parameters from which the local engine must keep up with the bare loop ...
_AGAINST_BARE = {1: ">= 0.95", 2: ">= 1.7"}  # ... by workers
_FLOWER_COHORT, _FLOWER_LARGEST = 50, 1_000_000  # where the local engine is compared with Flower's
_VIRTUAL_POOL = 1_000_000
_PROBE_ROUNDS, _MEMORY_ROUNDS = 3, 22
_HELP_REPETITIONS = 5

Rows = list[dict[str, Any]]
Show = Callable[[Cell], None]


def measure(
    console: Console,
    *,
    sizes: Sequence[int] = tuple(HIDDEN),
    cohorts: Sequence[int] = COHORTS,
    contestants: Sequence[tuple[str, int]] = CONTESTANTS,
    pool: int = POOL,
    budget_s: float = 20.0,
) -> dict[str, Any]:
    """Return ``rows`` (see :meth:`cloister.bench.cells.Measured.row`) and ``targets``.

    Speeds are medians over the rounds after the first of each process. ``budget_s``: seconds per cell. Where one round
    takes longer than that, it is the only one, and its time counts from when its process was ready.
    """
    grid = list(itertools.product(sizes, cohorts))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(grid) + 2)

        def show(cell: Cell) -> None:
            progress.update(bar, description=cell.words())

        found: list[Measured] = []
        for parameters, cohort in grid:
            cells = [
                Cell(kind=kind, workers=workers, parameters=parameters, cohort=cohort, pool=pool)
                for kind, workers in contestants
            ]
            found += _compare(cells, cohort * _seconds_per_client(parameters), budget_s, show)
            progress.advance(bar)
        targets = ratios([measured.row() for measured in found])

        small = Cell(kind="local", workers=2, parameters=sizes[0], cohort=cohorts[0], pool=pool)
        pools = [Measured(small), Measured(replace(small, pool=_VIRTUAL_POOL))]
        for measured in pools * max(1, min(_MOST_TURNS, int(budget_s // 5))):
            show(measured.cell)
            measured.take(_PROBE_ROUNDS, _PATIENCE_S)
        progress.advance(bar)

        long = Measured(replace(small, parameters=sizes[len(sizes) // 2]))
        show(long.cell)
        long.take(_MEMORY_ROUNDS, _PATIENCE_S)
        progress.advance(bar)
    targets += [*_pool_targets(*pools), _memory_target(long), _help_target()]
    return {"rows": [measured.row() for measured in (*found, *pools, long)], "targets": targets}


def ratios(rows: Rows) -> Rows:
    """Return the targets that compare the speeds of two rows, where both are there."""
    speeds = {(row["kind"], row["workers"], row["parameters"], row["cohort"]): row["clients_per_s"] for row in rows}
    targets: Rows = []
    for kind, workers, parameters, cohort in speeds:
        comparisons: list[tuple[str, int, str]] = []
        if kind == "local" and parameters >= _LARGE and workers in _AGAINST_BARE:
            comparisons.append(("bare", 1, _AGAINST_BARE[workers]))
        if kind == "local" and parameters <= _FLOWER_LARGEST and cohort == _FLOWER_COHORT:
            comparisons.append(("flwr", workers, ">= 3"))
        for peer, its_workers, bound in comparisons:
            if (peer, its_workers, parameters, cohort) in speeds:
                ours, theirs = speeds[kind, workers, parameters, cohort], speeds[peer, its_workers, parameters, cohort]
                name = f"local x {workers} / {peer} x {its_workers}, {parameters:,} parameters, cohort {cohort}"
                targets.append(target(name, ours / theirs if ours and theirs else None, bound))
    return targets


def _compare(cells: Sequence[Cell], round_s: float, budget_s: float, show: Show) -> list[Measured]:
    """Measure cells of one size; ``round_s`` is what a round is expected to take the bare loop."""
    found = [Measured(cell) for cell in cells]
    for turn in range(_MOST_TURNS):
        for measured in found:
            turns, rounds = _schedule(measured.cell.kind, round_s, budget_s)
            if turn < turns:
                show(measured.cell)
                measured.take(rounds, _PATIENCE_S + 2 * rounds * round_s)
    return found


def _schedule(kind: str, round_s: float, budget_s: float) -> tuple[int, int]:
    """Return how many processes measure a cell, and the rounds of each."""
    if kind == "flwr":  # its workers start during the first round, so that one never counts
        return 1, _within(budget_s, _FLOWER_SLOWER * round_s)
    if round_s > budget_s:
        return 1, 1
    turns = 1
    if kind in _TAKE_TURNS and budget_s > _START_S:  # at least two: one tells nothing about the machine's drift
        turns = max(2, min(_MOST_TURNS, int(budget_s / (_START_S + 2 * round_s))))
    return turns, _within(budget_s / turns, round_s)


def _within(seconds: float, round_s: float) -> int:
    return max(2, min(_MOST_ROUNDS, int((seconds - _START_S) / round_s)))


def _seconds_per_client(parameters: int) -> float:
    """Return what training one client takes in this process on one thread; for planning."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, seconds = build(parameters), []
        for client in range(_PROBE_ROUNDS):
            begin = time.perf_counter()
            fit(model, data_of(client))
            seconds.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(seconds)


def _pool_targets(usual: Measured, virtual: Measured) -> Rows:
    cell = usual.cell
    first, memory = usual.first_round_s, usual.memory_mib
    virtual_first, virtual_memory = virtual.first_round_s, virtual.memory_mib
    name = f"first round, {cell.cohort} of {cell.pool:,}, {cell.parameters:,} parameters: s since process start"
    against = f"{virtual.cell.pool:,} against {cell.pool:,} clients"
    growth = virtual_memory[1] - memory[1] if memory and virtual_memory else None
    return [
        target(name, first, "<= 5"),
        target(f"first round, {against}", virtual_first / first if first and virtual_first else None, "<= 1.2"),
        target(f"server memory, {against}: MiB more", growth, "<= 10"),
    ]


def _memory_target(long: Measured) -> dict[str, Any]:
    second, last = long.memory_mib or (None, None)
    name = f"server memory, round {_MEMORY_ROUNDS} / round 2, {long.cell.parameters:,} parameters"
    return target(name, last / second if second and last else None, "<= 1.1")


def _help_target() -> dict[str, Any]:
    seconds = []
    for _ in range(_HELP_REPETITIONS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cloister.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    return target("cloister --help: s", statistics.median(seconds), "<= 0.5")
