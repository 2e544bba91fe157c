"""The evaluators of an experiment: found by name, their settings checked, made on its data."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cloister.errors import ConfigError
from cloister.server.app import Evaluator
from cloister.server.evaluation.selection import Validated
from cloister.simulations.experiment import Experiment
from cloister.simulations.origin import under

EVALUATORS = {"reid": "cloister.server.evaluation.reid:ReidEvaluator"}


class EvaluatorKind(Protocol):
    """What a class of evaluators offers to those who prepare a run."""

    def check(self, settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
        """Raise :class:`ConfigError` for values that cannot be used; opens nothing."""

    def of(self, root: Path, settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Evaluator:
        """Return the evaluator of a task with these ``settings`` on the data at ``root``."""


def check(experiment: Experiment) -> None:
    """Raise :class:`ConfigError` if the experiment's evaluation or selection cannot be used. Opens no data."""
    if not experiment.evaluator:
        for table, values in (("evaluation", experiment.evaluation), ("selection", experiment.selection)):
            if values:
                raise ConfigError(f"{table}: expected no keys without an evaluator, found {sorted(values)}; name one")
        return
    _kind(experiment).check(experiment.settings, experiment.evaluation)
    if experiment.selection:
        other = _selection(experiment)
        with under("selection"):
            _kind(other).check(other.settings, other.evaluation)


def make(experiment: Experiment, settings: Mapping[str, Any], data: Path) -> Evaluator | None:
    """Return the experiment's evaluator (None: it has none) for the task's resolved ``settings`` on ``data``."""
    if not experiment.evaluator:
        return None
    evaluator = _kind(experiment).of(data, settings, experiment.evaluation)
    if not experiment.selection:
        return evaluator
    other = _selection(experiment)
    return Validated(evaluator, _kind(other).of(data, other.settings, other.evaluation))


def _selection(experiment: Experiment) -> Experiment:
    other = experiment.overridden(experiment.selection, "selection")
    if _hold_out(other) != _hold_out(experiment):  # what was trained on is for the run to say, not for its selection
        raise ConfigError(
            f"selection.settings.data.hold_out: expected {_hold_out(experiment)}, as the run trains, found "
            f"{_hold_out(other)}; set settings.data.hold_out instead"
        )
    return other


def _hold_out(experiment: Experiment) -> bool:
    return bool(experiment.setting("data", "hold_out"))


def _kind(experiment: Experiment) -> EvaluatorKind:
    module, _, attribute = EVALUATORS.get(experiment.evaluator, experiment.evaluator).partition(":")
    try:
        kind: EvaluatorKind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(sorted(EVALUATORS))
        raise ConfigError(f"evaluator {experiment.evaluator!r}: {error}; expected {known}, or module:Class") from error
    return kind
