"""A small task that uses everything a client can keep: a local layer, BatchNorm buffers, momentum between rounds."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cloister.clients.task import Round, Task, Update
from cloister.config import Config
from cloister.errors import DataError
from cloister.models.spec import Group, ModelSpec


class Settings(Config):
    clients: int = 4
    fault: str = ""


class ToySpec(ModelSpec):
    def build(self, generator: torch.Generator) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-0.5, 0.5, generator=generator)
        return model

    def groups(self, model: nn.Module) -> dict[str, Group]:
        buffers = {name for name, _ in model.named_buffers()}
        groups = {name: Group.BUFFER if name in buffers else Group.SHARED for name in model.state_dict()}
        return {**groups, "3.weight": Group.LOCAL}


class Toy(Task[Any]):
    def __init__(self, settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(settings, root)
        self.config = Settings.parse(dict(settings), at="settings")

    @property
    def spec(self) -> ModelSpec:
        return ToySpec()

    def clients(self) -> Sequence[str]:
        return [f"site{number}" for number in range(self.config.clients)]

    def load(self, client: str) -> Any:
        generator = torch.Generator().manual_seed(int(client.removeprefix("site")))
        return torch.randn(24, 8, generator=generator), torch.randint(0, 3, (24,), generator=generator)

    def train(self, model: nn.Module, data: Any, round: Round) -> Update:
        self._misbehave(model, round)
        images, labels = data
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        names = [name for name, _ in model.named_parameters()]
        for name, buffer in (round.state.load("momentum") or {}).items():
            optimiser.state[dict(model.named_parameters())[name]]["momentum_buffer"] = buffer
        generator = round.seeds.torch(purpose="order", round=round.number, client=round.client)
        for batch in torch.randperm(24, generator=generator).split(8):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimiser.step()
        buffers = {
            name: optimiser.state[p]["momentum_buffer"] for name, p in zip(names, model.parameters(), strict=True)
        }
        round.state.save("momentum", buffers)
        return Update(examples=24, steps=3, metrics={"loss": loss.item()})

    def evaluate(self, model: nn.Module, data: Any, round: Round) -> tuple[int, dict[str, float]]:
        return 24, {"accuracy": (model(data[0]).argmax(1) == data[1]).float().mean().item()}

    def _misbehave(self, model: nn.Module, round: Round) -> None:
        kind, _, client = self.config.fault.partition("@")
        if client != round.client:
            return
        if kind == "nan":
            with torch.no_grad():
                model[0].weight[0, 0] = float("nan")
        elif kind == "data":
            raise DataError("site file /secret/person.jpg: expected an image, found a corrupt one")
        elif kind == "crash" and round.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "crash-once" and not (marker := self.root / "crashed").exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
