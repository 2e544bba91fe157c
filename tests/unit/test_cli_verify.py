"""``cloister verify``: what it prints, its exit status, and nothing that a transcript formatted."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloister import cli
from cloister.errors import TranscriptError
from cloister.privacy.plan import Plan
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.tally import Tally
from cloister.privacy.transcript import End, Header, Round
from cloister.privacy.transcript_file import Transcript

A = "ab" * 32
SERVER = Identity.of(bytes(range(32)))
PLAN = {"unit": "client", "mechanism": "gaussian", "noise_multiplier": 2.0, "clip": {"bound": 1.0}}


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, ["verify", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    header = Header(
        run="r",
        experiment="night [red]\x1b[2J\n",
        experiment_digest=A,
        code=A,
        task="t",
        rounds=1,
        plan=Plan.of(PLAN).values(),
        delta=1e-5,
        server=SERVER.public.hex(),
        model=A,
    )
    transcript = Transcript.open(tmp_path / "copy.jsonl", SERVER, header, lambda entry: None)
    tally = Tally(header)
    entry = Round(round=1, cohort=("a",), layout=A, events=tally.events(1, void=False), before=A, model=A)
    transcript.append(entry)
    tally.add(entry)
    transcript.append(End(round=1, model=A, epsilon=tally.epsilon(), claimed=tally.epsilon()))
    return transcript.path


def test_what_holds_is_said_with_what_it_costs(path: Path) -> None:
    done = invoke(path, "--server", SERVER.public.hex())
    assert done.exit_code == 0
    assert done.stdout.startswith(f"verified: {path}\n")
    assert "epsilon 1.993 at delta 1e-05 for one client (add-remove), recomputed; claimed: 1.993" in done.stdout
    assert "1 rounds, finished" in done.stdout
    assert f"server {SERVER.public.hex()}" in done.stdout


def test_what_a_transcript_holds_is_neither_markup_nor_control(path: Path) -> None:
    printed = invoke(path).stdout
    assert "night [red]\\u001b[2J\\u000a" in printed
    assert "\x1b" not in printed


def test_a_broken_link_ends_with_status_1(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"claimed":1.9', b'"claimed":1.8'))
    done = invoke(path)
    assert done.exit_code == 1
    assert done.stdout.startswith(
        f"BROKEN: {path}\n  broken: line 3 (end, round 1): signature: expected one of server "
    )
    values = json.loads(invoke(path, "--json").stdout)
    assert (values["ok"], values["broken"][0]["line"]) == (False, 3)


def test_another_server_or_a_head_that_is_not_there(path: Path) -> None:
    assert invoke(path, "--server", A).exit_code == 1
    head = json.loads(invoke(path, "--json").stdout)["head"]["digest"]
    assert invoke(path, "--head", head).exit_code == 0
    assert invoke(path, "--head", A).exit_code == 1


def test_a_folder_without_a_transcript_is_named(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=rf"{tmp_path}/transcript\.jsonl: cannot be read"):
        invoke(tmp_path)
