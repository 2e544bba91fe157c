"""The baseline without federation: every client trains a model of its own, kept by the server between rounds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from cloister.flower import NDArray, array_record
from cloister.models.spec import released
from cloister.strategies.base import BaseStrategy
from cloister.strategies.config import StrategyConfig
from cloister.strategies.fold import Fold
from cloister.strategies.validation import Reply


class LocalOnly(BaseStrategy):
    """Message i carries model i. Nobody averages: the global arrays stay as they were at the start."""

    def __init__(self, config: StrategyConfig, **keywords: Any) -> None:
        """Start every client from the global arrays."""
        super().__init__(config, **keywords)
        self._models: dict[str, dict[str, NDArray]] = {}

    def payload(self, client: str, arrays: ArrayRecord) -> ArrayRecord:
        """Return the client's own model."""
        model = self._models.get(client)
        return arrays if model is None else array_record({name: model[name] for name in arrays})

    def client_arrays(self) -> dict[str, ArrayRecord]:
        """Return the model of every client that has trained."""
        names = released(self.groups)
        return {
            client: array_record({name: model[name] for name in names})
            for client, model in sorted(self._models.items())
        }

    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return a fold that moves each client's model by its own change."""
        return _OwnFold(arrays, self._models)

    def memory(self) -> dict[str, NDArray]:
        """Return all models."""
        return {f"{client}/{name}": values for client, model in self._models.items() for name, values in model.items()}

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        """Take up all models."""
        self._models = {}
        for key, values in memory.items():
            client, _, name = key.rpartition("/")
            self._models.setdefault(client, {})[name] = values


class _OwnFold(Fold):
    def __init__(self, start: Mapping[str, NDArray], models: dict[str, dict[str, NDArray]]) -> None:
        self._start, self._models = start, models
        self._moved: dict[str, dict[str, NDArray]] = {}

    def add(self, reply: Reply) -> None:
        old = self._models.get(reply.client, self._start)
        self._moved[reply.client] = {name: np.asarray(old[name] + reply.deltas[name]) for name in self._start}

    def finish(self) -> dict[str, NDArray]:
        self._models.update(self._moved)
        return dict(self._start)
