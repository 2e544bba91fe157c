"""Running experiments on the engines: same weights everywhere, faults survived, bad input named."""

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from rich.console import Console
from safetensors.numpy import load_file

from cloister.clients.policy import SIMULATION
from cloister.errors import ConfigError, DataError, QuorumError, RunError
from cloister.server import checkpoint
from cloister.server.app import serve
from cloister.simulations import app as flower
from cloister.simulations import run as runner
from cloister.simulations.engines import open_grid
from cloister.simulations.engines.grid import Nodes
from cloister.simulations.experiment import EngineConfig, Experiment
from cloister.simulations.record import RunRecord

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def quiet() -> Console:
    return Console(file=io.StringIO())


def run(toy: Path, out: Path, *overrides: str, **values: Any) -> RunRecord:
    return runner.run(Experiment.load(str(toy), overrides=overrides, **values), out, console=quiet())


def weights(out: Path) -> dict[str, Any]:
    last = sorted((out / "checkpoints").glob("round-*"))[-1]
    return {name: values.tobytes() for name, values in load_file(last / "arrays.safetensors").items()}


@pytest.mark.ray
@pytest.mark.slow
def test_every_engine_and_any_number_of_workers_gives_the_same_weights(toy: Path, tmp_path: Path) -> None:
    run(toy, tmp_path / "one", "engine.workers=1")
    run(toy, tmp_path / "two", "engine.workers=2")
    run(toy, tmp_path / "three", "engine.workers=3")
    run(toy, tmp_path / "ray", "engine.name='ray'", "engine.workers=2")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "three")
    assert weights(tmp_path / "one") == weights(tmp_path / "ray")
    run(toy, tmp_path / "seed", "seed=1")
    assert weights(tmp_path / "one") != weights(tmp_path / "seed")


def test_the_record_says_what_left_whom(toy: Path, tmp_path: Path) -> None:
    record = run(toy, tmp_path / "run")
    assert [entry.round for entry in record.rounds] == [1, 2, 3, 4]
    assert set(record.traffic) == {"site0", "site1", "site2", "site3"}
    # 8*6 + 6 + 6 + 6 weights, 6 + 6 statistics and 3 biases of 4 bytes, and a counter of 8; the local layer stays.
    assert record.traffic["site0"].up["arrays"] == 4 * ((48 + 6 + 6 + 6 + 6 + 6 + 3) * 4 + 8)
    assert 0 <= record.final["accuracy"] <= 1
    assert record == RunRecord.load(tmp_path / "run")
    assert "<html" in (tmp_path / "run" / "report.html").read_text()


def test_the_printed_experiment_reproduces_the_run(toy: Path, tmp_path: Path) -> None:
    run(toy, tmp_path / "first", "seed=7", "strategy.fraction=0.5", "rounds=2")
    again = Experiment.load(str(tmp_path / "first" / "experiment.toml"))
    runner.run(again, tmp_path / "again", console=quiet())
    assert weights(tmp_path / "first") == weights(tmp_path / "again")


def test_local_only_keeps_one_model_per_client(toy: Path, tmp_path: Path) -> None:
    with toy.open("a") as file:
        file.write('[baselines.local-only.strategy]\nname = "local-only"\nevaluate_fraction = 1.0\n')
    record = run(toy, tmp_path / "run")
    assert "accuracy" in record.baselines["local-only"]


