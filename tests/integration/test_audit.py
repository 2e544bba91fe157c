"""`cloister audit` on finished runs: bounds beside claims, a broken mechanism disproved, nothing measured twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cloister.errors import AuditError, RunError
from cloister.privacy.noise import NoiseSource
from cloister.simulations import auditing
from cloister.simulations import run as runner
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import RunRecord

STEPS: dict[str, Any] = {
    "unit": "subject",
    "mechanism": "dp-sgd",
    "sampler": "poisson",
    "rate": 1.0,
    "steps": 2,
    "records": 2,
    "sample_size": 1,
    "noise_multiplier": 4.0,
    "clip": {"bound": 1.0},
    "budget": {"epsilon": 50.0, "delta": 1e-5},
}
CENTRAL: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "central",
    "sampler": "all",
    "noise_multiplier": 2.0,
    "clip": {"bound": 1.0},
    "budget": {"epsilon": 50.0, "delta": 1e-5},
}
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def _apps(apps: Path) -> None: ...


def finished(folder: Path, plan: dict[str, Any], rounds: int = 2) -> Path:
    values = {
        "name": "private",
        "task": "secret_task:SecretTask",
        "rounds": rounds,
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "plan": plan,
        "engine": {"workers": 1},
    }
    runner.run(Experiment.parse(values, "test"), folder, console=QUIET)
    return folder


def by_name(folder: Path, *names: str) -> dict[str, Any]:
    return {result.name: result for result in runner.audit(folder, names, console=QUIET)}


def test_private_steps_are_attacked_where_the_claim_is_made(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", STEPS)
    found = by_name(run, "exact-leak", "one-run")
    assert found["exact-leak"].passed
    assert found["one-run"].passed
    assert 0 < found["one-run"].epsilon < found["one-run"].claimed
    claims = RunRecord.load(run).privacy.claims
    assert found["one-run"].claimed < float(claims[0]["epsilon"])  # one client; people are on both


def test_a_plan_that_counts_its_places_is_attacked_with_no_more_canaries(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", {**STEPS, "sampler": "fixed", "population": 40, "sample_size": 40})
    (result,) = runner.audit(run, ["one-run"], console=QUIET)
    assert result.numbers["canaries"] == 40
    assert result.passed


def test_canary_clients_are_looked_for_in_a_repetition_of_the_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", CENTRAL)
    (result,) = runner.audit(run, ["canary-clients"], console=QUIET)
    assert result.passed
    assert 0 <= result.epsilon < result.claimed
    assert result.claimed == pytest.approx(RunRecord.load(run).privacy.claims[0]["epsilon"])
    assert [(run / name).is_file() for name in result.pictures] == [True]


def test_noise_that_is_a_tenth_of_what_is_claimed_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, whole = finished(tmp_path / "run", STEPS), NoiseSource.gaussian
    monkeypatch.setattr(NoiseSource, "gaussian", lambda self, shape, std: whole(self, shape, std / 10))
    (result,) = runner.audit(run, ["one-run"], console=QUIET)
    assert not result.passed
    assert result.epsilon > result.claimed
    assert auditing.contradicted([result]) == [result]


def test_without_a_plan_inputs_are_read_and_nothing_is_claimed(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", {})
    found = by_name(run, "exact-leak")
    assert not found["exact-leak"].passed
    assert found["exact-leak"].numbers["recovered"] == 8
    assert auditing.contradicted(list(found.values())) == []


def test_an_audit_is_kept_and_not_run_again(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", STEPS)
    first = by_name(run, "exact-leak")
    kept = RunRecord.load(run).privacy.audits
    again = by_name(run, "exact-leak")
    assert first == again
    assert RunRecord.load(run).privacy.audits == kept
    assert "What attacks measured" in (run / "report.html").read_text()


def test_what_means_nothing_for_a_run_is_left_out(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", STEPS)
    assert by_name(run, "canary-clients", "centre-linkage") == {}
    with pytest.raises(AuditError, match="no 'nosuch'; expected some of exact-leak"):
        by_name(run, "nosuch")


def test_a_run_that_is_not_finished_is_not_audited(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", STEPS)
    record = RunRecord.load(run)
    record.final = {}
    record.save(run)
    with pytest.raises(RunError, match="expected a finished run"):
        by_name(run, "exact-leak")


def test_coins_of_shadows_leave_everybody_some_with_and_some_without() -> None:
    from cloister.simulations.auditing.membership import _shadow_coins

    coins = _shadow_coins(np.random.default_rng(0), 500)
    assert coins.shape[1] == 500
    assert coins.sum(0).min() >= 2
    assert (~coins).sum(0).min() >= 2
    assert 0.45 < coins.mean() < 0.55
