"""Isolation inside a simulation's worker process: a client opens its own files, or fails.

One worker serves many clients in turn. While it serves one, every file that Python opens, lists or maps passes an
audit hook (PEP 578), which cannot be removed; a path that the task does not grant to this client, as written or with
its links resolved, raises :class:`IsolationError`.

Guarantee: covers opens made through Python on any thread (``open``, ``os.open``, ``os.listdir``, ``os.scandir`` and
everything built on them, such as Pillow and NumPy), which is how every reader of :mod:`cloister.datasets` opens files.
It does not cover native code that opens files on its own; between parties that do not trust each other, give each its
own folder (``cloister data split``) and its own machine. A process serves one client at a time.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.errors import IsolationError

_EVENTS = frozenset({"open", "os.listdir", "os.scandir"})


@dataclass(frozen=True)
class _Boundary:
    client: str
    may_open: Callable[[Path], bool]


_active: list[_Boundary] = []  # a stack; process-wide on purpose, so that threads of a loader are covered too
_installed: list[bool] = []


@contextmanager
def isolated(client: str, may_open: Callable[[Path], bool]) -> Iterator[None]:
    """While active, opening a path for which ``may_open`` is false raises :class:`IsolationError`."""
    if not _installed:
        sys.addaudithook(_audit)
        _installed.append(True)
    _active.append(_Boundary(client, may_open))
    try:
        yield
    finally:
        _active.pop()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS or not _active:
        return
    given = os.curdir if arguments[0] is None else arguments[0]  # os.listdir() lists the working folder
    if not isinstance(given, (str, bytes, os.PathLike)):
        return
    boundary = _active[-1]
    written = os.path.abspath(os.fsdecode(given))
    for path in (written, os.path.realpath(written)):
        if not boundary.may_open(Path(path)):
            raise IsolationError(
                f"client {boundary.client!r} tried to open {path}, which belongs to another client; "
                "read only what Task.load() of this client needs"
            )
