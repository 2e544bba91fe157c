"""What a person sees on the terminal while a run goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cloister.simulations.record import Round

_SHOWN = ("loss", "rank1", "map", "accuracy")


class Bar:
    """One stage's progress bar: a step per round, with the latest metrics beside it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        """Advance ``task`` of ``progress``."""
        self._progress, self._task = progress, task
        self._latest: dict[str, float] = {}

    def advance(self, entry: Round) -> None:
        """Count a round and show its metrics; clients whose replies were dropped are named."""
        self._latest.update({name: value for name, value in entry.metrics.items() if value is not None})
        shown = "  ".join(f"{name} {self._latest[name]:.3f}" for name in _SHOWN if name in self._latest)
        self._progress.update(self._task, advance=1, metrics=shown)
        for rejected in entry.rejected:
            self._progress.console.print(
                f"round {entry.round}: {rejected.client}: {rejected.reason}", style="yellow", markup=False
            )


class Display:
    """The live display of a run. A context manager."""

    def __init__(self, console: Console) -> None:
        """Show on ``console``; a console that is no terminal gets one line per finished stage."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, rounds: int, done: int) -> Iterator[Bar]:
        """Show a bar of ``rounds`` steps, ``done`` of them already taken."""
        bar = Bar(self._progress, self._progress.add_task(name, total=rounds, completed=done, metrics=""))
        yield bar
        if not self._console.is_terminal:
            self._console.print(f"{name}: {rounds} rounds done")

    @contextmanager
    def steps(self, name: str, count: int) -> Iterator[Callable[[str], None]]:
        """Show a bar of ``count`` steps; the function takes one, and shows its name."""
        task = self._progress.add_task(name, total=count, metrics="")

        def done(what: str) -> None:
            self._progress.update(task, advance=1, metrics=what)
            if not self._console.is_terminal:
                self._console.print(f"{name}: {what} done")

        yield done
