"""The command line: which commands there are, what they print, and how they end."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloister import bench as benches
from cloister import cli
from cloister.errors import CloisterError, ConfigError
from cloister.simulations import data, worlds
from cloister.simulations.experiment import Experiment, names

STABLE = {
    *("run", "resume", "report", "audit", "verify", "export", "experiments", "world", "data", "ledger", "node"),
    *("mllm-eval", "cluster", "pki", "site", "link", "bench"),
}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


def test_every_stable_name_is_there() -> None:
    commands = {info.name or info.callback.__name__ for info in cli.app.registered_commands if info.callback}
    assert commands | {group.name for group in cli.app.registered_groups} == STABLE


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['cloister', '--help']\n"
        "from cloister.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'ray', 'flwr', 'numpy', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "experiments" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("name", sorted(cli._LATER))
def test_what_is_planned_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`cloister {name}` is not in this version"):
        invoke(name, "--any", "thing")


def test_an_error_ends_with_its_message_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cloister", "run", "reid-[bold]", "--print"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: " in printed.err
    assert "'reid-[bold]'" in printed.err.replace("\n", "")
    assert "Traceback" not in printed.err


def test_run_print_gives_the_file_that_reproduces_the_run(tmp_path: Path) -> None:
    arguments = ["--preset", "tiny", "--engine", "ray", "--set", "engine.workers=3", "--set", "seed=5", "--print"]
    printed = invoke("run", "reid-ci", *arguments, "--data", str(tmp_path)).stdout
    (tmp_path / "again.toml").write_text(printed)
    again = Experiment.load(str(tmp_path / "again.toml"))
    assert (again.engine.name, again.engine.workers, again.seed) == ("ray", 3, 5)
    assert (again.preset, again.data) == ("tiny", str(tmp_path))
    assert again.to_toml() == printed


def test_a_relative_data_folder_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    printed = tomllib.loads(invoke("run", "reid-ci", "--data", "set", "--print").stdout)
    assert printed["data"] == str((tmp_path / "set").resolve())


def test_an_unknown_option_is_a_usage_error() -> None:
    done = invoke("run", "reid-ci", "--rounds", "3")
    assert done.exit_code == 2


def test_experiments_lists_all_with_titles() -> None:
    rows = json.loads(invoke("experiments", "--json").stdout)
    assert [row["name"] for row in rows] == names()
    assert all(row["title"] for row in rows)
    lines = invoke("experiments").stdout.splitlines()
    assert [line.split()[0] for line in lines] == names()


def test_world_make_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def make(name: str, layout: str, folder: Path, **options: Any) -> Path:
        asked.update(options, name=name, layout=layout)
        return folder / "made"

    monkeypatch.setattr(worlds, "make", make)
    done = invoke("world", "make", "reid", str(tmp_path), "--layout", "llcm", "--preset", "small", "--seed", "9")
    assert done.stdout == f"{tmp_path / 'made'}\n"
    asked.pop("console")
    assert asked == {"name": "reid", "layout": "llcm", "preset": "small", "seed": 9}


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_data_check_fails_the_command_when_the_data_is_wrong(
    ok: bool, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Report:
        def __init__(self) -> None:
            self.ok = ok

        def __str__(self) -> str:
            return f"checked {tmp_path}"

        def as_json(self) -> dict[str, Any]:
            return {"folder": str(tmp_path), "ok": ok}

    monkeypatch.setattr(data, "check", lambda layout, folder, console: Report())
    done = invoke("data", "check", "regdb", str(tmp_path), "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (status, {"folder": str(tmp_path), "ok": ok})
    plain = invoke("data", "check", "regdb", str(tmp_path))
    assert (plain.exit_code, plain.stdout) == (status, f"checked {tmp_path}\n")


def test_data_split_prints_one_folder_per_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def split(layout: str, folder: Path, out: Path, *, protocol: str, console: Any) -> list[Path]:
        return [out / f"{layout}-{protocol}-{number}" for number in (1, 2)]

    monkeypatch.setattr(data, "split", split)
    done = invoke("data", "split", "sysu-mm01", "in", str(tmp_path), "--protocol", "uci")
    assert done.stdout.split() == [str(tmp_path / f"sysu-mm01-uci-{number}") for number in (1, 2)]


@pytest.mark.parametrize(("met", "status"), [(True, 0), (False, 1)])
def test_a_bench_that_misses_a_target_fails_its_command(
    met: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {"machine": "m", "rows": [], "targets": [{"name": "t", "value": 1.0, "bound": ">= 1", "met": met}]}
    monkeypatch.setattr(benches, "run", lambda name, console: result)
    done = invoke("bench", "engines", "--json")
    assert done.exit_code == status
    assert json.loads(done.stdout) == result


@pytest.mark.parametrize("command", ["resume", "export", "report"])
def test_a_folder_without_a_run_is_named(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_warm_up", lambda engine: None)
    more = [str(tmp_path / "target")] if command == "export" else []
    with pytest.raises(CloisterError, match=str(tmp_path)):
        invoke(command, str(tmp_path), *more)
