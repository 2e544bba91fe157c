"""What a ledger adds up to: epsilon spent per unit by two accountants, and what is left of each budget."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cloister.errors import PlanError
from cloister.privacy import accounting
from cloister.privacy.entries import EntryKind
from cloister.privacy.events import Event, Relation, Unit
from cloister.privacy.ledger import Ledger
from cloister.privacy.settings import Budget

DELTA = 1e-5
"""Where neither a budget nor the reader names another."""


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What one unit has lost at this site, over all runs, under one relation.

    ``runs``, ``releases``: of which it is the sum; ``uses``: of a mechanism, in all events. ``epsilon`` (PLD, or the
    closed form) and ``epsilon_rdp`` at ``delta``: infinite after a release without noise, None where no accountant
    covers the events, with the reason in ``problem``. ``budget``: the epsilon that may be lost, None without a budget;
    ``left``: what remains of it, below 0 where a lower budget came later. An epsilon is nothing that can be added:
    ``left`` says whether there is room, the accountant alone says for what.
    """

    unit: Unit
    relation: Relation | None
    runs: int
    releases: int
    uses: int
    delta: float
    epsilon: float | None
    epsilon_rdp: float | None
    budget: float | None
    left: float | None
    problem: str = ""

    def values(self) -> dict[str, Any]:
        """Return JSON values; what is infinite is None, as in claims, and ``problem`` says so."""
        values = asdict(self)
        infinite = any(isinstance(value, float) and math.isinf(value) for value in values.values())
        values["problem"] = self.problem or ("infinite: something was released without noise" if infinite else "")
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }


def spending(
    ledger: Ledger, budgets: Mapping[Unit, Budget] | None = None, delta: float | None = None
) -> tuple[Spending, ...]:
    """Return what every unit of a ledger has lost, and units that have only a budget.

    ``budgets``: in place of those written down in the ledger. ``delta``: in place of the budget's own, at which alone
    anything can be said to be left of it.
    """
    groups: dict[tuple[Unit, Relation | None], list[Event]] = {}
    runs: dict[tuple[Unit, Relation | None], list[str]] = {}
    for entry in ledger.entries():
        if entry.kind is EntryKind.RELEASE and entry.unit:
            groups.setdefault((entry.unit, entry.relation), []).extend(entry.events)
            runs.setdefault((entry.unit, entry.relation), []).append(entry.run)
    in_force = {unit: budget for unit in Unit if (budget := ledger.budget(unit))} if budgets is None else budgets
    for unit in in_force:
        if unit not in {known for known, _ in groups}:
            groups[unit, None] = []
    return tuple(
        _spending(unit, relation, runs.get((unit, relation), []), events, in_force.get(unit), delta)
        for (unit, relation), events in groups.items()
    )


def _spending(
    unit: Unit,
    relation: Relation | None,
    runs: list[str],
    events: list[Event],
    budget: Budget | None,
    delta: float | None,
) -> Spending:
    at = delta if delta is not None else budget.delta if budget else DELTA
    spent, spent_rdp, problem = None, None, ""
    try:
        spent = accounting.epsilon(events, at)
        spent_rdp = accounting.epsilon(events, at, accountant="rdp")
    except PlanError as error:
        problem = str(error)
    comparable = budget is not None and at == budget.delta and spent is not None
    return Spending(
        unit=unit,
        relation=relation,
        runs=len(set(runs)),
        releases=len(runs),
        uses=sum(event.count for event in events),
        delta=at,
        epsilon=spent,
        epsilon_rdp=spent_rdp,
        budget=budget.epsilon if budget else None,
        left=budget.epsilon - spent if comparable and budget and spent is not None else None,
        problem=problem,
    )
