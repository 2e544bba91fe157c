"""What all events of one unit cost together: epsilon at a delta, and delta at an epsilon.

Privacy-loss distributions (PLD) are the reference; Renyi differential privacy (RDP) is the cross-check, and where
there is no PLD (sampling without replacement, noise in shares) the answer: :mod:`cloister.privacy.composition`. Events
that are nothing but Gaussian noise on everybody need neither: their cost has a closed form. Every number is an upper
bound for the unit and the relation of the events.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from cloister.errors import PlanError
from cloister.privacy import composition
from cloister.privacy.events import SHARED, Event, EventKind, Relation, Sampler
from cloister.privacy.gaussian import exact_delta, exact_epsilon

Accountant = Literal["pld", "rdp"]

_CLOSE = 5e-5  # of a calibrated epsilon to its target, and of its noise to the least that does, relative
_WIDEN = math.log(4.0)
_MOST_LOG_NOISE = math.log(1e7)
_FREE = 1e-12


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events with equal ones counted together, in one order: what they cost is the same.

    Gaussian noise on everybody becomes one event, since squares of 1 / noise_multiplier add. Raises :class:`PlanError`
    for events of different units or relations, which have no cost in common.
    """
    counts: dict[Event, int] = {}
    for event in events:
        key = event if event.count == 1 else replace(event, count=1)
        counts[key] = counts.get(key, 0) + event.count
    for name, found in (("unit", {key.unit for key in counts}), ("relation", {key.relation for key in counts})):
        if len(found) > 1:
            raise PlanError(
                f"accounting: expected events of one {name}, found {', '.join(sorted(found))}; "
                f"query the events of each {name} by themselves"
            )
    whole = [key for key in counts if _on_everybody(key)]
    if len(whole) > 1:
        joint = _joint_noise([replace(key, count=counts.pop(key)) for key in whole])
        counts[replace(whole[0], noise_multiplier=joint, group=1, sampler=Sampler.ALL, rate=1.0)] = 1
    merged = [replace(event, count=count) for event, count in counts.items()]
    return tuple(sorted(merged, key=lambda event: str(event.values())))


def epsilon(events: Iterable[Event], delta: float, *, accountant: Accountant = "pld") -> float:
    """Return the epsilon that all events together cost at ``delta``; infinity after a release without noise.

    Raises :class:`PlanError` for events that no accountant covers (:func:`uncovered`), and without dp-accounting where
    it is needed.
    """
    if not 0 < delta < 1:
        raise PlanError(f"accounting: delta: expected a number above 0 and below 1, found {delta}")
    return _cost(merge(events), delta, accountant)


def delta(events: Iterable[Event], epsilon: float, *, accountant: Accountant = "pld") -> float:
    """Return the smallest delta at which all events together are known to cost at most ``epsilon``.

    Raises :class:`PlanError` as :func:`epsilon` does.
    """
    if not 0 <= epsilon < math.inf:
        raise PlanError(f"accounting: epsilon: expected a finite number of at least 0, found {epsilon}")
    merged = merge(events)
    if not merged:
        return 0.0
    if any(event.kind is EventKind.NONE for event in merged):
        return 1.0
    chosen = answering(merged, accountant)
    if chosen == "exact":
        return exact_delta(_joint_noise(merged), epsilon)
    return composition.pld_delta(merged, epsilon) if chosen == "pld" else composition.rdp_delta(merged, epsilon)


def calibrate(events: Callable[[float], tuple[Event, ...]], epsilon: float, delta: float) -> float:
    """Return the smallest noise multiplier with which ``events(noise_multiplier)`` cost at most ``epsilon``.

    What they cost is then no more than ``epsilon``, and no less than that by more than a part in 10,000. Raises
    :class:`PlanError` where no noise is enough, because of what does not depend on it.
    """
    if not 0 < epsilon < math.inf or not 0 < delta < 1:
        raise PlanError(
            f"accounting: expected a finite positive epsilon and a delta above 0 and below 1, found {epsilon}, {delta}"
        )

    def excess(log_noise: float) -> float:
        return math.log(max(_cost(merge(events(math.exp(log_noise))), delta, "pld"), _FREE) / epsilon)

    high, low = 0.0, 0.0
    above, below = excess(high), excess(low)
    while above > 0:
        low, below = high, above
        high += _WIDEN
        if high > _MOST_LOG_NOISE:
            raise PlanError(
                f"accounting: expected epsilon {epsilon:g} at delta {delta:g}, found "
                f"{epsilon * math.exp(above):.4g} with a noise multiplier of {math.exp(low):.3g} and what other "
                "releases cost; allow a larger epsilon, more noise on the other releases, or fewer rounds"
            )
        above = excess(high)
    while below <= 0 and low > -_MOST_LOG_NOISE:
        high, above = low, below
        low -= _WIDEN
        below = excess(low)
    return math.exp(_root(excess, (low, below), (high, above)))


