"""The ``ray`` engine: warm Ray actors on this machine or on a cluster, placed by GPU fraction and site.

What several clients of a round receive is put into Ray's object store once and read there without a copy; the
number of clients at work is the number of actors, which only the cluster's resources bound. A client whose site
is named runs on an actor that holds that site's resource (``site:<name>`` in ``ray start --resources``).
"""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Array, Message

from cloister.errors import EngineError
from cloister.flower import NDArray, pack, unpack, view
from cloister.simulations.engines.grid import EngineGrid, Executor, Job, Nodes, Outcome, Payload

import ray  # isort: skip

_DEPTH = 2  # jobs at an actor: one runs, the next waits there
_COMMON, _OWN = "common", "own"


class _Client:
    """One warm actor: a ClientApp that serves whichever client a message is addressed to."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        sys.path[:] = [*setup["path"], *(path for path in sys.path if path not in setup["path"])]
        import torch._dynamo  # noqa: F401  # the first torch optimiser imports it, at one to two seconds

        from cloister.simulations.engines.worker import Host

        self._host = Host(setup["app"], setup["run_config"], setup["run_id"], setup["threads"])

    def ready(self) -> bool:
        """Return once the ClientApp is loaded."""
        return True

    def run(
        self, data: bytes, configuration: dict[str, Any], state: bytes, common: list[NDArray], own: list[NDArray]
    ) -> tuple[bytes, bytes, list[NDArray]]:
        """Return the packed reply, the node's state after it, and the reply's arrays."""

        def fetch(reference: str, dtype: str, shape: tuple[int, ...]) -> NDArray:
            store, _, index = reference.partition(":")
            return (common if store == _COMMON else own)[int(index)]

        reply, after = self._host.run(unpack(data, fetch), configuration, state)
        arrays: list[NDArray] = []

        def place(array: Array) -> str:
            arrays.append(np.ascontiguousarray(view(array)).reshape(array.shape))
            return str(len(arrays) - 1)

        return pack(reply, place), after, arrays


@dataclass
class _Actor:
    """One actor as the driver sees it."""

    site: str
    handle: Any
    jobs: dict[Any, Job] = field(default_factory=dict)  # by the object reference of the result, in sending order


class RayExecutor(Executor):
    """Runs jobs in Ray actors."""

    def __init__(
        self,
        *,
        app: str,
        run_config: Mapping[str, Any],
        actors: int,
        threads: int,
        address: str = "local",
        gpus_per_actor: float = 0.0,
        sites: Mapping[str, int] | None = None,
        run_id: int = 1,
    ) -> None:
        """Connect to the cluster at ``address`` ("local" starts one here) and start warm actors.

        ``actors`` run clients of no particular site; ``sites`` gives the number of actors per named site. Raises
        :class:`EngineError` when the cluster cannot be reached or has not the resources.
        """
        self._setup = {
            "app": app,
            "run_config": dict(run_config),
            "run_id": run_id,
            "threads": threads,
            "path": list(sys.path),
        }
        self._gpus = gpus_per_actor
        self._owns_cluster = not ray.is_initialized()
        if self._owns_cluster:
            self._connect(address)
        self._lost: list[Outcome] = []
        places = [""] * actors + [site for site, count in (sites or {}).items() for _ in range(count)]
        self._check_resources(places)
        self._actors = [self._start(site) for site in places]
        self._await(self._actors)

    def _connect(self, address: str) -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises whatever its start-up meets, bare Exception included
            raise EngineError(
                f"Ray cluster {address!r} cannot be reached ({error}); start one with `ray start --head` "
                "or pass address=local"
            ) from error

    def _check_resources(self, places: Sequence[str]) -> None:
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        needs = {"CPU": float(len(places)), "GPU": self._gpus * len(places)}
        for site in places:
            if site:
                needs[f"site:{site}"] = 1e-3
        for resource, needed in needs.items():
            if needed > total.get(resource, 0.0):
                raise EngineError(
                    f"Ray cluster: {len(places)} actors need {needed:g} {resource}, it has {total.get(resource, 0):g}; "
                    "ask for fewer workers or a smaller GPU fraction, or add nodes"
                )

    def _start(self, site: str) -> _Actor:
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": self._gpus}
        if site:
            options["resources"] = {f"site:{site}": 1e-3}
        return _Actor(site, ray.remote(_Client).options(**options).remote(self._setup))

    def _await(self, actors: Sequence[_Actor]) -> None:
        try:
            ray.get([actor.handle.ready.remote() for actor in actors])
        except ray.exceptions.RayError as error:
            raise EngineError(f"Ray actor cannot start: {error}") from error

    def stage(self, messages: Sequence[Message]) -> list[Payload]:
        """Put arrays that several messages share into the object store once; the rest travels with its message."""
        users: dict[int, int] = {}
        arrays: dict[int, Array] = {}
        for message in messages:
            for record in message.content.array_records.values():
                for array in record.values():
                    arrays[id(array)] = array
                    users[id(array)] = users.get(id(array), 0) + 1
        shared = [key for key, count in users.items() if count > 1]
        common = ray.put([view(arrays[key]) for key in shared])
        places = {key: f"{_COMMON}:{index}" for index, key in enumerate(shared)}

        def make(message: Message) -> tuple[bytes, Any, list[NDArray]]:
            own: list[NDArray] = []

            def place(array: Array) -> str:
                if id(array) in places:
                    return places[id(array)]
                own.append(view(array))
                return f"{_OWN}:{len(own) - 1}"

            return pack(message, place), common, own

        return [Payload(partial(make, message)) for message in messages]

    def submit(self, jobs: Iterable[Job]) -> list[Job]:
        """Give each job to the least busy actor of its site that has room."""
        started = []
        for job in jobs:
            if all(len(actor.jobs) >= _DEPTH for actor in self._actors):
                break
            candidates = [it for it in self._actors if it.site == job.site and len(it.jobs) < _DEPTH]
            if not any(actor.site == job.site for actor in self._actors):
                raise EngineError(f"node {job.node_id}: no actor of site {job.site!r}; name it in `sites`")
            if candidates:
                actor = min(candidates, key=lambda it: len(it.jobs))
                data, common, own = job.payload.data
                actor.jobs[actor.handle.run.remote(data, job.configuration, job.state, common, own)] = job
                started.append(job)
        return started

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Return replies and lost jobs; a dead actor is replaced."""
        outcomes, self._lost = self._lost, []
        running = [reference for actor in self._actors for reference in actor.jobs]
        if not running:
            return outcomes
        ready, _ = ray.wait(running, num_returns=1, timeout=0 if outcomes else timeout_s)
        if ready:  # take what else is there already, without waiting
            ready, _ = ray.wait(running, num_returns=len(running), timeout=0)
        for reference in ready:
            actor = next((it for it in self._actors if reference in it.jobs), None)
            if actor is not None:
                outcomes += self._receive(actor, reference)
        return outcomes

    def _receive(self, actor: _Actor, reference: Any) -> list[Outcome]:
        try:
            data, state, arrays = ray.get(reference)
        except ray.exceptions.RayError as error:
            return self._replace(actor, f"the Ray actor died ({type(error).__name__})")
        job = actor.jobs.pop(reference)
        reply = unpack(data, lambda place, dtype, shape: arrays[int(place)])
        return [Outcome(job.message_id, reply, state=state)]

    def _replace(self, actor: _Actor, reason: str) -> list[Outcome]:
        ray.kill(actor.handle)
        fresh = self._start(actor.site)
        self._actors[self._actors.index(actor)] = fresh
        # Jobs run in the order they were sent: the first one was running, the others merely waited.
        return [Outcome(job.message_id, None, "" if at else reason) for at, job in enumerate(actor.jobs.values())]

    def cancel(self, message_ids: set[str]) -> None:
        """End the actors that run these jobs; what else waited there runs again."""
        for actor in list(self._actors):
            if message_ids & {job.message_id for job in actor.jobs.values()}:
                outcomes = self._replace(actor, "cancelled")
                self._lost += [Outcome(it.message_id, None) for it in outcomes if it.message_id not in message_ids]

    def close(self) -> None:
        """End the actors, and the cluster if this executor started or joined it."""
        for actor in self._actors:
            ray.kill(actor.handle)
        if self._owns_cluster:
            ray.shutdown()


def ray_grid(
    nodes: Nodes,
    *,
    app: str,
    run_config: Mapping[str, Any],
    workers: int,
    threads: int = 1,
    address: str = "local",
    gpus_per_actor: float = 0.0,
    sites: Mapping[str, int] | None = None,
) -> EngineGrid:
    """Return a grid over ``workers`` warm actors that serve the ClientApp at ``app``."""
    executor = RayExecutor(
        app=app,
        run_config=run_config,
        actors=workers,
        threads=threads,
        address=address,
        gpus_per_actor=gpus_per_actor,
        sites=sites,
    )
    return EngineGrid(nodes, executor)
