"""Learning rates per step, as a factor of the peak."""

from cloister.errors import ConfigError
from cloister.models.l2rw.config import TrainConfig

_START = 1e-4


def rate(settings: TrainConfig, round_number: int, rounds: int, step: int, steps: int) -> float:
    """Return the factor for ``step`` (from 0) of the ``steps`` that a client takes in round ``round_number`` (from 1).

    Raises :class:`ConfigError` if the peak does not lie before the last round.
    """
    if settings.schedule == "stepped":
        return stepped(round_number - 1)
    return triangular(round_number - 1, rounds, step, steps, settings.peak_round, settings.schedule_order)


def triangular(epoch: int, epochs: int, step: int, steps: int, peak: int = 16, order: str = "natural") -> float:
    """Return the triangular schedule of the L2RW code: 1e-4 at the start, 1 at epoch ``peak``, 0 at ``epochs``.

    ``epoch`` counts from 0. Within it the factor goes in equal parts from its value at ``epoch`` to that at ``epoch
    + 1``, which the last of the ``steps`` steps reaches. ``order = "released"`` replays the released code, which
    keeps a list of the ``steps - 1`` values before the last one and looks up ``step - 1`` in it, so that the first
    step takes the list's last value.
    """
    if not peak < epochs:
        raise ConfigError(
            f"settings.train.peak_round: expected a round before the last, found {peak} of {epochs} rounds; "
            "lower it or run longer"
        )
    before, after = _triangle(epoch, epochs, peak), _triangle(epoch + 1, epochs, peak)
    parts = max(1, steps - 1)
    place = (step - 1) % parts if order == "released" else step
    return before + (after - before) * place / parts


def _triangle(epoch: int, epochs: int, peak: int) -> float:
    if epoch <= peak:
        return _START + (1 - _START) * epoch / peak
    return max(0.0, (epochs - epoch) / (epochs - peak))


def stepped(epoch: int) -> float:
    """Return the schedule of the AGW code, constant within an epoch: ten of warm-up, 1, 0.1 from 20, 0.01 from 50."""
    if epoch < 10:
        return (epoch + 1) / 10
    return 1.0 if epoch < 20 else 0.1 if epoch < 50 else 0.01
