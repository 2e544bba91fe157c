"""A site that is killed between any two steps accounts for everything that left, once, and sends the same bytes again.

The kills are real (``kill -9`` of a process of its own), before each call that touches SQLite or a file. With
``power`` the machine loses what was not synced, too.
"""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cloister.privacy.chain import Chain

pytestmark = [pytest.mark.slow]
SHARDS = 6


@pytest.fixture
def app(apps: Path) -> ModuleType:
    import ledger_site

    return ledger_site


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: what is synced is simulated here."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_killed_before_any_effect(app: ModuleType, folder: Path, shard: int, power: bool) -> None:
    for number in itertools.count(1 + shard, SHARDS):
        survived = app.survives(app.Site(folder / str(number) / "site"), number, power=power)
        if survived is None:
            break
        assert survived, f"killed before effect {number}"
    assert number > 100  # three rounds have many more steps than that


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_killed_again_while_it_recovers(app: ModuleType, folder: Path, power: bool) -> None:
    for number in range(10, 110, 9):
        kills = (number, 5 + number % 23, 3 + number % 7)
        assert app.survives(app.Site(folder / str(number) / "site"), *kills, power=power), f"killed before {kills}"


def test_sqlite_syncs_each_commit(tmp_path: Path) -> None:
    """What the simulated loss of power takes for granted."""
    chain = Chain.open(tmp_path / "ledger.sqlite")
    assert chain._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert chain._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: each commit, in WAL mode too
    chain.close()
