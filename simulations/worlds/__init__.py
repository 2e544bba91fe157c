"""Procedural data with ground truth, written to disk in a real data set's own layout."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from cloister.errors import ConfigError

NAMES = ("reid",)


def make(name: str, layout: str, folder: Path, *, preset: str, seed: int, console: Console | None = None) -> Path:
    """Write the world under ``folder``, in the layout's own sub-folder, and return that; the same world is kept.

    Raises :class:`ConfigError` for a name, layout or preset that does not exist, ``DataError`` if something else lies
    there.
    """
    if name not in NAMES:
        raise ConfigError(f"world {name!r}: expected one of {', '.join(NAMES)}")
    from cloister.simulations.worlds import reid

    with Progress(console=console, transient=True, disable=console is None) as progress:
        bar = progress.add_task(f"making world {name} ({layout}, {preset})", total=None)

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        return reid.write(layout, folder, preset, seed, show)
