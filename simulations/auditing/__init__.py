"""Attacks on a finished run, as ``cloister audit RUN`` carries them out.

Each audit is a function of the victim that returns results; which ones mean anything for a run follows from its plan
and from what its clients release.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from cloister.errors import AuditError
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.events import Unit
from cloister.simulations.auditing.findings import results
from cloister.simulations.auditing.probe import shows_people
from cloister.simulations.auditing.victim import Victim

Applies = Callable[[Victim], bool]


@dataclass(frozen=True)
class Audit:
    """One audit: where its function is, what it does in a few words, and for which runs."""

    function: str
    what: str
    applies: Applies


def _always(victim: Victim) -> bool:
    return True


def _client_noise(victim: Victim) -> bool:
    plan = victim.plan  # in a secure sum each canary would need a session with everybody
    return plan.noisy and not plan.private_steps and plan.unit is Unit.CLIENT and plan.secure is None


def _private_steps(victim: Victim) -> bool:
    return victim.plan.private_steps


def _pictures(victim: Victim) -> bool:
    return shows_people(victim.prepared.task)


def _shared_head(victim: Victim) -> bool:
    return _pictures(victim) and victim.prepared.experiment.setting("model", "head") != "local"


def _centres(victim: Victim) -> bool:
    return _pictures(victim) and getattr(victim.prepared.experiment.strategy, "centres", None) is not None


_HERE = "cloister.simulations.auditing"
AUDITS = {
    "exact-leak": Audit(f"{_HERE}.leaks:exact_leak", "read inputs off a fully connected first layer", _always),
    "one-run": Audit(f"{_HERE}.private_steps:one_run", "canary units in the run's private steps", _private_steps),
    "canary-clients": Audit(f"{_HERE}.canary_clients:canary_clients", "canary clients in the run", _client_noise),
    "inversion": Audit(f"{_HERE}.inversion:inversion", "reconstruct pictures from gradients", _pictures),
    "membership": Audit(f"{_HERE}.membership:membership", "guess who was in training, by shadow runs", _pictures),
    "head-linkage": Audit(f"{_HERE}.heads:head_linkage", "find people by the head's update", _shared_head),
    "centre-linkage": Audit(f"{_HERE}.centres:centre_linkage", "find people by their class centres", _centres),
}


def chosen(victim: Victim, names: Sequence[str]) -> list[str]:
    """Return the audits to run: those named, or all that apply; raises :class:`AuditError` for others."""
    unknown = sorted(set(names) - set(AUDITS))
    if unknown:
        raise AuditError(f"audit: no {unknown[0]!r}; expected some of {', '.join(AUDITS)}")
    return [name for name in AUDITS if AUDITS[name].applies(victim) and (not names or name in names)]


def carry_out(victim: Victim, name: str) -> list[AuditResult]:
    """Run one audit and return what it found."""
    module, _, function = AUDITS[name].function.partition(":")
    run: Callable[[Victim], list[AuditResult]] = getattr(importlib.import_module(module), function)
    return run(victim)


def audit(victim: Victim, names: Sequence[str], *, console: Console) -> list[AuditResult]:
    """Run the audits that are missing from the victim's record, save each as it is done, and return all of them."""
    record, folder = victim.record, victim.folder
    done = {str(values.get("audit")) for values in record.privacy.audits}
    for name in chosen(victim, names):
        if name in done:
            continue
        with console.status(f"audit {name}: {AUDITS[name].what}"):
            found = carry_out(victim, name)
        record.privacy.audits = [*record.privacy.audits, *({"audit": name, **it.values()} for it in found)]
        record.save(folder)
        for result in found:
            console.print(f"{result.name}: {result.text}", markup=False, highlight=False)
    return results(record.privacy.audits)


def contradicted(audits: Sequence[AuditResult]) -> list[AuditResult]:
    """Return the results that disprove a claim."""
    return [it for it in audits if not it.passed and it.claimed is not None]
