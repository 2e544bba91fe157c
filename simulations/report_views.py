"""From a run record to the tables of its report. No HTML here."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.simulations.auditing.findings import results
from cloister.simulations.record import Metrics, Number, RunRecord
from cloister.simulations.report_words import (
    axis_label,
    baseline_label,
    baseline_order,
    bytes_text,
    count_text,
    is_fraction,
    metric_label,
    metric_text,
    release_label,
    seconds_text,
)

_HEADLINE = ("rank1", "map", "minp", "rank10")
_MOST_TRAFFIC_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """A table row: its name, a line of explanation, the cells' texts, and how long its bar is (0 to 1 or None)."""

    name: str
    note: str = ""
    cells: Sequence[str] = ()
    bar: float | None = None
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column names (without that of the first column), rows, a note, and what the rows' bars show."""

    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    bars: str = ""


def headline_metrics(record: RunRecord) -> list[str]:
    """Return the names of the up to four final metrics that a reader should see first."""
    known = [name for name in _HEADLINE if name in record.final]
    return known or [name for name in record.final if "/" not in name][:4]


def result_table(record: RunRecord) -> Table:
    """Return this run and every baseline that stands for all clients, side by side."""
    names = headline_metrics(record)
    runs: list[tuple[str, str, Metrics, bool]] = [("This run", _what(record), record.final, True)]
    for name in baseline_order(record.baselines):
        label, note = baseline_label(name)
        runs.append((label, note, record.baselines[name], False))
    rows = [
        Row(name=label, note=note, cells=_cells(names, values), bar=_bar(names, values), strong=strong)
        for label, note, values, strong in runs
    ]
    labels = [metric_label(name) for name in names]
    return Table(columns=labels, rows=rows, note=_spread(record, names), bars="".join(labels[:1]))


def other_metrics(record: RunRecord) -> Table:
    """Return the final metrics that are not in the headline."""
    shown = set(headline_metrics(record))
    rows = [
        Row(name=metric_label(name), cells=[metric_text(name, value)])
        for name, value in record.final.items()
        if name not in shown
    ]
    return Table(columns=["value"], rows=rows)


def client_table(record: RunRecord) -> Table:
    """Return the client table; with local-only baselines also the first headline metric of each, and the gain."""
    names = headline_metrics(record)[:1]
    alone = {client.name: record.baselines.get(f"local-only/{client.name}", {}) for client in record.clients}
    compared = [name for name in names if any(values.get(name) is not None for values in alone.values())]
    columns = ["modality", "people", "images", "steps per round", "weight"]
    columns += [f"{metric_label(name)} alone" for name in compared]
    columns += ["gain of training together" for _ in compared]
    rows = []
    for client in record.clients:
        cells = [client.modality or "–", count_text(client.subjects), count_text(client.records)]
        cells += [count_text(client.steps), "–" if client.weight is None else f"{100 * client.weight:.1f} %"]
        cells += [metric_text(name, alone[client.name].get(name)) for name in compared]
        cells += [_gain(name, record.final.get(name), alone[client.name].get(name)) for name in compared]
        rows.append(Row(name=client.name, note=client.scene, cells=cells))
    return Table(columns=columns, rows=rows)


def traffic_table(record: RunRecord) -> Table:
    """Return bytes per client, direction and release kind; beyond twenty clients the rest is one row."""
    up = sorted({kind for client in record.traffic.values() for kind in client.up})
    down = sorted({kind for client in record.traffic.values() for kind in client.down})
    counts = {
        name: [client.up.get(kind, 0) for kind in up] + [client.down.get(kind, 0) for kind in down]
        for name, client in record.traffic.items()
    }
    order = list(counts)
    if len(order) > _MOST_TRAFFIC_ROWS:
        order.sort(key=lambda name: (-sum(counts[name]), name))
    shown, rest = order[:_MOST_TRAFFIC_ROWS], order[_MOST_TRAFFIC_ROWS:]
    most = max((sum(values) for values in counts.values()), default=0)
    rows = [
        Row(name=name, cells=_byte_cells(counts[name]), bar=sum(counts[name]) / most if most else None)
        for name in shown
    ]
    if rest:
        rows.append(Row(name=f"{len(rest)} more", cells=_byte_cells(_sums(counts[name] for name in rest))))
    if len(order) > 1:
        rows.append(Row(name="All clients", cells=_byte_cells(_sums(counts.values())), strong=True))
    columns = [f"↑ {release_label(kind)}" for kind in up] + [f"↓ {release_label(kind)}" for kind in down]
    return Table(columns=[*columns, "total"], rows=rows)


