"""What an audit attacks: a finished run's experiment, its plan, and what an adversary sees under that plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict
from torch import nn

from cloister.clients.private_steps import steps_of
from cloister.clients.request import Request
from cloister.clients.stages import staged
from cloister.errors import AuditError
from cloister.flower import NDArray, array_record, views
from cloister.privacy import clipping
from cloister.privacy.events import Unit
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.privacy.steps import NoisyMean
from cloister.randomness import SeedTree
from cloister.server import checkpoint
from cloister.server.app import load_arrays
from cloister.simulations.claims import DELTA
from cloister.simulations.prepare import Prepared
from cloister.simulations.record import RunRecord
from cloister.strategies.streams import SumNoise


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A finished run. ``pictures`` is a folder for images, inside ``folder``; ``seeds`` makes audits repeatable."""

    folder: Path
    prepared: Prepared
    record: RunRecord
    seeds: SeedTree

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        return self.prepared.plan

    @property
    def pictures(self) -> Path:
        """Where pictures go."""
        return self.folder / "audits"

    @property
    def delta(self) -> float:
        """The delta at which bounds are stated: the plan's."""
        return self.plan.budget.delta if self.plan.budget else DELTA

    def claimed(self, unit: Unit, key: str = "epsilon") -> float | None:
        """Return the epsilon that the run claims for a unit, if it claims one at :attr:`delta`."""
        for claim in self.record.privacy.claims:
            value = claim.get(key)
            if claim.get("unit") == unit and isinstance(value, (int, float)):
                return float(value)
        return None

    def rng(self, purpose: str) -> np.random.Generator:
        """Return the auditor's own randomness, which protects nobody."""
        return self.seeds.numpy(purpose=f"audit-{purpose}")

    def fresh_model(self) -> nn.Module:
        """Return the model as it was before the first round."""
        return self.prepared.task.spec.build(self.seeds.torch(purpose="model"))

    def final_model(self) -> nn.Module:
        """Return the model after the last round; raises :class:`AuditError` where there is no checkpoint."""
        saved = checkpoint.latest(self.folder / "checkpoints")
        if saved is None:
            raise AuditError(f"{self.folder}: expected a checkpoint, found none; run or resume it first")
        return load_arrays(self.fresh_model(), saved.arrays)


def seen(plan: Plan, update: Mapping[str, NDArray], noise: NoiseSource) -> dict[str, NDArray]:
    """Return what the plan's adversary sees of one unit's contribution, all others being known to her.

    ``update``: the raw change, or gradient, by name, float32. Under ``trust = "local"`` it is what leaves the client;
    under ``"central"`` what leaves the server. Without noise it is the clipped update. A matrix mechanism is seen in
    its first round.
    """
    copy = {name: np.array(values, np.float32) for name, values in update.items()}
    if plan.private_steps:
        return _stepped(plan, copy, noise)
    request = _request(plan)
    content = RecordDict({"arrays": array_record(copy), "metrics": MetricRecord({"num-examples": 1})})
    left, _ = staged(request, content, noise)
    arrays = {name: np.array(values) for name, values in views(left.array_records["arrays"]).items()}
    if plan.central:
        drawn = SumNoise(plan, noise).draw(1, {name: values.shape for name, values in arrays.items()}, request.norm)
        arrays = {name: (values + drawn[name]).astype(np.float32) for name, values in arrays.items()}
    return arrays


def _stepped(plan: Plan, gradient: dict[str, NDArray], noise: NoiseSource) -> dict[str, NDArray]:
    """Return one unit's gradient as a private step lets it out, but for the division by a public number."""
    import torch

    steps = steps_of(plan)
    clipped = clipping.clip_per_layer(gradient, steps.bounds).values
    mean = NoisyMean(
        noise_multiplier=plan.noise_multiplier,
        sensitivity=clipping.sensitivity(steps.bounds),
        denominator=1.0,
        relation=plan.relation,
    )
    noisy = mean.of([torch.from_numpy(values) for values in clipped.values()], noise)
    return {name: values.numpy() for name, values in zip(clipped, noisy, strict=True)}


def _request(plan: Plan) -> Request:
    bound = plan.clip.bound if plan.clip else np.inf
    if plan.clip and plan.clip.per_layer:
        bound = clipping.sensitivity(plan.clip.per_layer)
    kinds = frozenset({"arrays", "metrics"})
    names: dict[str, Any] = {"kind": "train", "task": "", "run": "audit", "server": ""}
    return Request(**names, round=1, rounds=1, plan=plan, kinds=kinds, norm=bound)
