"""What a client does to a release before it leaves: :meth:`cloister.privacy.plan.Plan.client_stages`, carried out.

Private optimiser steps happen inside training (:mod:`.private_steps`); everything else happens here, on the reply as
the app made it. Under a noisy plan nothing else passes: counts and metrics are functions of the data that no noise
covers.
"""

import math
from collections.abc import Mapping

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


def staged(request: Request, content: RecordDict, noise: NoiseSource | None) -> tuple[RecordDict, tuple[Event, ...]]:
    """Return what may leave of ``content``, and the events of what was noised here.

    Arrays are changed in place. ``noise``: the client's for this round; None where the plan adds none at clients.
    """
    plan = request.plan
    arrays, centres = content.get("arrays"), content.get("centres")
    bit: float | None = None
    if isinstance(arrays, ArrayRecord):
        bit = _update(plan, request.norm, views(arrays), _examples(content), noise)
    events = tuple[Event, ...]()
    if isinstance(centres, ArrayRecord) and (plan.noisy or plan.centres is not None):
        content["centres"], events = noised(plan, views(centres), noise)
    if not plan.noisy:
        return content, events
    kept = {kind: content[kind] for kind in ("arrays", "centres") if kind in content}
    return RecordDict({**kept, "metrics": _public(plan, bit)}), events


def _update(
    plan: Plan, bound: float, arrays: Mapping[str, NDArray], examples: int, noise: NoiseSource | None
) -> float | None:
    """Carry out the stages on the changes, in place; return the un-clipped bit where the plan has it leave.

    ``bound``: the clip bound in force.
    """
    bit: float | None = None
    unclipped = 0.5
    for stage in plan.client_stages():
        match stage.name:
            case "clip-flat" | "clip-per-layer":
                unclipped = _clip(arrays, stage.bounds)
            case "clip-adaptive":
                unclipped = _clip(arrays, {"": bound})
            case "bit":
                bit = unclipped
            case "weight":
                for values in arrays.values():
                    values *= values.dtype.type(min(max(examples, 0) / stage["cap"], 1.0))
            case "noise":
                _add_noise(arrays, stage["noise"] * bound, noise)
            case "unit-steps" | "record-steps" | "centres":  # done in training, and on another release
                continue
            case other:
                raise ReleaseError(f"expected stages that clients know, found {other!r}; nothing leaves")
    return bit


def _clip(arrays: Mapping[str, NDArray], bounds: Mapping[str, float]) -> float:
    clipped = clipping.clip_per_layer(arrays, bounds)
    for name, values in arrays.items():
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
