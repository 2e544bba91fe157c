"""The chain of sealed rows: it recomputes, nobody changes it unseen, and what cannot be read is named."""

import hashlib
import json
import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.errors import LedgerError
from cloister.privacy.chain import GENESIS, Chain, Head, canonical, link

pytestmark = pytest.mark.usefixtures("no_sync")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a chain of five rows, closed, made once: SQLite syncs each commit."""
    folder = tmp_path_factory.mktemp("chain")
    fill(folder / "ledger.sqlite", 5)
    return folder


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of the chain of five rows."""
    return shutil.copytree(made, tmp_path / "site") / "ledger.sqlite"


def fill(path: Path, count: int) -> None:
    chain = Chain.open(path, clock=lambda: 0.0)
    for number in range(count):
        add(chain, f"text {number + 1}")
    chain.close()


def add(chain: Chain, text: str) -> int:
    with chain.writing():
        chain.news()
        return chain.append(text)


def texts(path: Path) -> list[str]:
    chain = Chain.read(path)
    try:
        return [row.entry for row in chain.news()]
    finally:
        chain.close()


def in_child(work: Callable[[], None]) -> None:
    """Do ``work`` in a forked process, whose limits and user may be changed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_rows_come_back_sealed_in_order(path: Path) -> None:
    chain = Chain.read(path)
    rows = chain.news()
    assert [(row.number, row.entry, row.time) for row in rows] == [
        (number, f"text {number}", "1970-01-01T00:00:00Z") for number in range(1, 6)
    ]
    assert chain.verify() == 5
    assert chain.head == Head(5, rows[-1].digest)
    assert chain.news() == []
    assert json.loads(chain.head_path.read_text()) == {"rows": 5, "digest": rows[-1].digest}
    chain.close()


def test_the_digest_is_sha256_over_canonical_json() -> None:
    # Written out by hand: sorted keys, no spaces, the text as a string.
    row = f'{{"entry":"{{\\"a\\":1}}","number":1,"previous":"{GENESIS}","time":"1970-01-01T00:00:00Z"}}'
    expected = hashlib.sha256(row.encode()).hexdigest()
    assert link(GENESIS, 1, "1970-01-01T00:00:00Z", '{"a":1}') == expected
    assert hashlib.sha256(b"cloister ledger, version 1").hexdigest() == GENESIS


def test_canonical_json_is_one_text_and_has_no_nan() -> None:
    assert canonical({"b": [1, 0.5], "a": "é"}) == '{"a":"\\u00e9","b":[1,0.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


def test_an_empty_chain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Chain.open(path).close()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["ledger.head", "ledger.sqlite"]
    assert texts(path) == []
    with pytest.raises(LedgerError, match=r"other\.sqlite: there is no ledger"):
        Chain.read(tmp_path / "other.sqlite")


def test_what_fails_inside_leaves_no_row_and_no_lock(path: Path) -> None:
    chain = Chain.open(path)

    def fail() -> None:
        with chain.writing():
            chain.news()
            chain.append("lost")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    other = Chain.open(path)
    assert add(other, "kept") == 6
    other.close()
    assert add(chain, "after") == 7
    chain.close()
    assert texts(path)[5:] == ["kept", "after"]


def test_two_connections_see_one_another(path: Path) -> None:
    one, other = Chain.open(path), Chain.open(path)
    assert [add(chain, "x") for chain in (one, other, other, one)] == [6, 7, 8, 9]
    assert one.verify() == other.verify() == 9
    one.close()
    other.close()


STATEMENTS = [
    "UPDATE rows SET entry = 'x' WHERE number = 2",
    "DELETE FROM rows WHERE number = 5",
    "DELETE FROM rows",
    "INSERT OR REPLACE INTO rows VALUES (2, 'x', 'x', 'x')",
    "REPLACE INTO rows VALUES (5, 'x', 'x', 'x')",
    "UPDATE OR REPLACE rows SET number = 2 WHERE number = 3",
    "INSERT INTO rows VALUES (7, 'x', 'x', 'x')",
    "INSERT INTO rows VALUES (0, 'x', 'x', 'x')",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_file_itself_refuses_changes(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database, pytest.raises(sqlite3.IntegrityError, match="rows are"):
        database.execute(statement)
    database.close()
    assert texts(path) == [f"text {number}" for number in range(1, 6)]


def test_a_crash_between_row_and_head_is_mended(path: Path) -> None:
    head = path.with_suffix(".head")
    before = head.read_bytes()
    fill(path, 1)
    after = head.read_bytes()
    head.write_bytes(before)
    reader = Chain.read(path)
    assert reader.verify() == 6
    reader.close()
    assert head.read_bytes() == before  # a reader changes nothing
    Chain.open(path).close()
    assert head.read_bytes() == after


def test_a_crash_before_the_first_head_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Chain.open(path).close()
    path.with_suffix(".head").unlink()
    assert texts(path) == []
    fill(path, 1)
    assert path.with_suffix(".head").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"rows": 5}', b'{"rows": "x", "digest": "y"}', b'{"rows":-1,"digest":""}', b"\xff"]
)
def test_a_damaged_head_is_named(path: Path, content: bytes) -> None:
    path.with_suffix(".head").write_bytes(content)
    with pytest.raises(LedgerError, match=r"ledger\.head: cannot be read .*restore it"):
        Chain.open(path)


def test_a_reader_that_looks_while_the_first_row_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    fill(path, 0)
    head = path.with_suffix(".head")
    head.unlink()
    noted, looks = Chain._noted, []

    def look(chain: Chain) -> Head | None:
        found = noted(chain)
        looks.append(found)
        if len(looks) == 1:
            monkeypatch.undo()
            fill(path, 1)
        return found

    monkeypatch.setattr(Chain, "_noted", look)
    assert texts(path) == ["text 1"]
    assert looks == [None]


def test_a_lost_file_is_not_begun_anew(path: Path) -> None:
    path.unlink()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: is gone, but ledger\.head"):
        Chain.open(path)
    assert not path.exists()


def test_rows_without_head_are_refused(path: Path) -> None:
    path.with_suffix(".head").unlink()
    for way in (Chain.open, Chain.read):
        with pytest.raises(LedgerError, match=r"rows exist but their head ledger\.head is gone"):
            way(path)


@given(where=st.integers(0, 2 * 4096 - 1), length=st.integers(1, 2000), byte=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_named_or_says_the_same(path: Path, where: int, length: int, byte: int) -> None:
    content = path.read_bytes()
    assert len(content) == 2 * 4096
    try:
        path.write_bytes((content[:where] + bytes([byte]) * length + content[where + length :])[: len(content)])
        assert texts(path) == [f"text {number}" for number in range(1, 6)]
    except LedgerError as error:
        assert "ledger.sqlite" in str(error)  # noqa: PT017
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("keep", [0, 100, 4096, 2 * 4096 - 100])
def test_a_file_cut_short_is_named(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: "):
        Chain.open(path)


def test_something_else_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "text.sqlite").write_text("not a database, but long enough to be looked at" * 30)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, time TEXT, entry TEXT, digest TEXT)")
    other.close()
    for name in ("folder", "text", "other"):
        with pytest.raises(LedgerError, match=rf"{name}\.sqlite: "):
            Chain.open(tmp_path / f"{name}.sqlite")


def test_a_full_disk_is_named_and_loses_nothing(path: Path) -> None:
    def work() -> None:
        chain = Chain.open(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: .*(full|disk I/O|too large).*free disk space"):
            add(chain, "x" * 30_000)

    in_child(work)
    assert texts(path)[:5] == [f"text {number}" for number in range(1, 6)]
    fill(path, 1)


@pytest.fixture
def nobodys(path: Path, tmp_path: Path) -> Iterator[Path]:
    """The chain in a folder that others may read and not write."""
    folder = Path(tempfile.mkdtemp())
    for item in path.parent.iterdir():
        shutil.copy(item, folder / item.name)
    folder.chmod(0o755)
    yield folder / path.name
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="changes its user")
def test_who_may_not_write_can_read_and_is_told(nobodys: Path) -> None:
    def work() -> None:
        os.setgid(65534)
        os.setuid(65534)
        assert len(texts(nobodys)) == 5
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: .*(readonly|unable to open).*make the folder writable"):
            Chain.open(nobodys)

    in_child(work)


def test_a_reader_cannot_write(path: Path) -> None:
    chain = Chain.read(path)
    with pytest.raises(LedgerError, match="readonly database"):
        add(chain, "x")
    chain.close()


def test_a_connection_does_not_pass_a_fork(path: Path) -> None:
    chain = Chain.open(path)

    def work() -> None:
        for use in (chain.news, chain.verify, lambda: add(chain, "x")):
            with pytest.raises(LedgerError, match="opened by another process"):
                use()

    in_child(work)
    assert add(chain, "mine") == 6
    chain.close()
