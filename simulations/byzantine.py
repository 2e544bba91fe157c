"""Hostile clients of a simulation: a Flower ``Grid`` in which some clients attack, on any engine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from cloister.errors import ConfigError
from cloister.flower import NDArray, NodeInfo, Run, array_record, views
from cloister.models.spec import Group
from cloister.randomness import SeedTree
from cloister.simulations.attacks import ATTACKS, Attack, alie_z
from cloister.simulations.engines.grid import EngineGrid
from cloister.simulations.experiment import ByzantineConfig
from cloister.strategies.fold import trainable


def attackers(config: ByzantineConfig, clients: Sequence[str], seeds: SeedTree) -> tuple[str, ...]:
    """Return the names of the clients that attack; raises ConfigError if there are no such clients, or only such."""
    if not config.clients and not config.count:
        return ()
    unknown, chosen = sorted(set(config.clients) - set(clients)), tuple(sorted(set(config.clients)))
    if 0 < config.count <= len(clients):
        drawn = seeds.numpy(purpose="byzantine").choice(len(clients), size=config.count, replace=False)
        chosen = tuple(sorted(clients[index] for index in drawn))
    if unknown or not 0 < len(chosen) < len(clients):
        raise ConfigError(
            f"byzantine: expected 1 to {len(clients) - 1} of the clients {', '.join(clients[:8])} (of {len(clients)}), "
            f"found {', '.join(unknown or chosen) or config.count}; set byzantine.clients or byzantine.count"
        )
    if config.attack == "alie" and config.strength is None:
        alie_z(len(clients), len(chosen))
    return chosen


@dataclass
class _Batch:
    """The training replies of one round: which are still to come, and what has come so far."""

    number: int
    pending: set[str]
    hostile: set[str]
    honest: dict[str, NDArray] = field(default_factory=dict)
    held: dict[str, Message] = field(default_factory=dict)


class ByzantineGrid(Grid):
    """An engine's grid in which some clients attack. They train as the others do, and then send something else.

    Only floating-point SHARED entries are attacked; metrics and other releases stay those of honest training. Attackers
    answer last: a client that never answers keeps them silent, too, until the round's deadline.
    """

    def __init__(
        self,
        grid: EngineGrid,
        attack: Attack,
        strength: float | None,
        hostile: Iterable[str],
        groups: Mapping[str, Group],
        seeds: SeedTree,
    ) -> None:
        """Turn the clients named ``hostile`` of ``grid`` into attackers on a model with these ``groups``."""
        self._grid, self._attack, self._strength = grid, attack, strength
        self._hostile, self._groups, self._seeds = frozenset(hostile), groups, seeds
        self._batches: dict[str, _Batch] = {}

    def set_run(self, run: Run) -> None:
        """Set the run whose identifier messages carry."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run this grid serves."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to one node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> range:
        """Return the ids of all nodes."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Yield every node with its name."""
        return self._grid.get_nodes()

    def name_of(self, node_id: int) -> str:
        """Return the client's name."""
        return self._grid.name_of(node_id)

    def wait(self, timeout_s: float) -> None:
        """Block until a reply can be pulled, or for ``timeout_s`` seconds."""
        self._grid.wait(timeout_s)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Forget these messages."""
        unwanted = set(message_ids)
        self._grid.cancel(unwanted)
        for identifier in unwanted:
            self._batches.pop(identifier, None)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Push messages; those that ask for training are one round's."""
        batch = list(messages)
        identifiers = self._grid.push_messages(batch)
        self._open(batch)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there; those of attackers when everybody else's are."""
        return [message for reply in self._grid.pull_messages(message_ids) for message in self._passed(reply)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and return their replies in the order of their nodes."""
        batch = list(messages)
        replies = self._grid.send_and_receive(batch, timeout=timeout)
        self._open(batch)
        passed = [message for reply in replies for message in self._passed(reply)]
        self.cancel(message.metadata.message_id for message in batch)
        return sorted(passed, key=lambda reply: reply.metadata.src_node_id)

    def _open(self, messages: Sequence[Message]) -> None:
        training = {
            message.metadata.message_id: self.name_of(message.metadata.dst_node_id) in self._hostile
            for message in messages
            if message.metadata.message_type == MessageType.TRAIN
        }
        if any(training.values()):
            number = int(str(messages[0].metadata.group_id))
            hostile = {identifier for identifier, attacks in training.items() if attacks}
            self._batches |= dict.fromkeys(training, _Batch(number, set(training), hostile))

    def _passed(self, reply: Message) -> list[Message]:
        identifier = reply.metadata.reply_to_message_id
        batch = self._batches.pop(identifier, None)
        if batch is None:
            return [reply]
        batch.pending.discard(identifier)
        hostile = identifier in batch.hostile and reply.has_content()
        if hostile:
            batch.held[self.name_of(reply.metadata.src_node_id)] = reply
        elif reply.has_content():
            batch.honest[self.name_of(reply.metadata.src_node_id)] = self._vector(reply)
        done = self._attacked(batch) if not batch.pending else []
        return done if hostile else [reply, *done]

    def _attacked(self, batch: _Batch) -> list[Message]:
        replies = [batch.held[name] for name in sorted(batch.held)]
        if not replies:
            return []
        own = np.stack([self._vector(reply) for reply in replies])
        honest = np.stack([batch.honest[name] for name in sorted(batch.honest)]) if batch.honest else own
        generator = self._seeds.numpy(purpose="byzantine", round=batch.number)
        for reply, row in zip(replies, self._attack(honest, own, self._strength, generator), strict=True):
            self._replace(reply, row)
        return replies

    def _vector(self, reply: Message) -> NDArray:
        arrays = views(reply.content.array_records["arrays"])
        parts = [arrays[name].reshape(-1) for name in sorted(trainable(self._groups, arrays))]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _replace(self, reply: Message, row: NDArray) -> None:
        arrays, start = views(reply.content.array_records["arrays"]), 0
        for name in sorted(trainable(self._groups, arrays)):
            old = arrays[name]
            arrays[name] = row[start : start + old.size].reshape(old.shape).astype(old.dtype)
            start += old.size
        reply.content["arrays"] = array_record(arrays)


def with_attackers(
    grid: EngineGrid, config: ByzantineConfig, clients: Sequence[str], groups: Mapping[str, Group], seeds: SeedTree
) -> Grid:
    """Return ``grid`` with the attackers that ``config`` asks for; ``grid`` itself where it asks for none."""
    hostile = attackers(config, clients, seeds)
    return ByzantineGrid(grid, ATTACKS[config.attack], config.strength, hostile, groups, seeds) if hostile else grid
