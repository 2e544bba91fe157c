"""What a run may claim: epsilon at a delta, for which unit, and what the worst and the median person lose.

A person is on one client or on several. Noise that is added inside each client (private steps, noised uploads) leaves
her with what she loses at each of them, together (Marathe et al. 2022, arXiv 2206.03617). Noise on the sum of whole
updates hides one client; a person on m of them moves that sum up to m times as far, and is accounted as a group.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cloister.privacy import accounting
from cloister.privacy.events import Event, Relation, Sampler, Unit
from cloister.privacy.plan import Plan

SERVER = "server"
"""The name under which the events of a plan with trust central are given: they are the server's."""

Ledgers = Mapping[str, Sequence[Event]]

_CHANGED = {
    Relation.ADD_REMOVE: "added or removed",
    Relation.REPLACE_ONE: "replaced by another",
    Relation.ZERO_OUT: "replaced by nothing",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An upper bound on what one unit loses.

    ``epsilon`` at ``delta``: of the unit that loses most; infinity where nothing can be claimed. ``epsilon_rdp``: the
    same by RDP, a cross-check. ``accountant``: "exact", "pld", "rdp" or "none". ``worst``, ``median``: what people lose
    by the clients that they are on; None where the plan says nothing about people, and no median where who is where is
    not known: ``worst`` then counts the plan's ``clients``. ``subjects``: how many people were counted. ``text``: all
    of this in sentences, and against whom it holds.
    """

    unit: Unit
    relation: Relation
    sampler: Sampler
    accountant: str
    epsilon: float
    delta: float
    epsilon_rdp: float
    worst: float | None
    median: float | None
    subjects: int
    text: str

    def values(self) -> dict[str, Any]:
        """Return JSON values; what is infinite, and so no claim, is None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def claim(
    plan: Plan,
    delta: float,
    *,
    rounds: int,
    events_by_client: Ledgers | None = None,
    subjects: Mapping[str, tuple[str, ...]] | None = None,
) -> Claim:
    """Return what a run under ``plan`` may claim after ``rounds`` rounds.

    ``events_by_client``: what the ledgers hold (where the server adds the noise: its own, under ``SERVER``); without
    it, what the plan makes of so many rounds at every client. ``subjects``: the clients on which each person has
    records; without it, a person is on as many clients as the plan declares, and those have the longest ledgers.

    Raises :class:`~cloister.errors.PlanError` where the unit's own events cannot be accounted.
    """
    ledgers = _planned(plan, rounds, subjects or {}) if events_by_client is None else events_by_client
    people = _people(plan, ledgers, delta, subjects)
    events = _of_worst_unit(plan, ledgers, delta, subjects)
    epsilon = accounting.epsilon(events, delta) if plan.noisy else math.inf
    worst = max(people) if people else None
    if not people and plan.noisy and plan.unit in (Unit.SUBJECT, Unit.CLIENT):
        worst = _cost(_declared(plan, ledgers), delta)
    draft = Claim(
        unit=plan.unit,
        relation=plan.relation,
        sampler=plan.sampler if plan.central or plan.private_steps else Sampler.ALL,
        accountant=accounting.answering(events) if math.isfinite(epsilon) and events else "none",
        epsilon=epsilon,
        delta=delta,
        epsilon_rdp=accounting.epsilon(events, delta, accountant="rdp") if math.isfinite(epsilon) else math.inf,
        worst=worst,
        median=statistics.median(people) if people else None,
        subjects=len(people),
        text="",
    )
    return replace(draft, text=_text(plan, draft))


def of_person(plan: Plan, ledgers: Ledgers, clients: Sequence[str]) -> tuple[Event, ...]:
    """Return all events of a person with records on ``clients``; a client that has no ledger has released nothing."""
    if not plan.central:
        return tuple(event for client in clients for event in ledgers.get(client, ()))
    return _grouped(ledgers.get(SERVER, ()), len(clients))


def _planned(plan: Plan, rounds: int, subjects: Mapping[str, tuple[str, ...]]) -> Ledgers:
    if plan.central:
        return {SERVER: plan.events(rounds)}
    named = {client for clients in subjects.values() for client in clients}
    made_up = (f"client {number}" for number in range(1, plan.clients + 1))
    return {name: plan.events(rounds) for name in sorted(named) or made_up}


def _people(plan: Plan, ledgers: Ledgers, delta: float, subjects: Mapping[str, tuple[str, ...]] | None) -> list[float]:
    """Return what each person loses; equal sets of clients are accounted once."""
    if not subjects or not plan.noisy or plan.unit not in (Unit.SUBJECT, Unit.CLIENT):
        return []
    costs: dict[tuple[str, ...], float] = {}
    for clients in subjects.values():
        key = tuple(sorted(clients))
        if key not in costs:
            costs[key] = _cost(of_person(plan, ledgers, key), delta)
    return [costs[tuple(sorted(clients))] for clients in subjects.values()]


def _of_worst_unit(
    plan: Plan, ledgers: Ledgers, delta: float, subjects: Mapping[str, tuple[str, ...]] | None
) -> tuple[Event, ...]:
    """Return the events of the unit that loses most; of examples and clients, that with the dearest ledger."""
    if plan.unit in (Unit.EXAMPLE, Unit.CLIENT):
        every = [tuple(events) for events in ledgers.values()]
    elif plan.unit is Unit.SUBJECT and subjects:
        every = [of_person(plan, ledgers, clients) for clients in {tuple(sorted(it)) for it in subjects.values()}]
    else:
        every = [_declared(plan, ledgers)]
    return max(every, key=lambda events: _cost(events, delta), default=())


def _declared(plan: Plan, ledgers: Ledgers) -> tuple[Event, ...]:
    """Return at least the events of a unit on ``plan.clients`` clients, whichever these are.

    Of each event, the most that any client counts, on as many clients as the unit can be on and as there are ledgers.
    """
    if plan.central:
        return _grouped(ledgers.get(SERVER, ()), plan.clients)
    most: dict[Event, int] = {}
    for events in ledgers.values():
        counts: Counter[Event] = Counter()
        for event in events:
            counts[replace(event, count=1)] += event.count
        most = {event: max(most.get(event, 0), counts[event]) for event in {*most, *counts}}
    times = min(plan.clients, len(ledgers))
    return tuple(replace(event, count=count * times) for event, count in most.items())


def _grouped(events: Sequence[Event], clients: int) -> tuple[Event, ...]:
    """Return what a person loses who has a part in this many of the contributions that each event hides one of."""
    return tuple(event if clients <= 1 else replace(event, group=event.group * clients) for event in events)


def _cost(events: Sequence[Event], delta: float) -> float:
    """Return an epsilon; infinity where there is no formula, and so no claim."""
    if any(accounting.uncovered(event) for event in events):
        return math.inf
    return accounting.epsilon(events, delta)


def _text(plan: Plan, found: Claim) -> str:
    if not math.isfinite(found.epsilon):
        return (
            "Nothing is claimed: something was released without noise, so no epsilon holds. What is protected is what "
            "the gate keeps at the clients, and nothing that is derived from what leaves."
        )
    against = "everybody, the server included"
    if plan.central:
        seen = "single updates" if plan.secure is None else "their sum without the noise"
        against = f"everybody but the server, which sees {seen}"
    elif plan.distributed and plan.secure is not None:
        secure = plan.secure
        against = (
            f"everybody, a {secure.server} server with up to {secure.adversaries:.0%} of the clients included, who see "
            "sums alone: it rests on the secure sum, and on each other client adding its share of the noise"
        )
    cross = f"; by RDP {found.epsilon_rdp:.4g}" if found.accountant == "pld" else ""
    sentences = [
        f"One {found.unit}, {_CHANGED[found.relation]}, changes what anybody can tell by at most epsilon "
        f"{found.epsilon:.4g} at delta {found.delta:g} (accountant {found.accountant}{cross}; drawn: {found.sampler}).",
        f"This holds against {against}.",
        _about_people(plan, found),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _about_people(plan: Plan, found: Claim) -> str:
    if plan.unit is Unit.EXAMPLE:
        return "It is a claim about single records: a person with many of them loses more, and how much is not claimed."
    if plan.unit is Unit.SESSION:
        return (
            f"A session is counted on {plan.clients} client(s). A person with several sessions loses more, and how "
            "much is not claimed."
        )
    if found.worst is None or not math.isfinite(found.worst):
        return "For a person on several clients there is no formula, and nothing is claimed."
    if found.subjects and found.median is not None:
        median = f"{found.median:.4g}" if math.isfinite(found.median) else "not claimed"
        return (
            f"Of {found.subjects} people, by the clients they are on, the worst loses {found.worst:.4g}, the median "
            f"{median}."
        )
    return (
        f"On which clients people are is not known: a person is counted on {plan.clients} client(s), the declared "
        f"worst case, and loses at most {found.worst:.4g}."
    )
