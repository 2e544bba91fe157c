"""One suite that every strategy passes."""

import io
import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import QuorumError, RunError
from cloister.flower import array_record, views
from cloister.strategies.base import StrategyState
from cloister.strategies.config import StrategyConfig
from cloister.strategies.registry import STRATEGIES

NAMES = sorted(STRATEGIES)
CENTRED = [
    {"name": name, "centres": {"mode": "aligned"}}
    for name in ("fedprox", "fednova", "moon", "scaffold", "fedadam", "fedbn")
]
SETTINGS: dict[str, dict[str, Any]] = {  # what six clients bear
    "fltrust": {"root": "cam1"},
    "bulyan": {"malicious": 0},
    "fedbuff": {"concurrency": 6, "buffer": 6},  # with fewer, who is in a buffer depends on when replies arrive
}
WHOLE = {"fltrust", "fedbuff"}  # whose cohorts are everybody
MIXED = [
    {"name": "fedmedian", "mixing": "bucketing", "clip": "arc"},
    {"name": "multikrum", "mixing": "nnm", "clip": 0.5},
]
CASES = [*({"name": name, **SETTINGS.get(name, {})} for name in NAMES), *CENTRED, *MIXED]
IDS = ["+".join([case["name"], *sorted({"centres", "mixing"} & set(case))]) for case in CASES]
every = pytest.mark.parametrize("case", CASES, ids=IDS)


def models(done: SimpleNamespace) -> dict[str, np.ndarray]:
    """All arrays a run leaves: the model, one per client, and the strategy's memory."""
    flat = dict(done.arrays)
    for client, record in done.result.client_arrays.items():
        flat |= {f"{client}/{key}": values for key, values in views(record).items()}
    return flat | {f"state/{key}": values for key, values in sorted(done.strategy.state().arrays.items())}


def test_configurations_and_rules_have_the_same_names() -> None:
    assert set(StrategyConfig.kinds) == set(STRATEGIES)


@every
def test_the_model_moves_and_keeps_its_form(lab: SimpleNamespace, case: dict[str, Any]) -> None:
    done = lab.run(lab.FakeGrid(lab.clients()), case)
    start = views(lab.initial(case["name"]))
    assert list(done.arrays) == list(start)
    moved = done.result.client_arrays["cam1"] if case["name"] == "local-only" else done.result.arrays
    for key, values in views(moved).items():
        assert values.dtype == start[key].dtype
        assert values.shape == start[key].shape
        assert np.isfinite(values).all()
        assert not np.array_equal(values, start[key])
    assert [result.void for result in done.rounds] == ["", ""]


@every
@settings(max_examples=6)
@given(data=st.data())
def test_the_order_of_arrival_changes_no_bit(lab: SimpleNamespace, case: dict[str, Any], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(6)))
    straight = lab.run(lab.FakeGrid(lab.clients()), case)
    mixed = lab.run(lab.FakeGrid(lab.clients(), order), case)
    assert lab.same(models(straight), models(mixed))
    assert [done.metrics for done in straight.rounds] == [done.metrics for done in mixed.rounds]
    assert [list(done.outcomes) for done in straight.rounds] == [list(done.outcomes) for done in mixed.rounds]


@every
def test_a_plain_flower_grid_gives_the_same_bits(lab: SimpleNamespace, case: dict[str, Any]) -> None:
    ours = lab.run(lab.FakeGrid(lab.clients()), case)
    plain = lab.run(lab.PlainGrid(lab.clients(), [3, 0, 5, 1, 4, 2]), case)
    assert lab.same(models(ours), models(plain))


@every
def test_flowers_own_loop_gives_the_same_bits(lab: SimpleNamespace, case: dict[str, Any]) -> None:
    ours = lab.run(lab.FakeGrid(lab.clients()), case)
    grid = lab.PlainGrid(lab.clients(), [5, 4, 3, 2, 1, 0])
    strategy = lab.make(grid, case)
    result = Strategy.start(strategy, grid, lab.initial(case["name"]), num_rounds=2)
    assert lab.same(ours.arrays, views(result.arrays))
    assert lab.same(ours.strategy.state().arrays, strategy.state().arrays)