def answering(events: Iterable[Event], asked: Accountant = "pld") -> str:
    """Return which accountant answers for these events, whichever was asked for: "exact", "pld" or "rdp".

    Raises :class:`PlanError` for events that none covers.
    """
    merged = merge(events)
    for event in merged:
        if problem := uncovered(event):
            raise PlanError(f"accounting: {problem}")
    if asked == "rdp" or any(event.kind in SHARED or event.sampler is Sampler.WITHOUT_REPLACEMENT for event in merged):
        return "rdp"
    return "exact" if all(_on_everybody(event) for event in merged) else "pld"


def uncovered(event: Event) -> str:
    """Return why no accountant covers ``event``, and what to do; empty if one does.

    Poisson's formula is for Poisson draws alone. A fixed batch is counted as once everybody for each epoch, and a
    subset without replacement has a formula of its own; in both, ``population`` is a public number of places, of which
    two neighbouring data sets differ in one. Noise in shares is for secure sums, where the server sees who takes part.
    """
    sampled = event.sampler in (Sampler.POISSON, Sampler.WITHOUT_REPLACEMENT)
    if event.kind in SHARED and sampled:
        return (
            "in a secure sum the server sees which clients take part, so their draw is no secret and lessens nothing; "
            "count every round as everybody, with sampler all"
        )
    if event.kind is EventKind.DISCRETE_GAUSSIAN and (event.noise_multiplier * event.l2) ** 2 < event.shares / 2:
        return "discrete Gaussian shares have a formula from a variance of 1/2 on; take more bits or more noise"
    if event.kind in SHARED and event.relation is Relation.ADD_REMOVE:
        return (
            "a client that is not there adds no share of the noise either, and a secure sum does not hide that it is "
            "not there; take relation zero-out or replace-one, which hide what it adds"
        )
    if event.kind is EventKind.RANDOMISED_RESPONSE and (sampled or event.group > 1):
        return "randomised response has no formula under sampling or for groups; count every answer, with sampler all"
    if event.kind is EventKind.LAPLACE and event.sampler is Sampler.WITHOUT_REPLACEMENT:
        return "Laplace noise has no formula without replacement; draw with poisson, or add Gaussian noise"
    if event.group > 1 and event.sampler is Sampler.WITHOUT_REPLACEMENT:
        return "groups of records have no formula without replacement; draw with poisson, or sample units"
    if event.sampler is not Sampler.POISSON or event.rate == 1:
        return ""
    if event.kind is EventKind.LAPLACE and (event.group > 1 or event.relation is Relation.REPLACE_ONE):
        return "Laplace noise on samples has a formula for one record added or removed only; add Gaussian noise"
    if event.group > 1 and event.relation is Relation.REPLACE_ONE:
        return "sampled records in groups have a formula for groups added or removed only; take relation add-remove"
    return ""


def _root(excess: Callable[[float], float], low: tuple[float, float], high: tuple[float, float]) -> float:
    """Return a place where ``excess`` is a little below 0, between two where it is above and not above.

    The Illinois variant of false position: costs are nearly straight in logarithms.
    """
    (left, above), (right, under) = low, high
    last = 0
    while right - left > _CLOSE and under < -_CLOSE:
        middle = right - under * (right - left) / (under - above)
        middle = min(max(middle, left + _CLOSE / 4), right - _CLOSE / 4)
        value = excess(middle)
        if value > 0:
            left, above = middle, value
            under = under / 2 if last > 0 else under
            last = 1
        else:
            right, under = middle, value
            above = above / 2 if last < 0 else above
            last = -1
    return right


@lru_cache(maxsize=4096)
def _cost(merged: tuple[Event, ...], delta: float, accountant: Accountant) -> float:
    if not merged:
        return 0.0
    if any(event.kind is EventKind.NONE for event in merged):
        return math.inf
    chosen = answering(merged, accountant)
    if chosen == "exact":
        return exact_epsilon(_joint_noise(merged), delta)
    return composition.pld_epsilon(merged, delta) if chosen == "pld" else composition.rdp_epsilon(merged, delta)


def _on_everybody(event: Event) -> bool:
    """Return whether an event is Gaussian noise in which every unit takes part each time it counts."""
    sampled = event.sampler is Sampler.WITHOUT_REPLACEMENT or event.rate < 1
    return event.kind is EventKind.GAUSSIAN and not sampled


def _joint_noise(events: Iterable[Event]) -> float:
    """Return the noise multiplier of one release that costs what all these do."""
    return 1 / math.sqrt(math.fsum(event.count * (event.group / event.noise_multiplier) ** 2 for event in events))
