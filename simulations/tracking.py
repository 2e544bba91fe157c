"""Optional logging of metrics to TensorBoard, beside the run record."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister.errors import ConfigError
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import Round


def check(experiment: Experiment) -> None:
    """Raise :class:`ConfigError` if the tracker that the experiment names is not installed."""
    if experiment.tracking == "tensorboard" and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("tracking: tensorboard is not installed; `pip install cloister[tracking]`, or set it to ''")


@contextmanager
def tracker(experiment: Experiment, folder: Path) -> Iterator[Callable[[Round], None]]:
    """Yield a function that logs a round where ``experiment.tracking`` says, under the run folder."""
    if experiment.tracking == "tensorboard":
        with _tensorboard(folder / "tensorboard") as log:
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
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

    with SummaryWriter(str(folder)) as writer:

        def log(entry: Round) -> None:
            for name, value in _values(entry).items():
                writer.add_scalar(name, value, entry.round)
            writer.flush()

        yield log
