"""A Flower ``Grid`` over executors: what every engine of Cloister has in common.

The grid gives messages their identifiers, queues them, hands them to an :class:`Executor` in the order of their
nodes, and keeps the replies until they are pulled. A message whose executor died is run once more; the second
death becomes an error reply. Nothing is kept per node, so a pool of a million nodes costs nothing.
"""

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from cloister.errors import EngineError
from cloister.flower import NodeInfo, Run, assign_id, set_identity

Scalar = bool | int | float | str | bytes
_UNPULLED = 16  # start nothing new while this many replies wait to be pulled: they hold memory
LOST_WORKER = 500  # the code of EngineError, in an error reply


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The clients of a simulation, as Flower nodes 1..n in the order of ``names``.

    ``config`` is the node configuration that all share (Flower's ``node_config``); the grid adds ``client``,
    ``partition-id`` and ``num-partitions``. ``site`` names the machine group a client must run on (empty: any).
    ``names`` may be lazy.
    """

    names: Sequence[str]
    config: Mapping[str, Scalar] = field(default_factory=dict)
    site: Callable[[str], str] = lambda name: ""

    def name(self, node_id: int) -> str:
        """Return the client's name."""
        return self.names[node_id - 1]

    def configuration(self, node_id: int) -> dict[str, Scalar]:
        """Return one node's Flower configuration."""
        own: dict[str, Scalar] = {"partition-id": node_id - 1, "num-partitions": len(self.names)}
        return {**self.config, **own, "client": self.name(node_id)}


class NumberedNames(Sequence[str]):
    """``prefix-0``, ``prefix-1``, ... made when asked for: the names of a large virtual pool."""

    def __init__(self, count: int, prefix: str = "client") -> None:
        """Stand for ``count`` names."""
        self._count, self._prefix = count, prefix

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """Return the name at ``index``; slices are not offered."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        return f"{self._prefix}-{index}"


@dataclass
class Payload:
    """One message as an executor sends it, made when it is first asked for, and what to call when it is done with."""

    make: Callable[[], Any]
    finish: Callable[[], None] = lambda: None

    @cached_property
    def data(self) -> Any:
        """What the executor sends."""
        return self.make()


@dataclass
class Job:
    """One message on its way: what an executor needs to run it, and how often it was tried."""

    message: Message
    configuration: dict[str, Scalar]
    site: str
    payload: Payload
    states: dict[int, bytes]
    attempts: int = 0

    @property
    def state(self) -> bytes:
        """The node's Flower state as its last reply left it."""
        return self.states.get(self.node_id, b"")

    @property
    def message_id(self) -> str:
        """The identifier that the grid gave the message."""
        return str(self.message.metadata.message_id)

    @property
    def node_id(self) -> int:
        """The node that the message goes to."""
        return int(self.message.metadata.dst_node_id)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a reply, or lost with its worker.

    Lost: ``reply`` is None and ``reason`` says how; an empty ``reason`` means that the job had not started.
    """

    message_id: str
    reply: Message | None
    reason: str = ""
    state: bytes = b""


class Executor(ABC):
    """Runs jobs in other processes. One suite of tests holds for all implementations."""

    @abstractmethod
    def stage(self, messages: Sequence[Message]) -> list[Payload]:
        """Return one payload per message, arrays that several share stored once."""

    @abstractmethod
    def submit(self, jobs: Iterable[Job]) -> list[Job]:
        """Start as many of these jobs, first come first served, as there is room for; return those started."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Outcome]:
        """Return finished and lost jobs, waiting up to ``timeout_s`` seconds for the first."""

    @abstractmethod
    def cancel(self, message_ids: set[str]) -> None:
        """Stop these running jobs; nothing is returned for them."""

    @abstractmethod
    def close(self) -> None:
        """Stop every process that this executor started."""


class EngineGrid(Grid):
    """Flower's ``Grid`` over one executor. A context manager: leaving it stops the executor."""

    def __init__(self, nodes: Nodes, executor: Executor, run_id: int = 1) -> None:
        """Serve ``nodes``; ``run_id`` is what Flower's messages carry."""
        self.nodes = nodes
        self._executor = executor
        self._run = Run.create_empty(run_id)
        self._pending: OrderedDict[str, Job] = OrderedDict()
        self._running: dict[str, Job] = {}
        self._replies: dict[str, Message] = {}
        self._states: dict[int, bytes] = {}
        self._count = 0
        set_identity(run_id=run_id, node_id=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_run(self, run: Run) -> None:
        """Set the run whose identifier messages carry."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid serves."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to one node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> range:
        """Return the ids of all nodes, 1..n, without making a list."""
        return range(1, len(self.nodes.names) + 1)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Yield every node with its name."""
        return (NodeInfo(node_id=node_id, name=self.name_of(node_id)) for node_id in self.get_node_ids())

    def name_of(self, node_id: int) -> str:
        """Return the client's name."""
        return self.nodes.name(node_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages and start as many as there is room for; return their ids."""
        batch = list(messages)
        identifiers = []
        for message in batch:
            if message.metadata.dst_node_id not in self.get_node_ids():
                raise EngineError(
                    f"message to node {message.metadata.dst_node_id}: expected 1..{len(self.nodes.names)}; "
                    "take ids from grid.get_node_ids()"
                )
            self._count += 1
            identifiers.append(f"{self._run.run_id}-{self._count}")
            assign_id(message, identifiers[-1])
        for identifier, message, payload in zip(identifiers, batch, self._executor.stage(batch), strict=True):
            node_id = message.metadata.dst_node_id
            site = self.nodes.site(self.name_of(node_id))
            self._pending[identifier] = Job(message, self.nodes.configuration(node_id), site, payload, self._states)
        self._dispatch()
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there for these ids; each is returned once."""
        wanted = set(message_ids)
        if wanted.isdisjoint(self._replies):
            self._collect(0.0)
        pulled = [self._replies.pop(identifier) for identifier in list(self._replies) if identifier in wanted]
        self._dispatch()
        return pulled

    def wait(self, timeout_s: float) -> None:
        """Block until a reply can be pulled, or for ``timeout_s`` seconds."""
        if not self._replies:
            self._collect(timeout_s)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and return their replies in the order of their nodes, whatever order they arrive in."""
        return exchange(self, messages, timeout)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Forget these messages: those that wait are dropped, those that run are stopped."""
        unwanted = set(message_ids)
        for identifier in unwanted & set(self._pending):
            self._pending.pop(identifier).payload.finish()
        running = unwanted & set(self._running)
        if running:
            self._executor.cancel(running)
            for identifier in running:
                self._running.pop(identifier).payload.finish()
        for identifier in unwanted:
            self._replies.pop(identifier, None)
        self._dispatch()

    def close(self) -> None:
        """Stop the executor's processes."""
        self._executor.close()

    def _dispatch(self) -> None:
        if len(self._replies) >= _UNPULLED:
            return
        for job in self._executor.submit(self._pending.values()):
            self._running[job.message_id] = self._pending.pop(job.message_id)

    def _collect(self, timeout_s: float) -> None:
        if not self._running:
            return
        for outcome in self._executor.poll(timeout_s):
            job = self._running.pop(outcome.message_id, None)
            if job is None:
                continue
            if outcome.state:
                self._states[job.node_id] = outcome.state
            job.attempts += bool(outcome.reason)
            if outcome.reply is None and job.attempts < 2:
                self._pending[outcome.message_id] = job
                self._pending.move_to_end(outcome.message_id, last=False)
                continue
            reply = outcome.reply or Message(Error(LOST_WORKER, f"twice: {outcome.reason}"), reply_to=job.message)
            job.payload.finish()
            self._replies[outcome.message_id] = reply
        self._dispatch()


def exchange(grid: Any, messages: Iterable[Message], timeout: float | None) -> list[Message]:
    """Return the replies that come to a grid within so many seconds, in the order of their nodes; forget the rest."""
    identifiers = grid.push_messages(messages)
    missing = set(identifiers)
    replies: dict[str, Message] = {}
    deadline = None if timeout is None else time.monotonic() + timeout
    while missing:
        left = 3600.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            break
        grid.wait(left)
        for reply in grid.pull_messages(list(missing)):
            replies[reply.metadata.reply_to_message_id] = reply
            missing.discard(reply.metadata.reply_to_message_id)
    grid.cancel(missing)
    order = {identifier: position for position, identifier in enumerate(identifiers)}
    return sorted(replies.values(), key=lambda it: (it.metadata.src_node_id, order[it.metadata.reply_to_message_id]))
