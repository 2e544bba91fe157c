"""What the integration tests share: a tiny task on the path, a run folder, and a way to run the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
