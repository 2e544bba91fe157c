"""What an audit attacks: a finished run's experiment, its plan, and what an adversary sees under that plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from torch import Tensor, nn

from cloister.clients.private_steps import steps_of
from cloister.clients.request import Request
from cloister.clients.stages import staged
from cloister.errors import AuditError
from cloister.flower import NDArray, array_record, views
from cloister.privacy.dpsgd import PrivateData
from cloister.privacy.events import Unit
from cloister.privacy.noise import NoiseSource
from cloister.privacy.per_record import Method
from cloister.privacy.plan import Plan
from cloister.privacy.sampling import Everyone
from cloister.privacy.secagg.layout import Layout
from cloister.privacy.subjects import UnitSteps
from cloister.privacy.summing import shares_of
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
    under ``"central"`` what leaves the server; under ``"distributed"`` the sum with the fewest honest shares of noise
    in it. Without noise it is the clipped update, for a secure sum hides nothing from who knows all others. A matrix
    mechanism is seen in its first round.
    """
    copy = {name: np.array(values, np.float32) for name, values in update.items()}
    if plan.private_steps:
        return _stepped(plan, copy, noise)
    request = _request(plan.model_copy(update={"secure": None}))
    content = RecordDict({"arrays": array_record(copy), "metrics": MetricRecord({"num-examples": 1})})
    left, _ = staged(request, content, noise)
    arrays = {name: np.array(values) for name, values in views(left.array_records["arrays"]).items()}
    if plan.central:
        drawn = SumNoise(plan, noise).draw(1, {name: values.shape for name, values in arrays.items()}, request.norm)
        arrays = {name: (values + drawn[name]).astype(np.float32) for name, values in arrays.items()}
    return _shared(plan, arrays, request.norm, noise) if plan.distributed else arrays


def _shared(plan: Plan, arrays: Mapping[str, NDArray], bound: float, noise: NoiseSource) -> dict[str, NDArray]:
    """Return what a sum says of one clipped update when the fewest honest clients are in it, the others with zeros."""
    layout = Layout.of({name: values.shape for name, values in arrays.items()})
    shares = replace(shares_of(plan, bound), size=layout.size - 1)
    vector, seed = layout.flatten(arrays), bytes(32)
    total = np.zeros(shares.dimension, np.uint32)
    for client in range(shares.least - shares.dishonest):
        total += shares.encode(vector if client == 0 else 0 * vector, noise.fork("share", client), seed)
    total &= np.uint32((1 << shares.bits) - 1)
    values = layout.unflatten(shares.decode(total, seed).vector)[0]
    return {name: part.astype(np.float32) for name, part in values.items()}


def _stepped(plan: Plan, gradient: dict[str, NDArray], noise: NoiseSource) -> dict[str, NDArray]:
    """Return one unit's gradient as a private step of the plan lets it out, but for the division by a public number.

    The step is taken on a model that starts at zero and whose loss has that gradient; what it moves by, an optimiser
    sees. Of a unit with several records in a step, all have it.
    """
    model = _Slope(gradient)
    steps = replace(steps_of(plan), sampler=Everyone(), steps=1, denominator=1.0, method=Method.LOOP)
    copies = plan.records if isinstance(steps, UnitSteps) else 1
    data = PrivateData(owners=["unit"] * copies, fetch=lambda indices: (torch.ones(len(indices)),))
    steps.run(model, lambda module, records: module(*records), data, torch.optim.SGD(model.parameters(), lr=1.0), noise)
    return {name: -values.detach().numpy() for name, values in model.named_parameters()}


class _Slope(nn.Module):
    """A loss that is linear in parameters of given names, all zero, with a given gradient per record."""

    def __init__(self, gradient: Mapping[str, NDArray]) -> None:
        super().__init__()
        self.gradient = {name: torch.from_numpy(values) for name, values in gradient.items()}
        for name, values in self.gradient.items():
            *path, leaf = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(leaf, nn.Parameter(torch.zeros_like(values)))

    def forward(self, ones: Tensor) -> Tensor:
        """Return a loss for each of so many ones."""
        return ones * torch.stack([(self.get_parameter(name) * it).sum() for name, it in self.gradient.items()]).sum()


def _request(plan: Plan) -> Request:
    kinds = frozenset({"arrays", "metrics"})
    names: dict[str, Any] = {"kind": "train", "task": "", "run": "audit", "server": ""}
    return Request(**names, round=1, rounds=1, plan=plan, kinds=kinds, norm=plan.clip_norm)
