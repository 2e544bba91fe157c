"""What a client does to a release before it leaves: :meth:`cloister.privacy.plan.Plan.client_stages`, carried out.

Private optimiser steps happen inside training (:mod:`.private_steps`); everything else happens here, on the reply as
the app made it: clip, weight, noise, the un-clipped bit, class centres. Under a noisy plan nothing else passes: counts
and metrics are functions of the data that no noise covers.
"""

import math
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from cloister.clients.request import Request
from cloister.errors import ReleaseError
from cloister.flower import NDArray, array_record, views
from cloister.privacy import clipping
from cloister.privacy.events import Event, Unit
from cloister.privacy.local import noised_centres
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.privacy.settings import ClipKind, Weighting


def staged(request: Request, content: RecordDict, noise: NoiseSource | None) -> tuple[RecordDict, tuple[Event, ...]]:
    """Return what may leave of ``content``, and the events of what was noised here.

    Arrays are changed in place. ``noise``: the client's for this round; None where the plan adds none at clients.
    """
    plan = request.plan
    arrays = content.get("arrays")
    bit: float | None = None
    if isinstance(arrays, ArrayRecord) and not plan.private_steps:
        bit = _bounded(plan, request.norm, views(arrays), _examples(content), noise)
    centres, events = content.get("centres"), tuple[Event, ...]()
    if isinstance(centres, ArrayRecord) and (plan.noisy or plan.centres is not None):
        content["centres"], events = noised(plan, views(centres), noise)
    if not plan.noisy:
        return content, events
    kept = {kind: content[kind] for kind in ("arrays", "centres") if kind in content}
    return RecordDict({**kept, "metrics": _public(plan, bit)}), events


def _bounded(
    plan: Plan, bound: float, arrays: Mapping[str, NDArray], examples: int, noise: NoiseSource | None
) -> float:
    """Clip, weigh and noise the changes in place; return the un-clipped bit."""
    if plan.clip is None:
        return 0.5
    per_layer = plan.clip.kind is ClipKind.PER_LAYER
    clipped = clipping.clip_per_layer(arrays, plan.clip.per_layer) if per_layer else clipping.clip_flat(arrays, bound)
    weight = min(max(examples, 0) / plan.weight_cap, 1.0) if plan.weighting is Weighting.CAPPED else 1.0
    for name, values in arrays.items():
        np.multiply(clipped.values[name], weight, out=values, casting="same_kind")
    if plan.local:  # whatever the mechanism: what a noisy plan lets out of here is noised here, or at every step
        _add_noise(arrays, plan.noise_multiplier * plan.spread * bound, noise)
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
    adaptive = plan.clip is not None and plan.clip.kind is ClipKind.ADAPTIVE
    if adaptive and plan.central and bit is not None:  # the server noises the sum of bits; nobody else would
        metrics[clipping.BIT] = bit
    return MetricRecord(metrics)  # type: ignore[arg-type]


def noised(
    plan: Plan, found: Mapping[str, NDArray], noise: NoiseSource | None
) -> tuple[ArrayRecord, tuple[Event, ...]]:
    """Return class centres as they leave, of ``features``, ``labels``, ``units`` and ``classes``, and their events."""
    settings = plan.centres
    if settings is None or noise is None:
        raise ReleaseError("centres: expected [plan.centres] and the client's noise, found none; they would leave bare")
    made = noised_centres(
        found["features"],
        found["labels"],
        found["units"],
        classes=int(found["classes"]),
        bound=settings.bound,
        contributions=1 if plan.unit is Unit.EXAMPLE else plan.records,
        noise_multiplier=settings.noise_multiplier,
        count_multiplier=settings.count_multiplier,
        least=settings.least,
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
