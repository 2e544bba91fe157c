"""The ``local`` engine: worker processes on this machine, arrays in shared memory, no server.

Each worker is forked from one warm process that has imported torch and Flower once, so starting (and replacing) a
worker takes milliseconds. What all clients of a round receive is written to shared memory once; a reply is written
where the driver reads it. A table of arrays, and Flower's protobuf of the rest, go through the pipe.
"""

import math
import mmap
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing import connection as pipes
from typing import Any

import numpy as np
from flwr.app import Array, Message

from cloister.errors import EngineError
from cloister.flower import NDArray, frame, pack, unframe, unpack, view
from cloister.simulations.engines.grid import EngineGrid, Executor, Job, Nodes, Outcome, Payload
from cloister.simulations.engines.memory import Peer, Pool, carve, layout
from cloister.simulations.engines.nursery import nursery

_SHORT_S = 0.5  # while jobs take less, the next one waits in the worker's pipe, so that no worker idles between two
_BUNDLE_S = 0.02  # how much work of shorter jobs goes to a worker at once, and waits there
_PIPE_SAFE = 1 << 16  # bytes that fit the pipe's buffer, so that sending to a busy worker cannot block
_LOOKAHEAD = 64  # how far to look for a job whose client this worker served before


class _Worker:
    """One worker process and the driver's end of its connection."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self.connection, self.pid = nursery().fork(setup)
        self.jobs: list[Job] = []  # in the order they were sent: the first one runs
        self.given_back: list[int] = []

    def check(self) -> None:
        """Wait until the worker has loaded its ClientApp."""
        try:
            problem = self.connection.recv_bytes()
        except (EOFError, ConnectionError):
            problem = b"the process died while it started"
        if problem:
            raise EngineError(f"worker: {problem.decode()}")

    def send(self, bundle: list[Job]) -> None:
        head = [list(self.given_back), [job.configuration for job in bundle]]
        self.given_back.clear()  # in place: leases hold this list
        self.jobs += bundle
        with suppress(ConnectionError):  # the worker is gone: the next poll finds the closed pipe and replaces it
            self.connection.send_bytes(frame(head, [part for job in bundle for part in (job.state, job.payload.data)]))

    def read(self) -> bytes | None:
        """Return the next reply; None if the process is gone, be it within a reply."""
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        self.connection.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _bytes(job: Job) -> int:
    return len(job.state) + len(job.payload.data) + len(job.configuration) * 64


class LocalExecutor(Executor):
    """Runs jobs in worker processes of this machine."""

    def __init__(self, *, app: str, run_config: Mapping[str, Any], workers: int, threads: int, run_id: int = 1) -> None:
        """Fork ``workers`` processes that serve the ClientApp at ``app`` with ``threads`` torch threads each."""
        if workers < 1:
            raise EngineError(f"engine local: expected at least one worker, found {workers}")
        self._setup = {
            "app": app,
            "run_config": dict(run_config),
            "run_id": run_id,
            "threads": threads,
            "path": list(sys.path),
            "environment": {},
        }
        self._outgoing, self._peer = Pool(), Peer(mmap.ACCESS_WRITE)
        self._homes: dict[int, int] = {}
        self._lost: list[Outcome] = []
        self._job_s: dict[str, float] = {}  # how long a job takes, by its message's type; unknown at first
        self._workers = [self._start(index) for index in range(workers)]
        for worker in self._workers:
            worker.check()

    def _start(self, index: int) -> _Worker:
        devices = _cuda_devices()
        environment = {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if devices else {}
        return _Worker({**self._setup, "environment": environment})

    def stage(self, messages: Sequence[Message]) -> list[Payload]:
        """Write every distinct array of the batch to shared memory once."""
        arrays: dict[int, Array] = {}
        for message in messages:
            for record in message.content.array_records.values():
                arrays.update((id(array), array) for array in record.values())
        values = {key: view(array) for key, array in arrays.items()}
        shapes = [(value.shape, value.dtype) for value in values.values()]
        index = self._outgoing.take(layout(shapes)[1])
        segment = self._outgoing.segments[index]
        places: dict[int, str] = {}
        for (key, value), copy in zip(values.items(), carve(segment, shapes), strict=True):
            np.copyto(copy, value)
            places[key] = segment.reference(copy) or ""
        open_messages = [len(messages)]

        def finish() -> None:
            open_messages[0] -= 1
            if open_messages[0] == 0:
                self._outgoing.give_back(index)

        known: dict[int, bytes] = {}

        def place(array: Array) -> str:
            return places[id(array)]

        return [Payload(partial(pack, message, place, known), finish) for message in messages]

    def submit(self, jobs: Iterable[Job]) -> list[Job]:
        """Fill every worker's room, preferring clients that it has served (their data are in its memory)."""
        waiting = list(islice(jobs, _LOOKAHEAD))
        started: list[Job] = []
        while waiting and (choice := self._choose(waiting)) is not None:
            index, bundle = choice
            for job in bundle:
                waiting.remove(job)
                self._homes[job.node_id] = index
            self._workers[index].send(bundle)
            started += bundle
        return started

    def _choose(self, waiting: Sequence[Job]) -> tuple[int, list[Job]] | None:
        """Return jobs and the worker that gets them: idle workers first, clients at home before clients elsewhere."""
        expected_s = self._expected_s(waiting[0])
        ahead = max(int(expected_s < _SHORT_S), int(_BUNDLE_S / expected_s))
        for index in sorted(range(len(self._workers)), key=lambda it: len(self._workers[it].jobs)):
            busy = len(self._workers[index].jobs)
            if busy > ahead:
                break  # and so are all others
            # Towards the end of the queue bundles shrink, so that no worker is left with much while another has none.
            size = max(1, min(ahead, -(-len(waiting) // (2 * len(self._workers)))))
            own = [job for job in waiting if self._homes.get(job.node_id, index) == index]
            bundle = self._fitting((own or ([] if busy else waiting))[:size], self._workers[index])
            if bundle:
                return index, bundle
        return None

    def _fitting(self, jobs: Sequence[Job], worker: _Worker) -> list[Job]:
        """Return the first of these jobs that can be sent without blocking; an idle worker reads anything."""
        room = _PIPE_SAFE - sum(map(_bytes, worker.jobs))  # any of them may still be in the pipe
        fitting: list[Job] = []
        for job in jobs:
            room -= _bytes(job)
            if room < 0 and (fitting or worker.jobs):
                break
            fitting.append(job)
        return fitting

    def _expected_s(self, job: Job) -> float:
        return self._job_s.get(job.message.metadata.message_type, float("inf"))

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Return replies and lost jobs; a dead worker is replaced at once."""
        outcomes, self._lost = self._lost, []
        if timeout_s > 0 and not outcomes:
            self._nap(timeout_s)
        ready = pipes.wait([worker.connection for worker in self._workers], 0.0 if outcomes else timeout_s)
        for index, worker in enumerate(self._workers):
            if worker.connection not in ready:
                continue
            while worker.connection.poll():
                answer = worker.read()
                if answer is None:
                    outcomes += self._replace(index, "the worker process died")
                    break
                try:
                    outcomes.append(self._receive(worker, answer))
                except EngineError:  # it died before its reply was fetched from its memory
                    outcomes += self._replace(index, "the worker process died")
                    break
        return outcomes

    def _nap(self, timeout_s: float) -> None:
        """Let replies of short jobs gather: waking up for each costs more than the rest of its way."""
        ahead_s = min(sum(map(self._expected_s, worker.jobs[1:])) for worker in self._workers)
        if ahead_s <= _BUNDLE_S:
            time.sleep(min(timeout_s, ahead_s))

    def _receive(self, worker: _Worker, answer: bytes) -> Outcome:
        (lent, seconds), (state, data) = unframe(answer)
        lease = _Lease(lent, self._peer, worker.given_back)
        job = worker.jobs.pop(0)
        # Rises at once, for too much in a queue costs more than too little; falls slowly.
        kind = job.message.metadata.message_type
        self._job_s[kind] = max(seconds, 0.8 * self._job_s.get(kind, seconds) + 0.2 * seconds)
        return Outcome(job.message_id, unpack(data, lease.fetch), state=state)

    def _replace(self, index: int, reason: str) -> list[Outcome]:
        worker = self._workers[index]
        self._peer.drop(f"/proc/{worker.pid}/")
        worker.stop()
        self._workers[index] = self._start(index)
        self._workers[index].check()
        # Jobs run in the order they were sent: the first one was running, the others merely waited.
        return [Outcome(job.message_id, None, "" if at else reason) for at, job in enumerate(worker.jobs)]

    def cancel(self, message_ids: set[str]) -> None:
        """End the workers that run these jobs; what else waited there runs again."""
        for index, worker in enumerate(self._workers):
            if any(job.message_id in message_ids for job in worker.jobs):
                outcomes = self._replace(index, "cancelled")
                self._lost += [Outcome(it.message_id, None) for it in outcomes if it.message_id not in message_ids]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.stop()


class _Lease:
    """The segments of one reply: each goes back to its worker when the last array over it is gone."""

    def __init__(self, lent: Sequence[tuple[int, str]], peer: Peer, give_back: list[int]) -> None:
        self._roots: dict[str, NDArray] = {}
        for index, path in lent:
            # Views of one array keep that array, not its buffer, alive: the root's end is the end of all of them.
            self._roots[path] = np.frombuffer(peer.memory(path), np.uint8)
            weakref.finalize(self._roots[path], give_back.append, index).atexit = False

    def fetch(self, reference: str, dtype: str, shape: tuple[int, ...]) -> NDArray:
        path, _, offset = reference.rpartition(":")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self._roots[path][int(offset) : int(offset) + size].view(dtype).reshape(shape)


def _cuda_devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    torch = sys.modules.get("torch")
    return [str(index) for index in range(torch.cuda.device_count())] if torch else []


def local_grid(
    nodes: Nodes, *, app: str, run_config: Mapping[str, Any], workers: int = 0, threads: int = 1
) -> EngineGrid:
    """Return a grid over ``workers`` processes (0: one per CPU core) that serve the ClientApp at ``app``."""
    count = workers or len(os.sched_getaffinity(0))
    return EngineGrid(nodes, LocalExecutor(app=app, run_config=run_config, workers=count, threads=threads))
