"""Runs under secure aggregation, through real processes: the same model as without, and nothing single that leaves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from cloister.errors import PlanError
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.simulations import run as runner
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import RunRecord

QUIET = Console(quiet=True)
RATES: dict[str, Any] = {"adversaries": 0.1, "dropouts": 0.25, "server": "malicious"}
CLIPPED: dict[str, Any] = {"unit": "client", "clip": {"bound": 5.0}}
SECURE: dict[str, Any] = {**CLIPPED, "secure": RATES}
NOISED: dict[str, Any] = {
    **SECURE,
    "mechanism": "gaussian",
    "trust": "distributed",
    "relation": "zero-out",
    "noise_multiplier": 0.001,
    "budget": {"epsilon": 1e9, "delta": 1e-3},
}


@pytest.fixture(autouse=True)
def _apps(apps: Path) -> None: ...


def run(folder: Path, plan: dict[str, Any], **more: Any) -> RunRecord:
    strategy = {"name": "fedavg", "weighting": "uniform", "quorum": {"replies": 3, "deadline_s": 20.0}}
    values = {
        "name": "secure",
        "task": "sum_task:Sums",
        "rounds": 1,
        "plan": plan,
        "engine": {"workers": 2},
        **more,
        "strategy": {**strategy, **more.get("strategy", {})},
    }
    return runner.run(Experiment.parse(values, "test"), folder, console=QUIET)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(sorted((folder / "checkpoints").glob("round-*"))[-1] / "arrays.safetensors")


def mean(folder: Path) -> float:
    """The mean of all weights; all are the same, to the steps of fixed point or to the noise."""
    return float(np.concatenate([values.ravel() for values in weights(folder).values()]).mean())


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_the_model_is_that_of_plain_aggregation_to_the_steps_of_fixed_point(tmp_path: Path, strategy: str) -> None:
    run(tmp_path / "plain", CLIPPED, rounds=2, strategy={"name": strategy})
    run(tmp_path / "secure", SECURE, rounds=2, strategy={"name": strategy})
    plain, secure = weights(tmp_path / "plain"), weights(tmp_path / "secure")
    assert plain.keys() == secure.keys()
    for name, values in plain.items():
        np.testing.assert_allclose(secure[name], values, atol=1e-6, err_msg=name)


def test_a_mean_is_weighted_by_capped_records_that_nobody_sees(tmp_path: Path) -> None:
    run(tmp_path, {**SECURE, "weighting": "capped", "weight_cap": 40.0})
    caps = [min(10 * k, 40) for k in range(1, 8)]
    expected = sum(cap * k / 100 for cap, k in zip(caps, range(1, 8), strict=True)) / sum(caps)
    assert mean(tmp_path) == pytest.approx(expected, abs=1e-6)


def test_class_centres_and_their_counts_are_in_the_same_sum(tmp_path: Path) -> None:
    strategy = {"name": "fedavg", "weighting": "uniform", "centres": {"mode": "aligned"}}
    run(tmp_path / "plain", CLIPPED, rounds=2, strategy=strategy)
    run(tmp_path / "secure", SECURE, rounds=2, strategy=strategy)
    plain, secure = (
        load_file(sorted((tmp_path / name / "checkpoints").glob("round-*"))[-1] / "strategy.safetensors")
        for name in ("plain", "secure")
    )
    assert secure["0/labels"].tolist() == [0, 1, 2, 3]
    expected = np.zeros((4, 3))
    for k in range(1, 8):  # client k has identities k % 4 and 3, each with a centre of k / 10
        for label in {k % 4, 3}:
            expected[label] += k / 10
    counts = [sum(label in {k % 4, 3} for k in range(1, 8)) for label in range(4)]
    np.testing.assert_allclose(secure["0/values"], expected / np.array(counts)[:, None], atol=1e-5)
    assert len([name for name in plain if name.endswith("/values")]) == 7  # one by one, without


def test_the_server_adds_its_noise_to_a_sum_of_which_it_saw_no_part(tmp_path: Path) -> None:
    central = {key: value for key, value in NOISED.items() if key != "trust"} | {"trust": "central", "sampler": "all"}
    run(tmp_path, central)
    assert mean(tmp_path) == pytest.approx(0.04, abs=0.005)
    with Ledger.read(tmp_path / "server" / FILE_NAME) as ledger:
        assert [entry.round for entry in ledger.entries() if entry.events] == [1]


@pytest.mark.parametrize("noise", ["skellam", "discrete-gaussian"])
def test_noise_in_shares_is_in_the_sum_and_in_every_ledger(tmp_path: Path, noise: str) -> None:
    record = run(tmp_path, {**NOISED, "secure": {**RATES, "bits": 24, "noise": noise}}, rounds=2)
    values = weights(tmp_path)["weight"]
    assert values.mean() == pytest.approx(0.08, abs=0.01)
    assert len(np.unique(values)) > 50
    (claim,) = record.privacy.claims
    assert 0 < float(claim["epsilon"]) < 1e9  # type: ignore[arg-type]
    for client in (tmp_path / "clients").glob("site*"):
        with Ledger.read(client / FILE_NAME) as ledger:
            ledger.verify()
            events = [event for entry in ledger.entries() for event in entry.events]
        assert [(event.kind, event.count) for event in events] == [(noise, 1)] * 2


def test_an_adaptive_clip_follows_bits_that_travel_inside_the_vector(tmp_path: Path) -> None:
    clip = {"kind": "adaptive", "bound": 0.001, "learning_rate": 1.0, "bits_noise": 0.5}
    record = run(tmp_path, {**NOISED, "noise_multiplier": 0.1, "clip": clip}, rounds=4)
    bounds = [float(entry.metrics["clip-bound"]) for entry in record.rounds]  # type: ignore[arg-type]
    assert bounds[0] == 0.001
    assert bounds[3] > 1.5 * bounds[0]  # nearly everybody was clipped, so it grows


def test_a_client_that_fails_on_its_own_data_is_in_the_sum_with_nothing(tmp_path: Path) -> None:
    run(tmp_path, SECURE, settings={"faults": {"site7": "fail"}})
    assert mean(tmp_path) == pytest.approx(0.21 / 7, abs=1e-6)
    assert "anna-smith" in (tmp_path / "clients" / "site7" / "errors.log").read_text()


def test_a_client_that_dies_in_training_is_not_in_the_sum_and_the_others_are(tmp_path: Path) -> None:
    record = run(tmp_path, SECURE, rounds=2, settings={"faults": {"site2": "die"}})
    assert mean(tmp_path) == pytest.approx(0.26 / 6 + 0.04, abs=1e-6)
    assert [entry.client for entry in record.rounds[0].rejected] == ["site2"]
    assert record.rounds[1].rejected == []


def test_a_round_in_which_too_many_die_is_void_and_the_next_recovers(tmp_path: Path) -> None:
    faults = {"faults": {"site2": "die", "site3": "die", "site5": "die"}}
    run(tmp_path, SECURE, rounds=2, settings=faults, strategy={"quorum": {"replies": 1, "max_void_rounds": 2}})
    assert mean(tmp_path) == pytest.approx(0.04, abs=1e-6)


def test_no_secret_of_a_session_stays_on_a_disk(tmp_path: Path) -> None:
    run(tmp_path, SECURE)
    left = [path.name for path in tmp_path.rglob("*") if path.suffix in (".session", ".taken", ".tmp")]
    assert left == []


@pytest.mark.parametrize(("plan", "recovered"), [(SECURE, 8), ({**NOISED, "noise_multiplier": 5.0}, 0)])
def test_secure_runs_are_audited_as_who_knows_all_others_sees_them(
    tmp_path: Path, plan: dict[str, Any], recovered: int
) -> None:
    run(tmp_path, plan)
    found = {result.name: result for result in runner.audit(tmp_path, console=QUIET)}
    assert set(found) == {"exact-leak"}  # no canaries in a secure sum, and no pictures in this task
    assert found["exact-leak"].numbers["recovered"] == recovered


def test_rates_that_no_graph_serves_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="so that no graph serves"):
        run(tmp_path / "run", {**SECURE, "secure": {**RATES, "dropouts": 0.6}})
    assert not (tmp_path / "run").exists()
