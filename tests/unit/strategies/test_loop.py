"""The loop over a grid: streaming, deadlines, evaluation, and what is recorded of a round."""

import gc
import weakref
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from cloister.errors import RunError
from cloister.flower import array_record, views
from cloister.strategies.gather import UNSENT, gather
from cloister.strategies.rounds import Stopwatch

BYTES = 16 * 9 * 4 + 3 * 16 * 4 + 8 + 20 * 4  # of the model in conftest


def test_seconds_per_stage_come_from_the_injected_clock(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    done = lab.run(grid, {"name": "fedavg"}, 1).rounds[0]
    assert done.seconds == {"configure": 0.0, "wait": 6.0, "aggregate": 0.0, "evaluate": 0.0}


def test_a_stage_inside_another_is_counted_once() -> None:
    times = iter([0.0, 1.0, 4.0, 10.0])
    watch = Stopwatch(lambda: next(times))
    with watch.stage("wait"), watch.stage("aggregate"):
        pass
    assert watch.seconds["aggregate"] == 3.0
    assert watch.seconds["wait"] == 7.0


def test_traffic_is_counted_per_client_and_kind_even_for_refused_replies(lab: SimpleNamespace) -> None:
    def greedy(message: Message) -> RecordDict:
        content = lab.trained(message, "cam2")
        content["metrics"]["num-examples"] = 10**12
        return content

    grid = lab.FakeGrid(lab.clients(cam2=greedy, cam3=lambda message: None))
    settings = {"name": "scaffold", "centres": {"mode": "aligned"}, "quorum": {"deadline_s": 60.0}}
    first, second = lab.run(grid, settings).rounds
    shared = 16 * 9 * 4 + 16 * 4 + 20 * 4
    centres = 3 * 4 * 4 + 3 * 8
    assert first.traffic["cam1"].down == {"arrays": BYTES, "control": shared}
    assert first.traffic["cam1"].up == {"arrays": BYTES, "control": shared, "centres": centres}
    assert first.traffic["cam2"].up == first.traffic["cam1"].up
    assert first.traffic["cam3"].down == {"arrays": BYTES, "control": shared}
    assert first.traffic["cam3"].up == {}
    assert second.traffic["cam1"].down == {"arrays": BYTES, "control": shared, "centres": centres}
    assert "centres" not in second.traffic["cam2"].down  # its centres were refused with the rest


class LazyGrid:
    """Makes a reply only when it is asked for, one per wait, in the order of the messages; counts those alive."""

    def __init__(self, lab: SimpleNamespace, count: int) -> None:
        self.lab, self.count = lab, count
        self.alive = self.most = 0
        self.open: list[Message] = []

    def get_node_ids(self) -> range:
        return range(2, 2 + self.count)

    def name_of(self, node_id: int) -> str:
        return f"phone{node_id:04d}"

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.open = list(messages)
        for place, message in enumerate(self.open):
            message.metadata.__dict__["_message_id"] = str(place)
        return [str(place) for place in range(len(self.open))]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if not self.ready or not self.open:
            return []
        self.ready = False
        message = self.open.pop(0)
        content = self.lab.trained(message, "cam1")
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(views(content["arrays"])["conv.weight"], self.gone)
        return [Message(content, reply_to=message)]

    def gone(self) -> None:
        self.alive -= 1

    ready = False

    def wait(self, timeout_s: float) -> None:
        self.ready = True


def test_a_reply_is_let_go_of_before_the_next_is_folded(lab: SimpleNamespace) -> None:
    lab.FakeGrid({})  # names this process towards Flower
    grid = LazyGrid(lab, 40)
    strategy = lab.make(SimpleNamespace(clock=lambda: 0.0, sleep=None), {"name": "fedavg"})
    gc.disable()
    try:
        strategy.start(grid, lab.initial("fedavg"), 1)
    finally:
        gc.enable()
    assert grid.most == 1
    assert grid.alive == 0


def test_nothing_of_a_round_outlives_it(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    strategy = lab.make(grid, {"name": "fedavg"})
    alive: list[weakref.ref[Any]] = []
    strategy.start(grid, lab.initial("fedavg"), 5, on_round=lambda done: alive.append(weakref.ref(done)))
    grid.sent.clear()
    gc.collect()
    assert [ref() for ref in alive] == [None] * 5


def test_metrics_are_means_over_those_that_report_them(lab: SimpleNamespace) -> None:
    def client(examples: int, **metrics: float) -> Any:
        def answer(message: Message) -> RecordDict:
            content = lab.trained(message, "cam1")
            content["metrics"] = MetricRecord({"num-examples": examples, **metrics})
            return content

        return answer

    grid = lab.FakeGrid({"a": client(1, loss=4.0), "b": client(3, loss=8.0, accuracy=0.5), "c": client(9)})
    done = lab.run(grid, {"name": "fedavg"}, 1)
    assert done.rounds[0].metrics == {"accuracy": 0.5, "loss": 7.0}
    assert done.result.train_metrics_clientapp[1]["loss"] == 7.0
    assert done.rounds[0].outcomes["b"].metrics == {"loss": 8.0, "accuracy": 0.5}
    assert done.rounds[0].outcomes["b"].examples == 3


def test_the_norm_of_a_change_covers_shared_entries_only(lab: SimpleNamespace) -> None:
    def answer(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        changes = {key: np.zeros_like(values) for key, values in views(content["arrays"]).items()}
        changes["head.weight"][0, :2] = 3.0, 4.0
        changes["bn.running_mean"][:] = 1e3
        return RecordDict({**content, "arrays": array_record(changes)})

    settings = {"name": "fedavg", "limits": {"max_norm": 5.5}}
    done = lab.run(lab.FakeGrid({"cam1": answer}), settings, 1).rounds[0]
    assert done.outcomes["cam1"].norm == pytest.approx(5.0)


def test_what_rounding_left_below_zero_is_no_clients_fault(lab: SimpleNamespace) -> None:
    def idle(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        changes = {key: np.zeros_like(values) for key, values in views(content["arrays"]).items()}
        return RecordDict({**content, "arrays": array_record(changes)})

    grid = lab.FakeGrid({"cam1": idle})
    start = {**lab.model(), "bn.running_var": np.full(16, -1e-8, np.float32)}
    done: list[Any] = []
    lab.make(grid, {"name": "fedavg"}).start(grid, array_record(start), 1, on_round=done.append)
    assert done[0].outcomes["cam1"].reason == ""


def evaluating(lab: SimpleNamespace, name: str, examples: int, score: float) -> Any:
    def answer(message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            return lab.trained(message, name)
        return RecordDict({"metrics": MetricRecord({"num-examples": examples, "score": score})})

    return answer


def test_clients_evaluate_the_new_model_on_their_own_data(lab: SimpleNamespace) -> None:
    clients = {
        "a": evaluating(lab, "cam1", 1, 1.0),
        "b": evaluating(lab, "cam2", 3, 0.2),
        "c": evaluating(lab, "cam3", 0, 99.0),  # has no held-out data
        "d": evaluating(lab, "cam4", 5, float("nan")),
        "e": lambda message: (
            lab.trained(message, "cam5") if "releases" in message.content["config"] else Error(1, "no")
        ),
    }
    grid = lab.FakeGrid(clients, [4, 2, 0, 1, 3])
    done = lab.run(grid, {"name": "fedavg", "evaluate_fraction": 1.0}, 1)
    (result,) = done.rounds
    assert result.evaluation == {"score": pytest.approx(0.4)}
    assert done.result.evaluate_metrics_clientapp[1]["score"] == pytest.approx(0.4)
    assert result.client_evaluation["b"].metrics == {"score": 0.2}
    assert [name for name, outcome in result.client_evaluation.items() if not outcome.accepted] == ["d", "e"]
    asked = [message for message in grid.sent if message.metadata.message_type == "evaluate"]
    assert len(asked) == 5
    assert all(lab.same(views(message.content["arrays"]), done.arrays) for message in asked)
    assert result.traffic["a"].down == {"arrays": 2 * BYTES}
    assert result.seconds["evaluate"] == 5.0


def test_a_share_of_the_clients_evaluates(lab: SimpleNamespace) -> None:
    clients = {name: evaluating(lab, name, 2, 0.5) for name in lab.NAMES}
    grid = lab.FakeGrid(clients)
    done = lab.run(grid, {"name": "fedavg", "evaluate_fraction": 0.5, "cohort_size": 5}, 1)
    assert len(done.rounds[0].client_evaluation) == 3


def test_the_server_evaluates_before_and_after_every_round(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    strategy, seen, rounds = lab.make(grid, {"name": "fedavg"}), [], []

    def evaluate(number: int, arrays: Any) -> MetricRecord:
        seen.append(number)
        grid.now += 5.0
        return MetricRecord({"rank-1": float(number)})

    result = strategy.start(grid, lab.initial("fedavg"), 2, evaluate_fn=evaluate, on_round=rounds.append)
    assert seen == [0, 1, 2]
    assert {number: record["rank-1"] for number, record in result.evaluate_metrics_serverapp.items()} == {
        0: 0.0,
        1: 1.0,
        2: 2.0,
    }
    assert rounds[1].server_evaluation == {"rank-1": 2.0}
    assert rounds[1].seconds["evaluate"] == 5.0
    strategy.start(grid, result.arrays, 3, evaluate_fn=evaluate, first_round=3)
    assert seen == [0, 1, 2, 3]


def test_the_smaller_of_timeout_and_deadline_holds(lab: SimpleNamespace) -> None:
    for timeout, deadline, expected in ((20.0, 50.0, 20.0), (50.0, 30.0, 30.0)):
        grid = lab.FakeGrid(lab.clients(cam1=lambda message: None))
        strategy = lab.make(grid, {"name": "fedavg", "quorum": {"deadline_s": deadline}})
        strategy.start(grid, lab.initial("fedavg"), 1, timeout)
        assert grid.now == pytest.approx(expected)


def test_a_reply_that_comes_just_before_the_deadline_counts_and_one_after_does_not(lab: SimpleNamespace) -> None:
    for deadline, accepted in ((6.5, 6), (5.5, 5)):
        grid = lab.FakeGrid(lab.clients())
        done = lab.run(grid, {"name": "fedavg", "quorum": {"deadline_s": deadline}}, 1)
        assert sum(outcome.accepted for outcome in done.rounds[0].outcomes.values()) == accepted


@pytest.mark.parametrize("kind", ["none", "shorter"])
def test_messages_that_could_not_be_sent_are_known_by_place(lab: SimpleNamespace, kind: str) -> None:
    grid = lab.PlainGrid(lab.clients())
    push = grid.push_messages

    def lossy(messages: Iterable[Message]) -> list[Any]:
        identifiers: list[Any] = push(messages)
        grid._coming = [reply for reply in grid._coming if reply.metadata.reply_to_message_id != identifiers[2]]
        return [None if place == 2 else it for place, it in enumerate(identifiers) if kind == "none" or place != 2]

    grid.push_messages = lossy
    (done,) = lab.run(grid, {"name": "fedavg"}, 1).rounds
    assert done.outcomes["cam3"].reason == UNSENT
    assert sum(outcome.accepted for outcome in done.outcomes.values()) == 5


def test_replies_nobody_asked_for_are_ignored(lab: SimpleNamespace) -> None:
    grid = lab.PlainGrid(lab.clients())
    stranger = SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id="somebody else's", src_node_id=77))
    pull, got = grid.pull_messages, []
    grid.pull_messages = lambda ids: [stranger, *pull(ids)]
    messages = lab.make(grid, {"name": "fedavg"}).configure_train(1, lab.initial("fedavg"), lab.config(), grid)

    def deliver(place: int, reply: Message) -> None:
        got.append(place)

    ticks = iter(range(1000))
    gather(grid, messages, deliver, deadline=500, clock=lambda: grid.sleep(1.0) or next(ticks), sleep=grid.sleep)
    assert sorted(got) == list(range(6))


def test_an_error_from_the_link_itself_is_the_clients_failure(lab: SimpleNamespace) -> None:
    # Flower's SuperLink answers in its own name when a node has gone.
    grid = lab.FakeGrid(lab.clients(cam2=lambda message: Error(4, "node unavailable")))
    pull = grid.pull_messages

    def from_link(ids: Iterable[str]) -> list[Message]:
        replies = pull(ids)
        for reply in replies:
            if reply.has_error():
                reply.metadata.__dict__["_src_node_id"] = 1
        return replies

    grid.pull_messages = from_link
    (done,) = lab.run(grid, {"name": "fedavg"}, 1).rounds
    assert done.outcomes["cam2"].reason == "error reply (code 4): node unavailable"


def test_a_node_that_answers_for_another_is_refused(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    pull = grid.pull_messages
    first = next(iter(grid.names))

    def forged(ids: Iterable[str]) -> list[Message]:
        replies = pull(ids)
        for reply in replies:
            reply.metadata.__dict__["_src_node_id"] = first
        return replies

    grid.pull_messages = forged
    (done,) = lab.run(grid, {"name": "fedavg"}, 1).rounds
    assert [name for name, outcome in done.outcomes.items() if outcome.accepted] == ["cam1"]
    assert f"found node {first}" in done.outcomes["cam2"].reason
    assert done.void


def test_a_second_reply_of_one_client_is_ignored_by_flowers_path(lab: SimpleNamespace) -> None:
    grid = lab.PlainGrid(lab.clients())
    strategy = lab.make(grid, {"name": "fedavg"})
    messages = strategy.configure_train(1, lab.initial("fedavg"), lab.config(), grid)
    replies = [
        Message(lab.trained(message, name), reply_to=message) for message, name in zip(messages, lab.NAMES, strict=True)
    ]
    stranger = Message(lab.trained(messages[0], "cam1"), reply_to=messages[0])
    stranger.metadata.__dict__["_src_node_id"] = 4711
    other = Message(lab.trained(messages[1], "cam5"), reply_to=messages[1])  # cam2 again, with something else
    arrays, _ = strategy.aggregate_train(1, [stranger, replies[1], other, *replies, *replies])
    assert lab.same(views(arrays), lab.run(lab.FakeGrid(lab.clients()), {"name": "fedavg"}, 1).arrays)


def test_steps_out_of_order_are_an_error(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients())
    strategy = lab.make(grid, {"name": "fedavg"})
    with pytest.raises(RunError, match="round 1 is not open"):
        strategy.aggregate_train(1, [])
    strategy.configure_train(1, lab.initial("fedavg"), lab.config(), grid)
    with pytest.raises(RunError, match="round 2 is not open"):
        strategy.aggregate_train(2, [])
    with pytest.raises(RunError, match="no evaluation is open"):
        strategy.aggregate_evaluate(1, [])


def test_nothing_that_was_received_or_sent_is_written_to(lab: SimpleNamespace) -> None:
    def frozen(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        for record in content.array_records.values():
            for values in views(record).values():
                values.flags.writeable = False
        return content

    start = lab.initial("fedavg")
    for values in views(start).values():
        values.flags.writeable = False
    for name in ("fedavg", "fednova", "scaffold", "fedadam", "fedmedian", "multikrum", "l2rw", "local-only"):
        grid = lab.FakeGrid(dict.fromkeys(lab.NAMES, frozen))
        lab.make(grid, {"name": name}).start(grid, start, 2)
    assert lab.same(views(start), lab.model())
