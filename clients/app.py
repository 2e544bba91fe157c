"""The ClientApp: one resident model per process, weights copied in place, the gate around it all.

The same app runs on every engine and under ``flwr run``. What to do comes with the message's ``config`` record (task,
settings, experiment, seed, round); where this client's data and private memory lie comes from the node's
configuration (``client``, ``data``, ``state``) - never from the server. Under ``flwr run``, whose simulator configures
no nodes, the data folder comes from the app's own run configuration.
"""

import hashlib
import importlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from cloister.clients import private_steps
from cloister.clients.gate import ACCOUNT, gate
from cloister.clients.guard import isolated
from cloister.clients.request import config_of, plan_of
from cloister.clients.site import Site
from cloister.clients.state import ClientState
from cloister.clients.task import Round, Task, Update
from cloister.errors import ConfigError, ReleaseError, WeightsError
from cloister.flower import NDArray, allocate, array_record, tensors, views
from cloister.models.spec import Group, check_groups, released
from cloister.randomness import SeedTree

TASKS = {"camera": "cloister.clients.camera:CameraTask"}
_RESIDENT_DATA = 64  # clients whose data one process keeps

app = ClientApp(mods=[gate])


def load_task(name: str, settings: dict[str, Any], root: Path) -> Task[Any]:
    """Return the task called ``name``, or the one at ``module:Class``. Raises :class:`ConfigError`."""
    module, _, attribute = TASKS.get(name, name).partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(sorted(TASKS))
        raise ConfigError(f"task {name!r}: {error}; expected one of {known}, or module:Class") from error
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise ConfigError(f"task {name!r}: expected a subclass of cloister.clients.task.Task, found {kind!r}")
    return kind(settings, root)


@dataclass
class _Resident:
    """What one process keeps between messages for one task: the model and its clients' data."""

    task: Task[Any]
    model: nn.Module
    groups: dict[str, Group]
    device: torch.device
    data: OrderedDict[str, Any] = field(default_factory=OrderedDict)

    @cached_property
    def released(self) -> frozenset[str]:
        return frozenset(released(self.groups))

    @cached_property
    def local(self) -> tuple[str, ...]:
        return tuple(name for name, group in self.groups.items() if group is Group.LOCAL)

    def load(self, client: str) -> Any:
        if client not in self.data:
            self.data[client] = self.task.load(client)
            while len(self.data) > _RESIDENT_DATA:
                self.data.popitem(last=False)
        self.data.move_to_end(client)
        return self.data[client]


@lru_cache(maxsize=2)
def _resident(name: str, settings: str, root: str, seeds: SeedTree) -> _Resident:
    task = load_task(name, json.loads(settings), Path(root))
    model = task.spec.build(seeds.torch(purpose="model"))
    groups = task.spec.groups(model)
    check_groups(model, groups)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _Resident(task, model.to(device), groups, device)


def _open(message: Message, context: Context, *, trained: bool = False) -> tuple[_Resident, Round]:
    """Return what serves this message, and the round as the client sees it: before its training, or after it."""
    config = config_of(message)
    root = str(context.node_config.get("data") or context.run_config.get("data") or ".")
    seeds = SeedTree(experiment=str(config["experiment"]), seed=int(config["seed"]))
    resident = _resident(str(config["task"]), str(config["settings"]), root, seeds)
    client = str(context.node_config.get("client") or _client_of_partition(resident.task, context))
    number = int(config["server-round"])
    folder = context.node_config.get("state")
    arrays = {kind: record for kind, record in message.content.items() if isinstance(record, ArrayRecord)}
    round_ = Round(
        number=number,
        total=int(config.get("rounds", number)),
        client=client,
        seeds=seeds,
        state=ClientState(_memory(Path(str(folder)) / client, config) if folder else None, number + trained),
        config=config,
        received={kind: views(record) for kind, record in arrays.items() if kind != "arrays"},
        reference=views(arrays["arrays"]),
        plan=plan_of(config),
    )
    return resident, round_


