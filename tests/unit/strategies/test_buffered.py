"""FedBuff: who is asked when, what is in which buffer, how much it weighs, and what a resumed run asks for again."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ConfigError, PlanError, QuorumError
from cloister.flower import array_record, views
from cloister.models.spec import Group
from cloister.privacy.clipping import BIT
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.strategies.base import StrategyState
from cloister.strategies.config import StrategyConfig
from cloister.strategies.private import CentralPrivacy

Seconds = Callable[[str, int], float]


@pytest.fixture(scope="module")
def timed(lab: SimpleNamespace) -> Any:
    """A grid on which each client takes a time of its own, so that the test says in which order replies arrive."""

    class TimedGrid(lab.FakeGrid):  # type: ignore[name-defined, misc]
        def __init__(self, clients: Mapping[str, Any], seconds: Seconds) -> None:
            super().__init__(clients)
            self.seconds, self.flying, self.most = seconds, [], 0
            self.asked: list[tuple[float, str, int]] = []

        def push_messages(self, messages: Any) -> list[str]:
            batch = list(messages)
            identifiers = super().push_messages(batch)
            ready = {reply.metadata.reply_to_message_id: reply for reply in self._coming}
            self._coming = []
            for identifier, message in zip(identifiers, batch, strict=True):
                name = self.names[message.metadata.dst_node_id]
                number = int(message.content["config"]["server-round"])
                self.asked.append((self.now, name, number))
                self.flying.append((self.now + self.seconds(name, number), identifier, ready.get(identifier)))
            self.most = max(self.most, len(self.flying))
            return identifiers

        def wait(self, timeout_s: float) -> None:
            due = [time for time, _, reply in self.flying if reply is not None]
            self.now = min([self.now + timeout_s, *due])
            for item in sorted((it for it in self.flying if it[0] <= self.now and it[2]), key=lambda it: it[0]):
                self.flying.remove(item)
                self._ready[item[1]] = item[2]

        def cancel(self, message_ids: Any) -> None:
            gone = set(message_ids)
            super().cancel(gone)
            self.flying = [item for item in self.flying if item[1] not in gone]

    return TimedGrid


SMALL = {"w": np.zeros(2, np.float32)}


def constant(**changes: float) -> dict[str, Any]:
    """Clients whose change is the same whatever they are sent."""

    def client(value: float) -> Any:
        def answer(message: Message) -> RecordDict:
            change = array_record({"w": np.array([value, 1.0], np.float32)})
            return RecordDict({"arrays": change, "metrics": MetricRecord({"num-examples": 3, "loss": value})})

        return answer

    return {name: client(value) for name, value in changes.items()}


def small(lab: SimpleNamespace, grid: Any, rounds: int, values: dict[str, Any], **keywords: Any) -> SimpleNamespace:
    keywords = {"groups": {"w": Group.SHARED}, **keywords}
    strategy = lab.make(grid, {"name": "fedbuff", **values}, **keywords)
    done: list[Any] = []
    result = strategy.start(grid, array_record(SMALL), rounds, on_round=done.append)
    return SimpleNamespace(strategy=strategy, rounds=done, w=views(result.arrays)["w"])


def stale(done: Any) -> dict[str, int]:
    """Staleness by client of a round's accepted replies."""
    return {name: int(it.metrics["staleness"]) for name, it in done.outcomes.items() if it.accepted}


def test_with_everybody_in_every_buffer_it_is_fedavg_bit_for_bit(lab: SimpleNamespace) -> None:
    buffered = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedbuff", "concurrency": 6, "buffer": 6}, 3)
    averaged = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedavg", "weighting": "uniform"}, 3)
    assert lab.same(buffered.arrays, averaged.arrays)
    assert [stale(done) for done in buffered.rounds] == [dict.fromkeys(lab.NAMES, 0)] * 3


