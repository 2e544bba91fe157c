"""``cloister ledger``: it verifies first, says what left and what that cost, and prints nothing a server formatted."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloister import cli
from cloister.errors import LedgerError, PolicyError
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.settings import Budget

EVENT = Event(kind=EventKind.GAUSSIAN, noise_multiplier=4.0, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)
HOSTILE = "run [red]\x1b[2J\nround"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["ledger", *arguments], catch_exceptions=False, env={"COLUMNS": "250"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    with Ledger.open(site / FILE_NAME, clock=lambda: 0.0) as ledger:
        ledger.admit("night", 1, (EVENT,), Budget(epsilon=3, delta=1e-6))
        entry = Entry(
            kind=EntryKind.RELEASE,
            run="night",
            round=1,
            task="camera",
            unit=EVENT.unit,
            relation=EVENT.relation,
            kinds={"arrays": 4000, "metrics": 80},
            events=(EVENT,),
            content="ab" * 32,
        )
        ledger.append(entry)
        ledger.append(Entry.refusal("noise multiplier 0.1 is below 1", run=HOSTILE, round=2, task="camera"))
    return site


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    for item in made.iterdir():
        (folder / item.name).write_bytes(item.read_bytes())
    return folder


def test_show_prints_rows_and_what_they_cost(site: Path) -> None:
    done = invoke("show", str(site))
    assert done.exit_code == 0
    for text in ("night", "camera", "arrays 4000, metrics 80", "1 gaussian 4", "noise multiplier 0.1 is below 1"):
        assert text in done.stdout
    assert "epsilon 3 at 1e-06" in done.stdout
    assert "1.061" in done.stdout  # exact, for noise multiplier 4 at delta 1e-6
    assert "verified: 3 rows, 1 of them refusals; head " in done.stdout


def test_what_a_server_sent_is_neither_markup_nor_control(site: Path) -> None:
    printed = invoke("show", str(site)).stdout
    assert "run [red]\\u001b[2J\\u000around" in printed
    assert "\x1b" not in printed


def test_show_as_json(site: Path) -> None:
    values = json.loads(invoke("show", str(site), "--json").stdout)
    with Ledger.read(site / FILE_NAME) as ledger:
        assert values["head"] == {"rows": 3, "digest": ledger.head.digest}
    assert values["refusals"] == 1
    assert [row["kind"] for row in values["rows"]] == ["budget", "release", "refusal"]
    assert values["rows"][1]["kinds"] == {"arrays": 4000, "metrics": 80}
    assert values["rows"][2]["run"] == HOSTILE
    (spent,) = values["spent"]
    assert spent["epsilon"] == pytest.approx(1.060702, rel=1e-3)
    assert spent["epsilon_rdp"] > spent["epsilon"]
    assert spent["left"] == pytest.approx(3 - spent["epsilon"])


def test_budget_by_the_ledger_by_a_policy_and_at_another_delta(site: Path, tmp_path: Path) -> None:
    (own,) = json.loads(invoke("budget", str(site), "--json").stdout)
    assert (own["budget"], own["delta"]) == (3.0, 1e-6)
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'tasks = ["camera"]\nunits = ["subject"]\nrelease_kinds = ["arrays"]\nserver = "s"\n'
        "clip_ceiling = 1\nnoise_floor = 1\nmax_rounds = 9\n[budget.subject]\nepsilon = 1\ndelta = 1e-7\n"
    )
    (other,) = json.loads(invoke("budget", str(site), "--policy", str(policy), "--json").stdout)
    assert (other["budget"], other["delta"]) == (1.0, 1e-7)
    assert other["left"] < 0
    (wide,) = json.loads(invoke("budget", str(site), "--delta", "0.001", "--json").stdout)
    assert wide["epsilon"] < own["epsilon"]
    assert wide["left"] is None
    assert "subject" in invoke("budget", str(site)).stdout


def test_looking_changes_nothing(site: Path) -> None:
    before = {item.name: item.read_bytes() for item in site.iterdir()}
    invoke("show", str(site))
    invoke("budget", str(site))
    assert {name: (site / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("command", ["show", "budget"])
def test_a_tampered_ledger_ends_with_the_row_and_status_1(
    site: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database = sqlite3.connect(site / FILE_NAME)
    (statement,) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'no_update'").fetchone()
    database.execute("DROP TRIGGER no_update")
    database.execute("UPDATE rows SET time = '' WHERE number = 2")
    database.execute(statement)
    database.commit()
    database.close()
    monkeypatch.setattr(sys, "argv", ["cloister", "ledger", command, str(site), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "row 2 or one before it was changed" in " ".join(printed.err.split())


@pytest.mark.parametrize("command", ["show", "budget"])
def test_a_folder_without_a_ledger_is_named_and_stays_empty(tmp_path: Path, command: str) -> None:
    with pytest.raises(LedgerError, match=rf"{tmp_path}/{FILE_NAME}: there is no ledger"):
        invoke(command, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_policy_that_cannot_be_read_is_named(site: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none\.toml"):
        invoke("budget", str(site), "--policy", str(tmp_path / "none.toml"))
