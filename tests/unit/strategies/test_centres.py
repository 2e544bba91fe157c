"""Class centres under one numbering: equation 5, who is sent what, and what is refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from cloister.errors import ReleaseError
from cloister.flower import array_record, views
from cloister.strategies.centres import Rows, check_rows, class_means


def rows(**centres: list[float]) -> Rows:
    """Rows from label=values; labels are written k0, k1, ..."""
    labels = np.array([int(key[1:]) for key in centres], np.int64)
    return Rows.of(labels, np.array(list(centres.values()), np.float32).reshape(len(labels), -1))


def releasing(lab: SimpleNamespace, name: str, labels: list[int], values: Any) -> Any:
    def answer(message: Message) -> RecordDict:
        content = lab.trained(message, name)
        record = {"values": np.array(values, np.float32), "labels": np.array(labels, np.int64)}
        return RecordDict({**content, "centres": array_record(record)})

    return answer


def test_equation_5_by_hand() -> None:
    released = {
        "a": rows(k0=[1, 0], k1=[0, 2]),
        "b": rows(k1=[0, 4], k2=[3, 3]),
        "c": rows(k0=[0, 0], k1=[0, 6]),  # a zero row is an absent identity
    }
    present = class_means(released)
    assert present.labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(present.values, [[1, 0], [0, 4], [3, 3]])
    diluted = class_means(released, diluted=True)
    np.testing.assert_allclose(diluted.values, np.array([[1, 0], [0, 12], [3, 3]]) / 3, rtol=1e-6)


def test_equation_5_against_a_dense_formula() -> None:
    draw = np.random.default_rng(1)
    dense = draw.normal(size=(5, 12, 7)).astype(np.float32)
    dense[draw.random((5, 12)) < 0.4] = 0
    released = {f"cam{i}": Rows.of(np.arange(12), dense[i]) for i in range(5)}
    counts = np.any(dense != 0, axis=2).sum(0)
    expected = dense.sum(0)[counts > 0] / counts[counts > 0, None]
    found = class_means(released)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
    assert found.labels.tolist() == np.flatnonzero(counts).tolist()


def test_nothing_released_means_nothing() -> None:
    assert class_means({}).labels.size == 0
    assert class_means({"a": rows(k0=[0, 0])}).labels.size == 0


def sent(grid: Any, number: int) -> dict[str, dict[str, np.ndarray]]:
    """The centres that each client was sent in a round."""
    return {
        grid.names[message.metadata.dst_node_id]: views(message.content["centres"])
        for message in grid.sent
        if message.content["config"]["server-round"] == number and "centres" in message.content
    }


@pytest.mark.parametrize("average", ["present", "diluted"])
def test_each_client_gets_the_global_centres_of_its_own_identities_only(lab: SimpleNamespace, average: str) -> None:
    clients = {
        "a": releasing(lab, "cam1", [4, 0], [[8, 0], [1, 0]]),
        "b": releasing(lab, "cam2", [0, 7], [[3, 0], [0, 0]]),
        "c": releasing(lab, "cam3", [], np.zeros((0, 2))),
        "d": lambda message: RecordDict(
            {key: value for key, value in lab.trained(message, "cam4").items() if key != "centres"}
        ),
    }
    grid = lab.FakeGrid(clients)
    done = lab.run(grid, {"name": "l2rw", "centres": {"average": average}})
    assert sent(grid, 1) == {}
    expected = [[2, 0], [8, 0]] if average == "present" else [[1, 0], [2, 0]]
    got = sent(grid, 2)
    assert set(got) == {"a", "b"}  # b's zero row is no centre; c and d released none
    assert got["a"]["labels"].tolist() == [0, 4]
    np.testing.assert_allclose(got["a"]["values"], expected)
    assert got["b"]["labels"].tolist() == [0]
    assert got["b"]["values"].dtype == np.float32
    assert got["b"]["labels"].dtype == np.int64
    assert done.rounds[0].metrics["centres"] == 2


def test_centres_never_touch_the_average_of_the_weights(lab: SimpleNamespace) -> None:
    with_centres = lab.run(lab.FakeGrid(lab.clients()), {"name": "l2rw"})
    without = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedavg"})
    assert lab.same(with_centres.arrays, without.arrays)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fednova", "moon", "scaffold", "fedadam"])
def test_centres_compose_with_any_averaging_rule(lab: SimpleNamespace, name: str) -> None:
    own, l2rw = lab.FakeGrid(lab.clients()), lab.FakeGrid(lab.clients())
    lab.run(own, {"name": name, "centres": {"mode": "aligned"}})
    lab.run(l2rw, {"name": "l2rw"})
    one, other = sent(own, 2), sent(l2rw, 2)
    assert set(one) == set(other) == set(lab.NAMES)
    assert all(lab.same(one[client], other[client]) for client in one)
    assert own.sent[0].content["config"]["releases"] == (["centres", "control"] if name == "scaffold" else ["centres"])


def test_a_client_that_sits_out_keeps_its_latest_centres(lab: SimpleNamespace) -> None:
    clients = {"a": releasing(lab, "cam1", [0], [[1, 0]]), "b": releasing(lab, "cam2", [0], [[5, 0]])}
    grid = lab.FakeGrid(clients)
    strategy = lab.make(grid, {"name": "l2rw", "quorum": {"replies": 1, "deadline_s": 9.0}})
    arrays = strategy.start(grid, lab.initial("l2rw"), 1).arrays
    grid.handlers["b"] = lambda message: None
    grid.handlers["a"] = releasing(lab, "cam1", [0], [[3, 0]])
    arrays = strategy.start(grid, arrays, 2, first_round=2).arrays
    strategy.start(grid, arrays, 3, first_round=3)
    np.testing.assert_allclose(sent(grid, 3)["a"]["values"], [[4, 0]])  # (3 + 5) / 2
    np.testing.assert_allclose(sent(grid, 3)["b"]["values"], [[4, 0]])


GOOD = {"values": np.ones((2, 3), np.float32), "labels": np.array([4, 1], np.int64)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"values": np.ones((2, 3))}, "expected float32 of shape (n, d), found float64"),
        ({"values": np.ones(2, np.float32)}, "found float32 of shape (2,)"),
        ({"labels": np.array([4, 1], np.int32)}, "expected int64 of shape (2,), found int32"),
        ({"labels": np.array([4, 1, 2], np.int64)}, "expected int64 of shape (2,)"),
        ({"labels": np.array([4, 4], np.int64)}, "expected distinct labels"),
        ({"labels": np.array([4, -1], np.int64)}, "expected distinct labels"),
        ({"values": np.full((2, 3), np.nan, np.float32)}, "expected finite values, found nan"),
        ({"photos": np.ones(3)}, "unexpected ['photos']"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, np.ndarray], reason: str) -> None:
    check_rows("centres", "values", GOOD)
    with pytest.raises(ReleaseError) as caught:
        check_rows("centres", "values", {**GOOD, **change})
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["l2rw", "l2rw-uci"])
def test_a_reply_with_bad_centres_is_refused_whole(lab: SimpleNamespace, name: str) -> None:
    clients = lab.clients(cam2=releasing(lab, "cam2", [3, 3], np.ones((2, 4))))
    done = lab.run(lab.FakeGrid(clients), {"name": name}, 1)
    assert "expected distinct labels" in done.rounds[0].outcomes["cam2"].reason
    alone = lab.run(lab.FakeGrid(lab.clients(cam2=lambda message: None)), {"name": name}, 1)
    assert lab.same(done.arrays, alone.arrays)


@pytest.mark.parametrize("width", [2, None])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_another_width_is_refused_whole_and_whatever_the_order(
    lab: SimpleNamespace, width: int | None, order: list[int]
) -> None:
    clients = {
        "a": releasing(lab, "cam1", [0], [[1, 0]]),
        "b": releasing(lab, "cam2", [0], [[1, 2, 3]]),
        "c": releasing(lab, "cam3", [0], [[3, 0]]),
    }
    settings = {"name": "l2rw", "centres": {"width": width} if width else {}}
    done = lab.run(lab.FakeGrid(clients, order), settings, 1)
    assert done.rounds[0].outcomes["b"].reason == "centres['values']: expected rows of width 2, found 3"
    alone = lab.run(lab.FakeGrid({**clients, "b": lambda message: None}), settings, 1)
    assert lab.same(done.arrays, alone.arrays)


def test_a_void_round_keeps_the_centres_of_the_last_valid_one(lab: SimpleNamespace) -> None:
    def silent(message: Message) -> None:
        return None

    honest = {name: releasing(lab, "cam1", [0], [[value, 0]]) for name, value in (("a", 1), ("b", 5), ("c", 9))}
    grid = lab.FakeGrid(honest)
    strategy = lab.make(grid, {"name": "l2rw", "quorum": {"replies": 2, "deadline_s": 9.0}})
    arrays = strategy.start(grid, lab.initial("l2rw"), 1).arrays
    grid.handlers = {"a": releasing(lab, "cam1", [0], [[99, 0]]), "b": silent, "c": silent}
    arrays = strategy.start(grid, arrays, 2, first_round=2).arrays
    grid.handlers = {**honest, "a": silent}
    arrays = strategy.start(grid, arrays, 3, first_round=3).arrays
    strategy.start(grid, arrays, 4, first_round=4)
    np.testing.assert_allclose(sent(grid, 3)["a"]["values"], [[5, 0]])
    np.testing.assert_allclose(sent(grid, 4)["a"]["values"], [[5, 0]])


def test_centres_are_kept_as_copies(lab: SimpleNamespace) -> None:
    values = np.array([[1, 0]], np.float32)

    def reuses_its_memory(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        record = {"values": values, "labels": np.array([0], np.int64)}
        return RecordDict({**content, "centres": array_record(record)})

    grid = lab.FakeGrid({"a": reuses_its_memory})
    strategy = lab.make(grid, {"name": "l2rw"})
    strategy.start(grid, lab.initial("l2rw"), 1)
    values[:] = -1
    assert strategy.state().arrays["0/centres/a/values"].tolist() == [[1, 0]]


def test_the_model_decides_the_width_of_centres_and_not_the_first_client(lab: SimpleNamespace) -> None:
    clients = {
        "a": releasing(lab, "cam1", [0], [[1, 2, 3]]),
        "b": releasing(lab, "cam2", [0], [[1, 0]]),
        "c": releasing(lab, "cam3", [0], [[3, 0]]),
    }
    done = lab.run(lab.FakeGrid(clients), {"name": "l2rw"}, 1, rows=(4, 2))
    outcomes = done.rounds[0].outcomes
    assert {name: outcome.accepted for name, outcome in outcomes.items()} == {"a": False, "b": True, "c": True}
    assert outcomes["a"].reason == "centres['values']: expected rows of width 2, found 3"


def test_more_rows_than_the_model_has_classes_are_refused(lab: SimpleNamespace) -> None:
    many = releasing(lab, "cam1", list(range(5)), [[1, 0]] * 5)
    done = lab.run(
        lab.FakeGrid({"a": many, "b": releasing(lab, "cam2", [0], [[1, 0]])}), {"name": "l2rw"}, 1, rows=(4, 2)
    )
    assert done.rounds[0].outcomes["a"].reason == "centres: expected at most 4 rows, found 5"
    assert done.rounds[0].outcomes["b"].accepted


def test_a_row_longer_than_the_bound_is_refused(lab: SimpleNamespace) -> None:
    clients = {
        "a": releasing(lab, "cam1", [0, 1], [[1, 0], [9, 0]]),
        "b": releasing(lab, "cam2", [0, 1, 2, 3], [[2, 0]] * 4),
    }
    done = lab.run(lab.FakeGrid(clients), {"name": "l2rw", "limits": {"max_extra_norm": 3.0}}, 1)
    assert done.rounds[0].outcomes["a"].reason == "centres: expected an L2 norm at most 3, found 9"
    assert done.rounds[0].outcomes["b"].accepted
