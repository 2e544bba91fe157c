"""Buffered asynchronous runs through real processes: record, deviations, a kill and a resume, a central plan."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloister.errors import ConfigError, PlanError
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.verify import verify
from cloister.server import checkpoint
from cloister.simulations import run as runner
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import RunRecord

Die = Callable[[Experiment, Path, int, bool], None]

PLAN: dict[str, Any] = {
    "unit": "client",
    "relation": "zero-out",
    "mechanism": "gaussian",
    "trust": "central",
    "sampler": "all",
    "noise_multiplier": 2.0,
    "clip": {"bound": 1.0},
    "budget": {"epsilon": 50.0, "delta": 1e-5},
}


@pytest.fixture(autouse=True)
def _apps(apps: Path) -> None: ...


def experiment(task: str = "toy_task:Toy", *, strategy: dict[str, Any] | None = None, **more: Any) -> Experiment:
    values = {
        "name": "buffered",
        "task": task,
        "rounds": 6,
        "strategy": {"name": "fedbuff", "concurrency": 3, "buffer": 2, **(strategy or {})},
        "engine": {"workers": 2},
        **more,
    }
    return Experiment.parse(values, "test")


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.slow
def test_a_run_records_staleness_and_says_that_it_cannot_be_repeated_bit_for_bit(tmp_path: Path) -> None:
    runner.run(experiment(), tmp_path / "run", console=quiet())
    record = RunRecord.load(tmp_path / "run")
    assert [entry.round for entry in record.rounds] == [1, 2, 3, 4, 5, 6]
    for entry in record.rounds:
        assert len(entry.client_metrics) == 2
        assert entry.rejected == []
        assert all((metrics["staleness"] or 0) >= 0 for metrics in entry.client_metrics.values())
        assert entry.metrics["staleness"] is not None
    assert sum(entry.metrics["staleness"] or 0 for entry in record.rounds) > 0  # three train, two make a step
    (said,) = [each for each in record.deviations if each.topic == "aggregation"]
    assert said.run == "buffers: a step after 2 replies, 3 clients train at a time"
    assert "other weights" in said.why
    assert "staleness" in (tmp_path / "run" / "report.html").read_text()
    assert len({name for entry in record.rounds for name in entry.client_metrics}) >= 3


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_counts_no_step_twice(tmp_path: Path, run_and_die: Die) -> None:
    given = experiment()
    run_and_die(given, tmp_path / "run", 9, True)
    done = checkpoint.rounds(tmp_path / "run" / "checkpoints")
    assert done
    assert done[-1] < 6
    kept = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert kept is not None
    asked = kept.state["strategy"]["asked"]
    assert 1 <= len(asked) <= 3
    runner.resume(tmp_path / "run", console=quiet())
    record = RunRecord.load(tmp_path / "run")
    assert [entry.round for entry in record.rounds] == [1, 2, 3, 4, 5, 6]
    assert all(len(entry.client_metrics) == 2 for entry in record.rounds)
    first = record.rounds[done[-1]]
    assert all(metrics["staleness"] == 0 for metrics in first.client_metrics.values())
    assert verify(tmp_path / "run").broken == ()


@pytest.mark.slow
def test_a_central_plan_counts_every_client_in_every_buffer(tmp_path: Path) -> None:
    given = experiment("secret_task:SecretTask", strategy={"concurrency": 2, "buffer": 1}, plan=PLAN, rounds=4)
    runner.run(given, tmp_path / "run", console=quiet())
    record = RunRecord.load(tmp_path / "run")
    assert record.privacy.plan["sample_size"] == 1  # the divisor: the buffer
    assert all(entry.client_metrics == {} for entry in record.rounds)
    found = verify(tmp_path / "run")
    assert found.broken == ()
    assert found.epsilon == found.claimed
    (book,) = (tmp_path / "run").rglob(f"server*/{FILE_NAME}")
    with Ledger.open(book) as ledger:
        events = [event for entry in ledger.entries() for event in entry.events]
    counted = Counter((event.sampler.value, event.noise_multiplier) for event in events for _ in range(event.count))
    assert counted == {("all", 2.0): 4}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"relation": "add-remove"}, "a buffer closes after a number of replies.*zero-out"),
        ({"sampler": "poisson", "rate": 0.5}, 'draws by poisson do not count; instead: plan.sampler = "all"'),
    ],
)
def test_plans_that_do_not_hold_for_buffers_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=f"(?s){reason}"):
        runner.run(experiment("secret_task:SecretTask", plan={**PLAN, **changes}), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_buffer_larger_than_the_federation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy.buffer: strategy fedbuff needs 5 clients a round, found 4"):
        runner.run(experiment(strategy={"buffer": 5}), tmp_path / "run", console=quiet())
