"""From an experiment to everything a run needs: data on disk, the task, the evaluator, the nodes."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cloister.clients.app import load_task
from cloister.clients.policy import SIMULATION
from cloister.clients.task import Task
from cloister.errors import ConfigError, DataError
from cloister.models.spec import check_groups
from cloister.privacy.plan import Plan
from cloister.randomness import SeedTree
from cloister.server.app import Assignment, Evaluator, RoundReport
from cloister.server.scribe import Scribe
from cloister.simulations import evaluators, planning, sweep, tracking, worlds
from cloister.simulations.byzantine import attackers
from cloister.simulations.engines.grid import Nodes
from cloister.simulations.experiment import Experiment
from cloister.simulations.origin import under
from cloister.strategies.base import BaseStrategy
from cloister.strategies.config import FedBuffConfig
from cloister.strategies.private import CentralPrivacy
from cloister.strategies.registry import build
from cloister.strategies.secure import SecureAggregation


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An experiment with its data found and its parts made, ready to be assigned to a server."""

    experiment: Experiment
    data: Path
    task: Task[Any]
    clients: tuple[str, ...]
    settings: str
    evaluator: Evaluator | None
    plan: Plan

    def strategy(self, privacy: CentralPrivacy | None = None, secure: SecureAggregation | None = None) -> BaseStrategy:
        """Return the experiment's strategy for its model; ``privacy``, ``secure``: the server's part of the plan.

        Raises :class:`ConfigError` for a strategy that does not fit the task, its model or the number of its clients,
        for attackers that are no clients, ``WeightsError`` for initial weights that do not fit the model, and
        ``PlanError`` for a plan that does not hold.
        """
        experiment = self.experiment
        seeds = SeedTree(experiment=experiment.name, seed=experiment.seed)
        spec = self.task.spec
        model = spec.build(seeds.torch(purpose="model"))
        groups = spec.groups(model)
        check_groups(model, groups)
        if secure is None:  # looked at, not run
            secure = planning.secure_aggregation(self.plan, None, "", self.clients, 0.0)
        strategy = build(
            experiment.strategy,
            groups=groups,
            pooled=spec.pooled_statistics(model),
            seeds=seeds,
            rows=spec.rows(),
            truth=self.task.truth(seeds),
            privacy=privacy,
            secure=secure,
        )
        _check_cohort(strategy, len(self.clients))
        attackers(experiment.byzantine, self.clients, seeds)
        self.task.check_strategy(strategy.scalars())
        planning.check(self.plan, experiment, self.task, strategy)
        return strategy

    def assignment(
        self,
        folder: Path | None,
        on_round: Callable[[RoundReport], Any],
        *,
        run: str = "",
        books: Path | None = None,
        scribe: Scribe | None = None,
    ) -> Assignment:
        """Return what the server needs to run this experiment with checkpoints in ``folder``.

        ``run`` names the run in ledgers; ``books`` is where the server keeps its own, under a plan in which it adds
        the noise, beside the folder ``clients`` with their memory; ``scribe`` writes the transcript. Raises what
        :meth:`strategy` raises.
        """
        experiment = self.experiment
        return Assignment(
            experiment=experiment.name,
            seed=experiment.seed,
            rounds=experiment.rounds,
            task=experiment.task,
            settings=self.settings,
            spec=self.task.spec,
            strategy=self.strategy(
                planning.central_privacy(self.plan, books, run, experiment.task),
                planning.secure_aggregation(self.plan, books, run, self.clients, experiment.strategy.quorum.deadline_s),
            ),
            evaluator=self.evaluator,
            evaluate_every=experiment.evaluate_every,
            folder=folder,
            on_round=on_round,
            run=run,
            plan=planning.as_text(self.plan, experiment.plan),
            scribe=scribe,
        )

    def nodes(self, state: Path | None) -> Nodes:
        """Return the clients as nodes; ``state`` is the folder under which each has its private memory."""
        common = {"data": str(self.data), "policy": SIMULATION, **({"state": str(state.resolve())} if state else {})}
        if state is not None and self.plan.secure is not None:
            common["roster"] = str(planning.simulated_roster(state.resolve(), self.clients))
        sites = self.experiment.engine.site_of
        return Nodes(names=self.clients, config=common, site=lambda name: sites.get(name, ""))


def ready(experiment: Experiment, *, console: Console) -> Prepared:
    """Return the experiment's parts once it and all its baselines are known to be able to start.

    All values are looked at before a world is made or data are opened, and all data before anything is written.
    Raises :class:`ConfigError` that names the file, the override and the key, ``DataError`` or ``WeightsError``.
    """
    with experiment.origin.named():
        runs = _runs(experiment)
        for table, each in runs.items():
            with under(table) if table else nullcontext():
                check(each)
        prepared = []
        for table, each in runs.items():
            with under(table) if table else nullcontext():
                prepared.append(prepare(each, console=console))
                prepared[-1].strategy()
    return replace(prepared[0], experiment=experiment)  # a sweep trains only through its points


def _runs(experiment: Experiment) -> dict[str, Experiment]:
    """Return everything that will be run, by the table that it comes from: the experiment, or its sweep's points."""
    alone = {"": experiment}
    if experiment.sweep is not None:
        alone = {f"sweep.{point.name}": point.experiment for point in sweep.settings(experiment)}
    runs = dict(alone)
    for table, each in alone.items():
        for name in each.baselines:
            baseline = each.baseline(name)
            if not baseline.same_run(each):
                runs[".".join(filter(None, (table, "baselines", name)))] = baseline
    return runs


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
    unknown = sorted(set(experiment.engine.site_of) - set(given.clients()))
    if unknown:
        raise ConfigError(f"engine.site_of: expected clients of the task, found {unknown}; correct their names")
    settings = json.dumps(given.resolved())
    task = load_task(experiment.task, json.loads(settings), data)
    return Prepared(
        experiment=experiment,
        data=data,
        task=task,
        clients=tuple(task.clients()),
        settings=settings,
        evaluator=evaluators.make(experiment, task.resolved(), data),
        plan=planning.plan_of(experiment, task),
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
    buffer = config.buffer if isinstance(config, FedBuffConfig) else 0
    asked = buffer or config.cohort_size or max(1, int(config.fraction * clients + 1e-9))
    needed = config.quorum.required(min(asked, clients), strategy.least_replies())
    for key, least, most in (
        ("strategy.cohort_size", config.cohort_size or 0, clients),
        ("strategy.buffer", buffer, clients),
        ("strategy.quorum.nodes", config.quorum.nodes, clients),
        ("strategy.quorum.replies", needed, asked),
    ):
        if least > most:
            raise ConfigError(
                f"{key}: strategy {config.name} needs {least} clients a round, found {most} of the task's {clients}; "
                "lower it, ask more clients, or choose another strategy"
            )