def test_a_slow_client_weighs_by_the_steps_that_it_missed(lab: SimpleNamespace, timed: Any) -> None:
    """Two fast clients take a step a second; the slow one's change, to the first model, comes four steps late."""
    grid = timed(constant(a=1.0, b=2.0, c=10.0), lambda name, number: 5.0 if name == "c" else 1.0)
    done = small(lab, grid, 6, {"concurrency": 3, "buffer": 2})
    assert [stale(it) for it in done.rounds[:4]] == [{"a": 0, "b": 0}] * 4
    assert stale(done.rounds[4])["c"] == 4
    first, second = (set(stale(it)) for it in done.rounds[4:])
    waited = ({"a", "b"} - first).pop()  # the third to arrive waits for the next buffer, one step late then
    assert waited in second
    assert stale(done.rounds[5])[waited] == 1
    value = {"a": 1.0, "b": 2.0}
    other = (first - {"c"}).pop()
    fifth = (10.0 / math.sqrt(1 + 4) + value[other]) / 2
    last = (second - {waited}).pop()
    sixth = (value[waited] / math.sqrt(2) + value.get(last, 10.0)) / 2
    assert stale(done.rounds[5])[last] == 0
    assert done.w == pytest.approx([4 * 1.5 + fifth + sixth, 4 + (5**-0.5 + 1) / 2 + (2**-0.5 + 1) / 2])


def test_nobody_waits_for_the_slowest(lab: SimpleNamespace, timed: Any) -> None:
    grid = timed(constant(a=1.0, b=2.0, c=10.0), lambda name, number: 1000.0 if name == "c" else 1.0)
    small(lab, grid, 6, {"concurrency": 3, "buffer": 2})
    assert grid.now == 6.0


@pytest.mark.parametrize(
    ("exponent", "staleness", "weight"), [(0.5, 3, 0.5), (0.0, 9, 1.0), (2.0, 3, 1 / 16), (1, 0, 1)]
)
def test_the_weight_of_staleness(
    lab: SimpleNamespace, timed: Any, exponent: float, staleness: int, weight: float
) -> None:
    strategy = lab.make(timed({}, None), {"name": "fedbuff", "staleness_exponent": exponent})
    assert strategy.weight(staleness) == weight


def test_the_server_s_learning_rate_scales_the_step(lab: SimpleNamespace, timed: Any) -> None:
    found = []
    for rate in (1.0, 0.25):
        grid = timed(constant(a=1.0, b=3.0), lambda name, number: 1.0)
        found.append(small(lab, grid, 3, {"concurrency": 2, "buffer": 2, "learning_rate": rate}).w)
    assert found[0] == pytest.approx([6.0, 3.0])
    assert found[1] == pytest.approx([1.5, 0.75])


def test_replies_that_are_too_stale_are_refused_with_the_reason(lab: SimpleNamespace, timed: Any) -> None:
    grid = timed(constant(a=1.0, b=2.0, c=10.0), lambda name, number: 5.0 if name == "c" else 1.0)
    strategy = lab.make(
        grid, {"name": "fedbuff", "concurrency": 3, "buffer": 2, "most_staleness": 3}, groups={"w": Group.SHARED}
    )
    strategy.commits, rounds = True, []
    result = strategy.start(grid, array_record(SMALL), 6, on_round=rounds.append)
    done = SimpleNamespace(rounds=rounds, w=views(result.arrays)["w"])
    assert all(len(outcome.digest) == 64 for it in rounds for outcome in it.outcomes.values())  # for a transcript
    assert done.rounds[4].outcomes["c"].reason == "expected a change of a model at most 3 steps old, found 4"
    assert not done.rounds[4].outcomes["c"].accepted
    assert done.w[0] == pytest.approx(9.0)  # six steps of the other two
    assert [name for _, name, number in grid.asked if number == 6].count("c") == 1  # asked again, in the next round


def test_a_client_that_answers_twice_waits_for_the_next_buffer(lab: SimpleNamespace, timed: Any) -> None:
    """``a`` comes one step late, is asked again at once and answers before ``b`` and ``c``: a buffer holds it once."""
    times = {("a", 1): 1.5, ("a", 2): 0.1, ("b", 1): 1.0, ("c", 1): 1.0, ("b", 2): 5.0, ("c", 2): 5.0}
    grid = timed(constant(a=1.0, b=2.0, c=4.0), lambda name, number: times.get((name, number), 1.0))
    done = small(lab, grid, 3, {"concurrency": 3, "buffer": 2})
    assert stale(done.rounds[0]) == {"b": 0, "c": 0}
    second, third = done.rounds[1:]
    assert stale(second)["a"] == 1
    assert len(stale(second)) == 2
    assert stale(third)["a"] == 1  # what it answered in round 2, counted in round 3
    assert [(name, number) for _, name, number in grid.asked if name == "a"] == [("a", 1), ("a", 2)]
    assert second.traffic["a"].up == {"arrays": 8}
    assert second.traffic["a"].down == {"arrays": 8}


