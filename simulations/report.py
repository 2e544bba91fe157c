"""``report.html``: one self-contained page about a run, or about several side by side.

The page makes no request, runs no script and needs nothing but a browser; a content security policy in its head says
so to the browser. The same run folder always gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from cloister.errors import RunError
from cloister.privacy.plan import Plan
from cloister.simulations import report_pictures as pictures
from cloister.simulations import report_views as views
from cloister.simulations.guarantees import not_protected, protected
from cloister.simulations.record import Number, RunRecord, traffic_totals, write_whole
from cloister.simulations.report_curves import learning, metric_points, stage_times, sweep_curves
from cloister.simulations.report_figures import Figure, Series, curves
from cloister.simulations.report_words import (
    bytes_text,
    higher_is_better,
    is_fraction,
    metric_label,
    metric_text,
    release_label,
    seconds_text,
    time_text,
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
        started=time_text(record.started),
        facts=facts if record.sweep is None else facts[:4],
        results=views.result_table(record),
        other=views.other_metrics(record),
        figures=learning(record),
        sweep_figures=sweep_curves(record.sweep) if record.sweep else [],
        points=views.point_table(record),
        strips=[pictures.strip(run, retrieval) for retrieval in record.evaluation.retrievals],
        matrices=[pictures.matrix(name, scores) for name, scores in record.evaluation.camera_matrix.items()],
        clients=views.client_table(record),
        traffic=views.traffic_table(record),
        kinds=sorted({release_label(kind) for client in record.traffic.values() for kind in client.up}),
        time=stage_times(record),
        stage_table=views.stage_table(record),
        rejected=[(entry.round, reply) for entry in record.rounds for reply in entry.rejected],
        plan=views.flatten(record.privacy.plan),
        claims=record.privacy.claims,
        protected=protected(Plan.of(record.privacy.plan, "the record's plan")),
        not_protected=not_protected(Plan.of(record.privacy.plan, "the record's plan")),
        audits=views.audit_table(record),
        audit_pictures=pictures.audits(run, record),
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
    if record.sweep is not None:
        return f"{len(record.sweep.points)} runs at different settings, each with a report of its own under points/."
    name = next(iter(views.headline_metrics(record)), "")
    value = record.final.get(name)
    if value is None:
        return f"{len(record.rounds)} rounds recorded; there is no final evaluation yet."
    text = f"{metric_label(name)} is {metric_text(name, value)} after {len(record.rounds)} rounds"
    parts = []
    alone = record.baselines.get("local-only", {}).get(name)
    pooled = record.baselines.get("pooled", {}).get(name)
    if alone:
        parts.append(f"{value / alone:.1f} times what the mean client reaches alone ({metric_text(name, alone)})")
    if pooled:
        parts.append(f"{value / pooled:.2f} of what pooling all data reaches ({metric_text(name, pooled)})")
    return f"{text}: {' and '.join(parts)}." if parts else f"{text}."


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
            if (points := metric_points(record, name))
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
