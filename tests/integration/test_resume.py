"""A run that is killed at any moment resumes to the same weights, bit for bit."""

import hashlib
import io
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from cloister.privacy.verify import verify
from cloister.server import checkpoint
from cloister.simulations import run as runner
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import RunRecord

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Die = Callable[[Experiment, Path, int, bool], None]


def quiet() -> Console:
    return Console(file=io.StringIO())


def weights(run: Path) -> str:
    last = sorted((run / "checkpoints").glob("round-*"))[-1]
    return last.name + hashlib.sha256((last / "arrays.safetensors").read_bytes()).hexdigest()


def recorded(run: Path) -> dict[str, Any]:
    """Return the record without what is a matter of the clock or of a key; its transcript must hold."""
    found = verify(run)
    assert found.broken == ()
    assert found.finished
    record = RunRecord.load(run).model_dump(exclude={"started", "command", "transcript"})
    for entry in record["rounds"]:
        del entry["seconds"], entry["stages"]
    return record


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    return {}


# Renames of the driver: experiment.toml; the record; the name of the run; in each of four rounds the record and the
# checkpoint; the record; the report.
@pytest.mark.parametrize("number", range(1, 14))
@pytest.mark.parametrize("before", [True, False])
def test_killed_driver(
    toy: Path, tmp_path: Path, uninterrupted: dict[str, Any], number: int, before: bool, run_and_die: Die
) -> None:
    experiment = Experiment.load(str(toy))
    if not uninterrupted:
        runner.run(experiment, tmp_path / "whole", console=quiet())
        uninterrupted.update(weights=weights(tmp_path / "whole"), record=recorded(tmp_path / "whole"))
    run_and_die(experiment, tmp_path / "run", number, before)
    if number == 1 and before:
        assert not (tmp_path / "run" / "experiment.toml").exists()
        runner.run(experiment, tmp_path / "run", console=quiet())
    else:
        runner.resume(tmp_path / "run", console=quiet())
    assert weights(tmp_path / "run") == uninterrupted["weights"]
    assert recorded(tmp_path / "run") == uninterrupted["record"]  # no round and no byte twice, none missing
    assert (tmp_path / "run" / "report.html").is_file()


def test_killed_twice(toy: Path, tmp_path: Path, run_and_die: Die) -> None:
    experiment = Experiment.load(str(toy))
    runner.run(experiment, tmp_path / "whole", console=quiet())
    run_and_die(experiment, tmp_path / "run", 5, True)
    child = os.fork()
    if child == 0:
        rename = os.replace

        def replace(source: Path, target: Path) -> None:
            rename(source, target)
            if "round-000003" in str(target):
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace  # type: ignore[assignment]
        try:
            runner.resume(tmp_path / "run", console=quiet())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    runner.resume(tmp_path / "run", console=quiet())
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(toy: Path, tmp_path: Path, run_and_die: Die) -> None:
    experiment = Experiment.load(str(toy))
    runner.run(experiment, tmp_path / "whole", console=quiet())
    run_and_die(experiment, tmp_path / "run", 9, True)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("round-*"))[-1] / "arrays.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    runner.resume(tmp_path / "run", console=quiet())
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_damaged_record_is_taken_from_the_checkpoint(toy: Path, tmp_path: Path, run_and_die: Die) -> None:
    experiment = Experiment.load(str(toy))
    runner.run(experiment, tmp_path / "whole", console=quiet())
    run_and_die(experiment, tmp_path / "run", 8, False)
    (tmp_path / "run" / "record.json").write_text('{"experiment": "to')
    runner.resume(tmp_path / "run", console=quiet())
    assert recorded(tmp_path / "run") == recorded(tmp_path / "whole")


def test_a_baseline_that_is_taken_up_again_keeps_its_metrics(toy: Path, tmp_path: Path, run_and_die: Die) -> None:
    with toy.open("a") as file:
        file.write('[baselines.local-only]\nrounds = 2\n[baselines.local-only.strategy]\nname = "local-only"\n')
        file.write("evaluate_fraction = 1.0\n")
    experiment = Experiment.load(str(toy))
    runner.run(experiment, tmp_path / "whole", console=quiet())
    run_and_die(experiment, tmp_path / "run", 15, False)  # as above, then the baseline's name and its two checkpoints
    assert checkpoint.rounds(tmp_path / "run" / "baselines" / "local-only" / "checkpoints") == [1, 2]
    runner.resume(tmp_path / "run", console=quiet())
    assert recorded(tmp_path / "run") == recorded(tmp_path / "whole")
    assert recorded(tmp_path / "run")["baselines"]["local-only"]


def test_export_of_a_run_that_was_killed_says_so(toy: Path, tmp_path: Path, command: Command, run_and_die: Die) -> None:
    run_and_die(Experiment.load(str(toy)), tmp_path / "run", 8, False)  # round 3 is in record.json, not checkpointed
    assert len(RunRecord.load(tmp_path / "run").rounds) == 3
    done = command("export", tmp_path / "run", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 of 4 rounds are done" in done.stderr
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"model.safetensors", "README.md", "experiment.toml", "record.json"}
    exported = RunRecord.load(tmp_path / "out")
    assert [entry.round for entry in exported.rounds] == [1, 2]
    assert "cloister resume" in exported.unfinished
    kept = tmp_path / "run" / "checkpoints" / "round-000002" / "arrays.safetensors"
    weights, round_2 = load_file(files["model.safetensors"]), load_file(kept)
    assert round_2.keys() <= weights.keys()
    assert all((weights[name] == values).all() for name, values in round_2.items())
    assert RunRecord.load(tmp_path / "run").unfinished == ""


@pytest.mark.slow
def test_resume_from_the_command_line(toy: Path, tmp_path: Path, command: Command, run_and_die: Die) -> None:
    run_and_die(Experiment.load(str(toy)), tmp_path / "run", 6, False)
    resumed = command("resume", tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    assert "report:" in resumed.stdout
