"""Strategies under a plan in which the server adds the noise: secret cohorts, noisy sums, fixed divisors."""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from cloister.errors import ConfigError, PlanError, PrivacyError
from cloister.flower import array_record, views
from cloister.models.spec import Group
from cloister.privacy.clipping import BIT
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.strategies.private import CentralPrivacy
from cloister.strategies.registry import STRATEGIES

KEY = bytes(range(32))
NAMES = tuple(f"phone{number:03}" for number in range(40))
GROUPS = {"w": Group.SHARED, "b": Group.SHARED}
MODEL = {"w": np.zeros((60, 50), np.float32), "b": np.zeros(7, np.float32)}


def plan(**more: Any) -> Plan:
    values = {
        "unit": "client",
        "mechanism": "gaussian",
        "trust": "central",
        "sampler": "poisson",
        "rate": 0.5,
        "population": 40,
        "rounds": 6,
        "noise_multiplier": 1.5,
        "clip": {"kind": "flat", "bound": 2.0},
    }
    return Plan.of({**values, **more})


def constant(value: float, **metrics: float) -> Callable[[Message], RecordDict]:
    """A client whose change has norm |value|, all of it in one entry."""

    def answer(message: Message) -> RecordDict:
        change = {name: np.zeros_like(values) for name, values in views(message.content["arrays"]).items()}
        change["b"][0] = value
        return RecordDict({"arrays": array_record(change), "metrics": MetricRecord({"num-examples": 1, **metrics})})

    return answer


def start(
    lab: SimpleNamespace, privacy: CentralPrivacy, answer: Callable[[Message], Any], rounds: int = 1, **settings: Any
) -> SimpleNamespace:
    grid = lab.FakeGrid(dict.fromkeys(NAMES, answer))
    strategy = lab.make(grid, {"name": "fedavg", "weighting": "uniform", **settings}, groups=GROUPS, privacy=privacy)
    done: list[Any] = []
    strategy.start(grid, array_record(MODEL), rounds, on_round=done.append)
    return SimpleNamespace(strategy=strategy, rounds=done, grid=grid)


def test_the_sum_is_divided_by_the_expected_cohort_whoever_came(lab: SimpleNamespace) -> None:
    ran = start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), constant(2.0))
    came = len(ran.rounds[0].cohort)
    assert came not in (0, 20, 40)
    noise = NoiseSource(KEY).fork("sum").fork(1).fork("b").gaussian((7,), 1.5 * 2.0)
    expected = np.zeros(7) + noise / 20
    expected[0] += 2.0 * came / 20
    np.testing.assert_allclose(views(ran.rounds[0].arrays)["b"], expected, rtol=1e-4)


def test_the_noise_has_the_plans_deviation_on_every_entry(lab: SimpleNamespace) -> None:
    ran = start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), constant(0.0))
    released = views(ran.rounds[0].arrays)["w"] * 20
    assert released.std() == pytest.approx(1.5 * 2.0, rel=0.06)
    assert abs(released.mean()) < 5 * 3.0 / math.sqrt(released.size)


def test_replaced_units_get_twice_the_noise(lab: SimpleNamespace) -> None:
    made = plan(sampler="all", rate=1.0, relation="replace-one")
    ran = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(0.0))
    assert (views(ran.rounds[0].arrays)["w"] * 40).std() == pytest.approx(2 * 1.5 * 2.0, rel=0.06)


def test_cohorts_are_secret_coins_not_the_seed_trees(lab: SimpleNamespace) -> None:
    one = start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), constant(0.0), 6)
    again = start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), constant(0.0), 6)
    other = start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(bytes(32))), constant(0.0), 6)
    cohorts = [[result.cohort for result in ran.rounds] for ran in (one, again, other)]
    assert cohorts[0] == cohorts[1] != cohorts[2]
    assert len(set(cohorts[0])) == 6
    assert 60 < sum(map(len, cohorts[0])) < 180  # 6 x 40 coins


