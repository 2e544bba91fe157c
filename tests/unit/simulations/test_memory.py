"""Shared memory between processes: where arrays lie, who reads them, and that segments come back."""

import errno
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloister.errors import EngineError
from cloister.simulations.engines.memory import Peer, Pool, Segment, carve, layout

F4, I8, B1 = np.dtype(np.float32), np.dtype(np.int64), np.dtype(bool)
SHAPES = [((2, 3), F4), ((), I8), ((0, 4), F4), ((65,), B1), ((4, 4), I8)]


def in_a_child(work: Callable[[], bytes]) -> bytes:
    """What ``work`` returns in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, work())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


# Where arrays lie


def test_offsets_are_aligned_and_in_order() -> None:
    # by hand: 24, 8, 0, 65 and 128 bytes, each rounded up to a multiple of 64
    assert layout(SHAPES) == ([0, 64, 128, 128, 256], 384)
    assert layout([]) == ([], 0)


def test_large_shapes_do_not_overflow() -> None:
    assert layout([((2**20, 2**13), F4)])[1] == 2**35


def test_carved_arrays_are_where_the_layout_says() -> None:
    segment = Segment(layout(SHAPES)[1])
    arrays = carve(segment, SHAPES)
    assert [(array.shape, array.dtype) for array in arrays] == SHAPES
    offsets = layout(SHAPES)[0]
    for number, (array, offset) in enumerate(zip(arrays, offsets, strict=True)):
        if array.size:
            assert segment.reference(array) == f"{segment.path}:{offset}"
            assert array.ctypes.data % 64 == 0
        array[...] = number % 2 if array.dtype == B1 else number
    assert [set(array.ravel().tolist()) for array in arrays] == [{0.0}, {1}, set(), {True}, {4}]


def test_carving_more_than_there_is_fails() -> None:
    with pytest.raises(TypeError, match="buffer is too small"):
        carve(Segment(1), [((mmap.PAGESIZE + 1,), B1)])


# Segments


def test_a_segment_knows_what_it_holds() -> None:
    segment, other = Segment(4096), Segment(4096)
    first, last = carve(segment, [((8,), I8), ((504,), I8)])
    held = {"first": first, "to the very end": last, "reshaped": last.reshape(2, 252), "part": last[100:]}
    offsets = {"first": 0, "to the very end": 64, "reshaped": 64, "part": 864}
    assert {name: segment.reference(it) for name, it in held.items()} == {
        name: f"{segment.path}:{offset}" for name, offset in offsets.items()
    }
    assert segment.reference(last[::2]) is None  # not contiguous: its bytes are not a run
    assert segment.reference(last.reshape(2, 252).T) is None
    assert segment.reference(np.zeros(3)) is None
    assert other.reference(first) is None


def test_an_array_that_sticks_out_is_not_held() -> None:
    segment = Segment(mmap.PAGESIZE)
    inside = np.ndarray((4,), I8, buffer=segment.memory, offset=mmap.PAGESIZE - 32)
    assert segment.reference(inside)
    segment.size -= 8
    assert segment.reference(inside) is None
    segment.size += 8
    segment._address += mmap.PAGESIZE
    assert segment.reference(inside) is None


def test_a_segment_is_at_least_a_page() -> None:
    assert Segment(0).size == mmap.PAGESIZE
    assert Segment(mmap.PAGESIZE + 1).size == mmap.PAGESIZE + 1


def test_no_room_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(EngineError, match=r"5000 bytes cannot be had .*run fewer workers"):
        Segment(5000)


def test_without_memfd_a_file_takes_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    segment = Segment(10)
    carve(segment, [((2,), I8)])[0][:] = 7
    assert [path.name for path in tmp_path.iterdir()] == [Path(segment.path).name]
    assert Peer().fetch(f"{segment.path}:0", "int64", (2,)).tolist() == [7, 7]


# Another process


def test_a_child_reads_what_a_reference_stands_for() -> None:
    segment = Segment(layout(SHAPES)[1])
    arrays = carve(segment, SHAPES)
    references = [segment.reference(array) for array in arrays]
    peer = Peer()

    def read() -> bytes:
        found = [
            peer.fetch(reference, str(dtype), shape)
            for reference, (shape, dtype) in zip(references, SHAPES, strict=True)
        ]
        return repr([array.tolist() for array in found]).encode()

    for number, array in enumerate(arrays):
        array[...] = number
    assert in_a_child(read).decode() == repr([array.tolist() for array in arrays])


def test_a_fetched_array_is_the_memory_itself_and_read_only() -> None:
    segment = Segment(4096)
    (array,) = carve(segment, [((3,), I8)])
    array[:] = 1
    fetched = Peer().fetch(segment.reference(array), "int64", (3,))
    array[1] = 5
    assert fetched.tolist() == [1, 5, 1]
    assert not fetched.flags.writeable


def test_a_child_may_write_where_it_is_let() -> None:
    segment = Segment(4096)
    (array,) = carve(segment, [((3,), I8)])
    reference = segment.reference(array)

    def write() -> bytes:
        Peer(mmap.ACCESS_WRITE).fetch(reference, "int64", (3,))[:] = 9
        return b"done"

    assert in_a_child(write) == b"done"
    assert array.tolist() == [9, 9, 9]


def test_a_segment_is_mapped_once() -> None:
    segment = Segment(4096)
    peer = Peer()
    assert peer.memory(segment.path) is peer.memory(segment.path)
    assert peer.memory(segment.path) is not Peer().memory(segment.path)


def test_a_dropped_mapping_leaves_views_alive_and_others_mapped() -> None:
    one, other, peer = Segment(4096), Segment(4096), Peer()
    (array,) = carve(one, [((2,), I8)])
    array[:] = 3
    fetched, kept = peer.fetch(one.reference(array), "int64", (2,)), peer.memory(other.path)
    before = peer.memory(one.path)
    peer.drop(one.path)
    assert fetched.tolist() == [3, 3]
    assert peer.memory(other.path) is kept
    assert peer.memory(one.path) is not before


def test_a_process_that_is_gone_is_named() -> None:
    path = in_a_child(lambda: Segment(4096).path.encode()).decode()
    with pytest.raises(EngineError, match=rf"{path}: cannot be mapped .*the process is gone"):
        Peer().memory(path)


def test_a_mapping_outlives_the_process_that_made_the_segment() -> None:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()  # or this process would wait for itself, should the other fail
        segment = Segment(4096)
        carve(segment, [((2,), I8)])[0][:] = 6
        theirs.sendall(segment.path.encode())
        theirs.recv(1)
        os._exit(0)
    with ours, theirs:
        path, peer = ours.recv(100).decode(), Peer()
        fetched = peer.fetch(f"{path}:0", "int64", (2,))
        ours.sendall(b".")
        os.waitpid(child, 0)
    assert fetched.tolist() == [6, 6]


def test_a_mapping_leaves_no_descriptor_open_beside_its_own() -> None:
    segment, peer = Segment(4096), Peer()
    before = len(os.listdir("/proc/self/fd"))
    peer.memory(segment.path)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    peer.drop(segment.path)
    assert len(os.listdir("/proc/self/fd")) == before


# The pool


def test_a_pool_reuses_the_smallest_that_fits() -> None:
    pool = Pool()
    page = mmap.PAGESIZE
    small, large, middle = pool.take(page), pool.take(4 * page), pool.take(2 * page)
    assert (small, large, middle) == (0, 1, 2)
    for index in (large, small, middle):
        pool.give_back(index)
    assert pool.take(page + 1) == middle
    assert pool.take(page + 1) == large
    assert pool.take(page) == small
    assert len(pool.segments) == 3
    assert pool.take(page) == 3  # all are lent


def test_a_lent_segment_is_not_lent_again() -> None:
    pool = Pool()
    taken = [pool.take(100) for _ in range(5)]
    assert len(set(taken)) == 5
    pool.give_back(taken[2])
    assert pool.take(100) == taken[2]
    assert pool.take(100) == 5


def test_memory_stays_flat_over_rounds() -> None:
    pool = Pool()
    for _ in range(20):
        lent = [pool.take(size) for size in (5000, 9000, 5000)]
        for index in lent:
            pool.give_back(index)
    assert sorted(segment.size for segment in pool.segments) == [5000, 5000, 9000]
