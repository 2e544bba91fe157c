"""``cloister data``: the checks and cuts of :mod:`cloister.datasets`, with progress on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from cloister.datasets import check as checks
from cloister.datasets import split as splits


def check(layout: str, folder: Path, *, console: Console) -> checks.CheckReport:
    """Open every image of the data set and return what was found."""
    with _bar(console, f"checking {folder}") as progress:
        return checks.check(layout, folder, progress=progress)


def split(layout: str, folder: Path, out: Path, *, protocol: str, console: Console) -> list[Path]:
    """Cut the data set into one folder per client and return the folders."""
    with _bar(console, f"cutting {folder}") as progress:
        return [tree.folder for tree in splits.split(layout, folder, out, protocol=protocol, progress=progress)]


@contextmanager
def _bar(console: Console, text: str) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