def _memory(folder: Path, config: Mapping[str, Any]) -> Path:
    """Return where a client's memory of this run under this plan lies.

    What one plan left there without noise (momentum, weights that stay local) must not flow into what another releases.
    """
    run = str(config.get("run", ""))
    name = hashlib.sha256(f"{run}\x1f{plan_of(config).digest}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return folder / "memory" / name if run else folder


def _client_of_partition(task: Task[Any], context: Context) -> str:
    """Flower's own simulator numbers its nodes and knows no names."""
    clients = task.clients()
    partition = int(str(context.node_config["partition-id"]))
    if partition >= len(clients):
        raise ConfigError(f"partition {partition}: the data has {len(clients)} clients; start as many nodes")
    return clients[partition]


def _receive(resident: _Resident, round_: Round) -> dict[str, torch.Tensor]:
    """Copy what came into the resident model, restore what stayed here; return the model's live tensors by name."""
    live, expected = dict(resident.model.state_dict(keep_vars=True)), resident.released
    if expected != round_.reference.keys():
        extra, missing = sorted(set(round_.reference) - expected)[:5], sorted(expected - set(round_.reference))[:5]
        raise WeightsError(
            f"client {round_.client}: weights received: unknown {extra}, missing {missing}; same settings?"
        )
    kept = round_.state.load("local") or {}
    with torch.no_grad():
        for name, values in {**tensors(round_.reference), **kept}.items():
            if live[name].shape != values.shape:
                raise WeightsError(
                    f"client {round_.client}, round {round_.number}: {name}: expected shape {tuple(live[name].shape)}, "
                    f"found {tuple(values.shape)}; server and client must use the same settings"
                )
            live[name].copy_(values)
        if not kept:
            _reset_local(resident, live, round_.seeds)
    return live


def _reset_local(resident: _Resident, live: dict[str, torch.Tensor], seeds: SeedTree) -> None:
    """Give entries that stay at a client their initial values: the resident model last served another client."""
    if resident.local:
        initial = resident.task.spec.build(seeds.torch(purpose="model")).state_dict()
        for name in resident.local:
            live[name].copy_(initial[name])


def _deltas(live: dict[str, torch.Tensor], reference: Mapping[str, NDArray]) -> ArrayRecord:
    """Return trained minus received, written straight into the engine's outgoing memory."""
    names = list(reference)
    slots = allocate([(reference[name].shape, reference[name].dtype) for name in names])
    for name, slot in zip(names, slots, strict=True):
        np.subtract(live[name].detach().cpu().numpy(), reference[name], out=slot)
    return array_record(dict(zip(names, slots, strict=True)))


def _check_tensors(model: nn.Module, live: dict[str, torch.Tensor], round_: Round) -> None:
    """Raise :class:`WeightsError` if training put other tensors into the model: what it learned would not leave."""
    now = model.state_dict(keep_vars=True)
    exchanged = [name for name, values in live.items() if now.get(name) is not values]
    if exchanged:
        raise WeightsError(
            f"client {round_.client}, round {round_.number}: training exchanged the model's own tensors "
            f"({exchanged[:3]}); change them in place, as optimisers and load_state_dict do"
        )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round on this client's data; reply with weight deltas, metrics and the task's releases."""
    resident, round_ = _open(message, context)
    task, client = resident.task, round_.client
    with isolated(client, partial(task.may_open, client)):
        live = _receive(resident, round_)
        resident.model.train()
        if round_.plan.private_steps:
            update = private_steps.train(
                task, resident.model, partial(resident.load, client), round_, Site.of(context).log
            )
        else:
            update = task.train(resident.model, resident.load(client), round_)
    _check_tensors(resident.model, live, round_)
    if resident.local:
        round_.state.save("local", {name: live[name] for name in resident.local})
    content = RecordDict({"arrays": _deltas(live, round_.reference), "metrics": _metrics(update)})
    for release in update.releases:
        if release.kind in round_.config.get("releases", ()):  # what nobody asked for does not leave
            content[release.kind] = array_record(release.arrays)
    if update.events:
        content[ACCOUNT] = ConfigRecord({"events": json.dumps([event.values() for event in update.events])})
    return Message(content, reply_to=message)


@app.query("secure")
def secure(message: Message, context: Context) -> Message:
    """Never called: the gate answers messages of secure sums, which need nothing of an app."""
    raise ReleaseError("secure sum: expected the gate to answer, found none around this app; keep mods=[gate]")


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received weights on this client's held-out data; reply with metrics only."""
    resident, round_ = _open(message, context, trained=True)
    task, client = resident.task, round_.client
    with isolated(client, partial(task.may_open, client)):
        _receive(resident, round_)
        resident.model.eval()
        with torch.no_grad():
            examples, metrics = task.evaluate(resident.model, resident.load(client), round_)
    record = MetricRecord({"num-examples": examples, **{key: float(value) for key, value in metrics.items()}})
    return Message(RecordDict({"metrics": record}), reply_to=message)


def _metrics(update: Update) -> MetricRecord:
    values = {key: float(value) for key, value in update.metrics.items()}
    return MetricRecord({"num-examples": update.examples, "steps": update.steps, **values})
