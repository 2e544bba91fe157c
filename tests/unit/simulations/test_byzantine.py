"""The grid in which some clients attack: who, with what, when, and what it leaves alone."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.run import Run

from cloister.errors import ConfigError
from cloister.flower import array_record, views
from cloister.models.spec import Group
from cloister.randomness import SeedTree
from cloister.simulations.byzantine import ByzantineGrid, attackers, with_attackers
from cloister.simulations.engines.grid import EngineGrid, Executor, Job, Nodes, Outcome, Payload
from cloister.simulations.experiment import ByzantineConfig

NAMES = ("a", "b", "c", "d", "e")
SEEDS = SeedTree(experiment="test", seed=1)
GROUPS = {"w": Group.SHARED, "b": Group.SHARED, "mean": Group.BUFFER, "count": Group.SHARED}


def update(client: str, number: int) -> dict[str, np.ndarray]:
    value = float(NAMES.index(client) + 10 * number)
    return {
        "w": np.full((2, 2), value, np.float32),
        "b": np.array([value + 1, -value], np.float64),
        "mean": np.full(2, value, np.float32),
        "count": np.array(3, np.int64),
    }


class Script(Executor):
    """Answers one message a poll, in an order of its own."""

    def __init__(self, order: Sequence[str], failing: str = "") -> None:
        self.order, self.failing, self.jobs = order, failing, dict[str, Job]()
        self.cancelled: set[str] = set()

    def stage(self, messages: Sequence[Message]) -> list[Payload]:
        return [Payload(make=lambda: None) for _ in messages]

    def submit(self, jobs: Iterable[Job]) -> list[Job]:
        started = list(jobs)
        self.jobs |= {str(job.configuration["client"]): job for job in started}
        return started

    def poll(self, timeout_s: float) -> list[Outcome]:
        for client in self.order:
            job = self.jobs.pop(client, None)
            if job is not None:
                return [Outcome(job.message_id, self.reply(client, job.message))]
        return []

    def reply(self, client: str, message: Message) -> Message:
        if client == self.failing:
            return Message(Error(1, "power cut"), reply_to=message)
        content = RecordDict({"metrics": MetricRecord({"num-examples": 5})})
        if message.metadata.message_type == "train":
            number = int(message.content["config"]["server-round"])
            arrays = update(client, number)
            for values in arrays.values():
                values.flags.writeable = False
            content["arrays"] = array_record(arrays)
            content["centres"] = array_record({"values": np.ones(2, np.float32)})
        return Message(content, reply_to=message)

    def cancel(self, message_ids: set[str]) -> None:
        self.cancelled |= message_ids

    def close(self) -> None: ...


def engine(order: Sequence[str] = NAMES, failing: str = "") -> EngineGrid:
    return EngineGrid(Nodes(names=NAMES), Script(order, failing))


def hostile(grid: EngineGrid, **settings: Any) -> Any:
    return with_attackers(grid, ByzantineConfig(**settings), NAMES, GROUPS, SEEDS)


def messages(number: int = 1, kind: str = "train") -> list[Message]:
    content = {"config": ConfigRecord({"server-round": number})}
    return [
        Message(RecordDict(content), dst_node_id=node, message_type=kind, group_id=str(number))
        for node in range(1, len(NAMES) + 1)
    ]


def pulled(grid: Any, batch: list[Message]) -> list[str]:
    """Names in order of delivery; the replies' arrays lie in ``arrived``."""
    arrived.clear()
    identifiers = set(grid.push_messages(batch))
    order = []
    for _ in range(20):
        grid.wait(0.1)
        for reply in grid.pull_messages(identifiers):
            name = grid.name_of(reply.metadata.src_node_id)
            order.append(name)
            arrived[name] = reply
    return order


arrived: dict[str, Message] = {}


def arrays(name: str) -> dict[str, np.ndarray]:
    return views(arrived[name].content["arrays"])


def test_attackers_answer_last_with_what_they_made_of_the_others() -> None:
    order = pulled(
        hostile(engine(("c", "a", "e", "d", "b")), attack="ipm", clients=("e", "a"), strength=2.0), messages()
    )
    assert order == ["c", "d", "b", "a", "e"]
    for name in "ae":
        np.testing.assert_allclose(arrays(name)["w"], np.full((2, 2), -2 * np.mean([11, 12, 13])))
        np.testing.assert_allclose(arrays(name)["b"], [-2 * np.mean([12, 13, 14]), 2 * np.mean([11, 12, 13])])
        assert (arrays(name)["w"].dtype, arrays(name)["b"].dtype) == (np.float32, np.float64)
    for name in "bcd":
        np.testing.assert_array_equal(arrays(name)["w"], update(name, 1)["w"])


def test_statistics_counters_metrics_and_other_releases_stay_honest() -> None:
    pulled(hostile(engine(), attack="nan", clients=("b",)), messages())
    assert np.isnan(arrays("b")["w"]).all()
    assert arrays("b")["mean"].tolist() == [11, 11]
    assert arrays("b")["count"] == 3
    assert list(arrays("b")) == ["w", "b", "mean", "count"]
    assert set(arrived["b"].content) == {"metrics", "arrays", "centres"}
    assert arrived["b"].content["metrics"]["num-examples"] == 5
    assert arrived["b"].metadata.src_node_id == 2


