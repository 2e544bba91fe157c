"""The curves of one run: what they are drawn from, and what is said about them in words."""

from collections.abc import Sequence

from cloister.simulations.record import RunRecord, Sweep
from cloister.simulations.report_figures import MOST_LINES, Figure, Series, band, curves, stages
from cloister.simulations.report_views import headline_metrics
from cloister.simulations.report_words import (
    axis_label,
    baseline_label,
    baseline_order,
    is_fraction,
    metric_label,
    metric_text,
    seconds_text,
)


def learning(record: RunRecord) -> list[Figure]:
    """Return the learning curves: quality per round beside the baselines, and the loss of each client."""
    figures = []
    names = [name for name in headline_metrics(record) if metric_points(record, name)]
    if names:
        figures.append(_quality(record, names[:2]))
    losses = [name for name in ("loss",) if any(name in m for e in record.rounds for m in e.client_metrics.values())]
    figures += [_loss(record, name) for name in losses]
    return figures


def _quality(record: RunRecord, names: Sequence[str]) -> Figure:
    series = [
        Series(
            label=metric_label(name),
            points=points,
            note=metric_text(name, points[-1][1]),
        )
        for name in names
        if (points := metric_points(record, name))
    ]
    for baseline in baseline_order(record.baselines):
        value = record.baselines[baseline].get(names[0])
        if value is not None:
            label = f"{baseline_label(baseline)[0]}, {metric_label(names[0])}"
            series.append(Series(label=label, points=[(0, value)], note=metric_text(names[0], value), level=True))
    words = " and ".join(metric_label(name) for name in names)
    return curves(
        "quality",
        series,
        caption=f"{words} on the test people after each round; dotted lines are the baselines",
        alternative=f"{words} per round. " + "; ".join(f"{line.label}: last value {line.note}" for line in series),
        unit=words if len(names) == 1 else "",
        percent=all(is_fraction(name) for name in names),
    )


def _loss(record: RunRecord, name: str) -> Figure:
    clients = sorted({client for entry in record.rounds for client in entry.client_metrics})
    points: dict[str, list[tuple[float, float]]] = {client: [] for client in clients}
    for entry in record.rounds:
        for client, metrics in entry.client_metrics.items():
            value = metrics.get(name)
            if value is not None:
                points[client].append((entry.round, value))
    caption = f"Training {metric_label(name)} of each client's local round"
    if len(clients) > MOST_LINES:
        spread: dict[float, list[float]] = {}
        for line in points.values():
            for x, y in line:
                spread.setdefault(x, []).append(y)
        what = f"{len(clients)} clients"
        return band(name, spread, caption=caption, alternative=f"{caption}, {what}", unit=metric_label(name), what=what)
    series = [
        Series(label=client, points=line, note=f"{line[-1][1]:.2f}" if line else "–") for client, line in points.items()
    ]
    last = "; ".join(f"{line.label}: {line.note}" for line in series)
    return curves(name, series, caption=caption, alternative=f"{caption}. Last values: {last}", unit=metric_label(name))


def stage_times(record: RunRecord) -> Figure | None:
    """Return the seconds per round by stage, or None where no stage was timed."""
    names = list(dict.fromkeys(stage for entry in record.rounds for stage in entry.stages))
    if not names:
        return None
    seconds = {name: [entry.stages.get(name, 0.0) for entry in record.rounds] for name in names}
    totals = ", ".join(f"{name} {seconds_text(sum(values))}" for name, values in seconds.items())
    return stages(
        "stages",
        [entry.round for entry in record.rounds],
        seconds,
        caption="Seconds of each round by stage; clients train during the wait",
        alternative=f"Seconds per round, stacked by stage. Totals: {totals}",
    )


def metric_points(record: RunRecord, name: str) -> list[tuple[float, float]]:
    """Return (round, value) of every round that has the metric."""
    pairs = ((entry.round, entry.metrics.get(name)) for entry in record.rounds)
    return [(number, value) for number, value in pairs if value is not None]


def sweep_curves(sweep: Sweep) -> list[Figure]:
    """Return one figure per metric of a sweep: a line per series; a series without a place on the axis is a level."""
    figures = []
    for index, name in enumerate(sweep.y):
        lines = [
            line for series in dict.fromkeys(it.series for it in sweep.points) if (line := _line(sweep, series, name))
        ]
        if not lines:
            continue
        what = f"{metric_label(name)} against {axis_label(sweep.x)}"
        last = "; ".join(f"{line.label}: {line.note}" for line in lines)
        figures.append(
            curves(
                f"sweep-{index}",
                lines,
                caption=what,
                alternative=f"{what}. {last}",
                unit=metric_label(name),
                percent=is_fraction(name),
                across=axis_label(sweep.x),
                logarithmic=sweep.logarithmic,
            )
        )
    return figures


def _line(sweep: Sweep, series: str, name: str) -> Series | None:
    values = [
        (it.x, value) for it in sweep.points if it.series == series and (value := it.metrics.get(name)) is not None
    ]
    placed = sorted((x, value) for x, value in values if x is not None)
    if placed:
        return Series(
            label=series, points=placed, note=" → ".join(metric_text(name, y) for _, y in (placed[0], placed[-1]))
        )
    return (
        Series(label=series, points=[(0, values[0][1])], note=metric_text(name, values[0][1]), level=True)
        if values
        else None
    )
