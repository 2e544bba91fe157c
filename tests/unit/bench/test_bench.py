import io
import json
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cloister import bench
from cloister.bench import cells, engines, evaluation
from cloister.bench.cells import Cell, Measured
from cloister.bench.process import NotMeasured, measured
from cloister.errors import ConfigError
from cloister.server.evaluation.ranking import Labels

CELL = Cell(kind="bare", workers=1, parameters=4_810, cohort=5, pool=20)
ROW_KEYS = {
    *("kind", "workers", "parameters", "cohort", "pool", "clients_per_s", "spread", "repetitions"),
    *("first_round_s", "memory_mib", "why"),
}


@pytest.mark.parametrize(
    ("value", "bound", "met"),
    [
        (0.95, ">= 0.95", True),
        (0.9499, ">= 0.95", False),
        (5.0, "<= 5", True),
        (5.01, "<= 5", False),
        (None, "<= 5", False),
        (None, ">= 0", False),
    ],
)
def test_target_compares_with_its_bound(value: float | None, bound: str, met: bool) -> None:
    assert bench.target("name", value, bound) == {"name": "name", "value": value, "bound": bound, "met": met}


def test_an_unknown_bench_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="bench 'nosuch': expected one of engines, evaluation, privacy, secagg, or all"
    ):
        bench.run("nosuch", console=Console(quiet=True))


