"""What a person sees while a run goes on, with and without a terminal."""

import io
from contextlib import suppress

from rich.console import Console

from cloister.simulations.progress import Display
from cloister.simulations.record import Rejection, Round


def shown(*rounds: Round, terminal: bool, done: int = 0) -> str:
    """All that was written to the console, colours taken out."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=120, color_system=None)
    with Display(console) as display, display.stage("federated", 4, done) as bar:
        for entry in rounds:
            bar.advance(entry)
    return output.getvalue()


def test_a_terminal_sees_rounds_and_the_latest_metrics() -> None:
    text = shown(
        Round(round=2, seconds=1, metrics={"loss": 1.25, "map": 0.5, "seconds": 9.0}),
        Round(round=3, seconds=1, metrics={"loss": 0.75, "map": None}),
        terminal=True,
        done=1,
    )
    last = [line for line in text.splitlines() if "federated" in line][-1]
    assert "3/4" in last
    assert "loss 0.750  map 0.500" in last  # what a round did not measure stays as it was last
    assert "seconds" not in last
    assert "rounds done" not in text


def test_without_a_terminal_a_finished_stage_is_a_line() -> None:
    assert shown(Round(round=1, seconds=1, metrics={"loss": 1.0}), terminal=False) == "federated: 4 rounds done\n"


def test_a_dropped_reply_is_named_with_its_reason() -> None:
    rejected = [Rejection(client="cam3", reason="arrays['w']: expected finite values, found [nan]")]
    for terminal in (True, False):
        text = shown(Round(round=2, seconds=1, rejected=rejected), terminal=terminal)
        assert "round 2: cam3: arrays['w']: expected finite values, found [nan]" in text


def test_a_run_that_fails_ends_the_display() -> None:
    output = io.StringIO()
    display = Display(Console(file=output, force_terminal=True, width=80))
    with suppress(RuntimeError), display, display.stage("federated", 4, 0):
        raise RuntimeError
    assert output.getvalue().endswith("\x1b[?25h")  # the cursor is back