def test_a_failure_after_a_reply_is_told_in_the_next_round_and_asked_again_after_it(
    lab: SimpleNamespace, timed: Any
) -> None:
    times = {("a", 1): 1.5, ("a", 2): 0.1, ("b", 2): 5.0, ("c", 2): 5.0}
    good = constant(a=1.0, b=2.0, c=4.0)

    def moody(message: Message) -> Any:
        return Error(3, "no power") if message.content["config"]["server-round"] == 2 else good["a"](message)

    grid = timed({**good, "a": moody}, lambda name, number: times.get((name, number), 1.0))
    done = small(lab, grid, 4, {"concurrency": 3, "buffer": 2})
    assert stale(done.rounds[1])["a"] == 1
    assert done.rounds[2].outcomes["a"].reason == "error reply (code 3): no power"
    assert [number for _, name, number in grid.asked if name == "a"] == [1, 2, 4]


def test_the_order_inside_a_buffer_changes_no_bit(lab: SimpleNamespace, timed: Any) -> None:
    def run(early: str) -> Any:
        names = "abcdef"
        grid = timed(
            constant(**{name: 0.1 * (ord(name) - 90) for name in names}),
            lambda name, number: 0.9 if name == early else 1.0,
        )
        return small(lab, grid, 3, {"concurrency": 6, "buffer": 6}).w.tobytes()

    assert len({run(early) for early in "abcdef"}) == 1


@settings(max_examples=30)
@given(data=st.data())
def test_whatever_arrives_when(lab: SimpleNamespace, timed: Any, data: st.DataObject) -> None:
    """One order of arrival is one run; nobody is asked twice for one model, or counted twice in one buffer."""
    count = data.draw(st.integers(2, 7))
    names = [f"cam{number}" for number in range(1, count + 1)]
    concurrency, buffer = data.draw(st.integers(1, count)), data.draw(st.integers(1, count))
    most = data.draw(st.integers(0, 3))
    seed = data.draw(st.integers(0, 1000))

    def seconds(name: str, number: int) -> float:
        return float(np.random.default_rng([seed, number, *map(ord, name)]).exponential(1.0))

    def run() -> tuple[Any, Any]:
        grid = timed(lab.clients(names), seconds)
        values = {"concurrency": concurrency, "buffer": buffer, "most_staleness": most, "quorum": {"replies": 1}}
        return grid, lab.run(grid, {"name": "fedbuff", **values}, 6, pooled=lab.POOLED)

    grid, done = run()
    again = run()[1]
    assert lab.same(done.arrays, again.arrays)
    assert [stale(it) for it in done.rounds] == [stale(it) for it in again.rounds]
    assert max(Counter((name, number) for _, name, number in grid.asked).values()) == 1
    assert grid.most <= concurrency
    answered = Counter(name for it in done.rounds for name in it.outcomes)
    asked = Counter(name for _, name, _ in grid.asked)
    assert all(answered[name] <= asked[name] for name in names)
    for it in done.rounds:
        assert 1 <= len(stale(it)) <= buffer
        assert all(0 <= each <= most for each in stale(it).values())
        assert it.metrics["staleness"] <= most
        variance = views(it.arrays)["bn.running_var"]
        assert (variance >= 0).all()
    assert len(done.rounds) == 6


def saved(state: StrategyState) -> StrategyState:
    return StrategyState(arrays=state.arrays, values=json.loads(json.dumps(state.values)))