def test_the_command_line_says_so_too() -> None:
    done = subprocess.run([sys.executable, "-m", "cloister.cli", "bench", "nosuch"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "bench 'nosuch': expected one of engines" in done.stderr


def test_all_runs_every_bench_and_names_it_in_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        module = types.ModuleType(f"bench_{name}")
        found = {
            "rows": [{"kind": name, "spread": [1.0, 2.0], "why": None}],
            "targets": [bench.target(name, 1, ">= 2")],
        }
        module.measure = lambda console, found=found: found  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(bench, "BENCHES", {"first": "bench_first", "second": "bench_second"})
    console = Console(record=True, width=200, file=io.StringIO())
    result = bench.run("all", console=console)
    assert result.keys() == {"machine", "rows", "targets"}
    assert [line["bench"] for line in result["rows"]] == ["first", "second"]
    assert [line["bench"] for line in result["targets"]] == ["first", "second"]
    text = console.export_text()
    assert "1.0 - 2.0" in text
    assert "None" not in text


def speeds(**clients_per_s: float | None) -> list[dict[str, Any]]:
    """Rows of 306,591 parameters and cohort 50; ``local_2=3.0`` is 3 clients per second of local with two workers."""
    rows = []
    for name, speed in clients_per_s.items():
        kind, workers = name.split("_")
        rows.append(
            {"kind": kind, "workers": int(workers), "parameters": 306_591, "cohort": 50, "clients_per_s": speed}
        )
    return rows


def test_ratios_are_those_of_the_rows() -> None:
    targets = engines.ratios(speeds(bare_1=100.0, local_1=94.0, local_2=180.0, flwr_2=50.0, pfl_1=70.0))
    assert [(target["value"], target["bound"], target["met"]) for target in targets] == [
        (0.94, ">= 0.95", False),
        (1.8, ">= 1.7", True),
        (3.6, ">= 3", True),
    ]
    assert targets[2]["name"] == "local x 2 / flwr x 2, 306,591 parameters, cohort 50"


def test_a_ratio_to_what_could_not_be_measured_is_not_met() -> None:
    (against_bare, against_flower) = engines.ratios(speeds(bare_1=100.0, local_2=180.0, flwr_2=None))
    assert against_bare["met"]
    assert (against_flower["value"], against_flower["met"]) == (None, False)


def test_rows_hold_medians_over_processes() -> None:
    found = Measured(CELL)
    found.samples = [
        {"seconds": [1.0, 0.5], "first_round_s": 3.0, "memory_mib": [10.0, 11.0]},
        {"seconds": [0.25], "first_round_s": 1.0, "memory_mib": [20.0, 31.0]},
        {"seconds": [0.5, 0.5], "first_round_s": 2.0, "memory_mib": [30.0, 21.0]},
    ]
    row = found.row()
    assert row.keys() == ROW_KEYS
    assert (row["clients_per_s"], row["spread"], row["repetitions"]) == (10.0, [5.0, 20.0], 5)
    assert (row["first_round_s"], row["memory_mib"]) == (2.0, [20.0, 21.0])


def test_a_package_that_is_missing_is_a_row_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells.importlib.util, "find_spec", lambda name: None)
    for kind, extra in (("pfl", "bench"), ("flwr", "bench"), ("ray", "simulation")):
        found = Measured(Cell(kind=kind, workers=1, parameters=4_810, cohort=5, pool=20))
        found.take(rounds=2, timeout_s=1)
        assert found.row()["why"] == f"not installed (pip install cloister[{extra}])"
        assert found.row()["clients_per_s"] is None


def test_what_needs_more_memory_than_there_is_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_free_bytes", lambda: 20 * 2**30)
    monkeypatch.setattr(cells.importlib.util, "find_spec", lambda name: object())
    cell = Cell(kind="flwr", workers=2, parameters=11_007_690, cohort=500, pool=1_000)
    with pytest.raises(NotMeasured, match="holds all replies of a round: needs 41 GiB, 20 GiB are free"):
        cell.check()
    Cell(kind="flwr", workers=2, parameters=11_007_690, cohort=50, pool=1_000).check()
    Cell(kind="local", workers=2, parameters=11_007_690, cohort=500, pool=1_000).check()


def test_a_process_that_fails_is_a_row_with_its_last_words() -> None:
    found = Measured(Cell(kind="bare", workers=1, parameters=7, cohort=5, pool=20))
    found.take(rounds=2, timeout_s=60)
    assert found.row()["why"] == "ended with 1: KeyError: 7"


def test_a_process_that_takes_too_long_is_ended() -> None:
    with pytest.raises(NotMeasured, match="not done after 0 s"):
        measured(["-c", "while True: pass"], timeout_s=0.3, environment={})


def test_the_last_line_counts_and_the_environment_holds() -> None:
    program = "import os; print('noise'); print(os.environ['CLOISTER_BENCH_TEST'])"
    assert measured(["-c", program], timeout_s=30, environment={"CLOISTER_BENCH_TEST": "[7]"}) == [7]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_miniature_of_the_engines_bench() -> None:
    result = engines.measure(
        Console(quiet=True),
        sizes=(4_810,),
        cohorts=(5,),
        contestants=(("bare", 1), ("local", 1)),
        pool=20,
        budget_s=1.0,
    )
    result = json.loads(json.dumps(result))  # nothing in it that JSON has not
    assert [row["kind"] for row in result["rows"]] == ["bare", "local", "local", "local", "local"]
    assert [row["pool"] for row in result["rows"]] == [20, 20, 20, 1_000_000, 20]
    for row in result["rows"]:
        assert row.keys() == ROW_KEYS
        assert row["why"] == ""
        assert row["spread"][0] <= row["clients_per_s"] <= row["spread"][1]
        assert row["first_round_s"] > 0
    names = [target["name"] for target in result["targets"]]
    assert names == [
        "first round, 5 of 20, 4,810 parameters: s since process start",
        "first round, 1,000,000 against 20 clients",
        "server memory, 1,000,000 against 20 clients: MiB more",
        "server memory, round 22 / round 2, 4,810 parameters",
        "cloister --help: s",
    ]
    met = {target["name"]: target["met"] for target in result["targets"]}
    assert met[names[2]]
    assert met[names[3]]


def test_both_ways_to_score_a_search_agree() -> None:
    generator = np.random.default_rng(1)
    asked = Labels(identities=np.arange(60) % 7, cameras=np.array([3, 6])[np.arange(60) // 7 % 2])
    among = Labels(identities=np.arange(20) % 7, cameras=np.array([1, 2, 4, 5])[np.arange(20) // 7 % 4])
    query, gallery = generator.standard_normal((60, 4)), generator.standard_normal((20, 4))
    expected = evaluation.one_by_one(query, asked, gallery, among)
    for score in (evaluation.vectorised, evaluation.with_cameras):
        assert score(query, asked, gallery, among) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected.values())) > 3


def test_the_search_has_the_sizes_of_sysu_mm01() -> None:
    query, asked, gallery, among = evaluation.search()
    assert (len(query), len(gallery), query.shape[1]) == (3_803, 301, 2_048)
    assert set(asked.identities) == set(among.identities) == set(range(96))
    assert set(asked.cameras) == {3, 6}
    assert set(among.cameras) == {1, 2, 4, 5}
