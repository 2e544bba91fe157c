"""What a run claims: its plan, and the epsilon that follows from what was written down in its ledgers."""

from collections.abc import Sequence
from pathlib import Path

from cloister.privacy.claims import SERVER, claim
from cloister.privacy.events import Event
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.simulations.prepare import Prepared
from cloister.simulations.record import Privacy

DELTA = 1e-5
"""Where the plan has no budget that names one."""


def privacy_of(prepared: Prepared, folder: Path, run: str) -> Privacy:
    """Return the plan of the run in ``folder`` and what it claims, from the ledgers of its server or its clients.

    Who is on which client is known here, because a simulation knows it. A plan without noise claims nothing. Raises
    :class:`~cloister.errors.LedgerError` for a ledger that was tampered with.
    """
    experiment, plan = prepared.experiment, prepared.plan
    if not experiment.plan:
        return Privacy()
    if not plan.noisy:
        return Privacy(plan=plan.values())
    subjects = {person: tuple(clients) for person, clients in prepared.task.subjects().items()}
    made = claim(
        plan,
        plan.budget.delta if plan.budget else DELTA,
        rounds=experiment.rounds,
        events_by_client=_ledgers(prepared, folder, run),
        subjects=subjects or None,
    )
    return Privacy(plan=plan.values(), claims=[made.values()] if made.accountant != "none" else [])


def _ledgers(prepared: Prepared, folder: Path, run: str) -> dict[str, Sequence[Event]]:
    if prepared.plan.central:
        return {SERVER: _events(folder / "server" / FILE_NAME, run)}
    return {client: _events(folder / "clients" / client / FILE_NAME, run) for client in prepared.clients}


def _events(path: Path, run: str) -> tuple[Event, ...]:
    """Return the events of one run; none where nothing was ever released."""
    if not path.is_file():
        return ()
    with Ledger.read(path) as ledger:
        return ledger.events(run=run)