def test_a_resumed_run_asks_again_for_what_was_on_its_way_and_counts_nothing_twice(
    lab: SimpleNamespace, timed: Any
) -> None:
    def seconds(name: str, number: int) -> float:
        return 50.0 if name in ("d", "e") else 1.0

    grid = timed(constant(a=1.0, b=2.0, c=4.0, d=8.0, e=16.0), seconds)
    values = {"name": "fedbuff", "concurrency": 5, "buffer": 3}
    strategy, states = lab.make(grid, values, groups={"w": Group.SHARED}), []
    first = strategy.start(grid, array_record(SMALL), 2, on_round=lambda done: states.append(strategy.state()))
    assert states[-1].values["asked"] == ["d", "e"]
    assert len(grid.cancelled) == 2  # nobody waits for them any more
    later = timed(constant(a=1.0, b=2.0, c=4.0, d=8.0, e=16.0), lambda name, number: 1.0)
    resumed, rounds = lab.make(later, values, groups={"w": Group.SHARED}), []
    resumed.restore(saved(states[-1]))
    result = resumed.start(later, first.arrays, 3, first_round=3, on_round=rounds.append)
    assert [name for _, name, _ in later.asked][:2] == ["d", "e"] or [name for _, name, _ in later.asked][:2] == [
        "e",
        "d",
    ]
    assert stale(rounds[0]).keys() >= {"d", "e"}
    assert set(stale(rounds[0]).values()) == {0}
    values_of = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0, "e": 16.0}
    before, after = views(first.arrays)["w"], views(result.arrays)["w"]
    assert after[0] - before[0] == pytest.approx(sum(values_of[name] for name in stale(rounds[0])) / 3)
    assert resumed.state().values["asked"] == []


def test_who_never_answers_is_given_up_and_asked_again(lab: SimpleNamespace, timed: Any) -> None:
    clients = {**constant(a=1.0, b=2.0), "c": lambda message: None}
    grid = timed(clients, lambda name, number: 4.0)
    done = small(lab, grid, 4, {"concurrency": 3, "buffer": 2, "quorum": {"deadline_s": 9.0}})
    late = [(it.number, name) for it in done.rounds for name, how in it.outcomes.items() if how.reason]
    assert late == [(3, "c")]
    assert done.rounds[2].outcomes["c"].reason == "no reply before the deadline"
    assert [number for _, name, number in grid.asked if name == "c"] == [1, 4]
    assert done.w[0] == pytest.approx(6.0)


def test_a_buffer_that_does_not_fill_closes_at_the_deadline_with_its_quorum(lab: SimpleNamespace, timed: Any) -> None:
    clients = {**constant(a=1.0), "b": lambda message: None, "c": lambda message: None}
    grid = timed(clients, lambda name, number: 1.0)
    done = small(lab, grid, 1, {"concurrency": 3, "buffer": 3, "quorum": {"deadline_s": 9.0, "replies": 1}})
    assert (grid.now, done.w[0]) == (9.0, 1.0)
    assert sorted(done.rounds[0].outcomes) == ["a", "b", "c"]
    grid = timed(clients, lambda name, number: 1.0)
    with pytest.raises(QuorumError, match=r"(?s)expected at least 2 valid replies from a cohort of 3.*b: no reply"):
        small(lab, grid, 3, {"concurrency": 3, "buffer": 3, "quorum": {"deadline_s": 9.0}})
    assert not grid.flying  # what was asked is taken back however a run ends


def test_nobody_left_to_ask_closes_the_step_at_once(lab: SimpleNamespace, timed: Any) -> None:
    clients = {**constant(a=1.0, b=3.0), "c": lambda message: Error(3, "no power")}
    grid = timed(clients, lambda name, number: 1.0)
    done = small(lab, grid, 2, {"concurrency": 3, "buffer": 3})
    assert grid.now == 2.0
    assert [it.outcomes["c"].reason for it in done.rounds] == ["error reply (code 3): no power"] * 2
    assert [number for _, name, number in grid.asked if name == "c"] == [1, 2]  # once in a round
    assert done.w[0] == pytest.approx(4.0)


def test_a_client_that_fails_makes_room_for_others(lab: SimpleNamespace, timed: Any) -> None:
    clients = {**constant(a=1.0, b=3.0, c=5.0), "d": lambda message: Error(3, "no power")}
    grid = timed(clients, lambda name, number: 0.1 if name == "d" else 1.0)
    done = small(lab, grid, 4, {"concurrency": 1, "buffer": 3})
    assert all(len(stale(it)) == 3 for it in done.rounds)
    assert grid.most == 1


