"""Robust strategies against NumPy, SciPy and Flower's own classes, and against hostile clients."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import strategy as flower
from scipy import stats

from cloister.errors import ConfigError, QuorumError
from cloister.flower import array_record, views
from cloister.models.spec import Group
from cloister.randomness import SeedTree
from cloister.strategies.mixing import prepared
from cloister.strategies.rules import median


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
    trimmed = lab.run(lab.FakeGrid(lab.clients()), {"name": "fedtrimmedavg"}, 1).arrays
    for key, start in lab.model().items():
        stacked = changes(lab)[key]
        np.testing.assert_allclose(median[key], start + np.median(stacked, axis=0), rtol=1e-6)
        if lab.GROUPS[key] is Group.SHARED:
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
    assert lab.run(grid, {"name": "fedmedian", "malicious": 0}, 1).arrays["bn.num_batches_tracked"] == 4  # 3.5, to even


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
        content["metrics"]["num-examples"] = 1  # Flower weighs by what clients claim
        replies.append(Message(RecordDict({**content, "arrays": array_record(full)}), reply_to=message))
    theirs, _ = inner().aggregate_train(1, replies)
    for key, values in views(theirs).items():
        np.testing.assert_allclose(ours[key], values, rtol=1e-5, atol=1e-6)


ROBUST = {
    "fedmedian": {},
    "fedtrimmedavg": {},
    "meamed": {},
    "krum": {},
    "multikrum": {},
    "geometric-median": {},
    "centred-clipping": {"radius": 1.0},
    "fltrust": {"root": "cam1"},
}


@pytest.mark.parametrize("mixing", ["none", "nnm"])
@pytest.mark.parametrize("name", sorted(ROBUST))
@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_one_hostile_client_of_six_does_not_move_the_model_far(
    lab: SimpleNamespace, name: str, factor: float, mixing: str
) -> None:
    settings = {"name": name, "mixing": mixing, **ROBUST[name]}
    attacked = lab.run(lab.FakeGrid(lab.clients(cam5=hostile(lab, factor))), settings).arrays
    poisoned = lab.run(lab.FakeGrid(lab.clients(cam5=hostile(lab, factor))), {"name": "fedavg"}).arrays
    for key, start in lab.model().items():
        if start.dtype.kind == "f":
            assert np.abs(attacked[key] - start).max() < 2
            assert np.abs(poisoned[key] - start).max() > 1e5


@pytest.mark.parametrize("name", sorted({*ROBUST} - {"fltrust"}))
def test_bulyan_and_bucketing_bear_one_hostile_client_of_eight(lab: SimpleNamespace, name: str) -> None:
    names = [f"cam{number}" for number in range(1, 10)]
    for settings in ({"name": "bulyan"}, {"name": name, "mixing": "bucketing", "clip": "arc", **ROBUST[name]}):
        grid = lab.FakeGrid(lab.clients(names, cam5=hostile(lab, 1e6)))
        attacked = lab.run(grid, settings).arrays
        for key, start in lab.model().items():
            assert np.abs(attacked[key] - start).max() < (10 if start.dtype.kind == "i" else 2)


@pytest.mark.parametrize("name", sorted(ROBUST))
def test_statistics_of_a_client_whose_weights_look_honest_do_not_poison_the_model(
    lab: SimpleNamespace, name: str
) -> None:
    def two_faced(message: Message) -> RecordDict:
        content = lab.trained(message, "cam2")
        statistics = {"bn.running_mean": np.full(16, 1e6, np.float32), "bn.running_var": np.full(16, 1e6, np.float32)}
        content["arrays"] = array_record({**views(content["arrays"]), **statistics})
        return content

    for cam in lab.NAMES[1:]:  # whomever a rule chooses
        attacked = lab.run(lab.FakeGrid(lab.clients(**{cam: two_faced})), {"name": name, **ROBUST[name]}, 1).arrays
        assert max(np.abs(attacked[key]).max() for key in ("bn.running_mean", "bn.running_var")) < 3


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


def test_krum_takes_all_weights_from_one_client_and_statistics_from_the_middle(lab: SimpleNamespace) -> None:
    found = lab.run(lab.FakeGrid(lab.clients()), {"name": "krum"}, 1).arrays
    stacked = changes(lab)
    shared = [key for key, group in lab.GROUPS.items() if group is Group.SHARED]
    matches = [
        all(np.allclose(found[key], lab.model()[key] + stacked[key][place], atol=1e-6) for key in shared)
        for place in range(6)
    ]
    assert sum(matches) == 1
    middle = lab.model()["bn.running_var"] + np.median(stacked["bn.running_var"], axis=0)
    np.testing.assert_allclose(found["bn.running_var"], middle, rtol=1e-6)


def test_all_clients_weigh_the_same_whatever_they_claim(lab: SimpleNamespace) -> None:
    def greedy(message: Message) -> RecordDict:
        content = lab.trained(message, "cam3")
        content["metrics"]["num-examples"] = 9_000_000
        return content

    for name, own in ROBUST.items():
        plain = lab.run(lab.FakeGrid(lab.clients()), {"name": name, **own}).arrays
        claimed = lab.run(lab.FakeGrid(lab.clients(cam3=greedy)), {"name": name, **own}).arrays
        assert lab.same(plain, claimed), name


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"name": "krum", "malicious": 2}, 7),
        ({"name": "fedmedian", "malicious": 3}, 7),
        ({"name": "bulyan", "malicious": 1}, 7),
        ({"name": "multikrum", "malicious": 1, "selected": 6}, 7),
        ({"name": "krum", "malicious": 1, "mixing": "bucketing"}, 9),
        ({"name": "fltrust", "malicious": 5, "root": "cam1"}, 7),
    ],
    ids=str,
)
def test_enough_replies_are_needed_whatever_the_quorum(
    lab: SimpleNamespace, settings: dict[str, Any], least: int
) -> None:
    quorum = {"replies": 1, "max_void_rounds": 1}
    with pytest.raises(QuorumError, match=f"expected at least {least} valid replies from a cohort of 6, found 6"):
        lab.run(lab.FakeGrid(lab.clients()), {**settings, "quorum": quorum})
    if settings["name"] != "fltrust":
        wanted = f"strategy {settings['name']}: malicious = .* cohorts of at least {least}, found cohort_size = 6; ask"
        with pytest.raises(ConfigError, match=wanted):
            lab.run(lab.FakeGrid(lab.clients()), {**settings, "cohort_size": 6})


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "geometric-median"])
def test_pooled_statistics_are_refused(lab: SimpleNamespace, name: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy {name}: cannot pool"):
        lab.make(lab.FakeGrid(lab.clients()), {"name": name}, pooled=lab.POOLED)


def test_mixing_and_clipping_are_those_of_the_settings(lab: SimpleNamespace) -> None:
    keys = [key for key, group in lab.GROUPS.items() if group is Group.SHARED]
    rows = np.concatenate([changes(lab)[key].reshape(6, -1) for key in keys], axis=1)
    seeds = SeedTree(experiment="test", seed=3)
    for how, radius in (("none", "arc"), ("nnm", 0.5), ("bucketing", "none")):
        settings = {"name": "fedmedian", "mixing": how, "clip": radius}
        found = lab.run(lab.FakeGrid(lab.clients()), settings, 1).arrays
        generator = seeds.numpy(purpose="bucketing", round=1)
        expected = median(*prepared(rows, 1, radius=radius, mixing=how, generator=generator))
        moved = np.concatenate([(found[key] - lab.model()[key]).reshape(-1) for key in keys])
        np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_centred_clipping_starts_from_the_change_of_the_round_before(lab: SimpleNamespace) -> None:
    start = {"head.weight": np.zeros((5, 4), np.float32)}

    def steady(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        content["arrays"] = array_record({"head.weight": np.full((5, 4), 1.0, np.float32)})
        return content

    grid = lab.FakeGrid(dict.fromkeys(lab.NAMES, steady))
    settings = {"name": "centred-clipping", "radius": 1.0}
    strategy = lab.make(grid, settings, groups={"head.weight": Group.SHARED})
    moved, before = [], start["head.weight"]
    for number in (1, 2, 3, 4, 5, 6):
        now = views(strategy.start(grid, array_record({"head.weight": before}), number, first_round=number).arrays)
        moved.append(float(np.linalg.norm(now["head.weight"] - before)))
        before = now["head.weight"]
    np.testing.assert_allclose(moved, [1, 2, 3, 4, np.sqrt(20), np.sqrt(20)], rtol=1e-5)


def test_the_root_client_says_whom_to_trust_and_is_not_averaged(lab: SimpleNamespace) -> None:
    def against(message: Message) -> RecordDict:
        content = lab.trained(message, "cam1")
        content["arrays"] = array_record({key: -values for key, values in views(content["arrays"]).items()})
        return content

    hostile_five = {cam: against for cam in ("cam2", "cam3", "cam4", "cam5")}
    settings = {"name": "fltrust", "root": "cam1", "malicious": 4}
    found = lab.run(lab.FakeGrid(lab.clients(**hostile_five)), settings, 1).arrays
    keys = [key for key, group in lab.GROUPS.items() if group is Group.SHARED]
    stacked = {key: values.reshape(6, -1) for key, values in changes(lab).items() if key in keys}
    rows = np.concatenate([stacked[key] for key in keys], axis=1)
    own = rows[5] * np.linalg.norm(rows[0]) / np.linalg.norm(rows[5])  # cam6 is alone in going the root's way
    moved = np.concatenate([(found[key] - lab.model()[key]).reshape(-1) for key in keys])
    np.testing.assert_allclose(moved, own, atol=1e-6)


def test_without_the_root_clients_reply_a_round_is_void(lab: SimpleNamespace) -> None:
    settings = {"name": "fltrust", "root": "cam2", "quorum": {"max_void_rounds": 1}}
    silent = lab.FakeGrid(lab.clients(cam2=lambda message: Error(1, "power cut")))
    with pytest.raises(QuorumError, match=r"round 1 is void: expected a valid reply of the root client 'cam2'.*power"):
        lab.run(silent, settings)
    with pytest.raises(QuorumError, match="root client 'cam9': no client of that name was asked, but cam1, cam2, cam3"):
        lab.run(lab.FakeGrid(lab.clients()), {**settings, "root": "cam9"})


@pytest.mark.parametrize("name", sorted(ROBUST))
def test_a_resumed_run_whose_arrays_come_in_another_order_gives_the_same_bits(lab: SimpleNamespace, name: str) -> None:
    def client(cam: str) -> Any:
        def answer(message: Message) -> RecordDict:
            received = views(message.content["arrays"])
            arrays = array_record({key: received[key] for key in lab.model()})
            return lab.trained(SimpleNamespace(content=RecordDict({**message.content, "arrays": arrays})), cam)

        return answer

    settings = {"name": name, **ROBUST[name]}
    straight = lab.run(lab.FakeGrid({cam: client(cam) for cam in lab.NAMES}), settings, rounds=3)
    first = lab.run(lab.FakeGrid({cam: client(cam) for cam in lab.NAMES}), settings, rounds=2)
    grid = lab.FakeGrid({cam: client(cam) for cam in lab.NAMES})
    strategy = lab.make(grid, settings)
    strategy.restore(first.strategy.state())
    backwards = array_record(dict(reversed(first.arrays.items())))
    resumed = views(strategy.start(grid, backwards, 3, first_round=3).arrays)
    for key, values in straight.arrays.items():
        assert resumed[key].tobytes() == values.tobytes(), key
