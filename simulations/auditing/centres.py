"""Linkage of the class centres that clients release, as the run's plan lets them out."""

from dataclasses import replace

import numpy as np

from cloister.clients.camera_private import centre_records, units_among
from cloister.clients.stages import noised
from cloister.errors import AuditError
from cloister.flower import NDArray, views
from cloister.privacy.audits.linkage import audit_centres
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.simulations.audit_pictures import linkage_bars
from cloister.simulations.auditing.probe import probe_of
from cloister.simulations.auditing.victim import Victim


def centre_linkage(victim: Victim) -> list[AuditResult]:
    """Search a gallery of one picture per person for the person of every centre that every client would release.

    The gallery's pictures are held out: no centre is made of them. Features are those of the run's final model.
    """
    probe, model = probe_of(victim.prepared.task), victim.final_model()
    records = [probe.records(client) for client in victim.prepared.clients]
    features = np.concatenate([probe.embed(model, part) for part in records])
    labels = np.concatenate([part.labels for part in records])
    owners = np.repeat(np.arange(len(records)), [len(part.labels) for part in records])
    gallery = _gallery(victim.rng("centre-linkage"), labels)
    rest = np.setdiff1d(np.arange(len(labels)), gallery)
    released = [
        _centres(victim.plan, features[own], labels[own], int(labels.max()) + 1)
        for client in range(len(records))
        if len(own := rest[owners[rest] == client])
    ]
    centres, people = (np.concatenate(parts) for parts in zip(*released, strict=True))
    if not len(centres):
        raise AuditError("centre-linkage: expected released centres, found that the plan's least count drops them all")
    result = audit_centres(centres, people, features[gallery], labels[gallery])
    name = "noised" if victim.plan.centres else "as they are"
    found = {name: (result.numbers["rank-1"], result.numbers["chance"])}
    path = linkage_bars(victim.pictures / "centre-linkage.png", found)
    return [replace(result, pictures=(str(path.relative_to(victim.folder)),))]


def _gallery(rng: np.random.Generator, labels: NDArray) -> NDArray:
    """Return one record per person, at random."""
    return np.array([rng.choice(np.flatnonzero(labels == person)) for person in np.unique(labels)])


def _centres(plan: Plan, features: NDArray, labels: NDArray, classes: int) -> tuple[NDArray, NDArray]:
    """Return one client's centres ``[P, D]`` and whose they are, noised where the plan says so."""
    if plan.centres is None:
        people = np.unique(labels)
        return np.stack([features[labels == person].mean(0) for person in people]), people
    units = units_among(labels, plan.unit)
    made = views(noised(plan, centre_records(features, labels, units, classes).arrays, NoiseSource.fresh())[0])
    return made["values"], made["labels"]
