"""A run that is killed at any moment resumes to the same weights, bit for bit."""

import hashlib
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]

# Everything durable appears by a rename. Dying before or after the n-th one visits the gaps between any two steps.
DIE_AT = """
import os, signal
count, rename = [0], os.replace
def replace(source, target):
    count[0] += 1
    if count[0] == {number} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if count[0] == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


def weights(run: Path) -> str:
    last = sorted((run / "checkpoints").glob("round-*"))[-1]
    return last.name + hashlib.sha256((last / "arrays.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {}


@pytest.mark.slow
# Renames of the driver: experiment.toml, then per round the record and the checkpoint, then record and report.
@pytest.mark.parametrize(
    ("number", "before"), [(1, False), (2, True), (3, True), (3, False), (6, True), (8, False), (9, True), (10, True)]
)
def test_killed_driver(
    toy: Path, tmp_path: Path, command: Command, uninterrupted: dict[str, str], number: int, before: bool
) -> None:
    if not uninterrupted:
        whole = command("run", toy, "--out", tmp_path / "whole")
        assert whole.returncode == 0, whole.stderr
        uninterrupted["weights"] = weights(tmp_path / "whole")
    killed = command("run", toy, "--out", tmp_path / "run", prelude=DIE_AT.format(number=number, before=before))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = command("resume", tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "run") == uninterrupted["weights"]
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert [entry["round"] for entry in record["rounds"]] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(toy: Path, tmp_path: Path, command: Command) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert command("run", toy, "--out", whole).returncode == 0
    assert command("run", toy, "--out", run, prelude=DIE_AT.format(number=8, before=True)).returncode < 0
    newest = sorted((run / "checkpoints").glob("round-*"))[-1] / "arrays.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    assert command("resume", run).returncode == 0
    assert weights(run) == weights(whole)
