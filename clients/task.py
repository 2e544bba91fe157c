"""What a client can be asked to do: the interface of a task, and what one round gives it and gets back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import nn

from cloister.clients.state import ClientState
from cloister.models.spec import ModelSpec
from cloister.randomness import SeedTree

Data = TypeVar("Data")
NDArray = np.ndarray[Any, np.dtype[Any]]
Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Release:
    """Named arrays, beside the weights, that a client asks the gate to let out.

    ``kind`` is the name of the Flower record that carries them and under which bytes are counted
    (``centres``, ``control``, ...).
    """

    kind: str
    arrays: Mapping[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one local training produced, beside the new weights that lie in the model itself.

    ``examples`` is the client's averaging weight, ``steps`` the number of optimiser steps it took.
    """

    examples: int
    steps: int
    metrics: Metrics = field(default_factory=dict)
    releases: tuple[Release, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round as one client sees it.

    ``number`` counts from 1. ``config`` holds the scalars that the strategy sent (``proximal-mu``, ...).
    ``received`` holds the extra arrays it sent, by record name. ``reference`` holds the weights as received,
    by state-dict name: do not write to them.
    """

    number: int
    total: int
    client: str
    seeds: SeedTree
    state: ClientState
    config: Mapping[str, Any]
    received: Mapping[str, Mapping[str, NDArray]]
    reference: Mapping[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """One client in a run record: ``records`` and ``subjects`` are counts, ``modality`` and ``scene`` are words."""

    name: str
    records: int = 0
    subjects: int | None = None
    modality: str = ""
    scene: str = ""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A departure from a paper's recipe: what the paper says, what the run did, and why."""

    topic: str
    paper: str
    run: str
    why: str = ""


class Task(ABC, Generic[Data]):
    """A model, the data of its clients, and how they train it.

    Made with the experiment's ``[settings]`` (plain TOML values) and the folder that this process may read.
    """

    def __init__(self, settings: Mapping[str, Any], root: Path) -> None:
        """Keep the settings and the data folder; subclasses validate the settings first."""
        self.settings = dict(settings)
        self.root = root

    @property
    @abstractmethod
    def spec(self) -> ModelSpec:
        """What server and client agree on about the model."""

    @abstractmethod
    def clients(self) -> Sequence[str]:
        """Return the names of the clients that a simulation on this data has."""

    @abstractmethod
    def load(self, client: str) -> Data:
        """Return one client's data; called once per process and client, then kept."""

    @abstractmethod
    def train(self, model: nn.Module, data: Data, round: Round) -> Update:
        """Train ``model`` in place on ``data`` for one round."""

    def evaluate(self, model: nn.Module, data: Data, round: Round) -> tuple[int, Metrics]:
        """Return (number of records, metrics) of ``model`` on the client's own held-out data."""
        return 0, {}

    def resolved(self) -> Mapping[str, Any]:
        """Return the settings with everything that depends on the data filled in (such as a head's width)."""
        return self.settings

    def table(self) -> Sequence[ClientRow]:
        """Return what a run record says of each client. May read every client's files: for simulations only."""
        return [ClientRow(name=name) for name in self.clients()]

    def deviations(self) -> Sequence[Deviation]:
        """Return every place where these settings depart from the paper's recipe."""
        return ()

    def check(self, rounds: int) -> None:
        """Raise :class:`ConfigError` for settings that cannot be used in a run of ``rounds`` rounds. Opens no data."""

    def check_data(self) -> None:
        """Raise :class:`DataError` that names every client whose data cannot be trained on.

        May read every client's files: for simulations only. Also the place for settings that contradict the data.
        """

    def check_strategy(self, config: Mapping[str, Any]) -> None:
        """Raise :class:`ConfigError` for what a strategy sends with each round and this task cannot do."""

    def truth(self, seeds: SeedTree) -> Callable[[str, int], int] | None:
        """Return the map from (client, private label) to subject where labels are private and a simulation knows it."""
        return None

    def may_open(self, client: str, path: Path) -> bool:
        """Return whether a client's process may open or list this path. Must do no input or output. Default: any."""
        return True
