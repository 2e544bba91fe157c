"""The ``local`` engine: worker processes on this machine, arrays in shared memory, no server.

Each worker is forked from one warm process that has imported torch and Flower once, so starting (and replacing) a
worker takes milliseconds. What all clients of a round receive is written to shared memory once; a reply is written
where the driver reads it. Only Flower's protobuf without arrays goes through the pipe.
"""

import json
import mmap
import os
import signal
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection as pipes
from typing import Any

import numpy as np
from flwr.app import Array, Message

from cloister.errors import EngineError
from cloister.flower import NDArray, pack, unpack, view
from cloister.simulations.engines.grid import EngineGrid, Executor, Job, Nodes, Outcome, Payload
from cloister.simulations.engines.memory import Peer, Pool, carve, layout
from cloister.simulations.engines.nursery import nursery

_SHORT_S = 0.5  # while jobs take less, the next one waits in the worker's pipe, so that no worker idles between two
_PIPE_SAFE = 1 << 16  # a frame this small fits the pipe's buffer, so sending it to a busy worker cannot block
_LOOKAHEAD = 64  # how far to look for a job whose client this worker served before


class _Worker:
    """One worker process and the driver's end of its connection."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self.connection, self.pid = nursery().fork(setup)
        self.jobs: dict[str, Job] = {}
        self.given_back: list[int] = []

    def check(self) -> None:
        """Wait until the worker has loaded its ClientApp."""
        try:
            problem = self.connection.recv_bytes()
        except (EOFError, ConnectionError):
            problem = b"the process died while it started"
        if problem:
            raise EngineError(f"worker: {problem.decode()}")

    def has_room(self, job: Job, depth: int) -> bool:
        return not self.jobs or (len(self.jobs) < depth and len(job.payload.data) < _PIPE_SAFE)

    def send(self, job: Job) -> None:
        header = {"job": job.message_id, "configuration": job.configuration, "free": list(self.given_back)}
        self.given_back.clear()  # in place: leases hold this list
        self.jobs[job.message_id] = job
        with suppress(ConnectionError):  # the worker is gone: the next poll finds the closed pipe and replaces it
            for part in (json.dumps(header).encode(), job.state, job.payload.data):
                self.connection.send_bytes(part)

    def stop(self) -> None:
        self.connection.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


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
        self._job_s = float("inf")  # how long a job takes, smoothed; unknown at first
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
        places: dict[int, bytes] = {}
        for (key, value), copy in zip(values.items(), carve(segment, shapes), strict=True):
            np.copyto(copy, value)
            places[key] = segment.reference(copy)
        open_messages = [len(messages)]

        def finish() -> None:
            open_messages[0] -= 1
            if open_messages[0] == 0:
                self._outgoing.give_back(index)

        return [Payload(pack(message, lambda array: places[id(array)]), finish) for message in messages]

    def submit(self, jobs: Iterable[Job]) -> list[Job]:
        """Fill every worker's room, preferring clients that it has served (their data are in its memory)."""
        waiting = [job for job, _ in zip(jobs, range(_LOOKAHEAD), strict=False)]
        started: list[Job] = []
        while (choice := self._choose(waiting)) is not None:
            index, job = choice
            waiting.remove(job)
            self._homes[job.node_id] = index
            self._workers[index].send(job)
            started.append(job)
        return started

    def _choose(self, waiting: Sequence[Job]) -> tuple[int, Job] | None:
        """Return the next job and its worker: idle workers first, clients at home before clients elsewhere."""
        depth = 2 if self._job_s < _SHORT_S else 1
        for index in sorted(range(len(self._workers)), key=lambda it: len(self._workers[it].jobs)):
            worker = self._workers[index]
            fitting = [job for job in waiting if worker.has_room(job, depth)]
            own = next((job for job in fitting if self._homes.get(job.node_id, index) == index), None)
            if own is not None:
                return index, own
            if fitting and not worker.jobs:
                return index, fitting[0]
        return None

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Return replies and lost jobs; a dead worker is replaced at once."""
        outcomes, self._lost = self._lost, []
        ready = pipes.wait([worker.connection for worker in self._workers], 0.0 if outcomes else timeout_s)
        for index, worker in enumerate(self._workers):
            if worker.connection not in ready:
                continue
            try:
                outcomes.append(self._receive(worker))
            except (EOFError, ConnectionError):
                outcomes += self._replace(index, "the worker process died")
        return outcomes

    def _receive(self, worker: _Worker) -> Outcome:
        header, state, data = (worker.connection.recv_bytes() for _ in range(3))
        answer = json.loads(header)
        job = worker.jobs.pop(answer["job"])
        self._job_s = answer["seconds"] if self._job_s == float("inf") else 0.8 * self._job_s + 0.2 * answer["seconds"]
        lease = _Lease(answer["lent"], self._peer, worker.given_back)
        return Outcome(job.message_id, unpack(data, lease.fetch), state=state)

    def _replace(self, index: int, reason: str) -> list[Outcome]:
        worker = self._workers[index]
        self._peer.drop(f"/proc/{worker.pid}/")
        worker.stop()
        self._workers[index] = self._start(index)
        self._workers[index].check()
        # Jobs run in the order they were sent: the first one was running, the others merely waited.
        return [Outcome(it, None, "" if position else reason) for position, it in enumerate(worker.jobs)]

    def cancel(self, message_ids: set[str]) -> None:
        """End the workers that run these jobs; what else waited there runs again."""
        for index, worker in enumerate(self._workers):
            if message_ids & set(worker.jobs):
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

    def fetch(self, reference: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray:
        path, _, offset = reference.decode().rpartition(":")
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
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