def test_an_empty_cohort_still_adds_its_noise_and_counts(lab: SimpleNamespace) -> None:
    made = CentralPrivacy(plan=plan(rate=1e-9), noise=NoiseSource(KEY))
    ran = start(lab, made, constant(2.0), quorum={"replies": 5})
    assert (ran.rounds[0].cohort, ran.rounds[0].void) == ((), "")
    assert views(ran.rounds[0].arrays)["w"].std() > 0


def test_a_client_that_fails_counts_as_zero_and_changes_nothing_else(lab: SimpleNamespace) -> None:
    grids = [constant(0.0), lambda message: Error(1, "no")]
    results = [start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), answer) for answer in grids]
    one, other = (views(ran.rounds[0].arrays) for ran in results)
    assert lab.same(one, other)
    assert results[1].rounds[0].void == ""


@pytest.mark.parametrize("value", [2.01, -7.0, 1e6])
def test_a_change_beyond_the_bound_is_refused(lab: SimpleNamespace, value: float) -> None:
    honest, hostile = (
        start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), constant(v)) for v in (0.0, value)
    )
    assert lab.same(views(honest.rounds[0].arrays), views(hostile.rounds[0].arrays))
    reasons = {outcome.reason for outcome in hostile.rounds[0].outcomes.values()}
    assert all("expected a change of L2 norm at most 2" in reason for reason in reasons)


def test_a_layer_beyond_its_own_bound_is_refused(lab: SimpleNamespace) -> None:
    made = plan(clip={"kind": "per-layer", "per_layer": {"w": 3.0, "b": 0.5}})
    ran = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(0.6))
    assert all("b: expected a change of L2 norm at most 0.5" in it.reason for it in ran.rounds[0].outcomes.values())


def test_a_layer_is_bounded_as_the_client_clips_it(lab: SimpleNamespace) -> None:
    made = plan(clip={"kind": "per-layer", "per_layer": {"": 0.5, "b": 3.0}})  # the longest prefix decides
    ran = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(2.5))
    assert all(it.accepted for it in ran.rounds[0].outcomes.values())


def test_fewer_clients_online_are_not_drawn_more_often_than_is_counted() -> None:
    made = plan(sampler="without-replacement", rate=1.0, sample_size=20, relation="replace-one")
    privacy = CentralPrivacy(plan=made, noise=NoiseSource(KEY))
    names = SimpleNamespace(name_of=str)
    drawn = [len(privacy.draw(names, range(20), number, 0).clients) for number in range(1, 41)]
    assert sum(drawn) == pytest.approx(40 * 10, rel=0.15)  # 20 of 40 places, half of them empty
    assert len(privacy.draw(names, range(40), 1, 0).clients) == 20
    assert len(privacy.draw(names, range(80), 1, 0).clients) == 20


def test_the_bound_follows_the_quantile_and_is_sent_to_clients(lab: SimpleNamespace) -> None:
    clip = {"kind": "adaptive", "bound": 0.1, "bits_noise": 4.0}
    privacy = CentralPrivacy(plan=plan(sampler="all", rate=1.0, rounds=40, clip=clip), noise=NoiseSource(KEY))
    bounds = []

    def answer(message: Message) -> RecordDict:
        bound = float(message.content["config"]["clip-bound"])
        bounds.append(bound)
        norm = 0.05 * (message.metadata.dst_node_id % 40 + 1)  # the median is about 1
        return constant(min(norm, bound), **{BIT: 0.5 if norm <= bound else -0.5})(message)

    start(lab, privacy, answer, 40)
    assert bounds[0] == pytest.approx(0.1)
    assert bounds[40] > 0.1
    assert privacy.bound == pytest.approx(1.0, rel=0.25)


