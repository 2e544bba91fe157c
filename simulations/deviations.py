"""Where a run departs from its paper: what the task says of its own settings, and everything else of the experiment."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from cloister.clients.task import Task
from cloister.simulations.experiment import Experiment, names, plain
from cloister.simulations.record import Deviation
from cloister.strategies.config import FedBuffConfig

# What carries, watches and names a run changes no weight of it; the task itself speaks of model and training.
_NO_METHOD = {"name", "title", "preset", "seed", "engine", "tracking", "data", "world", "baselines", "evaluate_every"}
_TASK = ("settings.model", "settings.train", "settings.data.label_space", "settings.data.cache")
_FAILURES = ("strategy.quorum", "strategy.limits")


def deviations(task: Task[Any], experiment: Experiment) -> list[Deviation]:
    """Return the task's departures from the paper, then those of the experiment from its preset ``paper``.

    An experiment that does not come with Cloister has no preset to be compared with, and says so.
    """
    own = [Deviation(**asdict(deviation)) for deviation in task.deviations()]
    if experiment.plan:
        own.append(_plan(experiment.plan))
    if isinstance(experiment.strategy, FedBuffConfig):
        own.append(_buffered(experiment.strategy))
    if experiment.name not in names():
        missing = Deviation(
            topic="experiment",
            paper="not known",
            run=experiment.name,
            why="not one of Cloister's: only the task's own settings were compared with the paper",
        )
        return [*own, missing]
    paper = dict(_leaves(plain(Experiment.load(experiment.name, preset="paper").model_dump())))
    here = dict(_leaves(plain(experiment.model_dump())))
    changed = [
        Deviation(topic=key, paper=str(paper.get(key, "not set")), run=str(here.get(key, "not set")))
        for key in sorted(paper.keys() | here.keys())
        if paper.get(key) != here.get(key) and not key.startswith((*_TASK, *_FAILURES))
    ]
    return [*own, *changed]


def _plan(plan: Mapping[str, Any]) -> Deviation:
    return Deviation(
        topic="privacy plan",
        paper="none: updates and class centres leave as they are",
        run=f"mechanism {plan.get('mechanism', 'none')}, unit {plan.get('unit', 'subject')}",
        why="under private steps only losses of single records are used, and batches are drawn by secret coins",
    )


def _buffered(strategy: FedBuffConfig) -> Deviation:
    return Deviation(
        topic="aggregation",
        paper="rounds: everybody is waited for",
        run=f"buffers: a step after {strategy.buffer} replies, {strategy.concurrency} clients train at a time",
        why="which replies meet in a buffer depends on when they arrive, so that the same seed on another engine or "
        "machine, or resumed, gives other weights; one order of arrival gives the same, bit for bit",
    )


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if not path and key in _NO_METHOD:
            continue
        where = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            yield from _leaves(value, where)
        else:
            yield where, value
