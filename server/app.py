"""The ServerApp: rounds through a strategy, evaluation, a checkpoint after every round, resume.

:func:`serve` is the whole of it, over any Flower ``Grid``. :func:`make_app` wraps it as a Flower ``ServerApp`` for
whoever prepares an :class:`Assignment` (``flwr run``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import nn

from cloister.errors import QuorumError, WeightsError
from cloister.flower import NDArray, array_record, tensor, views
from cloister.models.spec import ModelSpec, check_groups, released
from cloister.randomness import SeedTree
from cloister.server import checkpoint
from cloister.server.scribe import Scribe
from cloister.strategies.base import BaseStrategy, StrategyState
from cloister.strategies.quorum import unfinished
from cloister.strategies.rounds import RoundResult

_DAY_S = 86_400.0


class Scores(Protocol):
    """What an evaluator returns: at least metrics by name."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Scores by name, fractions in [0, 1] unless the name says otherwise."""


class Evaluator(Protocol):
    """Judges a model on data that the server may see."""

    def evaluate(self, model: nn.Module) -> Scores:
        """Return the scores of ``model``."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Everything the server needs for one run.

    ``settings``: the task's settings as JSON, sent to clients as they are, and so is ``plan``, the privacy plan ("":
    none). ``run`` names this run in the ledgers of its clients. ``folder``: where checkpoints go (None: none
    are written). ``evaluate_every``: rounds between two evaluations; the last round is always evaluated.
    ``on_round`` is called after each round, before its checkpoint is written. What it returns (JSON values) is kept in
    that checkpoint under ``record``; what it writes elsewhere may be one round ahead of the checkpoint, never behind.
    ``scribe`` writes the run's transcript, each round before ``on_round`` is called (None: nobody does).
    """

    experiment: str
    seed: int
    rounds: int
    task: str
    settings: str
    spec: ModelSpec
    strategy: BaseStrategy
    evaluator: Evaluator | None = None
    evaluate_every: int = 1
    folder: Path | None = None
    on_round: Callable[["RoundReport"], Any] = lambda report: None
    run: str = ""
    plan: str = ""
    scribe: Scribe | None = None

    @property
    def seeds(self) -> SeedTree:
        """The experiment's seed tree."""
        return SeedTree(experiment=self.experiment, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """One finished round: the strategy's result and the server's scores (None where it did not evaluate)."""

    result: RoundResult
    scores: Scores | None


@dataclass(frozen=True, kw_only=True)
class Finish:
    """A finished run: the model with the global weights in it, and one set of weights per client where there is one."""

    model: nn.Module
    client_arrays: Mapping[str, ArrayRecord]


def build_model(assignment: Assignment) -> nn.Module:
    """Return the freshly initialised model that server and clients start from."""
    model = assignment.spec.build(assignment.seeds.torch(purpose="model"))
    check_groups(model, assignment.spec.groups(model))
    return model


def load_arrays(model: nn.Module, arrays: Mapping[str, NDArray]) -> nn.Module:
    """Copy the named arrays into the model, in place, and return it. Raises :class:`WeightsError` on a misfit."""
    live = dict(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, values in arrays.items():
            if name not in live or tuple(live[name].shape) != tuple(values.shape):
                found = tuple(live[name].shape) if name in live else "no such entry"
                raise WeightsError(f"{name}: the model has {found}, the weights {tuple(values.shape)}; same settings?")
            live[name].copy_(tensor(values))
    return model


def initial_arrays(assignment: Assignment, model: nn.Module) -> dict[str, NDArray]:
    """Return the entries of the model that travel, as arrays."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().numpy().copy() for name in released(assignment.spec.groups(model))}


def serve(grid: Grid, assignment: Assignment) -> Finish:
    """Run the assignment from its last checkpoint, or from the start, and return the final model.

    Raises :class:`~cloister.errors.QuorumError` if too many rounds in a row are void, or the last one is. Void rounds
    leave no checkpoint, so that they are run again by whoever resumes.
    """
    model = build_model(assignment)
    initial = arrays = initial_arrays(assignment, model)
    saved = checkpoint.latest(assignment.folder) if assignment.folder else None
    first = 1
    if saved is not None:
        arrays, first = {name: saved.arrays[name] for name in arrays}, saved.round + 1
        assignment.strategy.restore(StrategyState(arrays=dict(saved.strategy), values=saved.state["strategy"]))
    if assignment.scribe is not None:
        assignment.scribe.begin(initial, arrays)
        commits = not assignment.strategy.privacy  # else it is not said who took part
        assignment.strategy.commits = commits
        if assignment.strategy.secure is not None:
            assignment.strategy.secure.commit = commits
            assignment.strategy.secure.vault = assignment.scribe.vault if commits else None
    if first <= assignment.rounds:
        arrays = _run(grid, assignment, model, arrays, first)
    return Finish(model=load_arrays(model, arrays), client_arrays=assignment.strategy.client_arrays())


def _run(
    grid: Grid, assignment: Assignment, model: nn.Module, arrays: dict[str, NDArray], first: int
) -> dict[str, NDArray]:
    scores: dict[int, Scores] = {}
    cores = torch.get_num_threads()

    def evaluate(number: int, record: ArrayRecord) -> MetricRecord | None:
        if assignment.evaluator is None or not _due(assignment, number):
            return None
        with _threads(cores):  # the workers are idle now
            scores[number] = assignment.evaluator.evaluate(load_arrays(model, views(record)).eval())
        return MetricRecord({key: float(value) for key, value in scores[number].metrics.items()})

    void = ""

    def finish_round(result: RoundResult) -> None:
        nonlocal void
        void = result.void
        if assignment.scribe is not None:
            assignment.scribe.round(result)
        record = assignment.on_round(RoundReport(result=result, scores=scores.pop(result.number, None)))
        if assignment.folder is not None and not void:  # whoever resumes runs a void round again
            state = assignment.strategy.state()
            checkpoint.save(
                assignment.folder,
                checkpoint.Checkpoint(
                    round=result.number,
                    arrays=views(result.arrays),
                    strategy=state.arrays,
                    state={"strategy": state.values, "record": record},
                ),
            )

    with _threads(1):  # more would fight the workers for cores over sums that one thread does as fast
        result = assignment.strategy.start(
            grid,
            array_record(arrays),
            num_rounds=assignment.rounds,
            timeout=_DAY_S,
            train_config=_config(assignment),
            evaluate_config=_config(assignment),
            evaluate_fn=evaluate,
            first_round=first,
            on_round=finish_round,
        )
    if void:
        raise QuorumError(unfinished(void))
    return {name: values.copy() for name, values in views(result.arrays).items()}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _due(assignment: Assignment, number: int) -> bool:
    every = assignment.evaluate_every
    return number == assignment.rounds or (number > 0 and every > 0 and number % every == 0)


def _config(assignment: Assignment) -> ConfigRecord:
    values: dict[str, Any] = {
        "task": assignment.task,
        "settings": assignment.settings,
        "experiment": assignment.experiment,
        "seed": assignment.seed,
        "rounds": assignment.rounds,
    }
    values |= {key: value for key, value in (("run", assignment.run), ("plan", assignment.plan)) if value}
    if assignment.scribe is not None and assignment.strategy.commits:
        values["ledger-heads"] = True  # of clients that consent; the others say nothing of it
    return ConfigRecord(values)


def make_app(prepare: Callable[[Context], Assignment]) -> ServerApp:
    """Return a Flower ServerApp that serves the assignment which ``prepare`` makes from the run's context."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, prepare(context))

    return app
