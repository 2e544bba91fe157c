"""Optional logging of metrics to TensorBoard or MLflow, beside the run record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister.errors import ConfigError
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import Round


@contextmanager
def tracker(experiment: Experiment, folder: Path) -> Iterator[Callable[[Round], None]]:
    """Yield a function that logs a round where ``experiment.tracking`` says, under the run folder.

    Raises :class:`ConfigError` if the tracker's package is not installed.
    """
    if experiment.tracking == "tensorboard":
        with _tensorboard(folder / "tensorboard") as log:
            yield log
    elif experiment.tracking == "mlflow":
        with _mlflow(folder / "mlflow", experiment) as log:
            yield log
    else:
        yield lambda entry: None


def _values(entry: Round) -> dict[str, float]:
    own = {name: value for name, value in entry.metrics.items() if value is not None}
    each = {
        f"{client}/{name}": value
        for client, metrics in entry.client_metrics.items()
        for name, value in metrics.items()
        if value is not None
    }
    return {**own, **each, "seconds": entry.seconds}


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Callable[[Round], None]]:
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError("tracking = tensorboard: install the extra, `pip install cloister[tracking]`") from error
    with SummaryWriter(str(folder)) as writer:

        def log(entry: Round) -> None:
            for name, value in _values(entry).items():
                writer.add_scalar(name, value, entry.round)
            writer.flush()

        yield log


@contextmanager
def _mlflow(folder: Path, experiment: Experiment) -> Iterator[Callable[[Round], None]]:
    try:
        import mlflow  # type: ignore[import-not-found]  # not among the tested dependencies
    except ImportError as error:
        raise ConfigError("tracking = mlflow: `pip install mlflow-skinny`") from error
    mlflow.set_tracking_uri(folder.resolve().as_uri())
    mlflow.set_experiment(experiment.name)
    with mlflow.start_run(run_name=f"{experiment.name}-{experiment.preset}"):
        yield lambda entry: mlflow.log_metrics(_values(entry), step=entry.round)
