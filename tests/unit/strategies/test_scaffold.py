"""SCAFFOLD on quadratics, where every local step and both control variates have a closed form."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from cloister.flower import array_record, views
from cloister.models.spec import Group

SLOPES = np.array([0.5, 1.0, 3.0])  # client i minimises slope_i / 2 (w - centre_i)^2
CENTRES = np.array([-2.0, 0.5, 4.0])
STEPS, RATE = 8, 0.1
GROUPS = {"w": Group.SHARED, "count": Group.BUFFER}


def quadratic(index: int, own: np.ndarray, examples: int = 1) -> Any:
    """A client that takes STEPS corrected gradient steps and keeps its control variate in ``own[index]``."""

    def train(message: Message) -> RecordDict:
        start = views(message.content["arrays"])["w"]
        control = views(message.content["control"])["w"] if "control" in message.content else None
        w = start.copy()
        for _ in range(STEPS):
            gradient = SLOPES[index] * (w - CENTRES[index])
            w = w - RATE * (gradient if control is None else gradient - own[index] + control)
        content = RecordDict(
            {
                "arrays": array_record({"w": w - start, "count": np.array(STEPS)}),
                "metrics": MetricRecord({"num-examples": examples, "steps": STEPS}),
            }
        )
        if control is not None:
            change = -control + (start - w) / (STEPS * RATE)  # option II
            content["control"] = array_record({"w": np.asarray(change)})
            own[index] += change.item()
        return content

    return train


def federate(lab: SimpleNamespace, settings: dict[str, Any], rounds: int, examples: Any = (1, 1, 1)) -> SimpleNamespace:
    own = np.zeros(3)
    grid = lab.FakeGrid({f"cam{i}": quadratic(i, own, examples[i]) for i in range(3)})
    strategy = lab.make(grid, settings, groups=GROUPS)
    start = array_record({"w": np.zeros(1), "count": np.array(0)})
    trace: list[tuple[float, float]] = []

    def note(done: Any) -> None:
        control = strategy.state().arrays.get("0/w", np.zeros(1))
        trace.append((views(done.arrays)["w"].item(), control.item()))

    strategy.start(grid, start, rounds, on_round=note)
    return SimpleNamespace(trace=trace, own=own, grid=grid)


def test_rounds_follow_the_closed_form(lab: SimpleNamespace) -> None:
    x, c, own = 0.0, 0.0, np.zeros(3)
    found = federate(lab, {"name": "scaffold"}, 6).trace
    for got_x, got_c in found:
        rest = CENTRES + (own - c) / SLOPES  # where the corrected local problem rests
        moved = rest + (1 - RATE * SLOPES) ** STEPS * (x - rest)
        change = -c + (x - moved) / (STEPS * RATE)
        x, c, own = x + (moved - x).mean(), c + change.mean(), own + change
        assert got_x == pytest.approx(x, rel=1e-12)
        assert got_c == pytest.approx(c, rel=1e-12)


def test_it_finds_the_optimum_that_fedavg_misses(lab: SimpleNamespace) -> None:
    optimum = (SLOPES @ CENTRES) / SLOPES.sum()
    assert federate(lab, {"name": "scaffold"}, 150).trace[-1][0] == pytest.approx(optimum, abs=1e-8)
    assert abs(federate(lab, {"name": "fedavg"}, 150).trace[-1][0] - optimum) > 0.3


def test_with_example_weights_it_finds_the_weighted_optimum(lab: SimpleNamespace) -> None:
    examples = (6, 1, 1)
    weighted = (examples * SLOPES) @ CENTRES / (examples @ SLOPES)
    found = federate(lab, {"name": "scaffold"}, 300, examples)
    assert found.trace[-1][0] == pytest.approx(weighted, abs=1e-8)
    assert found.trace[-1][1] == pytest.approx(np.average(found.own, weights=examples), abs=1e-12)


def test_partial_participation_moves_c_by_the_share_that_took_part(lab: SimpleNamespace) -> None:
    found = federate(lab, {"name": "scaffold", "cohort_size": 2}, 1)
    assert np.count_nonzero(found.own) == 2
    assert found.trace[0][1] == pytest.approx(found.own.sum() / 3)  # c + 1/N sum of the changes


def test_the_control_variate_covers_trainable_shared_entries_only(lab: SimpleNamespace) -> None:
    found = federate(lab, {"name": "scaffold"}, 2)
    assert all(set(message.content["control"]) == {"w"} for message in found.grid.sent)
    grid = lab.FakeGrid(lab.clients())
    lab.run(grid, {"name": "scaffold"}, 1)
    assert set(grid.sent[0].content["control"]) == {"conv.weight", "bn.weight", "head.weight"}


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        (None, "missing ['control']"),
        ({"w": np.zeros(2)}, "control['w']: expected shape (1,), found (2,)"),
        ({"w": np.zeros(1, np.float32)}, "control['w']: expected dtype float64, found float32"),
        ({"w": np.array([np.nan])}, "control['w']: expected finite values, found nan"),
        ({}, "control: missing ['w']"),
    ],
)
def test_a_bad_control_record_is_refused_with_the_whole_reply(lab: SimpleNamespace, control: Any, reason: str) -> None:
    own = np.zeros(3)

    def bad(message: Message) -> RecordDict:
        content = quadratic(1, own)(message)
        del content["control"]
        if control is not None:
            content["control"] = array_record(control)
        return content

    grid = lab.FakeGrid({"cam0": quadratic(0, own), "cam1": bad, "cam2": quadratic(2, own)})
    strategy = lab.make(grid, {"name": "scaffold"}, groups=GROUPS)
    done: list[Any] = []
    strategy.start(grid, array_record({"w": np.zeros(1), "count": np.array(0)}), 1, on_round=done.append)
    assert reason in done[0].outcomes["cam1"].reason
    assert sum(outcome.accepted for outcome in done[0].outcomes.values()) == 2


def test_a_control_change_longer_than_the_bound_is_refused(lab: SimpleNamespace) -> None:
    own = np.zeros(3)

    def huge(message: Message) -> RecordDict:
        content = quadratic(0, own)(message)
        return RecordDict({**content, "control": array_record({"w": np.full(1, 7e14)})})

    grid = lab.FakeGrid({"cam0": huge, "cam1": quadratic(1, own)})
    strategy = lab.make(grid, {"name": "scaffold", "limits": {"max_extra_norm": 100.0}}, groups=GROUPS)
    done: list[Any] = []
    strategy.start(grid, array_record({"w": np.zeros(1), "count": np.array(0)}), 1, on_round=done.append)
    assert done[0].outcomes["cam0"].reason == "control: expected an L2 norm at most 100, found 7e+14"
    assert done[0].outcomes["cam1"].accepted
