"""A task without some of its subjects: what shadow runs train on, through the same engine, gate and plan."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cloister.clients.app import load_task
from cloister.clients.task import PrivateTraining, Protection, Round, Task, Update
from cloister.models.spec import ModelSpec


class ShadowTask(Task[Any]):
    """Another task on the data of those subjects who are not in ``absent``.

    Settings: ``task`` (name), ``settings`` (its own, resolved), ``absent`` (subjects).
    """

    def __init__(self, settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(settings, root)
        self.inner = load_task(str(settings["task"]), dict(settings["settings"]), root)
        self.absent = frozenset(map(str, settings["absent"]))

    @property
    def spec(self) -> ModelSpec:
        """That of the task itself."""
        return self.inner.spec

    def clients(self) -> Sequence[str]:
        """Those of the task itself."""
        return self.inner.clients()

    def load(self, client: str) -> Any:
        """Return what the client has without those who are absent."""
        return self.inner.without(self.inner.load(client), self.absent)

    def may_open(self, client: str, path: Path) -> bool:
        """As the task itself says."""
        return self.inner.may_open(client, path)

    def protection(self) -> Protection:
        """As the task itself promises."""
        return self.inner.protection()

    def train(self, model: nn.Module, data: Any, round: Round) -> Update:
        """Train as the task itself does."""
        return self.inner.train(model, data, round)

    def private(self, model: nn.Module, data: Any, round: Round) -> PrivateTraining:
        """Train privately as the task itself does."""
        return self.inner.private(model, data, round)
