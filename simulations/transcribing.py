"""What an experiment puts into its transcript: the header, and the head that the run record keeps."""

import hashlib
from pathlib import Path

from cloister.clients.policy import code_digest
from cloister.privacy.roster import Roster
from cloister.privacy.transcript import Header
from cloister.server.scribe import Scribe
from cloister.simulations.claims import DELTA
from cloister.simulations.planning import simulated_roster
from cloister.simulations.prepare import Prepared
from cloister.simulations.record import RunRecord, Transcript

EXPERIMENT_FILE = "experiment.toml"


def scribe_of(prepared: Prepared, folder: Path, run: str) -> Scribe:
    """Return who writes the transcript of the run in ``folder``, whose experiment is written there already.

    Clients of a simulation have keys where they take part in secure sums, else none.
    """
    experiment, plan = prepared.experiment, prepared.plan
    registered: dict[str, bytes] = {}
    if plan.secure is not None:
        registered.update(Roster.load(simulated_roster(folder / "clients", prepared.clients)).keys)

    def header(server: str, model: str) -> Header:
        return Header(
            run=run,
            experiment=experiment.name,
            experiment_digest=hashlib.sha256((folder / EXPERIMENT_FILE).read_bytes()).hexdigest(),
            code=code_digest(),
            task=experiment.task,
            rounds=experiment.rounds,
            plan=plan.values(),
            delta=plan.budget.delta if plan.budget else DELTA,
            server=server,
            roster={name: registered.get(name, b"").hex() for name in prepared.clients},
            model=model,
        )

    return Scribe(folder, keys=folder / "server", header=header, keeps=experiment.keep_masked_vectors)


def head(scribe: Scribe) -> Transcript:
    """Return how far the transcript goes, for the record."""
    return Transcript(lines=scribe.head.lines, digest=scribe.head.digest, server=scribe.public)


def end(record: RunRecord, scribe: Scribe) -> None:
    """End the transcript with what the record claims, and note its head in the record."""
    claimed = record.privacy.claims[0].get("epsilon") if record.privacy.claims else None
    scribe.end(float(claimed) if isinstance(claimed, int | float) else None)
    record.transcript = head(scribe)
