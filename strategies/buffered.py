"""Buffered asynchronous averaging: FedBuff (Nguyen et al., AISTATS 2022, algorithm 1).

Clients train all the time, ``concurrency`` of them at once, each on the model that was newest when it was asked. After
``buffer`` accepted replies the server takes a step, which is a round, and whoever is still training goes on. So nobody
waits for the slowest; but a reply may be to an older model, and weighs less for it.

- **One reply of a client in one buffer.** A client that answers twice waits for the next buffer; what one client can
  change in a step is one clipped reply, which central noise counts on.
- **One reply of a client to one round's model.** It is asked again when the model has moved on: until then it would
  send the same bytes again. A client whose reply was refused is asked again in the next round.
- **The replies in a buffer are folded in the order of names.** A run is determined by which replies met in which
  buffer, not by their order there. That depends on when they arrive, so runs on two engines differ; with
  ``concurrency = buffer =`` the number of clients it is FedAvg, bit for bit.
- A checkpoint keeps no reply that was not counted. Whoever was asked when it was written is asked again, first.

Under Flower's own loop nothing is asynchronous: each round asks ``concurrency`` clients and waits for them.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MessageType, RecordDict
from flwr.serverapp import Grid

from cloister.errors import PlanError
from cloister.flower import NDArray, views
from cloister.models.spec import Group
from cloister.strategies.adaptive import ServerOptimiser
from cloister.strategies.base import StrategyState
from cloister.strategies.cohort import Client, Cohort
from cloister.strategies.config import FedBuffConfig, StrategyConfig
from cloister.strategies.flights import Arrival, Flight, Flights
from cloister.strategies.fold import Fold, check_model
from cloister.strategies.inbox import settled
from cloister.strategies.rounds import Outcome, RoundResult, Stopwatch, Traffic
from cloister.strategies.validation import Reply, ReplyRules, sizes

STALENESS = "staleness"
"""The metric of a reply: how many steps the server had taken since it sent the model that was trained."""


@dataclass(kw_only=True)
class _Step:
    """One step while its buffer fills. ``queue``: clients that may be asked, longest waiting first."""

    number: int
    arrays: ArrayRecord
    cohort: Cohort
    record: ConfigRecord
    rules: ReplyRules
    queue: deque[Client]
    buffer: dict[str, tuple[Flight, Reply]] = field(default_factory=dict)
    refused: dict[str, Outcome] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)

    def count(self, name: str, more: Traffic) -> None:
        """Add bytes that went to or came from a client in this step, whichever step they count in."""
        self.traffic[name] = self.traffic.get(name, Traffic()).plus(more)


class FedBuff(ServerOptimiser):
    """New model = old model + learning rate x mean of the buffer's changes, each weighed by its staleness."""

    config: FedBuffConfig

    def __init__(self, config: StrategyConfig, **keywords: Any) -> None:
        """Start with nobody asked; refuses a plan under which the masks of one round's cohort are to cancel."""
        if keywords.get("secure") is not None:
            raise PlanError(
                "strategy fedbuff: expected a plan without [plan.secure], found one: masks cancel among the clients of "
                "one round, and a buffer mixes rounds; choose fedavg, or leave [plan.secure] out"
            )
        super().__init__(config, **keywords)
        self._flights = Flights(self.clock, self.sleep)
        self._arrived: list[Arrival] = []  # in order of arrival; they wait for a buffer
        self._first: list[str] = []  # to be asked before others: a resumed run's

    def train(
        self,
        grid: Grid,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout_s: float,
        watch: Stopwatch,
    ) -> RoundResult:
        """Return step ``number``: when the buffer is full, nobody can be asked, or ``timeout_s`` seconds have passed.

        ``timeout_s`` is also how long one reply may take; later ones are refused. Clients that have not answered when
        the step is taken go on.
        """
        with watch.stage("configure"):
            step = self._open_step(grid, number, arrays, config)
        deadline = self.clock() + timeout_s
        with watch.stage("wait"):
            self._admit(step)
            while len(step.buffer) < self.config.buffer and self.clock() < deadline:
                self._ask(grid, step)
                if not self._flights:
                    break
                with watch.stage("aggregate"):
                    arrivals = self._flights.land(grid)
                if not arrivals:
                    self._flights.wait(grid, deadline, timeout_s)
                    arrivals = self._flights.overdue(grid, timeout_s)
                self._arrived += arrivals
                self._admit(step)
        with watch.stage("aggregate"):
            return self._take_step(step)

    def leave(self, grid: Grid) -> None:
        """Give up everything that was asked and not counted."""
        self._flights.clear(grid)
        self._arrived.clear()

    def state(self) -> StrategyState:
        """Return what a resumed run needs: beside the model, who was asked and has not been counted."""
        state = super().state()
        return replace(state, values={**state.values, "asked": sorted(self._busy())})

    def restore(self, state: StrategyState) -> None:
        """Continue from ``state``; raises RunError if another strategy left it."""
        super().restore(state)
        self._first = list(state.values["asked"])

    def weight(self, staleness: int) -> float:
        """Return what a reply counts that is so many steps late: ``(1 + s) ** -staleness_exponent``, public."""
        return float((1 + staleness) ** -self.config.staleness_exponent)

    def _step(self, number: int, current: Mapping[str, NDArray], mean: Mapping[str, NDArray]) -> dict[str, NDArray]:
        rate = self.config.learning_rate
        if rate == 1:
            return dict(mean)
        return {name: values + rate * (mean[name] - values) for name, values in current.items()}

    def _expected(self, cohort: Cohort) -> int:
        return self.config.buffer

    def _cohort(self, grid: Grid, number: int) -> Cohort:  # of a round of Flower's own loop
        if self.privacy is not None:
            return super()._cohort(grid, number)
        return self._draw(grid, number, "cohort", 1.0, self.config.concurrency)

    def _open_step(self, grid: Grid, number: int, arrays: ArrayRecord, config: ConfigRecord) -> _Step:
        check_model(self.groups, views(arrays))
        cohort = self._draw(grid, number, "cohort", 1.0, None)
        order = self.seeds.numpy(purpose="cohort", round=number).permutation(len(cohort.clients))
        queue = [cohort.clients[place] for place in order]
        queue.sort(key=lambda client: client.name not in self._first)  # stable
        self._first = []
        return _Step(
            number=number,
            arrays=arrays,
            cohort=cohort,
            record=self._train_record(number, config),
            rules=self._rules(arrays),
            queue=deque(queue),
            refused={name: settled(reason, None) for name, reason in cohort.excluded.items()},
        )

    def _ask(self, grid: Grid, step: _Step) -> None:
        """Ask those who may be asked until ``concurrency`` clients train."""
        busy, chosen = self._busy(), list[Client]()
        while step.queue and len(self._flights) + len(chosen) < self.config.concurrency:
            client = step.queue.popleft()
            if client.name not in busy and client.name not in step.refused:
                chosen.append(client)
        if not chosen:
            return
        content = RecordDict({"arrays": step.arrays, "config": step.record})
        down, now = sizes(content), self.clock()
        bound = 0.0 if self.privacy is None else self.privacy.bound
        flights = [
            Flight(client=client, round=step.number, sent_at=now, rules=step.rules, bound=bound) for client in chosen
        ]
        for client in chosen:
            step.count(client.name, Traffic(down=down))
        contents = {client.name: content for client in chosen}
        asked = Cohort(clients=tuple(chosen), pool=step.cohort.pool)
        messages = self._messages(asked, contents, MessageType.TRAIN, step.number)
        self._arrived += self._flights.send(grid, messages, flights)
        self._admit(step)

    def _admit(self, step: _Step) -> None:
        """Put what has arrived into the buffer, in order, as long as there is room; one of each client."""
        waiting = []
        for arrival in self._arrived:
            name = arrival.flight.client.name
            known = name in step.buffer or name in step.refused
            if known or len(step.buffer) >= self.config.buffer:
                waiting.append(arrival)
                continue
            step.count(name, Traffic(up=arrival.up))
            staleness, reply = step.number - arrival.flight.round, arrival.reply
            if isinstance(reply, str):
                step.refused[name] = settled(reply, None)
            elif staleness > self.config.most_staleness:
                most = self.config.most_staleness
                reason = f"expected a change of a model at most {most} steps old, found {staleness}"
                step.refused[name] = Outcome(accepted=False, reason=reason, digest=reply.digest, head=reply.head)
            else:
                step.buffer[name] = (arrival.flight, reply)
                if staleness:  # it has not seen this model yet
                    step.queue.append(arrival.flight.client)
        self._arrived = waiting

    def _take_step(self, step: _Step) -> RoundResult:
        current = views(step.arrays)
        fold = self.open_fold(step.number, current)
        outcomes = dict(step.refused)
        for name in sorted(step.buffer):
            outcomes[name] = self._fold(fold, step.number, *step.buffer.pop(name), current)
        ordered = dict(sorted(outcomes.items()))
        return self.settle(step.number, step.arrays, step.cohort, fold, ordered, step.traffic)

    def _fold(self, fold: Fold, number: int, flight: Flight, reply: Reply, current: Mapping[str, NDArray]) -> Outcome:
        staleness = number - flight.round
        outcome = settled(reply, lambda given: fold.add(self._aged(given, flight, staleness, current)))
        return replace(outcome, metrics={**outcome.metrics, STALENESS: float(staleness)} if outcome.accepted else {})

    def _aged(self, reply: Reply, flight: Flight, staleness: int, current: Mapping[str, NDArray]) -> Reply:
        """Return a reply to an older model as it counts for this one, its changes no longer than the bound in force.

        Statistics are no steps: what moves the present ones is their difference from those that the client reports.
        """
        if staleness == 0:
            return reply
        factor = self.weight(staleness)
        if self.privacy is not None:  # the bound may have shrunk since the client clipped to it
            factor *= min(1.0, self.privacy.bound / flight.bound)
        deltas = {}
        for name, delta in reply.deltas.items():
            if self.groups[name] is Group.BUFFER:
                delta = delta + (flight.sent[name] - current[name])
            deltas[name] = np.asarray(delta * factor)
        return replace(reply, deltas=deltas)

    def _busy(self) -> frozenset[str]:
        """Return who was asked and has not been counted."""
        return self._flights.clients | {arrival.flight.client.name for arrival in self._arrived}
