"""A client's whole round for ``bench privacy``: the same app and gate, with and without a plan."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import nn

from cloister.bench import privacy
from cloister.clients.app import app
from cloister.clients.policy import SIMULATION
from cloister.clients.task import Round, Task, Update
from cloister.flower import NDArray, array_record, assign_id, set_identity
from cloister.models.spec import Group, ModelSpec
from cloister.privacy.plan import Plan

_BATCHES = 12
_PLAN = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "local",
    "noise_multiplier": 1.0,
    "clip": {"bound": 1.0},
}


class Spec(ModelSpec):
    """The bench's network, all of it shared."""

    def build(self, generator: torch.Generator) -> nn.Module:
        """Return the network."""
        return privacy.network()

    def groups(self, model: nn.Module) -> dict[str, Group]:
        """Return SHARED for everything."""
        return dict.fromkeys(model.state_dict(), Group.SHARED)


class Training(Task[Any]):
    """Plain local training on a few batches."""

    @property
    def spec(self) -> ModelSpec:
        """The bench's network."""
        return Spec()

    def clients(self) -> Sequence[str]:
        """One client."""
        return ("client",)

    def load(self, client: str) -> Any:
        """Return pictures and labels."""
        return privacy.records()

    def train(self, model: nn.Module, data: Any, round: Round) -> Update:
        """Take a step per batch."""
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(_BATCHES):
            optimiser.zero_grad()
            privacy.losses(model, data).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return Update(examples=privacy.RECORDS, steps=_BATCHES)


def rounds(folder: Path, unplanned: str, planned: str) -> dict[str, Callable[[], Any]]:
    """Return a client's round without a plan and with one whose noise the client adds, ledger included, by name."""
    state = privacy.network().state_dict()
    arrays = {name: values.numpy() for name, values in state.items()}
    numbers = count(1)
    return {
        unplanned: lambda: _round(folder / "unplanned", arrays, next(numbers), ""),
        planned: lambda: _round(folder / "planned", arrays, next(numbers), json.dumps(Plan.of(_PLAN).values())),
    }


def _round(folder: Path, arrays: Mapping[str, NDArray], number: int, plan: str) -> None:
    set_identity(run_id=1, node_id=1)
    config: dict[str, Any] = {
        "server-round": number,
        "task": f"{Training.__module__}:{Training.__name__}",
        "settings": "{}",
        "experiment": "bench",
        "seed": 0,
        "run": "bench",
        "releases": [],
        **({"plan": plan} if plan else {}),
    }
    content = RecordDict({"arrays": array_record(dict(arrays)), "config": ConfigRecord(config)})
    message = Message(content, dst_node_id=9, message_type="train")
    assign_id(message, str(number))
    node: dict[str, bool | float | int | str] = {"client": "client", "policy": SIMULATION, "state": str(folder)}
    reply = app(message, Context(1, 9, node, RecordDict(), {}))
    if reply.has_error():
        raise RuntimeError(reply.error.reason)
