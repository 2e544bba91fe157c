"""A task full of secrets, each of which would be recognised among the bytes of a reply."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from cloister.clients.task import PrivateTraining, Protection, Release, Round, Task, Update
from cloister.models.spec import Group, ModelSpec
from cloister.privacy.events import Unit

NAME = "anna-smith"
COUNT = 48_879
LOSS = 0.123456789
LOCAL = 77.03125  # a float32 whose bytes are rare
RECORD = 3.1415927


class Model(nn.Module):
    """A shared layer and a head that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(20, 5)
        self.mine = nn.Parameter(torch.full((4,), LOCAL))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return what the shared layer makes of values."""
        out: torch.Tensor = self.shared(values)
        return out


class Spec(ModelSpec):
    """The model, with its head at the client."""

    def build(self, generator: torch.Generator) -> nn.Module:
        """Return a model with zero weights."""
        model = Model()
        for values in model.shared.parameters():
            nn.init.zeros_(values)
        return model

    def groups(self, model: nn.Module) -> dict[str, Group]:
        """Return SHARED for the layer, LOCAL for the head."""
        return {name: Group.LOCAL if name == "mine" else Group.SHARED for name in model.state_dict()}


class SecretTask(Task[Any]):
    """Trains on one person's records; ``fails`` with a text that names her."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return Spec()

    def clients(self) -> Sequence[str]:
        """Two cameras."""
        return ("cam1", "cam2")

    def load(self, client: str) -> Any:
        """Return one record, many times."""
        if self.settings.get("fails"):
            raise ValueError(f"{NAME}: no such picture")
        return torch.full((8, 20), RECORD)

    def protection(self) -> Protection:
        """Everything."""
        return Protection(units=frozenset(Unit), normalisation="none")

    def train(self, model: Any, data: Any, round: Round) -> Update:
        """Put a record into the weights, and everything else into metrics and releases."""
        with torch.no_grad():
            model.shared.weight[0] += data[0]
        release = Release(kind="head", arrays={NAME: np.array([COUNT])})
        return Update(examples=COUNT, steps=7, metrics={"loss": LOSS, NAME: 1.0}, releases=(release,))

    def private(self, model: Any, data: Any, round: Round) -> PrivateTraining:
        """Fit the records privately."""
        records = torch.zeros(0, 20) if data is None else data
        return PrivateTraining(
            units=np.array([NAME] * len(records)),
            fetch=lambda indices: (records[torch.from_numpy(indices)],),
            losses=lambda module, found: module(found[0]).sum(1),
            optimiser=torch.optim.SGD(model.parameters(), lr=1.0),
        )
