"""A sweep: one experiment run at several settings, each a run of its own, and the curves that join them.

An experiment with a ``[sweep]`` table trains nothing itself. Every point is an ordinary run under ``RUN/points/``, with
its own record, report, ledgers and audits; the sweep's record holds what is plotted. A sweep that was interrupted goes
on with the points that are missing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.errors import ConfigError, EvaluationError
from cloister.simulations.experiment import Experiment, SweepConfig, merge, plain
from cloister.simulations.progress import Display
from cloister.simulations.record import Metrics, Point, RunRecord, Sweep

RunPoint = Callable[[Experiment, Path, Sequence[str]], RunRecord]
EPSILON = "epsilon"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point before it is run: its series, the value that was varied, the experiment, and its folder's name."""

    series: str
    value: Any
    experiment: Experiment
    name: str


def settings(experiment: Experiment) -> list[Setting]:
    """Return every point of the sweep, in the order in which they are run.

    Raises :class:`ConfigError` for two points of one name, or an override that the experiment does not take.
    """
    found = list(_settings(experiment, _sweep(experiment)))
    names = [setting.name for setting in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"sweep: expected points of different names, found {twice} twice; name the series apart")
    return found


def execute(experiment: Experiment, folder: Path, record: RunRecord, run_point: RunPoint, display: Display) -> None:
    """Run the points that are missing and put their results into the record, which is saved after each.

    ``run_point(experiment, folder, audits)`` runs and audits one point, or finishes it, and returns its record.
    """
    sweep = _sweep(experiment)
    chosen = settings(experiment)
    record.sweep = Sweep(x=sweep.x, y=list(sweep.y), logarithmic=sweep.logarithmic, title=sweep.title)
    with display.steps("points", len(chosen)) as done:
        for setting in chosen:
            own = folder / "points" / setting.name
            try:
                point = _point(setting, run_point(setting.experiment, own, sweep.audits), sweep.x, folder, own)
            except EvaluationError as error:  # a model that learned nothing is a finding of the sweep, not its end
                point = _without_score(setting, folder, own, str(error.args[0]))
            record.sweep.points.append(point)
            record.save(folder)
            done(setting.name)


def _sweep(experiment: Experiment) -> SweepConfig:
    if experiment.sweep is None:
        raise ConfigError(f"experiment {experiment.name}: expected a [sweep], found none; run it as it is")
    return experiment.sweep


def _settings(experiment: Experiment, sweep: SweepConfig) -> Iterator[Setting]:
    base = plain(experiment.model_dump(exclude={"sweep"}))
    for series in sweep.series:
        mine = merge(base, series.set)
        for value in series.values or (None,):
            over = {} if value is None else _override(series.vary, value)
            name = series.name if value is None else f"{series.name}-{value}"
            title = {"title": f"{experiment.title}: {name}"}  # the name stays, and with it every random draw
            parsed = Experiment.parse({**merge(mine, over), **title}, f"sweep {name}")
            yield Setting(series=series.name, value=value, experiment=parsed, name=name)


def _override(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _point(setting: Setting, record: RunRecord, x: str, folder: Path, own: Path) -> Point:
    metrics: Metrics = dict(record.final)
    claim = record.privacy.claims[0] if record.privacy.claims else {}
    if isinstance(epsilon := claim.get(EPSILON), (int, float)):
        metrics[EPSILON] = float(epsilon)
    for audit in record.privacy.audits:
        metrics |= {f"{audit['name']}.{key}": value for key, value in _numbers(audit).items()}
    place = metrics.get(x) if x in metrics or x == EPSILON else setting.value
    return Point(
        series=setting.series,
        name=setting.name,
        x=float(place) if isinstance(place, (int, float)) else None,
        metrics=metrics,
        folder=str(own.relative_to(folder)),
    )


def _without_score(setting: Setting, folder: Path, own: Path, note: str) -> Point:
    place = float(setting.value) if isinstance(setting.value, (int, float)) else None
    return Point(series=setting.series, name=setting.name, x=place, folder=str(own.relative_to(folder)), note=note)


def _numbers(audit: dict[str, Any]) -> dict[str, float]:
    """Return an audit's measurements: its lower bound, its rates, its other numbers."""
    rates = {f"tpr@{rate}": value for rate, value in audit.get("tpr_at_fpr", {}).items()}
    bound = {EPSILON: audit[EPSILON]} if audit.get(EPSILON) is not None else {}
    return {**bound, **rates, **audit.get("numbers", {})}
