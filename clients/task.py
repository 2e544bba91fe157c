"""What a client can be asked to do: the interface of a task, and what one round gives it and gets back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cloister.clients.state import ClientState
from cloister.errors import ConfigError
from cloister.models.spec import ModelSpec
from cloister.privacy.events import Event, Unit
from cloister.privacy.plan import Plan
from cloister.randomness import SeedTree

Data = TypeVar("Data")
NDArray = np.ndarray[Any, np.dtype[Any]]
Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Release:
    """Named arrays, beside the weights, that a client asks the gate to let out.

    ``kind`` is the name of the Flower record that carries them and under which bytes are counted
    (``centres``, ``control``, ...). Under a plan with noisy class centres, ``centres`` holds what they are made of:
    ``features`` ``[n, D]``, ``labels`` ``[n]`` below ``classes`` (one number) and ``units`` ``[n]``; the gate sums,
    clips and noises them.
    """

    kind: str
    arrays: Mapping[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one local training produced, beside the new weights that lie in the model itself.

    ``examples`` is the client's averaging weight, ``steps`` the number of optimiser steps it took. ``events``: the
    privacy events of the steps, where noise was added at each (see :class:`PrivateTraining`).
    """

    examples: int
    steps: int
    metrics: Metrics = field(default_factory=dict)
    releases: tuple[Release, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrivateTraining:
    """What private optimiser steps need of a task: records, whose they are, and the loss of each on its own.

    ``units``: ``[n]``, the plan's unit that each record belongs to. ``fetch(indices)`` returns these records as tensors
    whose first dimension is the record. ``losses(model, records)`` returns the loss of each, none of which may depend
    on another record; what it draws (augmentation), it draws from torch's own generator, which is secret. ``optimiser``
    steps the shared parameters of the model; ``before_step(step)`` sets its learning rate, step 0 first.
    ``finish(model)`` is called after the last step and returns releases beside the weights.
    """

    units: NDArray
    fetch: Callable[[NDArray], tuple[Tensor, ...]]
    losses: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    optimiser: torch.optim.Optimizer
    before_step: Callable[[int], None] = lambda step: None
    finish: Callable[[nn.Module], tuple[Release, ...]] = lambda model: ()


@dataclass(frozen=True, kw_only=True)
class Protection:
    """What a task can promise to a privacy plan, and what stands against one.

    ``units``: the units that its private training can protect. ``normalisation``: of its network ("batch" where batch
    statistics are computed in training). ``coupling``: losses whose value for one record depends on others of the
    batch. ``releases``: kinds that leave beside the weights, if the strategy asks for them. ``steps``: local optimiser
    steps of a round, where they are the same for all clients (0: they depend on the data).
    """

    units: frozenset[Unit] = frozenset({Unit.CLIENT})
    normalisation: str = ""
    coupling: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round as one client sees it.

    ``number`` counts from 1. ``config`` holds the scalars that the strategy sent (``proximal-mu``, ...).
    ``received`` holds the extra arrays it sent, by record name. ``reference`` holds the weights as received,
    by state-dict name: do not write to them. ``plan`` is the privacy plan of the run.
    """

    number: int
    total: int
    client: str
    seeds: SeedTree
    state: ClientState
    config: Mapping[str, Any]
    received: Mapping[str, Mapping[str, NDArray]]
    reference: Mapping[str, NDArray]
    plan: Plan = field(default_factory=Plan.none)


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

    def private(self, model: nn.Module, data: Data | None, round: Round) -> PrivateTraining:
        """Return what private optimiser steps on ``data`` need; with None, of a client whose data cannot be used.

        Called instead of :meth:`train` under a plan with noise on every step. Nothing about how many steps there are,
        or what the optimiser does, may depend on the data.
        """
        raise ConfigError(f"{type(self).__name__}: has no private training; choose a plan with another mechanism")

    def protection(self) -> Protection:
        """Return what this task's settings promise to a privacy plan."""
        return Protection()

    def without(self, data: Data, subjects: frozenset[str]) -> Data:
        """Return ``data`` without the records of these subjects: what a client would have had if they had stayed away.

        For audits, which train on neighbouring data sets.
        """
        raise ConfigError(f"{type(self).__name__}: cannot leave subjects out, so membership cannot be audited")

    def subjects(self) -> Mapping[str, Sequence[str]]:
        """Return the clients on which each subject has records; empty where that is not known. For simulations only."""
        return {}

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
