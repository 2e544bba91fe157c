"""An in-memory Flower grid with scripted clients and a clock of its own, and a small model to train on it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from cloister.flower import array_record, assign_id, set_identity, views
from cloister.models.spec import Group
from cloister.randomness import SeedTree
from cloister.strategies.base import BaseStrategy
from cloister.strategies.config import StrategyConfig
from cloister.strategies.registry import build

Answer = RecordDict | Error | None
Handler = Callable[[Message], Answer]

NAMES = tuple(f"cam{number}" for number in range(1, 7))
GROUPS = {
    "conv.weight": Group.SHARED,
    "bn.weight": Group.SHARED,
    "bn.running_mean": Group.BUFFER,
    "bn.running_var": Group.BUFFER,
    "bn.num_batches_tracked": Group.BUFFER,
    "head.weight": Group.SHARED,
}
POOLED = (("bn.running_mean", "bn.running_var"),)


def model() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7)
    return {
        "conv.weight": draw.normal(size=(16, 1, 3, 3)).astype(np.float32),
        "bn.weight": np.ones(16, np.float32),
        "bn.running_mean": np.zeros(16, np.float32),
        "bn.running_var": np.ones(16, np.float32),
        "bn.num_batches_tracked": np.array(0, np.int64),
        "head.weight": draw.normal(size=(5, 4)).astype(np.float32),
    }


class PlainGrid(Grid):
    """What Flower's interface asks for and no more. Time passes only in :meth:`sleep`; a reply comes per tick.

    ``clients``: name to handler; a handler that returns None never replies. ``order``: places in a pushed batch, in
    order of arrival. Node ids are scattered and unrelated to names.
    """

    def __init__(self, clients: Mapping[str, Handler], order: Sequence[int] = (), *, own_ids: bool = True) -> None:
        set_identity(run_id=1, node_id=1)
        ids = [(17 * number + 5) % 1009 + 2 for number in range(len(clients))]
        self.names = dict(zip(ids, clients, strict=True))
        self.handlers = dict(clients)
        self.order = list(order)
        self.now = 0.0
        self.sent: list[Message] = []
        self._ready: dict[str, Message] = {}
        self._coming: list[Message] = []
        self._count = 0

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *args: Any, **keywords: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return set(self.names)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node_id, name=name) for node_id, name in self.names.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        batch = list(messages)
        replies = []
        for message in batch:
            self._count += 1
            assign_id(message, f"m{self._count}")
            self.sent.append(message)
            answer = self.handlers[self.names[message.metadata.dst_node_id]](message)
            replies.append(None if answer is None else Message(answer, reply_to=message))
        order = self.order if sorted(self.order) == list(range(len(batch))) else range(len(batch))
        self._coming += [replies[place] for place in order if replies[place] is not None]
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._ready.pop(identifier) for identifier in list(message_ids) if identifier in self._ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        identifiers = self.push_messages(messages)
        while self._coming:
            self.sleep(1.0)
        return self.pull_messages(identifiers)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self._coming:
            reply = self._coming.pop(0)
            self._ready[reply.metadata.reply_to_message_id] = reply


class FakeGrid(PlainGrid):
    """With what Cloister's engines add: names without node objects, waiting, and cancelling."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.cancelled: list[str] = []

    def get_nodes(self) -> Iterable[NodeInfo]:
        raise AssertionError("an engine's nodes are never enumerated")

    def name_of(self, node_id: int) -> str:
        return self.names[node_id]

    def wait(self, timeout_s: float) -> None:
        self.sleep(min(1.0, timeout_s) if self._coming else timeout_s)

    def cancel(self, message_ids: Iterable[str]) -> None:
        self.cancelled += list(message_ids)


def trained(message: Message, name: str) -> RecordDict:
    """The reply of a client whose training pulls every entry a tenth of the way to a target of its own.

    Depends on nothing but the message and the name. Also releases centres and head rows where they are asked for.
    """
    config = message.content["config"]
    number, own = int(config["server-round"]), np.random.default_rng([ord(letter) for letter in name])
    deltas: dict[str, np.ndarray] = {}
    for key, values in views(message.content["arrays"]).items():
        target = np.abs(own.normal(size=values.shape)) + 0.01 * number
        moved = np.asarray(3) if values.dtype.kind == "i" else np.asarray(0.1 * (target - values))
        deltas[key] = moved.astype(values.dtype)
    index = int(name.removeprefix("cam")) if name.startswith("cam") else 1
    metrics = {"num-examples": 10 + 7 * index, "steps": 2 + index, "loss": 1.0 / (number + index)}
    content = RecordDict({"arrays": array_record(deltas), "metrics": MetricRecord(metrics)})
    if "control" in message.content:
        received = views(message.content["control"])
        content["control"] = array_record({key: deltas[key] - 0.5 * values for key, values in received.items()})
    kinds = config.get("releases", [])
    labels = np.array([index, index + 1, 9], np.int64)
    if "centres" in kinds:
        content["centres"] = array_record({"values": rows(labels, number, own), "labels": labels})
    if "head" in kinds:
        content["head"] = array_record({"weight": rows(labels, number, own), "labels": labels})
    return content


def rows(labels: np.ndarray, number: int, own: np.random.Generator) -> np.ndarray:
    person = np.stack([np.random.default_rng(int(label)).normal(size=4) for label in labels])
    return (person + 0.02 * number + 0.05 * own.normal(size=person.shape)).astype(np.float32)


def clients(names: Iterable[str] = NAMES, **special: Handler) -> dict[str, Handler]:
    """Honest clients, except those given."""
    return {name: special.get(name, lambda message, name=name: trained(message, name)) for name in names}


def groups_for(name: str) -> dict[str, Group]:
    """The groups of a model that the strategy can serve."""
    if name == "fedbn":
        return {key: Group.LOCAL if key.startswith("bn.") else group for key, group in GROUPS.items()}
    if name == "l2rw-uci":
        return {**GROUPS, "head.weight": Group.LOCAL}
    return GROUPS


def make(grid: PlainGrid, settings: Mapping[str, Any], **keywords: Any) -> BaseStrategy:
    """A strategy whose time is the grid's."""
    config = StrategyConfig.parse(dict(settings), "test")
    keywords.setdefault("groups", groups_for(config.name))
    seeds = SeedTree(experiment="test", seed=3)
    return build(config, seeds=seeds, clock=grid.clock, sleep=grid.sleep, **keywords)


def initial(name: str) -> ArrayRecord:
    """The arrays that the strategy's model sends."""
    groups = groups_for(name)
    return array_record({key: values for key, values in model().items() if groups[key] is not Group.LOCAL})


def run(grid: PlainGrid, settings: Mapping[str, Any], rounds: int = 2, **keywords: Any) -> SimpleNamespace:
    """Run rounds and return the strategy, the result, its values and all round results."""
    strategy = make(grid, settings, **keywords)
    done: list[Any] = []
    result = strategy.start(grid, initial(settings["name"]), rounds, on_round=done.append)
    return SimpleNamespace(strategy=strategy, result=result, arrays=views(result.arrays), rounds=done)


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether two models are the same bit for bit."""
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype and one[key].tobytes() == other[key].tobytes() for key in one
    )


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """Everything above."""
    return SimpleNamespace(
        FakeGrid=FakeGrid,
        PlainGrid=PlainGrid,
        NAMES=NAMES,
        GROUPS=GROUPS,
        POOLED=POOLED,
        model=model,
        trained=trained,
        clients=clients,
        groups_for=groups_for,
        make=make,
        initial=initial,
        run=run,
        same=same,
        config=lambda **values: ConfigRecord({"server-round": 1, **values}),
    )
