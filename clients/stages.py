"""What a client does to a release before it leaves: :meth:`cloister.privacy.plan.Plan.client_stages`, carried out.

Private optimiser steps happen inside training (:mod:`.private_steps`); everything else happens here, on the reply as
the app made it. Under a noisy plan nothing else passes: counts and metrics are functions of the data that no noise
covers.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from cloister.clients.request import Request
from cloister.errors import ReleaseError
from cloister.flower import NDArray, array_record, views
from cloister.privacy import clipping
from cloister.privacy.events import Event
from cloister.privacy.local import noised_centres
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.privacy.secagg.masks import Words

Seal = Callable[[Words], ArrayRecord]
"""Returns what leaves in place of the weights: their encoded vector, masked."""


def staged(
    request: Request, content: RecordDict, noise: NoiseSource | None, seal: Seal | None = None
) -> tuple[RecordDict, tuple[Event, ...]]:
    """Return what may leave of ``content``, and the events of what was noised here.

    Arrays are changed in place. ``noise``: the client's for this round; None where the plan adds none at clients.
    ``seal``: puts a vector under this round's masks, where the plan has a secure sum.
    """
    plan = request.plan
    arrays, centres = content.get("arrays"), content.get("centres")
    kept = RecordDict() if plan.noisy or plan.secure else content
    update: _Update | None = None
    events = tuple[Event, ...]()
    if isinstance(centres, ArrayRecord) and (plan.noisy or plan.centres is not None):
        centres, events = noised(plan, views(centres), noise)
    if isinstance(arrays, ArrayRecord):
        summed = centres if request.rows and isinstance(centres, ArrayRecord) else None
        update = _Update(request, views(arrays), _examples(content), noise, seal, summed)
        update.carry_out()
        kept.pop("arrays", None)
        kept.update({"arrays": arrays} if update.masked is None else {"masked": update.masked})
    if isinstance(centres, ArrayRecord):
        kept.pop("centres", None)
        kept.update({"centres": centres} if request.rows is None else {})
    if kept is not content:
        kept["metrics"] = _public(plan, update.bit if update and plan.central and not plan.secure else None)
    return kept, events


class _Update:
    """The weights' changes on their way out. ``bit``: the un-clipped one; ``masked``: what leaves in their place.

    ``centres``: class centres that go into the same sum.
    """

    def __init__(
        self,
        request: Request,
        arrays: Mapping[str, NDArray],
        examples: int,
        noise: NoiseSource | None,
        seal: Seal | None,
        centres: ArrayRecord | None,
    ) -> None:
        self.request, self.arrays, self.examples = request, arrays, examples
        self.noise, self.seal, self.centres = noise, seal, centres
        self.bit: float | None = None
        self.masked: ArrayRecord | None = None
        self._vector: Words | None = None

    def carry_out(self) -> None:
        """Do what the plan's stages say, in their order; raises :class:`ReleaseError` for one that is not known."""
        bound, unclipped = self.request.norm, 0.5
        for stage in self.request.plan.client_stages():
            match stage.name:
                case "clip-flat" | "clip-per-layer":
                    unclipped = _clip(self.arrays, stage.bounds)
                case "clip-adaptive":
                    unclipped = _clip(self.arrays, {"": bound})
                case "bit":
                    self.bit = unclipped
                case "weight":
                    for values in self.arrays.values():
                        values *= values.dtype.type(self._weight(stage["cap"]) / stage["cap"])
                case "noise":
                    _add_noise(self.arrays, stage["noise"] * bound, self.noise)
                case "encode" | "encode-skellam" | "encode-discrete-gaussian":
                    self._encode(self._weight(stage["cap"]) if stage["cap"] else 1.0)
                case "mask":
                    self._mask()
                case "unit-steps" | "record-steps" | "centres":  # done in training, and on another release
                    continue
                case other:
                    raise ReleaseError(f"expected stages that clients know, found {other!r}; nothing leaves")

    def _weight(self, cap: float) -> float:
        return float(min(max(self.examples, 0), cap))

    def _encode(self, weight: float) -> None:
        if self.noise is None:
            raise ReleaseError("secure sum: expected the client's noise, to round by, found none")
        # Of encoding alone: what the session is about was checked before training.
        part = self.request.round_sum({name: values.shape for name, values in self.arrays.items()})
        if not all(np.isfinite(values).all() for values in self.arrays.values()):  # as a clip does; it says nothing
            for values in self.arrays.values():
                values[...] = 0
        source, centres = self.noise.fork("encode"), None if self.centres is None else views(self.centres)
        self._vector = part.encode(self.arrays, source, weight=weight, bit=self.bit or 0.0, centres=centres)

    def _mask(self) -> None:
        if self._vector is None or self.seal is None:
            raise ReleaseError("secure sum: expected an encoded vector and a session, found none; nothing leaves")
        self.masked = self.seal(self._vector)


def _clip(arrays: Mapping[str, NDArray], bounds: Mapping[str, float]) -> float:
    reals = {name: values for name, values in arrays.items() if values.dtype.kind == "f"}
    clipped = clipping.clip_per_layer(reals, bounds)  # counters of buffers, which no plan with noise lets out, stay
    for name, values in reals.items():
        values[...] = clipped.values[name]
    return clipped.bit


def _add_noise(arrays: Mapping[str, NDArray], std: float, noise: NoiseSource | None) -> None:
    if noise is None:
        raise ReleaseError("expected the client's noise, found none; the plan adds noise here")
    for name, values in arrays.items():
        values += noise.fork("update", name).gaussian(values.shape, std).astype(values.dtype)


def _public(plan: Plan, bit: float | None) -> MetricRecord:
    """Return the metrics that a noisy plan lets out: constants of the plan, and the un-clipped bit."""
    metrics: dict[str, int | float] = {"num-examples": 1}
    if plan.private_steps:
        metrics["steps"] = plan.steps
    if bit is not None:
        metrics[clipping.BIT] = bit
    return MetricRecord(metrics)  # type: ignore[arg-type]


def noised(
    plan: Plan, found: Mapping[str, NDArray], noise: NoiseSource | None
) -> tuple[ArrayRecord, tuple[Event, ...]]:
    """Return class centres as they leave, of ``features``, ``labels``, ``units`` and ``classes``, and their events."""
    stage = next((stage for stage in plan.client_stages() if stage.name == "centres"), None)
    if stage is None or noise is None:
        raise ReleaseError("centres: expected [plan.centres] and the client's noise, found none; they would leave bare")
    made = noised_centres(
        found["features"],
        found["labels"],
        found["units"],
        classes=int(found["classes"]),
        bound=stage["bound"],
        contributions=int(stage["contributions"]),
        noise_multiplier=stage["noise_multiplier"],
        count_multiplier=stage["count_multiplier"],
        least=stage["least"],
        unit=plan.unit,
        relation=plan.relation,
        noise=noise.fork("centres"),
    )
    return array_record({"values": made.values, "labels": made.kept}), made.events


def _examples(content: RecordDict) -> int:
    metrics = content.get("metrics")
    count = metrics.get("num-examples", 0) if isinstance(metrics, MetricRecord) else 0
    return int(count) if isinstance(count, (int, float)) and math.isfinite(count) else 0


def zero(arrays: ArrayRecord) -> RecordDict:
    """Return the reply of a client that fails on its own data: no change at all, before any stage."""
    still = {name: np.zeros(tuple(array.shape), array.dtype) for name, array in arrays.items()}
    return RecordDict({"arrays": array_record(still), "metrics": MetricRecord({"num-examples": 1})})
