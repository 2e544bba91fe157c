"""A task of which the sum is known: client k moves every weight by k / 100, with 10 k records; some misbehave."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cloister.clients.task import Protection, Release, Round, Task, Update
from cloister.errors import DataError
from cloister.models.spec import Group, ModelSpec
from cloister.privacy.events import Unit

CLIENTS = 7


class Spec(ModelSpec):
    def rows(self) -> tuple[int, int]:
        return 4, 3

    def build(self, generator: torch.Generator) -> nn.Module:
        model = nn.Linear(20, 5)
        for values in model.parameters():
            nn.init.zeros_(values)
        return model

    def groups(self, model: nn.Module) -> dict[str, Group]:
        return dict.fromkeys(model.state_dict(), Group.SHARED)


class Sums(Task[Any]):
    """``faults``: client to what it does in round 1, "fail" (on its own data) or "die" (its process is killed)."""

    def __init__(self, settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(settings, root)
        self.faults = dict(settings.get("faults", {}))

    @property
    def spec(self) -> Spec:
        return Spec()

    def clients(self) -> Sequence[str]:
        return [f"site{number}" for number in range(1, CLIENTS + 1)]

    def load(self, client: str) -> int:
        return int(client.removeprefix("site"))

    def protection(self) -> Protection:
        return Protection(units=frozenset(Unit), normalisation="none")

    def train(self, model: nn.Module, data: int, round: Round) -> Update:
        fault = self.faults.get(round.client, "") if round.number == 1 else ""
        if fault == "fail":
            raise DataError("anna-smith.jpg: expected an image, found a corrupt one")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        with torch.no_grad():
            for values in model.parameters():
                values += data / 100
        labels = np.array(sorted({data % 4, 3}))
        values = np.full((len(labels), 3), data / 10, np.float32)
        centres = Release(kind="centres", arrays={"labels": labels, "values": values})
        return Update(examples=10 * data, steps=1, metrics={"loss": 0.123456789}, releases=(centres,))
