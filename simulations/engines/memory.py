"""Shared memory between the driver and its workers, without names that could leak.

A :class:`Segment` is anonymous memory (``memfd``) that another process of the same user maps through
``/proc/<pid>/fd/<n>``: it vanishes with the last process that maps it, also after ``kill -9``, and it is not bound by
the size of ``/dev/shm``. Where the system has no ``memfd``, a file in the temporary folder takes its place.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from cloister.errors import EngineError
from cloister.flower import NDArray

_ALIGNMENT = 64
Shape = tuple[tuple[int, ...], np.dtype[Any]]


class Segment:
    """One block of shared memory that this process made. ``path`` lets another process map it."""

    def __init__(self, size: int) -> None:
        """Allocate ``size`` bytes; raises :class:`EngineError` when the machine has no room."""
        self.size = max(size, mmap.PAGESIZE)
        try:
            if hasattr(os, "memfd_create"):
                self._descriptor = os.memfd_create("cloister")
                self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
            else:
                self._descriptor, self.path = tempfile.mkstemp(prefix="cloister-")
            os.ftruncate(self._descriptor, self.size)
            self.memory = mmap.mmap(self._descriptor, self.size)
        except OSError as error:
            raise EngineError(f"shared memory: {size} bytes cannot be had ({error}); run fewer workers") from error
        self._address = _address(np.frombuffer(self.memory, np.uint8, 1))

    def reference(self, values: NDArray) -> str | None:
        """Return the text under which another process finds these values; None if they do not lie here in one piece."""
        offset = _address(values) - self._address
        if 0 <= offset <= self.size - values.nbytes and values.flags.c_contiguous:
            return f"{self.path}:{offset}"
        return None


def _address(values: NDArray) -> int:
    return int(values.__array_interface__["data"][0])


def layout(shapes: Sequence[Shape]) -> tuple[list[int], int]:
    """Return the aligned offset of each array in one block, and the block's size in bytes."""
    offsets, end = [], 0
    for shape, dtype in shapes:
        offsets.append(end)
        end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def carve(segment: Segment, shapes: Sequence[Shape]) -> list[NDArray]:
    """Return uninitialised arrays that lie one after another in ``segment``."""
    offsets, _ = layout(shapes)
    return [
        np.ndarray(shape, dtype, buffer=segment.memory, offset=offset)
        for (shape, dtype), offset in zip(shapes, offsets, strict=True)
    ]


class Pool:
    """Segments of this process that are lent to one use and come back: memory stays flat over rounds."""

    def __init__(self) -> None:
        """Start empty; segments are made when they are first needed."""
        self.segments: list[Segment] = []
        self._free: list[int] = []

    def take(self, size: int) -> int:
        """Return the number of a free segment of at least ``size`` bytes, making one if there is none."""
        fitting = [index for index in reversed(self._free) if self.segments[index].size >= size]
        if fitting:  # of equal ones the last that came back: some of it may still be in the processor's cache
            index = min(fitting, key=lambda number: self.segments[number].size)
            self._free.remove(index)
            return index
        self.segments.append(Segment(size))
        return len(self.segments) - 1

    def give_back(self, index: int) -> None:
        """Make a segment free for the next use."""
        self._free.append(index)


class Peer:
    """Reads segments of another process, each mapped once."""

    def __init__(self, access: int = mmap.ACCESS_READ) -> None:
        """Map with ``access``; a worker maps what the driver sends read-only."""
        self._access = access
        self._maps: dict[str, mmap.mmap] = {}

    def memory(self, path: str) -> mmap.mmap:
        """Return the mapping of the segment at ``path``."""
        if path not in self._maps:
            try:
                descriptor = os.open(path, os.O_RDWR)
                try:
                    self._maps[path] = mmap.mmap(descriptor, 0, access=self._access)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise EngineError(f"shared memory {path}: cannot be mapped ({error}); the process is gone") from error
        return self._maps[path]

    def fetch(self, reference: str, dtype: str, shape: tuple[int, ...]) -> NDArray:
        """Return the array that a :meth:`Segment.reference` stands for, without copying."""
        path, _, offset = reference.rpartition(":")
        return np.ndarray(shape, np.dtype(dtype), buffer=self.memory(path), offset=int(offset))

    def drop(self, prefix: str) -> None:
        """Forget the mappings whose path starts with ``prefix`` (a dead process); views of them stay valid."""
        for path in [path for path in self._maps if path.startswith(prefix)]:
            del self._maps[path]