@every
def test_four_rounds_are_two_and_two_resumed(lab: SimpleNamespace, case: dict[str, Any]) -> None:
    # Five of six clients take part, so the draw of the cohort must resume too.
    part = case if case["name"] in WHOLE else {**case, "cohort_size": 5}
    straight = lab.run(lab.FakeGrid(lab.clients()), part, rounds=4)
    first = lab.run(lab.FakeGrid(lab.clients()), part, rounds=2)
    grid = lab.FakeGrid(lab.clients(), [2, 1, 0, 4, 3])
    strategy = lab.make(grid, part)
    strategy.restore(through_files(first.strategy.state()))
    result = strategy.start(grid, array_record(first.arrays), 4, first_round=3)
    resumed = SimpleNamespace(strategy=strategy, result=result, arrays=views(result.arrays))
    assert lab.same(models(straight), models(resumed))


def through_files(state: StrategyState) -> StrategyState:
    """What a checkpoint does to a state: arrays through bytes in another order, values through JSON."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(sorted(state.arrays.items(), reverse=True)))
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as file:
        return StrategyState(arrays=dict(file), values=json.loads(json.dumps(state.values)))


@every
def test_another_strategys_state_is_refused(lab: SimpleNamespace, case: dict[str, Any]) -> None:
    strategy = lab.make(lab.FakeGrid(lab.clients()), case)
    with pytest.raises(RunError, match=f"expected one of '{case['name']}', found one of 'nobody'"):
        strategy.restore(StrategyState(values={"strategy": "nobody", "void_rounds": 0}))


def with_arrays(**changes: Any) -> Any:
    """A corruption of some delta entries; None drops one."""

    def corrupt(content: RecordDict) -> RecordDict:
        deltas = views(content["arrays"])
        for key, change in changes.items():
            name = key.replace("__", ".")
            if change is None:
                del deltas[name]
            else:
                deltas[name] = change(deltas.get(name))
        return RecordDict({**content, "arrays": array_record(deltas)})

    return corrupt


def with_metrics(**changes: Any) -> Any:
    def corrupt(content: RecordDict) -> RecordDict:
        metrics = {key: value for key, value in {**content["metrics"], **changes}.items() if value is not None}
        return RecordDict({**content, "metrics": MetricRecord(metrics)})

    return corrupt


def poisoned(value: float) -> Any:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values.flat[-1] = value
        return values

    return change


def garbled(content: RecordDict) -> RecordDict:
    record = ArrayRecord()
    for key, values in views(content["arrays"]).items():
        record[key] = Array(str(values.dtype), tuple(values.shape), "numpy.ndarray", b"not an array at all")
    return RecordDict({**content, "arrays": record})


def cut_short(content: RecordDict) -> RecordDict:
    """Loses the last bytes of one array."""
    record = ArrayRecord({key: Array(values) for key, values in views(content["arrays"]).items()})
    whole = record["conv.weight"]
    record["conv.weight"] = Array(whole.dtype, whole.shape, whole.stype, whole.data[:-7])
    return RecordDict({**content, "arrays": record})


def lying(content: RecordDict) -> RecordDict:
    """Declares the right shape around other bytes."""
    record = ArrayRecord()
    for key, values in views(content["arrays"]).items():
        data = Array(np.zeros((3, 3), values.dtype)).data
        record[key] = Array(str(values.dtype), tuple(values.shape), "numpy.ndarray", data)
    return RecordDict({**content, "arrays": record})


BAD = {
    "nan": (with_arrays(conv__weight=poisoned(np.nan)), r"arrays\['conv.weight'\]: expected finite values, found nan"),
    "inf": (with_arrays(conv__weight=poisoned(np.inf)), "found inf"),
    "both-infinities": (with_arrays(conv__weight=lambda it: poisoned(np.inf)(poisoned(-np.inf)(it))), "finite"),
    "broadcast": (
        with_arrays(conv__weight=lambda it: it[0, 0]),
        r"expected shape \(16, 1, 3, 3\), found \(3, 3\)",
    ),
    "scalar": (with_arrays(conv__weight=lambda it: it.reshape(-1)[0]), r"expected shape \(16, 1, 3, 3\), found \(\)"),
    "float64": (with_arrays(conv__weight=lambda it: it.astype(np.float64)), "expected dtype float32, found float64"),
    "missing": (with_arrays(conv__weight=None), r"arrays: missing \['conv.weight'\]"),
    "extra": (with_arrays(stranger=lambda it: np.zeros(3, np.float32)), r"unexpected \['stranger'\]"),
    "norm": (with_arrays(conv__weight=lambda it: it * 1e6), "L2 norm at most 1000"),
    "huge": (with_arrays(conv__weight=lambda it: it * 0 + 1e13), "L2 norm at most 1000, found 1"),
    "overflow": (with_arrays(bn__running_mean=lambda it: it * 0 + 3e38), "L2 norm at most 1e[+]15"),
    "negative-variance": (with_arrays(bn__running_var=lambda it: it - 99), "expected variances from 0, found -98"),
    "garbled": (garbled, "cannot be decoded"),
    "cut-short": (cut_short, "cannot be decoded"),
    "lying": (lying, r"found \(3, 3\)"),
    "no-weight": (with_metrics(**{"num-examples": None}), "num-examples.*found None"),
    "zero-weight": (with_metrics(**{"num-examples": 0}), "num-examples.*found 0"),
    "negative-weight": (with_metrics(**{"num-examples": -5}), "num-examples.*found -5"),
    "greedy-weight": (with_metrics(**{"num-examples": 10**9}), "num-examples.*from 1 to 10000000, found 1000000000"),
    "fractional-weight": (with_metrics(**{"num-examples": 2.5}), "num-examples.*found 2.5"),
    "list-metric": (with_metrics(loss=[1.0, 2.0]), r"metrics\['loss'\]: expected one finite number"),
    "nan-metric": (with_metrics(loss=float("nan")), r"metrics\['loss'\]: expected one finite number"),
    "negative-steps": (with_metrics(steps=-1), r"metrics\['steps'\]"),
    "unasked-record": (
        lambda it: RecordDict({**it, "photos": array_record({"x": np.zeros(3, np.float32)})}),
        r"unexpected \['photos'\]",
    ),
    "no-metrics": (lambda it: RecordDict({key: it[key] for key in it if key != "metrics"}), r"missing \['metrics'\]"),
    "wrong-kind": (lambda it: RecordDict({**it, "arrays": MetricRecord({"x": 1})}), "expected an ArrayRecord"),
    "metrics-kind": (lambda it: RecordDict({**it, "metrics": ConfigRecord({"x": 1})}), "expected a MetricRecord"),
    "error": (lambda it: Error(7, "CUDA out of memory\n  at line 3"), r"error reply \(code 7\): CUDA out of memory at"),
}


@every
def test_a_bad_reply_counts_as_no_reply(lab: SimpleNamespace, case: dict[str, Any]) -> None:
    limited = {**case, "limits": {"max_norm": 1000.0}, "quorum": {"deadline_s": 50.0}}
    without = lab.run(lab.FakeGrid(lab.clients(cam4=lambda message: None)), limited, rounds=1)
    assert "no reply before the deadline" in without.rounds[0].outcomes["cam4"].reason
    kinds = {kind for kind in BAD if case["name"] != "fedbn" or kind not in ("overflow", "negative-variance")}
    for kind, (corrupt, reason) in BAD.items():
        if kind not in kinds:  # FedBN's clients send no statistics
            continue

        def bad(message: Message, corrupt: Any = corrupt) -> Any:
            return corrupt(lab.trained(message, "cam4"))

        with_bad = lab.run(lab.FakeGrid(lab.clients(cam4=bad), [3, 5, 4, 0, 1, 2]), limited, rounds=1)
        (done,) = with_bad.rounds
        assert done.void == "", kind
        assert not done.outcomes["cam4"].accepted, kind
        assert re.search(reason, done.outcomes["cam4"].reason), (kind, done.outcomes["cam4"].reason)
        assert sum(outcome.accepted for outcome in done.outcomes.values()) == 5, kind
        assert lab.same(models(with_bad), models(without)), kind


@every
def test_below_the_quorum_nothing_changes_and_the_third_time_ends_the_run(
    lab: SimpleNamespace, case: dict[str, Any]
) -> None:
    dead: dict[str, Any] = {name: lambda message: Error(1, "power cut") for name in ("cam2", "cam3", "cam4", "cam5")}
    grid = lab.FakeGrid(lab.clients())
    strategy = lab.make(grid, {**case, "quorum": {"replies": 0.8, "max_void_rounds": 3}})
    rounds: list[Any] = []
    before = strategy.start(grid, lab.initial(case["name"]), 1, on_round=rounds.append)
    memory = strategy.state()
    grid.handlers = lab.clients(**dead)
    with pytest.raises(
        QuorumError, match=r"(?s)round 4 is void: expected at least 5 .* cohort of 6.*cam3: .*power cut"
    ):
        strategy.start(grid, before.arrays, 9, first_round=2, on_round=rounds.append)
    assert [done.number for done in rounds] == [1, 2, 3, 4]
    assert all(lab.same(views(done.arrays), views(before.arrays)) for done in rounds)
    assert lab.same(strategy.state().arrays, memory.arrays)
    assert strategy.state().values["void_rounds"] == 3
    grid.handlers = lab.clients()
    strategy.start(grid, before.arrays, 5, first_round=5)
    assert strategy.state().values["void_rounds"] == 0
