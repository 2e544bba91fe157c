"""Copies of the project, and environments that hold its dependencies but not the project itself."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

import pathspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGES = ("bench", "clients", "datasets", "models", "privacy", "server", "simulations", "strategies")


@pytest.fixture(scope="session")
def packages() -> tuple[str, ...]:
    """The folders that are imported as ``cloister.<folder>``."""
    return PACKAGES


@pytest.fixture(scope="session")
def files(project: Path) -> tuple[Path, ...]:
    """Every file that belongs to the project, relative to its root: symlinks not followed, ignored files left out."""
    ignored = pathspec.GitIgnoreSpec.from_lines((project / ".gitignore").read_text().splitlines())
    found = []
    for folder, names, leaves in os.walk(project):
        here = Path(folder).relative_to(project)
        links = [name for name in names if (Path(folder) / name).is_symlink()]
        names[:] = [
            name
            for name in names
            if name != ".git" and name not in links and not ignored.match_file(f"{here / name}/".removeprefix("./"))
        ]
        found += [here / name for name in leaves + links if not ignored.match_file(here / name)]
    return tuple(sorted(found))


@pytest.fixture
def tree(project: Path, files: tuple[Path, ...], tmp_path: Path) -> Path:
    """A copy of the project, symlinks kept, in a folder whose name holds a space (and so needs no quoting by luck)."""
    copy = tmp_path / "a copy" / "cloister"
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Run a command and return its standard output; fail the test with everything it printed if it fails."""

    def call(*command: str | Path, cwd: Path, path: Path | None = None, status: int = 0) -> str:
        environment = dict(os.environ)
        environment.pop("PYTHONPATH", None)
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == status, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return call


@pytest.fixture
def make_python(tmp_path: Path) -> Callable[[Iterable[str] | None], Path]:
    """Return a function that makes a virtual environment without Cloister and returns its interpreter.

    It holds the named distributions and what they require, as found in the running environment, or all of them.
    """

    def make(requirements: Iterable[str] | None = None) -> Path:
        site = Path(sysconfig.get_path("purelib"))
        wanted = None if requirements is None else closure(requirements)
        packages = tmp_path / "dependencies"
        packages.mkdir()
        for distribution in importlib.metadata.distributions(path=[str(site)]):
            name = canonicalize_name(distribution.metadata["Name"])
            if name == "cloister" or (wanted is not None and name not in wanted):
                continue
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (packages / top).exists() and not top.endswith(".pth"):
                    (packages / top).symlink_to(site / top)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
        python = tmp_path / "venv" / "bin" / "python"
        target = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
        (target / "dependencies.pth").write_text(f"{packages}\n")
        return python

    return make


def closure(requirements: Iterable[str]) -> set[str]:
    """Return the canonical names of the distributions that ``requirements`` bring in, themselves included."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        extras = tuple(sorted(requirement.extras))
        key = (canonicalize_name(requirement.name), extras)
        if key in seen:
            continue
        seen.add(key)
        for text in importlib.metadata.requires(requirement.name) or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(needed)
    return {name for name, _ in seen}
