"""Choosing a round honestly: by people of the *source* data who took no part in training, never by the test people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

PREFIX = "validation/"
BY = "map"


class _Scores(Protocol):
    @property
    def metrics(self) -> Mapping[str, float]: ...

    def describe(self, run: Path) -> dict[str, Any]: ...


class _Evaluator(Protocol):
    def evaluate(self, model: nn.Module) -> Any: ...


@dataclass(frozen=True)
class ValidatedScores:
    """Test scores, and validation scores under ``validation/``."""

    test: _Scores
    validation: _Scores

    @property
    def metrics(self) -> dict[str, float]:
        """Both, by name."""
        return {**self.test.metrics, **{PREFIX + name: value for name, value in self.validation.metrics.items()}}

    def describe(self, run: Path) -> dict[str, Any]:
        """Return the ``evaluation`` part of a run record: that of the test."""
        return self.test.describe(run)


class Validated:
    """An evaluator that also scores the model on validation people."""

    def __init__(self, test: _Evaluator, validation: _Evaluator) -> None:
        """Evaluate with both."""
        self._test, self._validation = test, validation

    def evaluate(self, model: nn.Module) -> ValidatedScores:
        """Return both evaluators' scores of ``model``."""
        return ValidatedScores(self._test.evaluate(model), self._validation.evaluate(model))


def selected(rounds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None] | None:
    """Return the test metrics of the round whose validation mAP is highest (the first of equals), or None."""
    validated = [metrics for metrics in rounds if metrics.get(PREFIX + BY) is not None]
    if not validated:
        return None
    best = max(validated, key=lambda metrics: metrics[PREFIX + BY] or 0.0)
    shared = {name.removeprefix(PREFIX) for name in best if name.startswith(PREFIX)}
    return {name: value for name, value in best.items() if name in shared}