def test_under_an_adaptive_clip_updates_and_bits_have_the_noise_that_the_plan_splits(lab: SimpleNamespace) -> None:
    clip = {"kind": "adaptive", "bound": 2.0, "bits_noise": 1.0, "learning_rate": 2.0}
    made = plan(sampler="all", rate=1.0, clip=clip)
    kept: list[tuple[float, dict[str, np.ndarray]]] = []

    def settle(number: int, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        kept.append((privacy.bound, make()))
        return kept[-1][1]

    privacy = CentralPrivacy(plan=made, noise=NoiseSource(KEY), settle=settle)
    start(lab, privacy, constant(0.0, **{BIT: 0.5}), 2)
    assert kept[1][0] < 1.0 < kept[0][0]
    for number, (bound, released) in enumerate(kept, 1):
        expected = (1.5**-2 - 2.0**-2) ** -0.5 * bound  # a bit moves by a half, so its multiplier is 2
        assert released["sum/w"].std() == pytest.approx(expected, rel=0.06)
        drawn = NoiseSource(KEY).fork("bits", number).gaussian((), 1.0)
        assert released["bits"] == pytest.approx(40 * 0.5 + drawn)


@pytest.mark.parametrize("bit", [None, 0.3, 1.0])
def test_a_bit_that_is_none_is_refused(lab: SimpleNamespace, bit: float | None) -> None:
    made = plan(sampler="all", rate=1.0, clip={"kind": "adaptive", "bound": 1.0, "bits_noise": 4.0})
    metrics = {} if bit is None else {BIT: bit}
    ran = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(0.5, **metrics))
    assert all("'unclipped'" in outcome.reason for outcome in ran.rounds[0].outcomes.values())


MATRIX = {"mechanism": "matrix", "sampler": "min-separation", "rate": 1.0, "sample_size": 0}


def test_nobody_takes_part_again_before_the_separation(lab: SimpleNamespace) -> None:
    matrix = {"kind": "banded", "bands": 3, "separation": 3, "participations": 2}
    made = plan(**MATRIX, matrix=matrix, rounds=8)
    ran = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(0.0), 8, cohort_size=10)
    rounds: dict[str, list[int]] = {}
    for result in ran.rounds:
        assert len(result.cohort) <= 10
        for name in result.cohort:
            rounds.setdefault(name, []).append(result.number)
    assert rounds
    assert all(len(taken) <= 2 for taken in rounds.values())
    assert any(len(taken) == 2 for taken in rounds.values())
    assert all(b - a >= 3 for taken in rounds.values() for a, b in pairwise(taken))


@pytest.mark.parametrize("kind", ["banded", "blt", "tree"])
def test_a_resumed_run_goes_on_with_the_same_noise(lab: SimpleNamespace, kind: str) -> None:
    made = plan(**MATRIX, matrix={"kind": kind, "separation": 2}, rounds=6)
    whole = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(1.0), 6, cohort_size=10)
    first = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(1.0), 3, cohort_size=10)
    state = first.strategy.state()
    grid = lab.FakeGrid(dict.fromkeys(NAMES, constant(1.0)))
    privacy = CentralPrivacy(plan=made, noise=NoiseSource(KEY))
    settings = {"name": "fedavg", "weighting": "uniform", "cohort_size": 10}
    strategy = lab.make(grid, settings, groups=GROUPS, privacy=privacy)
    strategy.restore(state)
    result = strategy.start(grid, first.rounds[-1].arrays, 6, first_round=4)
    assert lab.same(views(result.arrays), views(whole.rounds[-1].arrays))


def test_the_memory_of_the_noise_is_sealed(lab: SimpleNamespace) -> None:
    made = plan(**MATRIX, matrix={"kind": "banded", "bands": 3, "separation": 2}, rounds=6)
    ran = start(lab, CentralPrivacy(plan=made, noise=NoiseSource(KEY)), constant(1.0), 2, cohort_size=10)
    state = ran.strategy.state()
    held = np.concatenate([it.ravel().view(np.uint8) for name, it in state.arrays.items() if "privacy/" in name])
    memory = ran.strategy.privacy.stream._stream.state()["memory"]
    assert memory.any()
    assert memory.tobytes()[:64] not in held.tobytes()
    stranger = CentralPrivacy(plan=made, noise=NoiseSource(bytes(32)))
    parts = {name.removeprefix("privacy/"): it for name, it in state.arrays.items() if name.startswith("privacy/")}
    with pytest.raises(PrivacyError):
        stranger.restore(parts, state.values["privacy"])