def test_messages_that_cannot_be_sent_and_forged_replies(lab: SimpleNamespace, timed: Any) -> None:
    grid = timed(constant(a=1.0, b=3.0), lambda name, number: 1.0)
    push = grid.push_messages

    def lossy(messages: Any) -> list[Any]:
        sent = push(messages)
        lost = [grid.names[message.metadata.dst_node_id] == "b" for message in grid.sent[-len(sent) :]]
        return [None if gone else identifier for gone, identifier in zip(lost, sent, strict=True)]

    grid.push_messages = lossy
    (done,) = small(lab, grid, 1, {"concurrency": 2, "buffer": 2}).rounds
    assert done.outcomes["b"].reason == "the message could not be sent"
    assert stale(done) == {"a": 0}
    grid = timed(constant(a=1.0, b=3.0), lambda name, number: 1.0)
    pull, stranger = grid.pull_messages, next(iter(grid.names))

    def forged(identifiers: Any) -> list[Message]:
        replies = pull(identifiers)
        for reply in replies:
            reply.metadata.__dict__["_src_node_id"] = stranger
        return replies

    grid.pull_messages = forged
    (done,) = small(lab, grid, 1, {"concurrency": 2, "buffer": 2}).rounds
    assert f"found node {stranger}" in done.outcomes["b"].reason
    assert stale(done) == {"a": 0}


def test_statistics_move_by_what_clients_report_not_by_steps_from_where_they_were(
    lab: SimpleNamespace, timed: Any
) -> None:
    """A slow client's variance, seen from the first model, is 0.2; added as a change it would be below zero."""

    def towards(mean: float, variance: float) -> Any:
        def answer(message: Message) -> RecordDict:
            sent = views(message.content["arrays"])
            change = {
                "bn.running_mean": mean - sent["bn.running_mean"],
                "bn.running_var": variance - sent["bn.running_var"],
            }
            content = array_record({key: values.astype(np.float32) for key, values in change.items()})
            return RecordDict({"arrays": content, "metrics": MetricRecord({"num-examples": 1})})

        return answer

    start = {"bn.running_mean": np.zeros(1, np.float32), "bn.running_var": np.full(1, 100.0, np.float32)}
    grid = timed({"a": towards(1.0, 4.0), "b": towards(3.0, 0.2)}, lambda name, number: 1.5 if name == "b" else 1.0)
    strategy = lab.make(
        grid,
        {"name": "fedbuff", "concurrency": 2, "buffer": 1, "learning_rate": 10.0},
        groups=dict.fromkeys(start, Group.BUFFER),
    )
    arrays: list[Any] = []
    strategy.start(grid, array_record(start), 2, on_round=lambda done: arrays.append(views(done.arrays)))
    assert arrays[0]["bn.running_var"] == pytest.approx(4.0)
    assert arrays[1]["bn.running_var"] == pytest.approx(4.0 + 2**-0.5 * (0.2 - 4.0), rel=1e-5)
    assert arrays[1]["bn.running_mean"] == pytest.approx(1.0 + 2**-0.5 * (3.0 - 1.0))


def plan(**changes: Any) -> Plan:
    values = {
        "unit": "client",
        "relation": "zero-out",
        "mechanism": "gaussian",
        "trust": "central",
        "sampler": "all",
        "population": 6,
        "sample_size": 3,
        "noise_multiplier": 1e-6,
        "clip": {"bound": 2.0},
    }
    return Plan.of({**values, **changes})


def clipped(name: str, bound: float, *, silent: bool = False) -> Any:
    """A client that sends a vector of exactly the bound's length in a direction of its own, whatever it was sent."""
    direction = np.random.default_rng(ord(name)).normal(size=2)
    change = (bound / np.linalg.norm(direction) * direction * (not silent)).astype(np.float32)

    def answer(message: Message) -> RecordDict:
        return RecordDict({"arrays": array_record({"w": change}), "metrics": MetricRecord({"num-examples": 1})})

    return answer


