"""Gradient inversion on the run's own model: pictures, from what leaves a client without and with its plan."""

import numpy as np
import torch
from torch import Tensor

from cloister.errors import AuditError
from cloister.models.spec import Group
from cloister.privacy.audits.inversion import Attack, LocalSteps, Reconstruction, Simulation, reconstruct
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.audits.similarity import Embed, audit_reconstruction, identity_similarity, psnr, ssim
from cloister.privacy.noise import NoiseSource
from cloister.simulations.audit_pictures import Column, measures, reconstruction_grid
from cloister.simulations.auditing.probe import Probe, Records, probe_of
from cloister.simulations.auditing.victim import Victim, seen

_PEOPLE = 2
_ATTACK = Attack(iterations=400)


def inversion(victim: Victim) -> list[AuditResult]:
    """Reconstruct one picture of each of a few people from the gradient of that picture alone.

    That is the worst case: a client with one record, a server that knows the label. The model is the run's final one:
    freshly initialised ones of this kind say less of their input. Twice: the gradient as it is, and as the plan lets it
    out. The result is about the second; numbers that end in ``-bare`` are about the first.
    """
    probe = probe_of(victim.prepared.task)
    records = probe.records(victim.prepared.clients[0])
    chosen = _one_each(records, victim.rng("inversion"))
    originals = torch.from_numpy(records.images[chosen]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(records.labels[chosen])
    model = victim.final_model().eval()  # with stored statistics: one record has none of its own
    groups = victim.prepared.task.spec.groups(model)
    names = [name for name, _ in model.named_parameters() if groups[name] is Group.SHARED]
    simulation = Simulation(model, probe.loss(), LocalSteps(batches=((0,),)), names=names, prepare=probe.prepare)
    draws = torch.Generator().manual_seed(int(victim.rng("inversion-start").integers(2**31)))
    bare, protected = [], []
    for image, label in zip(originals, labels, strict=True):
        update = simulation.update(image[None], label[None])
        left = seen(victim.plan, {name: values.numpy() for name, values in update.items()}, NoiseSource.fresh())
        bare.append(_attack(simulation, update, image, label, draws))
        released = {name: torch.from_numpy(values) for name, values in left.items()}
        protected.append(_attack(simulation, released, image, label, draws))
    return [_judged(victim, probe, records, originals, labels, torch.cat(bare), torch.cat(protected))]


def _one_each(records: Records, rng: np.random.Generator) -> list[int]:
    """Return one record of each of a few people."""
    people = rng.permutation(np.unique(records.labels))[:_PEOPLE]
    if len(people) < _PEOPLE:
        raise AuditError(f"inversion: expected a client with {_PEOPLE} people, found {len(people)}; use more data")
    return [int(rng.choice(np.flatnonzero(records.labels == person))) for person in people]


def _attack(
    simulation: Simulation, target: dict[str, Tensor], image: Tensor, label: Tensor, draws: torch.Generator
) -> Tensor:
    found: Reconstruction = reconstruct(simulation, target, tuple(image.shape), label[None], _ATTACK, draws)
    return found.images


def _judged(
    victim: Victim,
    probe: Probe,
    records: Records,
    originals: Tensor,
    labels: Tensor,
    bare: Tensor,
    protected: Tensor,
) -> AuditResult:
    model = victim.final_model().eval()
    gallery = probe.embed(model, records)

    def embed(images: Tensor) -> Tensor:
        return probe.embed_pixels(model, images)

    def judge(images: Tensor) -> AuditResult:
        return audit_reconstruction(
            originals,
            images,
            embed=embed,
            gallery=gallery,
            gallery_labels=records.labels,
            labels=labels.numpy(),
        )

    columns = [
        Column(title="original", images=originals.numpy(), captions=[""] * len(originals)),
        Column(title="without protection", images=bare.numpy(), captions=_captions(originals, bare, embed)),
        Column(title="under this plan", images=protected.numpy(), captions=_captions(originals, protected, embed)),
    ]
    path = reconstruction_grid(victim.pictures / "inversion.png", columns)
    before, after = judge(bare), judge(protected)
    pictures = (str(path.relative_to(victim.folder)),)
    numbers = {**after.numbers, **{f"{name}-bare": value for name, value in before.numbers.items()}}
    text = f"Without the plan: {before.text} As the plan lets the gradient out: {after.text}"
    return AuditResult(
        name="inversion",
        unit=after.unit,
        statistic=after.statistic,
        passed=after.passed,
        numbers=numbers,
        pictures=pictures,
        text=text,
    )


def _captions(originals: Tensor, images: Tensor, embed: Embed) -> list[str]:
    quality = zip(
        psnr(originals, images).tolist(),
        ssim(originals, images).tolist(),
        identity_similarity(originals, images, embed).tolist(),
        strict=True,
    )
    return [measures(*one) for one in quality]
