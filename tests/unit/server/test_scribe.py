"""The scribe: what it writes of a round is what happened, signed, before anybody goes on; and it ends a run once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.errors import TranscriptError
from cloister.flower import array_record
from cloister.privacy.plan import Plan
from cloister.privacy.transcript import Header, LedgerHead, ModularSum, digest_of
from cloister.privacy.transcript_file import FILE_NAME, Line, read
from cloister.privacy.verify import verify
from cloister.server.scribe import Scribe
from cloister.strategies.rounds import Outcome, RoundResult

pytestmark = pytest.mark.usefixtures("no_sync")
A, B, C = "ab" * 32, "cd" * 32, "ef" * 32
LOCAL: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "noise_multiplier": 2.0,
    "clip": {"bound": 3.0},
}
CENTRAL = {**LOCAL, "trust": "central", "population": 4, "clip": {"kind": "adaptive", "bound": 3.0, "bits_noise": 9.0}}


def scribe(folder: Path, plan: dict[str, Any]) -> Scribe:
    def header(server: str, model: str) -> Header:
        return Header(
            run="r",
            experiment="e",
            experiment_digest=A,
            code=A,
            task="t",
            rounds=2,
            plan=Plan.of(plan).values(),
            delta=1e-5,
            server=server,
            model=model,
        )

    return Scribe(folder, keys=folder / "server", header=header)


def weights(value: float) -> dict[str, Any]:
    return {"w": np.full(3, value, np.float32)}


def result(number: int, value: float, **more: Any) -> RoundResult:
    values: dict[str, Any] = {
        "number": number,
        "void": "",
        "cohort": ("cam1", "cam2", "cam3"),
        "outcomes": {
            "cam1": Outcome(accepted=True, digest=A),
            "cam2": Outcome(accepted=False, reason="too large", digest=B),
            "cam3": Outcome(accepted=False, reason="no reply before the deadline"),
        },
        "metrics": {},
        "traffic": {},
        "arrays": array_record(weights(value)),
        "client_arrays": {},
        **more,
    }
    return RoundResult(**values)


def entries(folder: Path) -> list[Any]:
    return [found.entry for found in read(folder / FILE_NAME) if isinstance(found, Line)]


def test_a_round_is_written_as_it_was(tmp_path: Path) -> None:
    writer = scribe(tmp_path, LOCAL)
    writer.begin(weights(0), weights(0))
    writer.round(result(1, 1))
    _, entry = entries(tmp_path)
    assert entry.cohort == ("cam1", "cam2", "cam3")
    assert {name: (it.digest, it.counted) for name, it in entry.commitments.items()} == {
        "cam1": (A, True),
        "cam2": (B, False),
    }
    assert (entry.before, entry.model) == (digest_of(weights(0)), digest_of(weights(1)))
    assert entry.events == Plan.of(LOCAL).events(1)
    assert (entry.clip, entry.hidden, entry.void) == (3.0, False, False)
    writer.end(None)
    assert verify(tmp_path).ok


def test_where_the_server_adds_the_noise_nobody_is_named(tmp_path: Path) -> None:
    writer = scribe(tmp_path, CENTRAL)
    writer.begin(weights(0), weights(0))
    total = ModularSum(bits=8, size=1, total=A, masks=A, announced=A)
    writer.round(result(1, 1, metrics={"clip-bound": 2.5}, total=total))
    text = (tmp_path / FILE_NAME).read_text().splitlines()[1]
    assert "cam" not in text
    assert (A in text, B in text) == (False, False)
    entry = entries(tmp_path)[1]
    assert (entry.hidden, entry.clip, entry.total) == (True, 2.5, None)
    assert verify(tmp_path).broken == ()


def test_a_void_round_leaves_the_weights_and_stands_there(tmp_path: Path) -> None:
    writer = scribe(tmp_path, LOCAL)
    writer.begin(weights(0), weights(0))
    writer.round(result(1, 5, void="too few"))
    writer.round(result(2, 2))
    void, good = entries(tmp_path)[1:]
    assert void.void
    assert void.before == void.model == good.before == digest_of(weights(0))
    assert verify(tmp_path).broken == ()


def test_it_goes_on_from_the_weights_of_a_checkpoint_and_ends_once(tmp_path: Path) -> None:
    first = scribe(tmp_path, LOCAL)
    first.begin(weights(0), weights(0))
    first.round(result(1, 1))
    first.round(result(2, 2))
    again = scribe(tmp_path, LOCAL)
    again.begin(weights(0), weights(1))  # killed before the checkpoint of round 2
    again.round(result(2, 2))
    again.end(None)
    assert (again.head, again.public) == (verify(tmp_path).head, verify(tmp_path).server)
    last = scribe(tmp_path, LOCAL)
    last.begin(weights(0), weights(2))
    last.end(None)
    assert [entry.kind for entry in entries(tmp_path)] == ["header", "round", "round", "round", "end"]
    found = verify(tmp_path)
    assert found.ok
    assert found.epsilon == pytest.approx(2.943, abs=1e-3)  # of two rounds, not three
    last.end(1.5)
    assert entries(tmp_path)[-1].claimed == 1.5


def test_signed_commitments_and_heads_are_handed_on(tmp_path: Path) -> None:
    head = LedgerHead(rows=3, digest=C, public=A, signature="12" * 64)
    outcomes = {
        "cam1": Outcome(accepted=True, digest=A, signature="34" * 64, head=head),
        "cam2": Outcome(accepted=False, digest=B, signature="56" * 64),  # refused: whoever sent it signed nothing
        "cam3": Outcome(accepted=False, digest=B, signature="5"),
    }
    writer = scribe(tmp_path, LOCAL)
    writer.begin(weights(0), weights(0))
    writer.round(result(1, 1, outcomes=outcomes))
    (found,) = entries(tmp_path)[1].commitments.items()
    assert found[0] == "cam1"
    assert (found[1].signature, found[1].head) == ("34" * 64, head)


def test_nothing_is_written_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match="begin"):
        scribe(tmp_path, LOCAL).round(result(1, 1))
    assert not list(tmp_path.iterdir())
