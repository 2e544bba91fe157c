"""The table that ends a run on the terminal."""

from collections.abc import Sequence

from rich.table import Table

from cloister.privacy.audits.result import AuditResult
from cloister.simulations.record import RunRecord

_COLUMNS = {
    "rank1": "Rank-1",
    "rank10": "Rank-10",
    "map": "mAP",
    "minp": "mINP",
    "accuracy": "accuracy",
    "loss": "loss",
}


def table(record: RunRecord) -> Table:
    """Return the federated result beside its baselines, fractions as percent."""
    columns = [name for name in _COLUMNS if name in record.final]
    result = Table(title=f"{record.experiment} ({record.preset}, engine {record.engine}, seed {record.seed})")
    result.add_column("")
    for name in columns:
        result.add_column(_COLUMNS[name], justify="right")
    rows = {"federated": record.final, **{k: v for k, v in record.baselines.items() if "/" not in k}}
    for label, metrics in rows.items():
        cells = [metrics.get(name) for name in columns]
        texts = [
            "-" if cell is None else f"{cell:.3f}" if name == "loss" else f"{100 * cell:.1f} %"
            for name, cell in zip(columns, cells, strict=True)
        ]
        result.add_row(label, *texts)
    return result


def audit_table(results: Sequence[AuditResult]) -> Table:
    """Return what was measured beside what was claimed, one row per audit."""
    table = Table(title="audits")
    for column in ("audit", "unit", "ε at least", "ε claimed", "delta", "verdict"):
        table.add_column(column, justify="left" if column in ("audit", "unit", "verdict") else "right")
    for result in results:
        numbers = [_number(result.epsilon), _number(result.claimed), f"{result.delta:g}" if result.delta else "-"]
        failed = "claim disproved" if result.claimed is not None else "attack succeeded"
        table.add_row(result.name, str(result.unit), *numbers, "holds" if result.passed else failed)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
