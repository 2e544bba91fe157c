"""What the integration tests share: a tiny task on the path, a run folder, and a way to run the command line."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cloister.simulations import run as runner
from cloister.simulations.engines.nursery import nursery
from cloister.simulations.experiment import Experiment

APPS = Path(__file__).parent / "apps"
TOY = """
name = "toy"
task = "toy_task:Toy"
rounds = 4
[strategy]
name = "fedavg"
evaluate_fraction = 1.0
[strategy.quorum]
replies = 0.5
"""


@pytest.fixture
def apps(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the tests' own tasks on the Python path of this process and of workers started from it."""
    monkeypatch.syspath_prepend(str(APPS))
    return APPS


@pytest.fixture
def toy(tmp_path: Path, apps: Path) -> Path:
    """A small experiment file."""
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return path


@pytest.fixture
def command(apps: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``cloister ARGUMENTS`` in a process of its own; ``prelude`` is Python that runs before it."""

    def run(*arguments: str | Path, prelude: str = "", timeout: float = 55) -> subprocess.CompletedProcess[str]:
        program = f"{prelude}\nimport sys\nfrom cloister.cli import main\nsys.argv[0] = 'cloister'\nmain()"
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(APPS), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def _run_and_die(experiment: Experiment, out: Path, number: int, before: bool) -> None:
    """Run in a forked process that kills itself just before, or just after, its ``number``-th rename.

    Everything durable appears by a rename, so these moments visit the gaps between any two steps.
    """
    nursery()  # started here, so that the child finds it warm
    child = os.fork()
    if child == 0:
        count, rename = [0], os.replace

        def replace(source: Path, target: Path) -> None:
            count[0] += 1
            if count[0] == number and before:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace  # type: ignore[assignment]
        try:
            runner.run(experiment, out, console=Console(file=io.StringIO()))
        finally:
            os._exit(1)  # it was to be killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def run_and_die() -> Callable[[Experiment, Path, int, bool], None]:
    """Run an experiment in a process that is killed at a given moment."""
    return _run_and_die
