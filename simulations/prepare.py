"""From an experiment to everything a run needs: data on disk, the task, the evaluator, the nodes."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cloister.clients.app import load_task
from cloister.clients.task import Task
from cloister.errors import ConfigError, DataError
from cloister.models.spec import check_groups
from cloister.randomness import SeedTree
from cloister.server.app import Assignment, Evaluator, RoundReport
from cloister.simulations import evaluators, tracking, worlds
from cloister.simulations.engines.grid import Nodes
from cloister.simulations.experiment import Experiment
from cloister.simulations.origin import under
from cloister.strategies.base import BaseStrategy
from cloister.strategies.registry import build


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An experiment with its data found and its parts made, ready to be assigned to a server."""

    experiment: Experiment
    data: Path
    task: Task[Any]
    clients: tuple[str, ...]
    settings: str
    evaluator: Evaluator | None

    def assignment(self, folder: Path | None, on_round: Callable[[RoundReport], Any]) -> Assignment:
        """Return what the server needs to run this experiment with checkpoints in ``folder``.

        Raises :class:`ConfigError` for a strategy that does not fit the task, its model or the number of its clients,
        and ``WeightsError`` for initial weights that do not fit the model.
        """
        experiment = self.experiment
        seeds = SeedTree(experiment=experiment.name, seed=experiment.seed)
        spec = self.task.spec
        model = spec.build(seeds.torch(purpose="model"))
        groups = spec.groups(model)
        check_groups(model, groups)
        strategy = build(
            experiment.strategy,
            groups=groups,
            pooled=spec.pooled_statistics(model),
            seeds=seeds,
            rows=spec.rows(),
            truth=self.task.truth(seeds),
        )
        _check_cohort(strategy, len(self.clients))
        self.task.check_strategy(strategy.scalars())
        return Assignment(
            experiment=experiment.name,
            seed=experiment.seed,
            rounds=experiment.rounds,
            task=experiment.task,
            settings=self.settings,
            spec=spec,
            strategy=strategy,
            evaluator=self.evaluator,
            evaluate_every=experiment.evaluate_every,
            folder=folder,
            on_round=on_round,
        )

    def nodes(self, state: Path | None) -> Nodes:
        """Return the clients as nodes; ``state`` is the folder under which each has its private memory."""
        common = {"data": str(self.data), **({"state": str(state.resolve())} if state else {})}
        sites = self.experiment.engine.site_of
        return Nodes(names=self.clients, config=common, site=lambda name: sites.get(name, ""))


def ready(experiment: Experiment, *, console: Console) -> Prepared:
    """Return the experiment's parts once it and all its baselines are known to be able to start.

    All values are looked at before a world is made or data are opened, and all data before anything is written.
    Raises :class:`ConfigError` that names the file, the override and the key, ``DataError`` or ``WeightsError``.
    """
    with experiment.origin.named():
        check(experiment)
        baselines = {f"baselines.{name}": experiment.baseline(name) for name in experiment.baselines}
        others = {table: each for table, each in baselines.items() if not each.same_run(experiment)}
        for table, each in others.items():
            with under(table):
                check(each)
        prepared = _startable(experiment, console)
        for table, each in others.items():
            with under(table):
                _startable(each, console)
    return prepared


def _startable(experiment: Experiment, console: Console) -> Prepared:
    prepared = prepare(experiment, console=console)
    prepared.assignment(None, lambda done: None)
    return prepared


def check(experiment: Experiment) -> None:
    """Raise :class:`ConfigError` for values that cannot be used, ``DataError`` for a data folder that is not there.

    Opens no data: what can only be seen in them is for :func:`prepare` to see.
    """
    if experiment.data and not Path(experiment.data).is_dir():
        raise DataError(f"data: expected a folder, found none at {experiment.data}; correct --data")
    load_task(experiment.task, experiment.settings, Path(experiment.data or ".")).check(experiment.rounds)
    evaluators.check(experiment)
    tracking.check(experiment)


def prepare(experiment: Experiment, *, console: Console | None = None) -> Prepared:
    """Return the experiment's parts. Raises :class:`ConfigError` or ``DataError`` before anything is started."""
    check(experiment)
    data = find_data(experiment, console)
    given = load_task(experiment.task, experiment.settings, data)
    given.check_data()
    settings = json.dumps(given.resolved())
    task = load_task(experiment.task, json.loads(settings), data)
    return Prepared(
        experiment=experiment,
        data=data,
        task=task,
        clients=tuple(task.clients()),
        settings=settings,
        evaluator=evaluators.make(experiment, task.resolved(), data),
    )


def find_data(experiment: Experiment, console: Console | None) -> Path:
    """Return the folder of the experiment's data; a world is made where none is given (and kept for next time)."""
    if experiment.data:
        return Path(experiment.data)
    if not experiment.world:
        return Path.cwd()
    layouts = _layouts(experiment)
    folder = home() / "worlds" / f"{experiment.world}-{experiment.preset}-{experiment.seed}"
    for layout in layouts:
        worlds.make(experiment.world, layout, folder, preset=experiment.preset, seed=experiment.seed, console=console)
    return folder


def home() -> Path:
    """Return the folder in which Cloister keeps worlds: ``$CLOISTER_HOME``, or ``~/.cache/cloister``."""
    return Path(os.environ.get("CLOISTER_HOME") or Path.home() / ".cache" / "cloister")


def _layouts(experiment: Experiment) -> Sequence[str]:
    sources = experiment.setting("data", "sources") or ()
    wanted = [experiment.setting("data", "layout"), *sources, experiment.setting("data", "target")]
    return sorted({layout for layout in wanted if layout})


def _check_cohort(strategy: BaseStrategy, clients: int) -> None:
    """Raise ConfigError for a cohort or a quorum that this many clients can never make up."""
    config = strategy.config
    asked = config.cohort_size or max(1, int(config.fraction * clients + 1e-9))
    needed = config.quorum.required(min(asked, clients), strategy.least_replies())
    for key, least, most in (
        ("strategy.cohort_size", config.cohort_size or 0, clients),
        ("strategy.quorum.nodes", config.quorum.nodes, clients),
        ("strategy.quorum.replies", needed, asked),
    ):
        if least > most:
            raise ConfigError(
                f"{key}: strategy {config.name} needs {least} clients a round, found {most} of the task's {clients}; "
                "lower it, ask more clients, or choose another strategy"
            )
