"""The workload of ``bench engines``: 1,000 clients of 50 records, a small network, one epoch in batches of ten.

Every engine and peer calls the same :func:`fit` on the same data; they differ in what happens around it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cloister.clients.task import Round, Task, Update
from cloister.models.spec import Group, ModelSpec
from cloister.simulations.engines.grid import NumberedNames

HIDDEN = {4_810: 64, 306_591: 517, 11_007_690: 3280}  # parameters -> width of the hidden layers
POOL = 1_000
BATCH, LEARNING_RATE = 10, 0.1
_RECORDS, _FEATURES, _CLASSES = 50, 64, 10


def build(parameters: int) -> nn.Module:
    """Return the network with that many parameters, its weights small constants (speed does not depend on them)."""
    width = HIDDEN[parameters]
    deep = [nn.Linear(width, width), nn.ReLU()] if parameters > 10_000 else []
    model = nn.Sequential(nn.Linear(_FEATURES, width), nn.ReLU(), *deep, nn.Linear(width, _CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return model


def data_of(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one client's records, made from its number."""
    generator = torch.Generator().manual_seed(client)
    images = torch.randn(_RECORDS, _FEATURES, generator=generator)
    return images, torch.randint(0, _CLASSES, (_RECORDS,), generator=generator)


def fit(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, float]:
    """Train one epoch in place; return (steps, last loss)."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    images, labels = data
    for start in range(0, _RECORDS, BATCH):
        optimiser.zero_grad()
        batch = slice(start, start + BATCH)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        torch.autograd.backward(loss)
        optimiser.step()
    return _RECORDS // BATCH, float(loss.detach())


class WorkloadSpec(ModelSpec):
    """The network; everything is shared."""

    def __init__(self, parameters: int) -> None:
        """Stand for the network with that many parameters."""
        self._parameters = parameters

    def build(self, generator: torch.Generator) -> nn.Module:
        """Return the network; nothing in it is random."""
        return build(self._parameters)

    def groups(self, model: nn.Module) -> dict[str, Group]:
        """Return SHARED for every entry."""
        return {name: Group.SHARED for name in model.state_dict()}


class Workload(Task[tuple[torch.Tensor, torch.Tensor]]):
    """The same work as a Cloister task."""

    def __init__(self, settings: Mapping[str, Any], root: Path) -> None:
        """Take ``settings = {"parameters": ..., "pool": ...}``."""
        super().__init__(settings, root)

    @property
    def spec(self) -> ModelSpec:
        """The network at the size that the settings name."""
        return WorkloadSpec(int(self.settings["parameters"]))

    def clients(self) -> Sequence[str]:
        """Return the names of the pool, made when asked for."""
        return NumberedNames(int(self.settings["pool"]))

    def load(self, client: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the client's records."""
        return data_of(int(client.rpartition("-")[2]))

    def train(self, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], round: Round) -> Update:
        """Train one epoch."""
        steps, loss = fit(model, data)
        return Update(examples=_RECORDS, steps=steps, metrics={"loss": loss})


def settings(parameters: int, pool: int = POOL) -> str:
    """Return the task's settings as they travel."""
    return json.dumps({"parameters": parameters, "pool": pool})
