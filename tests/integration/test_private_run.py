"""Runs under a privacy plan, through real processes: killed at any moment, resumed, the same on every engine."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import PlanError
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.verify import verify
from cloister.simulations import run as runner
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import RunRecord

PLANS: dict[str, dict[str, Any]] = {
    "steps": {
        "unit": "subject",
        "mechanism": "dp-sgd",
        "trust": "local",
        "sampler": "poisson",
        "rate": 0.5,
        "steps": 2,
        "records": 2,
        "sample_size": 1,
        "noise_multiplier": 1.0,
        "clip": {"bound": 1.0},
        "budget": {"epsilon": 50.0, "delta": 1e-5},
    },
    "upload": {
        "unit": "client",
        "mechanism": "gaussian",
        "trust": "local",
        "noise_multiplier": 1.0,
        "clip": {"bound": 1.0},
        "budget": {"epsilon": 50.0, "delta": 1e-5},
    },
    "central": {
        "unit": "client",
        "mechanism": "gaussian",
        "trust": "central",
        "sampler": "poisson",
        "rate": 0.5,
        "noise_multiplier": 1.0,
        "clip": {"kind": "adaptive", "bound": 1.0, "bits_noise": 3.0},
        "budget": {"epsilon": 50.0, "delta": 1e-5},
    },
    "matrix": {
        "unit": "client",
        "mechanism": "matrix",
        "trust": "central",
        "sampler": "min-separation",
        "noise_multiplier": 1.0,
        "clip": {"bound": 1.0},
        "matrix": {"kind": "banded", "bands": 2, "separation": 2},
        "budget": {"epsilon": 50.0, "delta": 1e-5},
    },
}


def experiment(plan: str, **more: Any) -> Experiment:
    strategy = {"name": "fedavg", "weighting": "uniform"}
    if plan == "matrix":
        strategy |= {"cohort_size": 1, "quorum": {"replies": 1}}
    values = {
        "name": "private",
        "task": "secret_task:SecretTask",
        "rounds": 4,
        "strategy": strategy,
        "plan": PLANS[plan],
        "engine": {"workers": 1},
        **more,
    }
    return Experiment.parse(values, "test")


@pytest.fixture
def quiet() -> Any:
    from rich.console import Console

    return Console(quiet=True)


@pytest.fixture(autouse=True)
def _apps(apps: Path) -> None: ...


def weights(run: Path) -> bytes:
    return (sorted((run / "checkpoints").glob("round-*"))[-1] / "arrays.safetensors").read_bytes()


def with_secrets_of(first: Path, folder: Path) -> Path:
    """Return a new folder with the name and the keys of another run, as if it had drawn the same ones."""
    for path in (first / "run.id", *first.rglob("noise.key")):
        copy = folder / path.relative_to(first)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


def ledgers(run: Path) -> list[Any]:
    found = []
    for path in sorted(run.rglob(FILE_NAME)):
        with Ledger.read(path) as ledger:
            ledger.verify()
            found.append([(entry.round, entry.events) for entry in ledger.entries() if entry.events])
    return found


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("plan", PLANS)
def test_a_run_that_is_killed_goes_on_with_the_same_releases(
    tmp_path: Path, plan: str, quiet: Any, run_and_die: Callable[..., None]
) -> None:
    whole = tmp_path / "whole"
    runner.run(experiment(plan), whole, console=quiet)
    books = ledgers(whole)
    assert len(books) == (1 if plan in ("central", "matrix") else 2)
    for moment, before in ((6, True), (9, False)):  # a round released but not kept; one kept but not gone on from
        folder = with_secrets_of(whole, tmp_path / f"run-{moment}-{before}")
        run_and_die(experiment(plan), folder, moment, before)
        runner.resume(folder, console=quiet)
        assert weights(folder) == weights(whole)
        assert ledgers(folder) == books
        found, other = verify(folder), verify(whole)
        assert found.broken == other.broken == ()
        assert found.epsilon == other.epsilon == found.claimed
        assert found.head.lines >= other.head.lines  # a round that was carried out again stands there twice


def test_two_runs_do_not_share_noise(tmp_path: Path, quiet: Any) -> None:
    for name in ("one", "other"):
        runner.run(experiment("upload", rounds=1), tmp_path / name, console=quiet)
    assert weights(tmp_path / "one") != weights(tmp_path / "other")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("plan", ["steps", "central"])
def test_both_engines_give_the_same_weights(tmp_path: Path, plan: str, quiet: Any) -> None:
    runner.run(experiment(plan), tmp_path / "local", console=quiet)
    engine = {"name": "ray", "workers": 1}
    other = with_secrets_of(tmp_path / "local", tmp_path / "ray")
    runner.run(experiment(plan, engine=engine), other, console=quiet)
    assert weights(tmp_path / "local") == weights(other)


def test_the_record_says_what_is_claimed(tmp_path: Path, quiet: Any) -> None:
    record = runner.run(experiment("steps"), tmp_path / "run", console=quiet)
    assert record.privacy.plan["noise_multiplier"] == 1.0
    (claim,) = record.privacy.claims
    assert (claim["unit"], claim["relation"], claim["sampler"]) == ("subject", "add-remove", "poisson")
    assert 1 < float(claim["epsilon"]) < 50  # type: ignore[arg-type]
    assert RunRecord.load(tmp_path / "run").privacy == record.privacy


def test_no_secret_is_in_the_run_folder_but_where_it_belongs(tmp_path: Path, quiet: Any) -> None:
    run = tmp_path / "run"
    runner.run(experiment("central"), run, console=quiet)
    places = {path for path in run.rglob("*.key")}
    keys = [path.read_bytes() for path in places]
    assert {path.name for path in places} == {"noise.key", "identity.key"}
    assert {path.stat().st_mode & 0o777 for path in places} == {0o600}
    for path in run.rglob("*"):
        if path.is_file() and path not in places:
            assert not any(key in path.read_bytes() or key.hex().encode() in path.read_bytes() for key in keys), path


def test_a_plan_that_does_not_hold_ends_before_anything_is_written(tmp_path: Path, quiet: Any) -> None:
    by_records = experiment("central", strategy={"name": "fedavg", "weighting": "examples"})
    with pytest.raises(PlanError) as refused:
        runner.run(by_records, tmp_path / "run", console=quiet)
    assert "instead" in str(refused.value)
    assert not (tmp_path / "run").exists()