@pytest.mark.parametrize("attack", ["noise", "mimic", "sign-flip"])
def test_the_order_of_arrival_changes_nothing(attack: str) -> None:
    found = []
    for order in (NAMES, NAMES[::-1], ("c", "e", "a", "d", "b")):
        pulled(hostile(engine(order), attack=attack, count=2), messages())
        found.append({name: arrays(name)["w"].tobytes() for name in NAMES})
    assert found[0] == found[1] == found[2]


def test_every_round_has_its_own_noise_and_the_same_attackers() -> None:
    grid = hostile(engine(), attack="noise", count=2)
    rounds = []
    for number in (1, 2):
        pulled(grid, messages(number))
        changed = {name for name in NAMES if not np.array_equal(arrays(name)["w"], update(name, number)["w"])}
        rounds.append((changed, {name: arrays(name)["w"].tobytes() for name in changed}))
    assert rounds[0][0] == rounds[1][0] == set(attackers(ByzantineConfig(attack="noise", count=2), NAMES, SEEDS))
    assert rounds[0][1] != rounds[1][1]


def test_evaluation_is_not_attacked() -> None:
    grid = hostile(engine(), attack="nan", clients=("b",))
    assert pulled(grid, messages(kind="evaluate")) == list(NAMES)
    assert set(arrived["b"].content) == {"metrics"}


@pytest.mark.parametrize("failing", ["a", "b"])
def test_whoever_fails_fails(failing: str) -> None:
    grid = hostile(engine(failing=failing), attack="mimic", clients=("b", "e"))
    assert sorted(pulled(grid, messages())) == list(NAMES)
    assert arrived[failing].has_error()
    first = "c" if failing == "a" else "a"  # of the honest ones that answer
    np.testing.assert_array_equal(arrays("e")["w"], update(first, 1)["w"])


def test_a_client_that_never_answers_keeps_attackers_silent_until_they_are_cancelled() -> None:
    grid = hostile(engine(order=("a", "b", "c", "d")), attack="mimic", clients=("b",))
    batch = messages()
    assert pulled(grid, batch) == ["a", "c", "d"]
    grid.cancel([message.metadata.message_id for message in batch])
    assert not grid._batches
    assert grid._grid._executor.cancelled


def test_flowers_own_send_and_receive_is_attacked_too() -> None:
    grid = hostile(engine(NAMES[::-1]), attack="sign-flip", clients=("b", "d"))
    replies = grid.send_and_receive(messages(), timeout=5.0)
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3, 4, 5]
    signs = [np.sign(views(reply.content["arrays"])["w"]).mean() for reply in replies]
    assert signs == [1, -1, 1, -1, 1]
    assert not grid._batches


def test_everything_else_is_the_engines() -> None:
    grid = hostile(inner := engine(), attack="nan", clients=("b",))
    assert isinstance(grid, ByzantineGrid)
    assert list(grid.get_node_ids()) == [1, 2, 3, 4, 5]
    assert [node.name for node in grid.get_nodes()] == list(NAMES)
    grid.set_run(Run.create_empty(9))
    assert grid.run.run_id == inner.run.run_id == 9
    message = grid.create_message(RecordDict(), "train", 3, "1")
    assert message.metadata.dst_node_id == 3
    assert hostile(inner) is inner


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "nan", "clients": ("b", "x")}, "expected 1 to 4 of the clients a, b, c, d, e .*found x; set byz"),
        ({"attack": "nan", "count": 5}, "found a, b, c, d, e; set byzantine.clients or byzantine.count"),
        ({"attack": "nan", "count": 6}, "found 6; set"),
        ({"attack": "alie", "count": 3}, "at most half of three clients or more, found 3 of 5"),
    ],
)
def test_attackers_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attackers(ByzantineConfig(**settings), NAMES, SEEDS)


def test_an_attack_by_nobody_is_none() -> None:
    inner = engine()
    assert hostile(inner, attack="ipm", count=0) is inner
    config = ByzantineConfig.parse({"attack": "ipm", "count": 0}, "x.toml")
    assert ByzantineConfig.parse(config.model_dump(), "printed") == config


PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"attack": "nan"}, "expected an attack with either clients or count"),
    ({"attack": "nan", "count": 1, "clients": ["b"]}, "expected an attack with either clients or count"),
    ({"count": 1}, "expected an attack with either clients or count"),
    ({"attack": "nan", "count": 1, "strength": 2.0}, "attack 'nan' has no strength"),
    ({"attack": "ipm", "count": 1, "strength": 0.0}, "greater than 0"),
    ({"attack": "imp", "count": 1}, "'none', 'sign-flip', 'ipm'"),
]


@pytest.mark.parametrize(("settings", "message"), PROBLEMS)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ByzantineConfig.parse(settings, "x.toml")
