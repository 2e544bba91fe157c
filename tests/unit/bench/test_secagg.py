"""The bench of secure aggregation, in miniature: what is timed does what its name says."""

import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cloister.bench import secagg
from cloister.bench.process import NotMeasured
from cloister.bench.secagg_cohort import Cohort
from cloister.privacy.secagg.shares import SeedShare


def test_what_is_timed_masks_and_adds() -> None:
    calls = secagg.vectors(parameters=1000, neighbours=4)
    assert list(calls) == list(secagg.KINDS[:5])
    results: dict[str, Any] = {kind: call() for kind, call in calls.items()}
    assert results[secagg.PLAIN].shape == (1000,)
    assert results[secagg.ENCODE].shape == results[secagg.MASKS].shape == results[secagg.MASKS_64].shape == (1001,)
    assert results[secagg.MASKS].dtype == np.uint32
    assert results[secagg.MASKS_64].dtype == np.uint64
    for kind in (secagg.MASKS, secagg.MASKS_64):
        assert (results[kind] != calls[kind]()).mean() > 0.99  # the client's own mask is new each time
    assert results[secagg.FLOWER_MASKS].shape == (1000,)
    assert 0 <= results[secagg.FLOWER_MASKS].min() <= results[secagg.FLOWER_MASKS].max() < 1 << 32


def test_what_is_timed_shares_and_joins_one_secret() -> None:
    calls = secagg.sharing()
    assert list(calls) == list(secagg.KINDS[5:])
    shares = calls[secagg.SPLIT]()
    assert [type(share) for share in shares] == [SeedShare] * 51
    assert len(calls[secagg.FLOWER_SPLIT]()) == 51
    assert calls[secagg.JOIN]().view() == calls[secagg.FLOWER_JOIN]()


def test_rows_and_targets_follow_from_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {kind: [2.0, 1.0, 3.0] for kind in secagg.KINDS} | {secagg.SPLIT: [0.0004]}
    cohort = {"clients": 2.0, "server": 2.0, "memory": 2**31, "traffic": 1.05}
    monkeypatch.setattr(secagg, "measured", lambda arguments, **_: cohort if "cohort" in arguments[1] else seconds)
    result = json.loads(json.dumps(secagg.measure(Console(quiet=True))))
    assert [line["kind"] for line in result["rows"]] == [*secagg.KINDS, *secagg.WHOLE]
    assert {line["seconds"] for line in result["rows"]} == {2.0, 0.0004}
    found = [(each["value"], each["met"]) for each in result["targets"]]
    assert found == [(2.0, False), (0.4, True), (1.05, True), (2.0, True)]


def test_what_cannot_be_measured_meets_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str], **options: Any) -> None:
        raise NotMeasured("not done after 1 s")

    monkeypatch.setattr(secagg, "measured", fail)
    result = secagg.measure(Console(quiet=True))
    assert {line["why"] for line in result["rows"]} == {"not done after 1 s"}
    assert [each["met"] for each in result["targets"]] == [False] * 4


@pytest.mark.parametrize(("clients", "dropouts"), [(12, 0.0), (12, 0.1), (40, 0.1)])
def test_a_cohort_sums_exactly_and_says_what_it_took(clients: int, dropouts: float) -> None:
    found = Cohort(clients, 200, dropouts).run()
    assert set(found) == {"clients", "server", "memory", "traffic"}
    assert found["traffic"] > 1  # keys and shares outweigh so small a vector
    assert found["memory"] > 0
