"""Whatever is done to one byte of a transcript: verification fails and names the line."""

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.privacy.plan import Plan
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.tally import Tally
from cloister.privacy.transcript import COMMITMENT, LEDGER_HEAD, Commitment, End, Header, LedgerHead, Round
from cloister.privacy.transcript_file import Transcript
from cloister.privacy.verify import Verification, verify

pytestmark = pytest.mark.usefixtures("_made")
PLAN = {"unit": "client", "mechanism": "gaussian", "noise_multiplier": 2.0, "clip": {"bound": 1.0}}
A, B = "ab" * 32, "cd" * 32


@functools.cache
def made() -> bytes:
    """Return a whole transcript: two rounds of two clients that sign, one of which shows its ledger's head."""
    server, clients = Identity.generate(), {"cam1": Identity.generate(), "cam2": Identity.generate()}
    header = Header(
        run="r",
        experiment="e",
        experiment_digest=A,
        code=B,
        task="t",
        rounds=2,
        plan=Plan.of(PLAN).values(),
        delta=1e-5,
        server=server.public.hex(),
        roster={name: key.public.hex() for name, key in clients.items()},
        model=A,
    )
    with tempfile.TemporaryDirectory() as folder:
        transcript = Transcript.open(Path(folder) / "t.jsonl", server, header, lambda entry: None)
        tally = Tally(header)
        for number in (1, 2):
            signed = {name: key.sign(COMMITMENT, *Commitment.signed(A)).hex() for name, key in clients.items()}
            ledger = clients["cam1"].sign(LEDGER_HEAD, *LedgerHead.signed("r", number, number, B)).hex()
            head = LedgerHead(rows=number, digest=B, public=header.roster["cam1"], signature=ledger)
            entry = Round(
                round=number,
                cohort=("cam1", "cam2"),
                commitments={
                    "cam1": Commitment(digest=A, signature=signed["cam1"], head=head if number == 1 else None),
                    "cam2": Commitment(digest=A, signature=signed["cam2"]),
                },
                layout=B,
                events=tally.events(number, void=False),
                before=tally.model,
                model=A,
            )
            transcript.append(entry)
            tally.add(entry)
        transcript.append(End(round=2, model=A, epsilon=tally.epsilon(), claimed=tally.epsilon()))
        return transcript.path.read_bytes()


@pytest.fixture(scope="module")
def _made() -> None:
    made()


def checked(data: bytes) -> Verification:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy.jsonl"
        path.write_bytes(data)
        return verify(path)


def line_of(place: int) -> int:
    return made()[:place].count(b"\n") + 1


def test_it_holds_as_it_was_made() -> None:
    found = checked(made())
    assert found.ok
    assert found.checked == {"lines": 4, "commitments": 4, "client signatures": 4, "ledger heads": 1}


places = st.integers(0, 10**6).map(lambda number: number % len(made()))


@settings(max_examples=300)
@given(places, st.integers(1, 255))
@example(0, 1)
@example(10**6, 42)
def test_one_byte_that_is_another(place: int, flip: int) -> None:
    place %= len(made())
    data = bytearray(made())
    data[place] ^= flip
    found = checked(bytes(data))
    assert not found.ok
    assert [link.line for link in found.broken] == [line_of(place)]


@settings(max_examples=100)
@given(places)
def test_one_byte_that_is_gone(place: int) -> None:
    found = checked(made()[:place] + made()[place + 1 :])
    assert [link.line for link in found.broken] == [line_of(place)]


@settings(max_examples=100)
@given(places, st.binary(min_size=1, max_size=3))
def test_bytes_that_were_put_in(place: int, more: bytes) -> None:
    found = checked(made()[:place] + more + made()[place:])
    assert found.broken[0].line == line_of(place)


@settings(max_examples=60)
@given(places)
def test_an_end_that_is_cut_off_inside_a_line(place: int) -> None:
    if made()[:place].endswith(b"\n"):
        return  # a line's end: what is missing then, only a head that was noted tells
    found = checked(made()[:place])
    assert [link.line for link in found.broken] == [line_of(place) if place else 1]


@pytest.mark.parametrize("client", ["cam1", "cam2"])
def test_damage_to_what_a_client_signed_names_the_client(client: str) -> None:
    lines = made().splitlines(keepends=True)
    at = lines[2].index(f'"{client}":{{"digest":"'.encode()) + len(client) + 14
    assert lines[2][at : at + 64].decode() == A
    lines[2] = lines[2][:at] + b"0" + lines[2][at + 1 :]
    (link,) = checked(b"".join(lines)).broken
    assert (link.line, link.kind, link.round, link.client, link.what) == (3, "round", 2, client, "signature")
