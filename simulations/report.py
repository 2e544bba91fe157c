"""``report.html``: one self-contained page about a run, or about several side by side.

The page makes no request, runs no script and needs nothing but a browser; a content security policy in its head says
so to the browser. The same run folder always gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from cloister.errors import RunError
from cloister.simulations import report_views as views
from cloister.simulations.record import Number, RunRecord, traffic_totals, write_whole
from cloister.simulations.report_figures import MOST_LINES, Figure, Series, band, curves, stages
from cloister.simulations.report_words import (
    baseline_label,
    baseline_order,
    bytes_text,
    higher_is_better,
    is_fraction,
    metric_label,
    metric_text,
    release_label,
    seconds_text,
)

FILE_NAME = "report.html"

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(run: Path) -> Path:
    """Write ``RUN/report.html`` and return its path.

    Raises :class:`RunError` where the record cannot be read or the page cannot be written.
    """
    path = run / FILE_NAME
    write_whole(path, render(run).encode())
    return path


def render(run: Path) -> str:
    """Return the report of the run in folder ``run`` as HTML."""
    record = RunRecord.load(run)
    up, down = traffic_totals(record.traffic)
    seconds = sum(entry.seconds for entry in record.rounds)
    facts = [
        ("Experiment", record.experiment),
        ("Preset", record.preset),
        ("Engine", record.engine),
        ("Seed", str(record.seed)),
        ("Rounds", str(len(record.rounds))),
        ("Clients", str(len(record.clients) or len(record.traffic))),
        ("Training time", seconds_text(seconds)),
        ("Left the clients", bytes_text(up)),
        ("Sent to them", bytes_text(down)),
    ]
    return _TEMPLATES.get_template("report.html.j2").render(
        record=record,
        title=record.title or record.experiment,
        summary=summary(record),
        facts=facts,
        results=views.result_table(record),
        other=views.other_metrics(record),
        figures=_learning(record),
        strips=[views.strip(run, retrieval) for retrieval in record.evaluation.retrievals],
        matrices=[views.matrix(name, scores) for name, scores in record.evaluation.camera_matrix.items()],
        clients=views.client_table(record),
        traffic=views.traffic_table(record),
        kinds=sorted({release_label(kind) for client in record.traffic.values() for kind in client.up}),
        time=_stages(record),
        stage_table=views.stage_table(record),
        rejected=[(entry.round, reply) for entry in record.rounds for reply in entry.rejected],
        plan=views.flatten(record.privacy.plan),
        claims=[views.flatten(claim) for claim in record.privacy.claims],
        audits=[views.flatten(audit) for audit in record.privacy.audits],
        settings=views.flatten(record.settings),
    )


def compare(runs: Sequence[Path]) -> str:
    """Return one page that sets several runs side by side: results, curves, settings that differ.

    Raises :class:`RunError` for fewer than two runs, or for a record that cannot be read.
    """
    if len(runs) < 2:
        raise RunError(f"a comparison needs at least two run folders, found {len(runs)}; name more of them")
    records = [RunRecord.load(run) for run in runs]
    labels = _labels(runs)
    names = list(dict.fromkeys(name for record in records for name in views.headline_metrics(record)))
    best = {name: _best(name, [record.final.get(name) for record in records]) for name in names}
    return _TEMPLATES.get_template("compare.html.j2").render(
        title=f"{len(runs)} runs compared",
        runs=list(zip(labels, records, strict=True)),
        names=names,
        metric_label=metric_label,
        metric_text=metric_text,
        best=best,
        costs=[_costs(record) for record in records],
        figures=_overlaid(labels, records, names),
        differences=_differences(records),
    )


def summary(record: RunRecord) -> str:
    """Return the run's result in one or two sentences."""
    names = views.headline_metrics(record)
    if not names or record.final.get(names[0]) is None:
        return f"{len(record.rounds)} rounds recorded; there is no final evaluation yet."
    name = names[0]
    value = record.final[name]
    assert value is not None
    text = f"{metric_label(name)} is {metric_text(name, value)} after {len(record.rounds)} rounds"
    parts = []
    alone = record.baselines.get("local-only", {}).get(name)
    pooled = record.baselines.get("pooled", {}).get(name)
    if alone:
        parts.append(f"{value / alone:.1f} times what the mean client reaches alone ({metric_text(name, alone)})")
    if pooled:
        parts.append(f"{value / pooled:.2f} of what pooling all data reaches ({metric_text(name, pooled)})")
    return f"{text}: {' and '.join(parts)}." if parts else f"{text}."


def _learning(record: RunRecord) -> list[Figure]:
    figures = []
    names = [name for name in views.headline_metrics(record) if any(name in entry.metrics for entry in record.rounds)]
    if names:
        figures.append(_quality(record, names[:2]))
    losses = [name for name in ("loss",) if any(name in m for e in record.rounds for m in e.client_metrics.values())]
    figures += [_loss(record, name) for name in losses]
    return figures


def _quality(record: RunRecord, names: Sequence[str]) -> Figure:
    series = [
        Series(
            label=metric_label(name),
            points=_points(record, name),
            note=metric_text(name, record.rounds[-1].metrics.get(name)),
        )
        for name in names
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


def _stages(record: RunRecord) -> Figure | None:
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


def _points(record: RunRecord, name: str) -> list[tuple[float, float]]:
    pairs = ((entry.round, entry.metrics.get(name)) for entry in record.rounds)
    return [(number, value) for number, value in pairs if value is not None]


def _labels(runs: Sequence[Path]) -> list[str]:
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _best(name: str, values: Sequence[Number]) -> Number:
    present = [value for value in values if value is not None]
    if not present:
        return None
    return max(present) if higher_is_better(name) else min(present)


def _costs(record: RunRecord) -> tuple[str, str, str]:
    up, down = traffic_totals(record.traffic)
    return bytes_text(up), bytes_text(down), seconds_text(sum(entry.seconds for entry in record.rounds))


def _overlaid(labels: Sequence[str], records: Sequence[RunRecord], names: Sequence[str]) -> list[Figure]:
    figures = []
    for name in (*names[:2], "loss"):
        series = [
            Series(label=label, points=points, note=metric_text(name, points[-1][1]))
            for label, record in zip(labels, records, strict=True)
            if (points := _points(record, name))
        ]
        if series:
            caption = f"{metric_label(name)} per round"
            last = "; ".join(f"{line.label}: {line.note}" for line in series)
            figures.append(
                curves(
                    f"compare-{name.replace('/', '-')}",
                    series,
                    caption=caption,
                    alternative=f"{caption}. Last values: {last}",
                    unit=metric_label(name),
                    percent=is_fraction(name),
                )
            )
    return figures


def _differences(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    tables = []
    for record in records:
        fixed = {
            "experiment": record.experiment,
            "preset": record.preset,
            "engine": record.engine,
            "seed": str(record.seed),
            "protocol": record.protocol or "–",
            "selection": record.selection,
        }
        versions = {f"version of {name}": version for name, version in record.versions.items()}
        tables.append(fixed | dict(views.flatten(record.settings)) | versions)
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]
