"""Procedural data with ground truth, written to disk in a real data set's own layout."""

import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from cloister.errors import ConfigError

NAMES = ("reid",)


def make(name: str, layout: str, folder: Path, *, preset: str, seed: int, console: Console | None = None) -> Path:
    """Write the world to ``folder`` (in the layout's own sub-folder) and return that sub-folder.

    One that is already there is left as it is. It is written under another name and renamed, so a folder with the
    right name is complete. Raises :class:`ConfigError` for a name, layout or preset that does not exist.
    """
    if name not in NAMES:
        raise ConfigError(f"world {name!r}: expected one of {', '.join(NAMES)}")
    from cloister.simulations.worlds import reid

    target = folder / reid.folder_name(layout)
    if target.is_dir():
        return target
    temporary = folder / f".{target.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with Progress(console=console, transient=True, disable=console is None) as progress:
        bar = progress.add_task(f"making world {name} ({layout}, {preset})", total=None)
        reid.write(
            layout, temporary, preset, seed, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    (temporary / target.name if (temporary / target.name).is_dir() else temporary).rename(target)
    shutil.rmtree(temporary, ignore_errors=True)
    return target
