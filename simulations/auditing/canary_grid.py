"""A grid with virtual canary clients beside the real ones: they reply at once, through the plan's own client stages."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from cloister.clients.request import Request
from cloister.clients.stages import staged
from cloister.flower import NodeInfo, Run, array_record, assign_id, views
from cloister.privacy.audits.canaries import Canaries, unflatten
from cloister.privacy.noise import NoiseSource
from cloister.simulations.engines.grid import EngineGrid, exchange

PREFIX = "canary-"


class CanaryGrid(Grid):
    """Another grid's nodes, and one node for each canary.

    A canary's update is its direction times the clip bound in force, the most that one client can do. ``noise``: what
    canaries add where the plan has clients add it.
    """

    def __init__(self, grid: EngineGrid, canaries: Canaries, noise: NoiseSource) -> None:
        self._grid, self._canaries, self._noise = grid, canaries, noise
        self._first = len(grid.nodes.names) + 1
        self._ready: dict[str, Message] = {}
        self._count = 0

    def set_run(self, run: Run) -> None:
        """Set the run of the real grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the real grid."""
        return self._grid.run

    def create_message(self, *arguments: Any, **keywords: Any) -> Message:
        """Return a message, as the real grid makes it."""
        return self._grid.create_message(*arguments, **keywords)

    def get_node_ids(self) -> range:
        """Return the ids of real nodes and canaries."""
        return range(1, self._first + self._canaries.count)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Yield every node with its name."""
        return (NodeInfo(node_id=node_id, name=self.name_of(node_id)) for node_id in self.get_node_ids())

    def name_of(self, node_id: int) -> str:
        """Return a client's name, or a canary's."""
        canary = node_id - self._first
        return f"{PREFIX}{canary:04d}" if canary >= 0 else self._grid.name_of(node_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send what is for real nodes; answer the rest."""
        batch = list(messages)
        identifiers = iter(self._grid.push_messages([it for it in batch if it.metadata.dst_node_id < self._first]))
        return [
            self._answer(message) if message.metadata.dst_node_id >= self._first else next(identifiers)
            for message in batch
        ]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there."""
        wanted = set(message_ids)
        own = [self._ready.pop(identifier) for identifier in list(self._ready) if identifier in wanted]
        real = [identifier for identifier in wanted if not identifier.startswith(PREFIX)]
        return own + (self._grid.pull_messages(real) if real else [])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and return their replies in the order of their nodes."""
        return exchange(self, messages, timeout)

    def wait(self, timeout_s: float) -> None:
        """Block until a reply can be pulled."""
        if not self._ready:
            self._grid.wait(timeout_s)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Forget messages."""
        self._grid.cancel([identifier for identifier in message_ids if not identifier.startswith(PREFIX)])

    def _answer(self, message: Message) -> str:
        self._count += 1
        identifier = f"{PREFIX}{self._count}"
        assign_id(message, identifier)
        request, index = Request.of(message, ""), message.metadata.dst_node_id - self._first
        like = views(message.content.array_records["arrays"])
        update = self._canaries.update(index, min(request.norm, 1e3))
        content = RecordDict(
            {
                "arrays": array_record(
                    {name: np.array(it) for name, it in unflatten(update, like, list(like)).items()}
                ),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        left, _ = staged(request, content, self._noise.fork(self._count))
        self._ready[identifier] = Message(left, reply_to=message)
        return identifier
