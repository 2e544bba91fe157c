"""The file: chained, signed, appended whole; whoever changes a byte, or is killed while writing, is found out."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import TranscriptError
from cloister.privacy.plan import Plan
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.transcript import End, Header, Round
from cloister.privacy.transcript_file import GENESIS, Break, Head, Line, Transcript, read, signed_line

pytestmark = pytest.mark.usefixtures("no_sync")
SERVER = Identity.of(bytes(range(32)))
A, B = "ab" * 32, "cd" * 32


def header(**more: Any) -> Header:
    values: dict[str, Any] = {
        "run": "r",
        "experiment": "e",
        "experiment_digest": A,
        "code": A,
        "task": "t",
        "rounds": 4,
        "plan": Plan.none().values(),
        "delta": 1e-5,
        "server": SERVER.public.hex(),
        "model": A,
    }
    return Header(**{**values, **more})


def round_(number: int) -> Round:
    return Round(round=number, cohort=("a",), layout=A, before=A, model=B)


def opened(path: Path, identity: Identity = SERVER, **more: Any) -> tuple[Transcript, list[Any]]:
    entries: list[Any] = []
    return Transcript.open(path, identity, header(**more), entries.append), entries


@pytest.fixture
def path(tmp_path: Path) -> Path:
    transcript, _ = opened(tmp_path / "run" / "transcript.jsonl")
    for number in (1, 2, 3):
        transcript.append(round_(number))
    transcript.append(End(round=3, model=B))
    return transcript.path


def test_lines_are_chained_and_signed(path: Path) -> None:
    found = list(read(path))
    assert [type(line) for line in found] == [Line] * 5
    assert [line.entry for line in found if isinstance(line, Line)][1] == round_(1)
    previous = GENESIS
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        values = json.loads(raw)
        assert (values["number"], values["previous"]) == (number, previous)
        previous = hashlib.sha256(raw).hexdigest()
    assert found[-1].digest == previous  # type: ignore[union-attr]


def test_it_is_opened_again_where_it_ended(path: Path) -> None:
    transcript, entries = opened(path)
    assert [entry.kind for entry in entries] == ["header", "round", "round", "round", "end"]
    assert transcript.head.lines == 5
    head = transcript.append(round_(4))
    assert opened(path)[0].head == head == Head(6, list(read(path))[-1].digest)  # type: ignore[union-attr]


@pytest.mark.parametrize("cut", [1, 2, 40, 700])
def test_a_line_torn_by_a_kill_is_cut_off(path: Path, cut: int) -> None:
    whole = path.read_bytes()
    length = len(whole.splitlines(keepends=True)[-1])
    torn = whole[: len(whole) - min(cut, length - 1)]
    path.write_bytes(torn)
    *rest, last = read(path)
    assert len(rest) == 4
    assert isinstance(last, Break)
    assert "torn" in last.found
    transcript, entries = opened(path)
    assert len(entries) == 4
    transcript.append(End(round=3, model=B))
    assert path.read_bytes() == whole


def test_a_file_that_is_nothing_but_a_torn_header_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"entry"' * 20_000)
    transcript, entries = opened(tmp_path / "t.jsonl")
    assert len(entries) == transcript.head.lines == 1


def test_an_append_that_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcript, _ = opened(path)
    whole = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TranscriptError, match=r"cannot be written .* resume"):
            transcript.append(round_(4))
    assert path.read_bytes() == whole
    transcript.append(round_(4))
    assert isinstance(list(read(path))[-1], Line)


def test_what_is_appended_is_synced_before_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcript, _ = opened(path)
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    transcript.append(round_(4))
    assert sizes == [path.stat().st_size]


def broken(path: Path) -> Break:
    last = list(read(path))[-1]
    assert isinstance(last, Break)
    return last


def rewritten(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def test_lines_that_are_moved_left_out_or_come_twice(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    for order, line, what in (
        ([0, 2, 1, 3, 4], 2, "number"),
        ([0, 1, 3, 4], 3, "number"),
        ([0, 1, 1, 2, 3, 4], 3, "number"),
        ([1, 2, 3, 4], 1, "number"),
    ):
        rewritten(path, [lines[place] for place in order])
        assert (broken(path).line, broken(path).what) == (line, what)
    rewritten(path, lines[:4])
    assert isinstance(list(read(path))[-1], Line)  # what a chain alone cannot show


def test_a_line_of_another_chain_does_not_fit(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    lines[2] = signed_line(SERVER, Head(2, A), round_(2))[:-1]
    rewritten(path, lines)
    found = broken(path)
    assert (found.line, found.kind, found.round, found.what) == (3, "round", 2, "chain")
    assert hashlib.sha256(lines[1]).hexdigest() in found.expected
    assert A in found.found


def test_only_the_server_of_the_header_signs(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    other = Identity.of(bytes(32))
    lines[1] = signed_line(other, Head(1, hashlib.sha256(lines[0]).hexdigest()), round_(1))[:-1]
    rewritten(path, lines)
    assert (broken(path).line, broken(path).what) == (2, "signature")
    assert SERVER.public.hex() in broken(path).expected
    lines[0] = signed_line(other, Head(), header())[:-1]
    rewritten(path, lines)
    assert (broken(path).line, broken(path).what) == (1, "signature")


def test_a_header_stands_in_line_1_and_nowhere_else(path: Path) -> None:
    transcript, _ = opened(path)
    transcript.append(header())
    assert (broken(path).line, broken(path).what) == (6, "kind")
    rewritten(path, [signed_line(SERVER, Head(), round_(1))[:-1]])
    assert (broken(path).line, broken(path).what) == (1, "kind")


@pytest.mark.parametrize(
    ("written", "what"),
    [
        (b"", "form"),
        (b"\xff\xfe", "form"),
        (b"[1]", "form"),
        (b"[" * 100_000, "form"),
        (b'{"entry": {}}', "form"),
        (b'{"entry":{},"number":1.0,"previous":"","signature":""}', "number"),
        (b'{"entry":{},"number":true,"previous":"","signature":""}', "number"),
        (b'{"entry":{},"number":1, "previous":"","signature":""}', "form"),
        (b'{"entry":{},"entry":{},"number":1,"previous":"","signature":""}', "form"),
        (f'{{"entry":7,"number":1,"previous":"{GENESIS}","signature":""}}'.encode(), "entry"),
        (f'{{"entry":{{}},"number":1,"previous":"{GENESIS}","signature":[]}}'.encode(), "entry"),
    ],
)
def test_whatever_stands_in_a_file_is_a_broken_link(tmp_path: Path, written: bytes, what: str) -> None:
    path = tmp_path / "t.jsonl"
    rewritten(path, [written])
    assert (broken(path).line, broken(path).what) == (1, what)


def test_another_spelling_of_a_signature_is_another_line(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    values = json.loads(lines[4])
    values["signature"] = values["signature"].upper()
    rewritten(path, [*lines[:4], json.dumps(values, sort_keys=True, separators=(",", ":")).encode()])
    assert (broken(path).line, broken(path).what) == (5, "signature")


@pytest.mark.parametrize("change", [{"run": "s"}, {"experiment_digest": B}, {"plan": {"unit": "client"}}])
def test_the_transcript_of_something_else_is_not_continued(path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(TranscriptError, match=f"transcript of {next(iter(change))}"):
        opened(path, **change)


def test_a_server_that_lost_its_key_cannot_continue(path: Path) -> None:
    other = Identity.of(bytes(32))
    with pytest.raises(TranscriptError, match="transcript of server"):
        opened(path, other, server=other.public.hex())


def test_a_broken_transcript_is_not_continued(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"cohort":["a"]', b'"cohort":["b"]', 1))
    with pytest.raises(TranscriptError, match=r"line 2 \(round, round 1\): signature"):
        opened(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=r"none\.jsonl: cannot be read"):
        list(read(tmp_path / "none.jsonl"))
