"""One cell of ``bench engines``: a kind of engine at one size, measured in processes of its own."""

import importlib.util
import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from cloister.bench.process import NotMeasured, measured

_EXTRAS = {"ray": ("ray", "simulation"), "flwr": ("ray", "bench"), "pfl": ("pfl", "bench")}
_COPIES_OF_REPLIES = {"flwr": 2}  # how often it holds every reply of a round at once
_CPU_ONLY = {
    "CUDA_VISIBLE_DEVICES": ""
}  # the bare loop is a loop on one core, so everything it is compared with is too


@dataclass(frozen=True, kw_only=True)
class Cell:
    """``kind`` is one of ``cloister.bench.runners.RUNNERS``; ``cohort`` clients of ``pool`` train in a round."""

    kind: str
    workers: int
    parameters: int
    cohort: int
    pool: int

    def words(self) -> str:
        """Return the cell in words."""
        size = f"{self.parameters:,} parameters, {self.cohort} of {self.pool:,} clients"
        return f"{self.kind} x {self.workers}, {size}"

    def check(self) -> None:
        """Raise :class:`~cloister.bench.process.NotMeasured` when a package or memory is missing for it."""
        module, extra = _EXTRAS.get(self.kind, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise NotMeasured(f"not installed (pip install cloister[{extra}])")
        needed = _COPIES_OF_REPLIES.get(self.kind, 0) * self.cohort * self.parameters * 4
        free = _free_bytes()
        if needed > free:
            raise NotMeasured(
                f"holds all replies of a round: needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
            )

    def run(self, rounds: int, timeout_s: float) -> dict[str, Any]:
        """Return what one process of :mod:`cloister.bench.runners` found out, and ``first_round_s`` since its start."""
        self.check()
        numbers = (self.parameters, self.cohort, rounds, self.workers, self.pool)
        arguments = ["-m", "cloister.bench.runners", self.kind, *map(str, numbers)]
        begin = time.time()
        result: dict[str, Any] = measured(arguments, timeout_s=timeout_s, environment=_CPU_ONLY)
        return result | {"first_round_s": result["first_round_at"] - begin}


@dataclass
class Measured:
    """A cell and what its processes found out so far; ``why`` says why there is nothing."""

    cell: Cell
    samples: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""

    def take(self, rounds: int, timeout_s: float) -> None:
        """Measure once more, unless the cell failed before."""
        if not self.why:
            try:
                self.samples.append(self.cell.run(rounds, timeout_s))
            except NotMeasured as reason:
                self.why = str(reason)

    @property
    def clients_per_s(self) -> list[float]:
        """Clients per second in each timed round, of all processes."""
        return [self.cell.cohort / seconds for sample in self.samples for seconds in sample["seconds"]]

    @property
    def first_round_s(self) -> float | None:
        """Seconds from the start of a process to the end of its first round, median."""
        return statistics.median(sample["first_round_s"] for sample in self.samples) if self.samples else None

    @property
    def memory_mib(self) -> tuple[float, float] | None:
        """Resident memory of the driver after the second and after the last round, medians."""
        if not self.samples:
            return None
        second, last = zip(*(sample["memory_mib"] for sample in self.samples), strict=True)
        return statistics.median(second), statistics.median(last)

    def row(self) -> dict[str, Any]:
        """Return the row: ``spread`` is the slowest and the fastest of ``repetitions`` timed rounds."""
        speeds, first, memory = self.clients_per_s, self.first_round_s, self.memory_mib
        return {
            "kind": self.cell.kind,
            "workers": self.cell.workers,
            "parameters": self.cell.parameters,
            "cohort": self.cell.cohort,
            "pool": self.cell.pool,
            "clients_per_s": round(statistics.median(speeds), 2) if speeds else None,
            "spread": [round(min(speeds), 2), round(max(speeds), 2)] if speeds else None,
            "repetitions": len(speeds),
            "first_round_s": None if first is None else round(first, 2),
            "memory_mib": None if memory is None else [round(value, 1) for value in memory],
            "why": self.why,
        }


def _free_bytes() -> float:
    """Return the memory that is free on Linux, elsewhere infinity."""
    if not os.path.exists("/proc/meminfo"):
        return float("inf")
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
