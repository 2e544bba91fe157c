"""While one client loads, nothing but its own files and the shared indexes is opened or listed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.datasets.reid import Federation, federation

_opened: list[str] | None = None


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir") and not isinstance(arguments[0], int):
        _opened.append(os.path.realpath(os.fsdecode(arguments[0])))


@pytest.fixture(scope="module")
def hook() -> None:
    sys.addaudithook(_record)


@contextmanager
def watching(root: Path) -> Iterator[list[str]]:
    """Collect the paths below ``root`` that are opened or listed, relative to it."""
    global _opened
    _opened, found = [], []
    try:
        yield found
    finally:
        base = os.path.realpath(root) + os.sep
        found += [path.removeprefix(base) for path in _opened if path.startswith(base)]
        _opened = None


@pytest.mark.usefixtures("hook")
@pytest.mark.parametrize("layout", ["sysu-mm01", "regdb", "llcm"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_client_opens_its_own_images_and_shared_indexes_only(
    trees: Path, layout: str, cached: bool, tmp_path: Path
) -> None:
    agreed = federation(trees, layout, "ci").label_space
    for client in federation(trees, layout, "ci").clients:
        with watching(trees) as opened:
            made = federation(trees, layout, "ci", label_space=agreed)
            made.load(client, 16, 8, tmp_path / client if cached else None)
        source = made.sources[0]
        own = {f"{source.layout.folder}/{record.path}" for _, record in made.records(client)}
        images = {path for path in opened if path.endswith((".jpg", ".bmp"))}
        assert images == own
        others = {path for path in opened if path not in own}
        # Beside the images: index files, and the listing of the client's own folders.
        assert all(path.split("/")[1] in ("exp", "idx", client) for path in others), others
        assert all(made.may_open(client, trees / path) for path in opened)
        if layout == "regdb":
            assert others == {f"RegDB/idx/train_{client}_1.txt"}


@pytest.mark.usefixtures("hook")
def test_an_entity_opens_its_own_data_set_only(trees: Path) -> None:
    agreed = federation(trees, "", "ei", sources=("regdb", "sysu-mm01"), target="llcm").label_space
    for client, folder in (("regdb", "RegDB"), ("sysu-mm01", "SYSU-MM01")):
        with watching(trees) as opened:
            made = federation(trees, "", "ei", sources=("regdb", "sysu-mm01"), target="llcm", label_space=agreed)
            made.load(client, 16, 8)
        assert opened
        assert {path.split("/")[0] for path in opened} == {folder}
        assert all(made.may_open(client, trees / path) for path in opened)


def _pairs(made: Federation) -> Iterator[tuple[str, str]]:
    return ((one, other) for one in made.clients for other in made.clients if one != other)


@pytest.mark.parametrize("layout", ["sysu-mm01", "regdb", "llcm"])
@pytest.mark.parametrize("protocol", ["ci", "uci"])
def test_no_client_may_open_anothers_image(trees: Path, layout: str, protocol: str) -> None:
    made = federation(trees, layout, protocol)
    folder = made.sources[0].folder
    for one, other in _pairs(made):
        assert all(made.may_open(other, folder / record.path) for _, record in made.records(other))
        assert not any(made.may_open(one, folder / record.path) for _, record in made.records(other))
        assert not any(
            made.may_open(one, folder / record.path) for record in made.sources[0].layout.recordings(folder, other)
        )


def test_may_open_by_hand(trees: Path, tmp_path: Path) -> None:
    made = federation(trees, "sysu-mm01", "ci")
    inside = trees / "SYSU-MM01"
    yes = ["cam1/0003/0001.jpg", "cam1", "exp/train_id.txt", "client.json"]
    no = ["cam2/0003/0001.jpg", "cam2", "manifest.json", "", "cam1/../cam2/0003/0001.jpg", "exp/../cam3", "cam11/a.jpg"]
    assert [name for name in yes + no if made.may_open("cam1", inside / name)] == yes
    assert not made.may_open("cam1", trees / "RegDB" / "Visible" / "1" / "a.bmp")  # another data set beside it
    assert made.may_open("cam1", trees / "SYSU-MM01-notes.txt")
    assert made.may_open("cam1", Path(sys.executable))
    thermal = federation(trees, "regdb", "ci")
    assert thermal.may_open("thermal", trees / "RegDB/idx/test_thermal_3.txt")
    assert not thermal.may_open("thermal", trees / "RegDB/idx/train_visible_1.txt")
    nine = federation(trees, "llcm", "ci")
    assert nine.may_open("cam1", trees / "LLCM/vis/0017/0017_c01_s1000_f0_vis.jpg")
    assert not nine.may_open("cam1", trees / "LLCM/vis/0017/0017_c10_s1000_f0_vis.jpg")
    assert not nine.may_open("cam1", trees / "LLCM/test_vis/cam9/0008/0008_c01_s1_f1_vis.jpg")
    entity = federation(trees, "", "ei", sources=("regdb",), target="llcm")
    assert not entity.may_open("regdb", trees / "LLCM" / "idx" / "test_id.txt")  # nor the unseen target


def test_a_link_to_the_data_is_no_way_around(trees: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(trees)
    made = federation(tmp_path / "link", "sysu-mm01", "ci")
    for base in (tmp_path / "link", trees, Path(os.path.realpath(trees))):
        assert made.may_open("cam1", base / "SYSU-MM01/cam1/0003/0001.jpg")
        assert not made.may_open("cam1", base / "SYSU-MM01/cam2/0003/0001.jpg")
