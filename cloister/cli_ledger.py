"""``cloister ledger``: what left a site, what it cost, and what is left of the budget. The chain is verified first."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from cloister.privacy.ledger import Ledger, Record
    from cloister.privacy.spending import Spending

ledger_app = typer.Typer(help="A site's ledger: what left it, what that cost, what is left of the budget.")

Site = Annotated[Path, typer.Argument(metavar="SITE_DIR", help="The client's folder, which holds ledger.sqlite.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@ledger_app.command()
def show(site: Site, as_json: Json = False) -> None:
    """Verify a ledger, then show its rows, its head, refusals, and what every unit has lost.

    A ledger that was tampered with ends the command with the first bad row and status 1.
    """
    from cloister.privacy.spending import spending

    with _read(site) as ledger:
        records, head, spent = ledger.records(), ledger.head, spending(ledger)
    refusals = sum(record.entry.kind == "refusal" for record in records)
    if as_json:
        rows = [{"number": it.number, "time": it.time, **it.entry.values(), "digest": it.digest} for it in records]
        _print_json(
            {
                "head": {"rows": head.rows, "digest": head.digest},
                "refusals": refusals,
                "spent": [item.values() for item in spent],
                "rows": rows,
            }
        )
        return
    _print(_table_of_rows(records), _table_of_spending(spent))
    print(f"verified: {head.rows} rows, {refusals} of them refusals; head {head.digest}")


@ledger_app.command()
def budget(
    site: Site,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Budgets of this site policy. Default: those in the ledger.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help="Compute epsilon here, not at a budget's delta.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a ledger, then show what every unit has lost over all runs and what is left of its budget."""
    from cloister.privacy.spending import spending

    budgets = None
    if policy is not None:
        from cloister.clients.policy import Policy

        rules = Policy.of(str(policy.resolve())).rules
        budgets = rules.budget if rules else {}
    with _read(site) as ledger:
        spent = spending(ledger, budgets, delta)
    if as_json:
        _print_json([item.values() for item in spent])
    else:
        _print(_table_of_spending(spent))


def _read(site: Path) -> "Ledger":
    from cloister.privacy.ledger import FILE_NAME, Ledger

    return Ledger.read(site / FILE_NAME)


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=1, allow_nan=False))


def _print(*tables: "Table") -> None:
    from rich.console import Console

    for table in tables:
        Console().print(table)


def _table_of_rows(records: "tuple[Record, ...]") -> "Table":
    table = _table("row", "time", "kind", "run", "round", "task", "unit", "bytes", "events", "note")
    for record in records:
        entry = record.entry
        note = entry.note
        if entry.kind == "budget":
            note = f"epsilon {entry.budget.epsilon:g} at {entry.budget.delta:g}" if entry.budget else "no budget"
        sizes = ", ".join(f"{kind} {size}" for kind, size in sorted(entry.kinds.items()))
        what = f"{entry.kind}: {entry.message}" if entry.kind == "release" else str(entry.kind)
        uses = ", ".join(f"{event.count} {event.kind} {event.noise_multiplier:g}" for event in entry.events)
        cells = [record.number, record.time, what, entry.run, entry.round, entry.task, entry.unit, sizes, uses, note]
        table.add_row(*map(_cell, cells))
    return table


def _table_of_spending(spent: "tuple[Spending, ...]") -> "Table":
    table = _table("unit", "relation", "runs", "releases", "uses", "delta", "epsilon", "by RDP", "budget", "left", "")
    for item in spent:
        numbers = [item.delta, item.epsilon, item.epsilon_rdp, item.budget, item.left]
        shown = ["" if number is None else f"{number:.4g}" for number in numbers]
        cells = [item.unit, item.relation, item.runs, item.releases, item.uses, *shown, item.problem]
        table.add_row(*map(_cell, cells))
    return table


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _cell(value: object) -> Any:
    """Runs and notes hold what a server sent: neither markup nor a terminal's control characters pass."""
    from rich.text import Text

    text = "" if value is None else str(value)
    return Text("".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text))
