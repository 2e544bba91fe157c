"""From an experiment to everything a run needs: data on disk, the task, the evaluator, the nodes."""

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cloister.clients.app import load_task
from cloister.clients.task import Task
from cloister.errors import ConfigError
from cloister.models.spec import check_groups
from cloister.randomness import SeedTree
from cloister.server.app import Assignment, Evaluator, RoundReport
from cloister.server.evaluation.selection import Validated
from cloister.simulations import worlds
from cloister.simulations.engines.grid import Nodes
from cloister.simulations.experiment import Experiment
from cloister.strategies.registry import build

EVALUATORS = {"reid": "cloister.server.evaluation.reid:ReidEvaluator"}


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
        """Return what the server needs to run this experiment with checkpoints in ``folder``."""
        experiment = self.experiment
        seeds = SeedTree(experiment=experiment.name, seed=experiment.seed)
        spec = self.task.spec
        model = spec.build(seeds.torch(purpose="model"))
        groups = spec.groups(model)
        check_groups(model, groups)
        return Assignment(
            experiment=experiment.name,
            seed=experiment.seed,
            rounds=experiment.rounds,
            task=experiment.task,
            settings=self.settings,
            spec=spec,
            strategy=build(
                experiment.strategy,
                groups=groups,
                pooled=spec.pooled_statistics(model),
                seeds=seeds,
                rows=spec.rows(),
                truth=self.task.truth(seeds),
            ),
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


def prepare(experiment: Experiment, *, console: Console | None = None) -> Prepared:
    """Return the experiment's parts. Raises :class:`ConfigError` or ``DataError`` before anything is started."""
    data = find_data(experiment, console)
    given = load_task(experiment.task, experiment.settings, data)
    given.check(experiment.rounds)
    settings = json.dumps(given.resolved())
    task = load_task(experiment.task, json.loads(settings), data)
    return Prepared(
        experiment=experiment,
        data=data,
        task=task,
        clients=tuple(task.clients()),
        settings=settings,
        evaluator=_evaluator(experiment, task, data),
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
    data = experiment.settings.get("data", {})
    wanted = [data.get("layout", ""), *data.get("sources", ()), data.get("target", "")]
    return sorted({layout for layout in wanted if layout})


def _evaluator(experiment: Experiment, task: Task[Any], data: Path) -> Evaluator | None:
    if not experiment.evaluator:
        return None
    evaluator = _make_evaluator(experiment, task.resolved(), data)
    if not experiment.selection:
        return evaluator
    other = experiment.overridden(experiment.selection, "selection")
    if _hold_out(other) != _hold_out(experiment):  # what was trained on is for the run to say, not for its selection
        raise ConfigError(
            f"selection.settings.data.hold_out: expected {_hold_out(experiment)}, as the run trains, found "
            f"{_hold_out(other)}; set settings.data.hold_out instead"
        )
    return Validated(evaluator, _make_evaluator(other, other.settings, data))


def _hold_out(experiment: Experiment) -> bool:
    return bool(experiment.settings.get("data", {}).get("hold_out", False))


def _make_evaluator(experiment: Experiment, settings: Mapping[str, Any], data: Path) -> Evaluator:
    module, _, attribute = EVALUATORS.get(experiment.evaluator, experiment.evaluator).partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(sorted(EVALUATORS))
        raise ConfigError(f"evaluator {experiment.evaluator!r}: {error}; expected {known}, or module:Class") from error
    evaluator: Evaluator = kind.of(data, settings, experiment.evaluation)
    return evaluator
