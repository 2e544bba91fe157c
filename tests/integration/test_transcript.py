"""Transcripts of real runs: of every kind of plan, killed while they are written, resumed, and copied alone."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloister.privacy.transcript_file import FILE_NAME, KEPT, Line, read
from cloister.privacy.verify import verify
from cloister.simulations import run as runner
from cloister.simulations.engines.nursery import nursery
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import RunRecord

QUIET = Console(quiet=True)
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def secure(**more: Any) -> Experiment:
    values = {
        "name": "secure",
        "task": "sum_task:Sums",
        "rounds": 2,
        "plan": {
            "unit": "client",
            "clip": {"bound": 5.0},
            "secure": {"adversaries": 0.1, "dropouts": 0.25, "server": "malicious"},
        },
        "engine": {"workers": 2},
        "strategy": {"name": "fedavg", "weighting": "uniform", "quorum": {"replies": 3, "deadline_s": 20.0}},
        **more,
    }
    return Experiment.parse(values, "test")


def entries(run: Path) -> list[Any]:
    return [found.entry for found in read(run / FILE_NAME) if isinstance(found, Line)]


def test_a_plain_run_commits_to_every_reply_and_its_record_to_the_transcript(toy: Path, tmp_path: Path) -> None:
    record = runner.run(Experiment.load(str(toy)), tmp_path / "run", console=QUIET)
    header, *rounds, end = entries(tmp_path / "run")
    assert set(header.roster) == {"site0", "site1", "site2", "site3"}
    assert [entry.round for entry in rounds] == [1, 2, 3, 4]
    digests = {found.digest for entry in rounds for found in entry.commitments.values()}
    assert len(digests) == 16
    assert end.epsilon is None
    found = verify(tmp_path / "run")
    assert found.ok
    assert found.finished
    assert record.transcript is not None
    assert (record.transcript.lines, record.transcript.digest) == (found.head.lines, found.head.digest)
    assert record.transcript.server == found.server == header.server
    assert RunRecord.load(tmp_path / "run").transcript == record.transcript
    key = tmp_path / "run" / "server" / "identity.key"
    assert key.stat().st_mode & 0o777 == 0o600


def test_the_same_run_commits_to_the_same_replies(toy: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "other"):
        runner.run(Experiment.load(str(toy), overrides=["rounds=1"]), tmp_path / name, console=QUIET)
        (entry,) = entries(tmp_path / name)[1:-1]
        digests.append((entry.before, entry.model, entry.commitments))
    assert digests[0] == digests[1]


def test_clients_of_a_secure_sum_sign_what_they_send(apps: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    runner.run(secure(keep_masked_vectors=True), run, console=QUIET)
    found = verify(run)
    assert found.broken == ()
    rounds = entries(run)[1:-1]
    clients = sum(len(entry.commitments) for entry in rounds)
    assert found.checked["client signatures"] == clients > 3
    assert found.checked["sums by vectors"] == 2
    assert len(list((run / KEPT).iterdir())) == clients + 3 * 2
    victim = rounds[1].commitments[rounds[1].cohort[1]].digest
    path = run / KEPT / f"{victim}.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    (broken,) = verify(run).broken
    assert (broken.line, broken.round, broken.client) == (3, 2, rounds[1].cohort[1])
    copy = Path(shutil.copy(run / FILE_NAME, tmp_path / "copy.jsonl"))
    assert verify(copy).ok


def test_a_secure_sum_whose_vectors_are_not_kept_is_announced_only(apps: Path, tmp_path: Path) -> None:
    runner.run(secure(rounds=1), tmp_path / "run", console=QUIET)
    found = verify(tmp_path / "run")
    assert found.broken == ()
    assert found.checked["sums announced only, not checked"] == 1
    assert not (tmp_path / "run" / KEPT).exists()


def _die_while_appending(experiment: Experiment, out: Path, number: int, written: int) -> None:
    """Run in a process that kills itself when ``written`` bytes of line ``number`` are on disk."""
    nursery()
    child = os.fork()
    if child == 0:
        from cloister.privacy import transcript_file

        whole = transcript_file.signed_line

        def torn(identity: Any, head: Any, entry: Any) -> bytes:
            line = whole(identity, head, entry)
            if head.lines + 1 == number:
                with (out / FILE_NAME).open("ab") as file:
                    file.write(line[:written])
                os.kill(os.getpid(), signal.SIGKILL)
            return line

        transcript_file.signed_line = torn
        try:
            runner.run(experiment, out, console=QUIET)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("number", "written"), [(1, 0), (1, 30), (3, 200), (3, -1), (6, 50)])
def test_a_run_killed_while_it_appends_goes_on(toy: Path, tmp_path: Path, number: int, written: int) -> None:
    run = tmp_path / "run"
    experiment = Experiment.load(str(toy))
    _die_while_appending(experiment, run, number, written)
    before = verify(run)
    assert [it.line for it in before.broken] == [number]  # where the line is torn; of an empty file, line 1
    runner.resume(run, console=QUIET)
    after = verify(run)
    assert after.broken == ()
    assert (after.finished, after.rounds) == (True, 4)


@pytest.mark.slow
def test_the_command_line(toy: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    runner.run(Experiment.load(str(toy)), run, console=QUIET)
    copy = shutil.copy(run / FILE_NAME, tmp_path / "copy.jsonl")
    for place in (run, copy):
        done = command("verify", place)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("verified: ")
        assert "nothing is claimed" in done.stdout
    values = json.loads(command("verify", copy, "--json").stdout)
    assert values["ok"]
    lines = Path(copy).read_bytes()
    at = lines.index(b'"round":3')
    Path(copy).write_bytes(lines[: at + 8] + b"4" + lines[at + 9 :])
    done = command("verify", copy)
    assert done.returncode == 1
    assert "broken: line 4 (round, round 4): signature: expected one of server " in done.stdout
    done = command("verify", tmp_path / "none")
    assert done.returncode == 1
    assert "E860" in done.stderr


@pytest.mark.slow
def test_points_of_a_sweep_have_transcripts_of_their_own(toy: Path, tmp_path: Path) -> None:
    with toy.open("a") as file:
        file.write('[sweep]\nx = "seed"\ny = ["loss"]\n[[sweep.series]]\nname = "s"\nvary = "seed"\nvalues = [1, 2]\n')
    runner.run(Experiment.load(str(toy), overrides=["rounds=1"]), tmp_path / "run", console=QUIET)
    found = [verify(path.parent) for path in sorted((tmp_path / "run").rglob(FILE_NAME))]
    assert len(found) == 2
    assert all(each.ok for each in found)
    assert len({each.server for each in found}) == 2
    assert not (tmp_path / "run" / FILE_NAME).exists()