def test_a_worker_that_dies_once_changes_nothing(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run(toy, tmp_path / "well", data=str(tmp_path / "data"))
    record = run(toy, tmp_path / "died", "settings.fault='crash-once@site2'", data=str(tmp_path / "data"))
    assert (tmp_path / "data" / "crashed").exists()
    assert not [entry.rejected for entry in record.rounds if entry.rejected]
    assert weights(tmp_path / "well") == weights(tmp_path / "died")


def test_a_client_that_kills_its_worker_twice_is_left_out(toy: Path, tmp_path: Path) -> None:
    record = run(toy, tmp_path / "run", "settings.fault='crash@site1'")
    assert [[it.client for it in entry.rejected] for entry in record.rounds] == [[], ["site1"], [], []]


def test_a_nan_update_is_dropped_and_named(toy: Path, tmp_path: Path) -> None:
    record = run(toy, tmp_path / "run", "settings.fault='nan@site3'")
    assert all(entry.rejected[0].client == "site3" for entry in record.rounds)
    assert all(value is not None for entry in record.rounds for value in entry.metrics.values())
    for values in load_file(
        sorted((tmp_path / "run" / "checkpoints").glob("round-*"))[-1] / "arrays.safetensors"
    ).values():
        assert (values == values).all()


def test_a_client_error_leaves_as_a_code_and_is_told_to_whoever_runs_the_simulation(toy: Path, tmp_path: Path) -> None:
    overrides = ["settings.fault='data@site0'", "strategy.quorum.replies=1.0", "strategy.quorum.max_void_rounds=1"]
    with pytest.raises(QuorumError) as caught:
        run(toy, tmp_path / "run", *overrides)
    server_side, _, logs = str(caught.value).partition("What the clients' own logs say")
    assert "site0" in server_side
    assert "secret" not in server_side
    assert "/secret/person.jpg" in logs
    assert (tmp_path / "run" / "clients" / "site0" / "errors.log").is_file()


def test_a_run_folder_is_used_once(toy: Path, tmp_path: Path) -> None:
    run(toy, tmp_path / "run", "rounds=1")
    with pytest.raises(RunError, match="already holds a run"):
        run(toy, tmp_path / "run", "rounds=1")


def test_two_at_once_are_refused(toy: Path, tmp_path: Path) -> None:
    experiment = Experiment.load(str(toy), overrides=["rounds=1"])
    with runner._locked(tmp_path / "run"), pytest.raises(RunError, match="another process"):
        runner.run(experiment, tmp_path / "run", console=quiet())


def test_a_full_disk_at_a_checkpoint_loses_nothing(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = checkpoint._write_synced, []

    def full(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write_synced", full)
    with pytest.raises(RunError, match=r"round-000003.*No space left.*cloister resume"):
        run(toy, tmp_path / "run")
    assert checkpoint.rounds(tmp_path / "run" / "checkpoints") == [1, 2]
    monkeypatch.setattr(checkpoint, "_write_synced", write)
    runner.resume(tmp_path / "run", console=quiet())
    run(toy, tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_misspelt_task_setting_is_named_before_anything_starts(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'clients'"):
        run(toy, tmp_path / "run", "settings.client=3")
    with pytest.raises(DataError, match="data: expected a folder, found none at nowhere"):
        run(toy, tmp_path / "run", data="nowhere")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_is_named(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: cannot be written .*; choose another --out"):
        run(toy, tmp_path / "file")


def test_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here"):
        runner.resume(tmp_path, console=quiet())


def test_export(toy: Path, tmp_path: Path) -> None:
    run(toy, tmp_path / "run", "rounds=1")
    files = runner.export(tmp_path / "run", tmp_path / "out")
    assert {path.name for path in files} == {
        "model.safetensors",
        "README.md",
        "experiment.toml",
        "record.json",
        "report.html",
    }
    exported = json.loads((tmp_path / "out" / "record.json").read_text())
    assert (exported["experiment"], exported["unfinished"]) == ("toy", "")


def test_export_names_the_baselines_that_are_missing(toy: Path, tmp_path: Path) -> None:
    with toy.open("a") as file:
        file.write('[baselines.local-only.strategy]\nname = "local-only"\n')
    record = run(toy, tmp_path / "run", "rounds=1")
    record.baselines = {}
    record.save(tmp_path / "run")
    runner.export(tmp_path / "run", tmp_path / "out")
    assert "the baselines local-only are not" in RunRecord.load(tmp_path / "out").unfinished


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a run with a checkpoint, found none"):
        runner.export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_under_flower_every_round_is_a_line_of_its_log(
    toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"experiment": str(toy), "data": str(tmp_path), "overrides": "rounds=2;settings.fault='nan@site3'"}
    assignment = flower.assign(Context(1, 1, {}, RecordDict(), given))
    nodes = Nodes(names=("site0", "site1", "site2", "site3"), config={"data": str(tmp_path), "policy": SIMULATION})
    with caplog.at_level("INFO", "flwr"), open_grid(EngineConfig(workers=2), nodes) as grid:
        serve(grid, assignment)
    lines = [record.message for record in caplog.records if record.message.startswith("round ")]
    assert [text.partition(":")[0] for text in lines] == ["round 1 of 2", "round 2 of 2"]
    for text in lines:
        assert "3 of 4 replies" in text
        assert ", accuracy 0." in text
        assert "site3 left out: " in text


def test_tensorboard_gets_the_metrics(toy: Path, tmp_path: Path) -> None:
    run(toy, tmp_path / "run", "rounds=1", "tracking='tensorboard'")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_json_output_is_the_record(toy: Path, tmp_path: Path, command: Command) -> None:
    done = command("run", toy, "--out", tmp_path / "run", "--set", "rounds=1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["experiment"] == "toy"


@pytest.mark.slow
def test_attackers_move_the_mean_and_not_the_median_and_a_resumed_run_meets_the_same_ones(
    toy: Path, tmp_path: Path
) -> None:
    attack = ("byzantine.attack='noise'", "byzantine.count=1", "byzantine.strength=1000.0")
    farthest = {}
    for name in ("fedavg", "fedmedian"):
        run(toy, tmp_path / name, f"strategy.name={name!r}", *attack)
        last = sorted((tmp_path / name / "checkpoints").glob("round-*"))[-1]
        farthest[name] = max(float(abs(it).max()) for it in load_file(last / "arrays.safetensors").values())
    assert farthest["fedavg"] > 200
    assert farthest["fedmedian"] < 20
    expected = weights(tmp_path / "fedmedian")
    shutil.rmtree(sorted((tmp_path / "fedmedian" / "checkpoints").glob("round-*"))[-1])
    again = RunRecord.load(tmp_path / "fedmedian")
    again.final = {}
    again.save(tmp_path / "fedmedian")
    runner.resume(tmp_path / "fedmedian", console=quiet())
    assert weights(tmp_path / "fedmedian") == expected


def test_attackers_who_send_nothing_finite_are_refused_by_name(toy: Path, tmp_path: Path) -> None:
    record = run(toy, tmp_path / "run", "byzantine.attack='inf'", "byzantine.clients=['site2']")
    assert [[it.client for it in entry.rejected] for entry in record.rounds] == [["site2"]] * 4
    assert "expected finite values" in record.rounds[0].rejected[0].reason
    with pytest.raises(ConfigError, match=r"byzantine: expected 1 to 3 of the clients site0.*found site9"):
        run(toy, tmp_path / "none", "byzantine.attack='inf'", "byzantine.clients=['site9']")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_sweep_over_the_number_of_attackers_runs_every_point(toy: Path, tmp_path: Path) -> None:
    with toy.open("a") as file:
        file.write(
            '[byzantine]\nattack = "noise"\nstrength = 1000.0\ncount = 0\n'
            '[sweep]\nx = "byzantine.count"\ny = ["accuracy"]\n'
            '[[sweep.series]]\nname = "mean"\nvary = "byzantine.count"\nvalues = [0, 1]\n'
        )
    record = run(toy, tmp_path / "run", "rounds=2")
    assert not record.rounds
    assert record.sweep is not None
    assert [(point.name, point.x) for point in record.sweep.points] == [("mean-0", 0.0), ("mean-1", 1.0)]
    far = [
        max(float(abs(it).max()) for it in load_file(folder / "arrays.safetensors").values())
        for point in record.sweep.points
        for folder in sorted((tmp_path / "run" / point.folder / "checkpoints").glob("round-*"))[-1:]
    ]
    assert far[0] < 20 < 200 < far[1]