def test_the_release_of_a_round_is_settled_once_and_used_as_settled(lab: SimpleNamespace) -> None:
    kept: dict[int, dict[str, np.ndarray]] = {}

    def settle(number: int, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return kept.setdefault(number, make())

    privacy = CentralPrivacy(plan=plan(), noise=NoiseSource(KEY), settle=settle)
    first = start(lab, privacy, constant(2.0))
    again = start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY), settle=settle), constant(-2.0))
    assert lab.same(views(first.rounds[0].arrays), views(again.rounds[0].arrays))


def test_entries_that_no_clip_bounds_are_refused(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(dict.fromkeys(NAMES, constant(0.0)))
    groups = {**GROUPS, "b": Group.BUFFER}
    privacy = CentralPrivacy(plan=plan(), noise=NoiseSource(KEY))
    strategy = lab.make(grid, {"name": "fedavg"}, groups=groups, privacy=privacy)
    with pytest.raises(ConfigError, match=r"SHARED floating-point entries alone, found \['b'\]"):
        strategy.start(grid, array_record(MODEL), 1)


def test_a_plan_without_central_noise_is_not_for_the_server() -> None:
    for made in (plan(trust="local", sampler="all", rate=1.0), Plan.none()):
        with pytest.raises(ConfigError, match="expected a central plan"):
            CentralPrivacy(plan=made, noise=NoiseSource(KEY))
    with pytest.raises(ConfigError, match=r"found \['robust-median'\]"):
        CentralPrivacy(plan=plan(robust="median"), noise=NoiseSource(KEY))


def test_a_server_optimiser_steps_on_the_noisy_mean(lab: SimpleNamespace) -> None:
    ran = start(
        lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), constant(2.0), 2, name="fedavgm", momentum=0.5
    )
    plain = start(lab, CentralPrivacy(plan=plan(), noise=NoiseSource(KEY)), constant(2.0), 2)
    one, two = (views(result.arrays)["b"] for result in plain.rounds)
    np.testing.assert_allclose(views(ran.rounds[0].arrays)["b"], one, rtol=1e-5)
    np.testing.assert_allclose(views(ran.rounds[1].arrays)["b"], two + 0.5 * one, rtol=1e-4, atol=1e-6)


NOISED = {"fedavg", "fedprox", "moon", "fedrcl", "fedbn", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedbuff"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_adds_the_noise_or_refuses_it(lab: SimpleNamespace, name: str) -> None:
    privacy = CentralPrivacy(plan=plan(), noise=NoiseSource(KEY))
    groups = {**GROUPS, "bn.running_mean": Group.LOCAL} if name == "fedbn" else GROUPS
    drawn: list[int] = []
    privacy.stream.draw = lambda number, shapes, bound: (  # type: ignore[method-assign]
        drawn.append(number) or {key: np.zeros(shape) for key, shape in shapes.items()}  # type: ignore[func-returns-value]
    )
    settings = {"name": name, **({"root": NAMES[0]} if name == "fltrust" else {})}
    grid = lab.FakeGrid(dict.fromkeys(NAMES, constant(0.0)))
    if name in NOISED:
        strategy = lab.make(grid, settings, groups=groups, privacy=privacy)
        strategy.start(grid, array_record(MODEL), 2)
        assert drawn == [1, 2]
        return
    groups = {**groups, "b": Group.LOCAL} if name == "l2rw-uci" else groups
    with pytest.raises(PlanError, match="noisy mean"):
        lab.make(grid, settings, groups=groups, privacy=privacy)


def test_noise_covers_what_rounding_to_integers_added_to_each_part_of_a_sum(lab: SimpleNamespace) -> None:
    drawn = []
    for slack in (0.0, 0.5):
        privacy = CentralPrivacy(plan=plan(), noise=NoiseSource(KEY))
        fold = privacy.fold(1, MODEL, dict.fromkeys(MODEL, Group.SHARED))
        fold.add_sum({name: np.zeros(values.shape) for name, values in MODEL.items()}, slack)
        drawn.append(np.concatenate([(values - MODEL[name]).ravel() for name, values in fold.finish().items()]))
    np.testing.assert_allclose(drawn[1], 1.5 * drawn[0], rtol=1e-4, atol=1e-6)