def test_one_client_moves_every_noisy_sum_by_its_clip_at_most(lab: SimpleNamespace, timed: Any) -> None:
    """Zero-out neighbours: the same clients answer at the same times, one of them with nothing in it."""

    def steps(silent: str) -> np.ndarray:
        names = "abcdef"
        clients = {name: clipped(name, 2.0, silent=name == silent) for name in names}
        grid = timed(clients, lambda name, number: 0.3 if name == "b" else 1.0 + 0.1 * ord(name) % 0.7)
        privacy = CentralPrivacy(plan=plan(), noise=NoiseSource(bytes(32)))
        values = {"concurrency": 4, "buffer": 3, "staleness_exponent": 0.0}
        done = small(lab, grid, 8, values, privacy=privacy)
        models = [np.zeros(2), *(views(it.arrays)["w"].astype(np.float64) for it in done.rounds)]
        return np.diff(np.stack(models), axis=0) * 3  # times the public divisor: the sums

    moved = np.linalg.norm(steps("") - steps("b"), axis=1)
    assert (moved > 1.9).sum() >= 5  # the fastest client is in nearly every buffer
    assert moved.max() <= 2.0 * (1 + 1e-4)


def test_a_smaller_bound_in_force_holds_for_older_replies_too(lab: SimpleNamespace, timed: Any) -> None:
    """``b`` clipped to the first bound; when its change comes, the bound has shrunk, for which the noise is made."""

    def answering(length: float) -> Any:
        def answer(message: Message) -> RecordDict:
            change = array_record({"w": np.array([length, 0.0], np.float32)})
            return RecordDict({"arrays": change, "metrics": MetricRecord({"num-examples": 1, BIT: 0.5})})

        return answer

    adaptive = {"clip": {"kind": "adaptive", "bound": 2.0, "learning_rate": 1.0, "bits_noise": 1e-3}}
    made = plan(**adaptive, population=2, sample_size=1)
    privacy = CentralPrivacy(plan=made, noise=NoiseSource(bytes(32)))
    grid = timed({"a": answering(0.0), "b": answering(2.0)}, lambda name, number: 3.5 if name == "b" else 1.0)
    values = {"concurrency": 2, "buffer": 1, "staleness_exponent": 0.0}
    done = small(lab, grid, 4, values, privacy=privacy)
    bounds = [it.metrics["clip-bound"] for it in done.rounds]
    assert bounds == pytest.approx([2.0 * math.exp(-0.5 * step) for step in range(4)], rel=0.02)
    before, after = (views(it.arrays)["w"] for it in done.rounds[2:])
    assert np.linalg.norm(after - before) == pytest.approx(bounds[3], rel=1e-4)


def test_under_central_noise_a_step_counts_whoever_came(lab: SimpleNamespace, timed: Any) -> None:
    grid = timed({"a": lambda message: Error(3, "no power")}, lambda name, number: 1.0)
    privacy = CentralPrivacy(plan=plan(noise_multiplier=1.0), noise=NoiseSource(bytes(32)))
    done = small(lab, grid, 2, {"concurrency": 1, "buffer": 1}, privacy=privacy)
    assert [it.void for it in done.rounds] == ["", ""]
    assert np.abs(done.w).min() > 0
    assert done.rounds[0].metrics == {"clip-bound": 2.0}


def test_masks_of_one_cohort_are_refused(lab: SimpleNamespace, timed: Any) -> None:
    with pytest.raises(PlanError, match="a buffer mixes rounds; choose fedavg"):
        lab.make(timed({}, None), {"name": "fedbuff"}, secure=SimpleNamespace())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"cohort_size": 4}, "concurrency says how many are asked"),
        ({"fraction": 0.5}, "concurrency says how many are asked"),
        ({"evaluate_fraction": 0.5}, "leave evaluate_fraction at 0"),
        ({"buffer": 3, "quorum": {"replies": 4}}, "quorum.replies = 4 can never be met by buffer = 3"),
        ({"buffer": 0}, "buffer"),
        ({"concurrency": 0}, "concurrency"),
        ({"most_staleness": -1}, "most_staleness"),
        ({"staleness_exponent": -0.5}, "staleness_exponent"),
        ({"momentum": 0.9}, "unknown key"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        StrategyConfig.parse({"name": "fedbuff", **values}, "test")
