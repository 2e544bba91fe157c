"""Robust rules against NumPy, SciPy and Flower's own classes, and against hostile clients."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import strategy as flower
from scipy import stats

from cloister.errors import ConfigError, QuorumError
from cloister.flower import array_record, views
from cloister.models.spec import Group


def hostile(lab: SimpleNamespace, factor: float) -> Any:
    """A client that sends finite nonsense in every floating-point entry and claims many examples."""

    def answer(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        for_all = {
            key: np.full_like(values, abs(factor) if key.endswith("var") else factor)
            if values.dtype.kind == "f"
            else values
            for key, values in views(content["arrays"]).items()
        }
        content["arrays"] = array_record(for_all)
        content["metrics"]["num-examples"] = 9_000_000
        return content

    return answer


def changes(lab: SimpleNamespace) -> dict[str, np.ndarray]:
    message = Message(
        RecordDict({"arrays": lab.initial("fedavg"), "config": lab.config(releases=[])}),
        dst_node_id=2,
        message_type="train",
    )
    replies = [views(lab.trained(message, name)["arrays"]) for name in lab.NAMES]
    return {key: np.stack([reply[key] for reply in replies]) for key in replies[0]}


def test_median_and_trimmed_mean_are_those_of_numpy_and_scipy(lab: SimpleNamespace) -> None:
    median = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedmedian"}, 1).arrays
    trimmed = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedtrimmedavg", "beta": 0.2}, 1).arrays
    for key, start in lab.model().items():
        stacked = changes(lab)[key]
        np.testing.assert_allclose(median[key], start + np.median(stacked, axis=0), rtol=1e-6)
        np.testing.assert_allclose(trimmed[key], start + stats.trim_mean(stacked, 0.2, axis=0), rtol=1e-5)
    assert median["bn.num_batches_tracked"].dtype == np.int64


def test_a_median_between_two_counts_is_rounded(lab: SimpleNamespace) -> None:
    def counting(count: int) -> Any:
        def answer(message: Message) -> RecordDict:
            content = lab.trained(message, "cam1")
            counted = {**views(content["arrays"]), "bn.num_batches_tracked": np.array(count, np.int64)}
            return RecordDict({**content, "arrays": array_record(counted)})

        return answer

    grid = lab.FakeGrid({"a": counting(3), "b": counting(4)})
    assert lab.run(grid, {"name": "fedmedian"}, 1).arrays["bn.num_batches_tracked"] == 4  # 3.5, to even


@pytest.mark.parametrize(
    ("settings", "inner"),
    [
        ({"name": "fedmedian"}, lambda: flower.FedMedian()),
        ({"name": "fedtrimmedavg"}, lambda: flower.FedTrimmedAvg()),
        ({"name": "krum", "malicious": 1}, lambda: flower.Krum(num_malicious_nodes=1)),
        (
            {"name": "multikrum", "malicious": 1, "selected": 3},
            lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
        ),
    ],
)
def test_they_equal_flowers_own_on_full_models(lab: SimpleNamespace, settings: dict[str, Any], inner: Any) -> None:
    start = {key: values for key, values in lab.model().items() if lab.GROUPS[key] is Group.SHARED}
    grid = lab.FakeGrid(lab.clients(cam3=hostile(lab, 3.0)))
    strategy = lab.make(grid, settings, groups=dict.fromkeys(start, Group.SHARED))
    ours = views(strategy.start(grid, array_record(start), 1).arrays)
    message = Message(
        RecordDict({"arrays": array_record(start), "config": lab.config(releases=[])}),
        dst_node_id=2,
        message_type="train",
    )
    replies = []
    for name in lab.NAMES:
        content = hostile(lab, 3.0)(message) if name == "cam3" else lab.trained(message, name)
        full = {key: start[key] + change for key, change in views(content["arrays"]).items()}
        replies.append(Message(RecordDict({**content, "arrays": array_record(full)}), reply_to=message))
    theirs, _ = inner().aggregate_train(1, replies)
    for key, values in views(theirs).items():
        np.testing.assert_allclose(ours[key], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "krum", "multikrum"])
@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_one_hostile_client_of_six_does_not_move_the_model_far(lab: SimpleNamespace, name: str, factor: float) -> None:
    attacked = lab.run(lab.FakeGrid(lab.clients(cam5=hostile(lab, factor))), {"name": name}).arrays
    poisoned = lab.run(lab.FakeGrid(lab.clients(cam5=hostile(lab, factor))), {"name": "fedavg"}).arrays
    for key, start in lab.model().items():
        if start.dtype.kind == "f":
            assert np.abs(attacked[key] - start).max() < 2
            assert np.abs(poisoned[key] - start).max() > 1e5


def test_krum_tells_small_changes_of_a_large_model_apart(lab: SimpleNamespace) -> None:
    # Flower compares models: in float32, |x|^2 + |y|^2 - 2xy at a norm of 1e4 has no digit left for changes of 0.1.
    big = {"head.weight": np.full((5, 4), 1e4, np.float32)}

    def client(place: int) -> Any:
        def answer(message: Message) -> RecordDict:
            content = lab.trained(message, "cam1")
            near = 0.001 * place + (0.1 if place == 0 else 0.0)
            content["arrays"] = array_record({"head.weight": np.full((5, 4), near, np.float32)})
            return content

        return answer

    grid = lab.FakeGrid({f"cam{place}": client(place) for place in range(5)})
    strategy = lab.make(grid, {"name": "krum", "malicious": 1}, groups={"head.weight": lab.GROUPS["head.weight"]})
    found = views(strategy.start(grid, array_record(big), 1).arrays)["head.weight"] - big["head.weight"]
    assert (found < 0.05).all()


def test_krum_takes_statistics_from_the_client_it_chose(lab: SimpleNamespace) -> None:
    found = lab.run(lab.FakeGrid(lab.clients()), {"name": "krum"}, 1).arrays
    stacked = changes(lab)
    matches = [
        all(np.allclose(found[key], start + stacked[key][place], atol=1e-6) for key, start in lab.model().items())
        for place in range(6)
    ]
    assert sum(matches) == 1


def test_krum_needs_enough_clients_whatever_the_quorum(lab: SimpleNamespace) -> None:
    quorum = {"replies": 1, "max_void_rounds": 1}
    with pytest.raises(QuorumError, match="expected at least 7 valid replies from a cohort of 6, found 6"):
        lab.run(lab.FakeGrid(lab.clients()), {"name": "krum", "malicious": 2, "quorum": quorum})


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg"])
def test_pooled_statistics_are_refused(lab: SimpleNamespace, name: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy {name}: cannot pool"):
        lab.make(lab.FakeGrid(lab.clients()), {"name": name}, pooled=lab.POOLED)