def point_table(record: RunRecord) -> Table:
    """Return every point of a sweep with what is plotted of it."""
    sweep = record.sweep
    if sweep is None:
        return Table(columns=[], rows=[])
    names = [name for name in sweep.y if any(name in point.metrics for point in sweep.points)]
    rows = [
        Row(
            name=point.name,
            note=f"{point.folder}: {point.note}" if point.note else point.folder,
            cells=["–" if point.x is None else f"{point.x:.4g}", *_cells(names, point.metrics)],
        )
        for point in sweep.points
    ]
    return Table(columns=[axis_label(sweep.x), *(metric_label(name) for name in names)], rows=rows)


def audit_table(record: RunRecord) -> Table:
    """Return what attacks measured beside what is claimed; a bar shows how much of the claim was found to be spent."""
    rows = []
    for audit in results(record.privacy.audits):
        share = audit.epsilon / audit.claimed if audit.epsilon is not None and audit.claimed else None
        failed = "claim disproved" if audit.claimed is not None else "attack succeeded"
        rows.append(
            Row(
                name=audit.name,
                note=audit.text,
                cells=[
                    str(audit.unit),
                    "–" if audit.epsilon is None else f"{audit.epsilon:.2f}",
                    "–" if audit.claimed is None else f"{audit.claimed:.2f}",
                    "holds" if audit.passed else failed,
                ],
                bar=None if share is None else min(1.0, share),
                strong=not audit.passed,
            )
        )
    columns = ["unit", "ε at least", "ε claimed", "verdict"]
    return Table(columns=columns, rows=rows, bars="share of the claim that was seen")


def stage_table(record: RunRecord) -> Table:
    """Return the seconds of each stage: in total, per round, and as a share of all stages."""
    totals: dict[str, float] = {}
    for entry in record.rounds:
        for stage, seconds in entry.stages.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    whole = sum(totals.values()) or 1.0
    rows = [
        Row(
            name=stage,
            cells=[seconds_text(total), f"{total / len(record.rounds):.2f} s", f"{100 * total / whole:.0f} %"],
        )
        for stage, total in totals.items()
    ]
    return Table(columns=["total", "per round", "share"], rows=rows)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted key, text) pairs in their order."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            pairs.append((prefix + key, ", ".join(map(str, value)) or "none"))
        else:
            pairs.append((prefix + key, "none" if value in (None, {}) else str(value)))
    return pairs


def _what(record: RunRecord) -> str:
    return ", ".join(
        part for part in (f"protocol {record.protocol}" if record.protocol else "", record.selection) if part
    )


def _cells(names: Iterable[str], values: Metrics) -> list[str]:
    return [metric_text(name, values.get(name)) for name in names]


def _bar(names: Sequence[str], values: Metrics) -> float | None:
    value = values.get(names[0]) if names else None
    return min(1.0, max(0.0, value)) if value is not None and is_fraction(names[0]) else None


def _gain(name: str, together: Number, alone: Number) -> str:
    if together is None or alone is None:
        return "–"
    return f"{100 * (together - alone):+.1f} points" if is_fraction(name) else f"{together - alone:+.4g}"


def _spread(record: RunRecord, names: Sequence[str]) -> str:
    if not names or len(record.evaluation.per_draw) < 2:
        return ""
    values = [value for draw in record.evaluation.per_draw if (value := draw.get(names[0])) is not None]
    if len(values) < 2:
        return ""
    low, high = metric_text(names[0], min(values)), metric_text(names[0], max(values))
    spread = statistics.stdev(values)
    deviation = f"{100 * spread:.1f} points" if is_fraction(names[0]) else f"{spread:.4g}"
    label = metric_label(names[0])
    return (
        f"Mean over {len(values)} gallery draws or test lists, across which {label} runs from {low} to {high} "
        f"(standard deviation {deviation})."
    )


def _byte_cells(counts: Sequence[int]) -> list[str]:
    return [bytes_text(count) for count in (*counts, sum(counts))]


def _sums(rows: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]
