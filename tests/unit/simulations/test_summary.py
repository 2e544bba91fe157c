"""The table that ends a run."""

import io

from rich.console import Console

from cloister.simulations.record import RunRecord
from cloister.simulations.summary import table


def lines(**parts: object) -> list[list[str]]:
    record = RunRecord.model_validate(
        {"experiment": "reid-ci", "preset": "tiny", "engine": "local", "seed": 3, **parts}
    )
    output = io.StringIO()
    Console(file=output, width=100).print(table(record))
    return [line.replace("│", " ").replace("┃", " ").split() for line in output.getvalue().splitlines()]


def test_scores_are_percent_and_stand_beside_the_baselines() -> None:
    rows = lines(
        final={"rank1": 0.4215, "map": 0.3, "loss": 1.23456, "rgb2ir/map": 0.9},
        baselines={
            "local-only": {"rank1": 0.1, "map": None},
            "local-only/cam1": {"rank1": 0.7, "map": 0.7},
            "pooled": {"rank1": 1.0, "map": 0.55555, "loss": 0.5},
        },
    )
    assert rows[0] == ["reid-ci", "(tiny,", "engine", "local,", "seed", "3)"]
    assert ["Rank-1", "mAP", "loss"] in rows
    assert ["federated", "42.1", "%", "30.0", "%", "1.235"] in rows
    assert ["local-only", "10.0", "%", "-", "-"] in rows
    assert ["pooled", "100.0", "%", "55.6", "%", "0.500"] in rows
    assert not any("cam1" in " ".join(row) for row in rows)


def test_a_run_without_scores_is_a_table_too() -> None:
    assert ["federated"] in lines()
