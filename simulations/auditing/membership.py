"""Membership of people by LiRA: shadow runs of the whole federation, each without a random half of the subjects."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cloister.errors import AuditError
from cloister.flower import NDArray, views
from cloister.privacy.audits.lira import audit_lira, by_subject, lira_scores, over_rounds, prototype_margin
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.events import Unit
from cloister.server.app import RoundReport, load_arrays, serve
from cloister.simulations.audit_pictures import membership_roc
from cloister.simulations.auditing.probe import Records, probe_of
from cloister.simulations.auditing.shadow import ShadowTask
from cloister.simulations.auditing.victim import Victim
from cloister.simulations.engines import open_grid

_SHADOWS, _ATTACKED = 8, 2
_LOOKS = 4  # rounds, evenly spaced, after which the adversary looks at the global model
_LEAST = 8  # people, below which no rate means anything

Coins = np.ndarray[Any, np.dtype[np.bool_]]


def membership(victim: Victim) -> list[AuditResult]:
    """Attack models trained on random halves of the people, with others like them as shadows.

    The adversary sees the global model after several rounds, as every client does. Her statistic: how much nearer a
    person's images lie to that person's mean than to anybody else's, summed over her images. Everything runs through
    the engine, the gate and the plan of the run itself. Whether somebody is in an attacked model is an independent
    coin, as the bound asks for; shadows are drawn so that everybody has some with and some without her.
    """
    prepared = victim.prepared
    people = sorted(prepared.task.subjects())
    if len(people) < _LEAST:
        raise AuditError(f"membership: expected at least {_LEAST} subjects, found {len(people)}; use more people")
    rng = victim.rng("membership")
    coins = np.concatenate([_shadow_coins(rng, len(people)), rng.random((_ATTACKED, len(people))) < 0.5])
    probe = probe_of(prepared.task)
    records = [probe.records(client) for client in prepared.clients]
    seen = np.stack([_statistics(victim, index, row, people, records) for index, row in enumerate(coins)])
    shadows, attacked = slice(None, _SHADOWS), slice(_SHADOWS, None)
    looks = [
        np.stack([lira_scores(look[shadows], coins[shadows], observed) for observed in look[attacked]])
        for look in seen.swapaxes(0, 1)
    ]
    scores = over_rounds(np.stack(looks))
    inside, outside = scores[coins[attacked]], scores[~coins[attacked]]
    path = membership_roc(victim.pictures / "membership.png", {"likelihood ratio": (inside, outside)})
    result = audit_lira(
        scores,
        coins[attacked],
        unit=Unit.SUBJECT,
        statistic="likelihood ratio of the margin of a person's images to her own mean, summed over rounds",
        delta=victim.delta,
        claimed=victim.claimed(Unit.SUBJECT),
    )
    numbers = {**result.numbers, "shadows": float(_SHADOWS), "looks": float(seen.shape[1])}
    return [replace(result, numbers=numbers, pictures=(str(path.relative_to(victim.folder)),))]


def _shadow_coins(rng: np.random.Generator, people: int) -> Coins:
    """Return coins ``[shadows, people]`` under which everybody is in at least two shadows, and out of two."""
    coins = rng.random((_SHADOWS, people)) < 0.5
    while len(few := np.flatnonzero((coins.sum(0) < 2) | (coins.sum(0) > _SHADOWS - 2))):
        coins[:, few] = rng.random((_SHADOWS, len(few))) < 0.5
    return coins


def _statistics(victim: Victim, index: int, inside: Coins, people: list[str], records: list[Records]) -> NDArray:
    """Return what the adversary computes from one model: ``[looks, people]``."""
    prepared = victim.prepared
    absent = [person for person, present in zip(people, inside, strict=True) if not present]
    settings = {"task": prepared.experiment.task, "settings": dict(prepared.task.resolved()), "absent": absent}
    experiment = prepared.experiment.model_copy(
        update={"task": f"{ShadowTask.__module__}:{ShadowTask.__name__}", "seed": prepared.experiment.seed + 1 + index}
    )
    shadow = replace(
        prepared,
        experiment=experiment,
        task=ShadowTask(settings, prepared.data),
        settings=json.dumps(settings),
        evaluator=None,
    )
    total = experiment.rounds
    looks = sorted({round(total * (look + 1) / _LOOKS) for look in range(_LOOKS)} - {0})
    model, found = victim.fresh_model(), list[NDArray]()

    def look(done: RoundReport) -> None:
        if done.result.number in looks:
            found.append(_margins(victim, load_arrays(model, views(done.result.arrays)), people, records))

    with TemporaryDirectory(dir=victim.folder) as kept:
        folder = Path(kept)
        assignment = shadow.assignment(None, look, run=f"shadow-{index}", books=folder / "server")
        with open_grid(experiment.engine, shadow.nodes(folder / "clients")) as grid:
            serve(grid, assignment)
    return np.stack(found)


def _margins(victim: Victim, model: Any, people: list[str], records: list[Records]) -> NDArray:
    """Return each person's margin, summed over her images at all clients."""
    probe = probe_of(victim.prepared.task)
    features = np.concatenate([probe.embed(model, part) for part in records])
    places = {person: place for place, person in enumerate(people)}
    owners = np.array([places[subject] for part in records for subject in part.subjects])
    means = np.stack([features[owners == place].mean(0) for place in range(len(people))])
    return by_subject(prototype_margin(features, means, owners), owners)
