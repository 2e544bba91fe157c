"""Linkage of what a client's update says through its head: the row of a person in it is her template.

The gradient of cross-entropy with respect to a person's row of a bias-free head is her feature, but for a factor.
Nothing has to be reconstructed: whoever sees a client's update reads her off it and looks for her in a gallery.
"""

from dataclasses import replace

import numpy as np
import torch

from cloister.errors import AuditError
from cloister.flower import NDArray
from cloister.models.spec import Group
from cloister.privacy.audits.inversion import LocalSteps, Simulation
from cloister.privacy.audits.linkage import audit_centres
from cloister.privacy.audits.lira import unit_rows
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.noise import NoiseSource
from cloister.simulations.auditing.probe import Records, probe_of
from cloister.simulations.auditing.victim import Victim, seen

_UPDATES = 32  # of one record each, at most


def head_linkage(victim: Victim) -> list[AuditResult]:
    """Look for the people of single records, read off the head's rows as the plan lets them out, in a gallery.

    The update is that of one record, by the run's final model with its stored statistics; the adversary knows the
    label. The gallery holds one other picture of each person at that client. Number ``cosine``: of what was read with
    the record's own feature.
    """
    probe, model = probe_of(victim.prepared.task), victim.final_model().eval()
    groups = victim.prepared.task.spec.groups(model)
    if groups[probe.head] is not Group.SHARED:
        raise AuditError(f"head-linkage: expected a head that leaves the client, found {probe.head} kept there")
    names = [name for name, _ in model.named_parameters() if groups[name] is Group.SHARED]
    simulation = Simulation(model, probe.loss(), LocalSteps(batches=((0,),)), names=names, prepare=probe.prepare)
    records = max((probe.records(client) for client in victim.prepared.clients), key=lambda it: len(set(it.subjects)))
    features = probe.embed(model, records)
    queries, gallery = _cut(records, victim.rng("head-linkage"))
    read = np.stack([_row(victim, simulation, probe.head, records, index) for index in queries])
    result = audit_centres(read, records.labels[queries], features[gallery], records.labels[gallery])
    cosines = (unit_rows(read) * unit_rows(features[queries])).sum(1)
    return [
        replace(
            result,
            name="head-linkage",
            statistic="cosine of a person's row in the head's update with pictures in a gallery",
            numbers={**result.numbers, "cosine": float(cosines.mean())},
            text=result.text.replace("centres", "rows of the head's update"),
        )
    ]


def _cut(records: Records, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Return the records that updates are made of, and one other record of each person with two."""
    pairs = []
    for person in rng.permutation(np.unique(records.labels)):
        own = np.flatnonzero(records.labels == person)
        if len(own) > 1:
            pairs.append(rng.choice(own, 2, replace=False))
    if len(pairs) < 2:
        raise AuditError(f"head-linkage: expected two people with two records each, found {len(pairs)}; use more data")
    first, other = np.stack(pairs).T
    return first[:_UPDATES], other


def _row(victim: Victim, simulation: Simulation, head: str, records: Records, index: int) -> NDArray:
    image = torch.from_numpy(records.images[index]).permute(2, 0, 1)[None].float() / 255
    label = int(records.labels[index])
    update = simulation.update(image, torch.tensor([label]))
    left = seen(victim.plan, {name: values.numpy() for name, values in update.items()}, NoiseSource.fresh())
    row: NDArray = left[head][label]
    return row
