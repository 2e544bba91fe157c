"""What a round needs, and what is said when it does not get it."""

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error, Message

from cloister.errors import QuorumError
from cloister.flower import views
from cloister.strategies.quorum import QuorumConfig


@pytest.mark.parametrize(
    ("replies", "cohort", "least", "required"),
    [
        (0.5, 6, 1, 3),
        (0.5, 7, 1, 4),
        (1.0, 6, 1, 6),
        (0.1, 30, 1, 3),  # 0.1 * 30 is 3.0000000000000004 in floating point
        (0.01, 6, 1, 1),
        (4, 6, 1, 4),
        (1, 6, 5, 5),
        (0.5, 0, 1, 1),
    ],
)
def test_required_replies(replies: float, cohort: int, least: int, required: int) -> None:
    assert QuorumConfig(replies=replies).required(cohort, least) == required


def dead(message: Message) -> Error:
    return Error(3, "no power")


def test_the_error_names_round_expectation_finding_clients_reasons_and_next_step(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients(cam2=dead, cam5=lambda message: None))
    settings = {"name": "fedavg", "quorum": {"replies": 5, "deadline_s": 30.0, "max_void_rounds": 1}}
    with pytest.raises(QuorumError) as caught:
        lab.run(grid, settings)
    text = str(caught.value)
    for part in (
        "[E410]",
        "round 1",
        "at least 5 valid replies from a cohort of 6, found 4",
        "cam2: error reply (code 3): no power",
        "cam5: no reply before the deadline",
        "resume, which runs the void rounds again; or start a new run with a lower strategy.quorum.replies",
    ):
        assert part in text
    assert "cam1:" not in text


def test_a_long_list_of_failures_is_cut(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid({f"phone{number:03d}": dead for number in range(50)})
    (done,) = lab.run(grid, {"name": "fedavg"}, 1).rounds
    assert "phone019" in done.void
    assert "phone020" not in done.void
    assert "and 30 more" in done.void
    assert len(done.outcomes) == 50


def test_a_valid_round_resets_the_count(lab: SimpleNamespace) -> None:
    def moody(message: Message) -> Any:
        number = message.content["config"]["server-round"]
        return lab.trained(message, "cam1") if number % 3 == 0 else Error(1, "out")

    grid = lab.FakeGrid(dict.fromkeys(("cam1", "cam2"), moody))
    done = lab.run(grid, {"name": "fedavg", "quorum": {"max_void_rounds": 3}}, 9)
    assert [bool(result.void) for result in done.rounds] == [True, True, False] * 3


def test_the_callback_sees_the_last_void_round_before_the_run_ends(lab: SimpleNamespace) -> None:
    grid = lab.FakeGrid(lab.clients(**dict.fromkeys(lab.NAMES, dead)))
    strategy, seen = lab.make(grid, {"name": "fedavg", "quorum": {"max_void_rounds": 2}}), []
    with pytest.raises(QuorumError):
        strategy.start(grid, lab.initial("fedavg"), 5, on_round=seen.append)
    assert [result.number for result in seen] == [1, 2]
    assert all(lab.same(views(result.arrays), lab.model()) for result in seen)


def test_flowers_loop_ends_too_when_rounds_stay_void(lab: SimpleNamespace) -> None:
    from flwr.serverapp.strategy import Strategy

    grid = lab.PlainGrid(lab.clients(**dict.fromkeys(lab.NAMES, dead)))
    strategy = lab.make(grid, {"name": "fedavg"})
    with pytest.raises(QuorumError, match="void round 3 in a row"):
        Strategy.start(strategy, grid, lab.initial("fedavg"), num_rounds=5)
