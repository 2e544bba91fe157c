"""``cloister data split``: each client's folder alone gives exactly what the whole tree gave that client."""

import os
from pathlib import Path

import numpy as np
import pytest

from cloister.datasets import split as splits
from cloister.datasets.reid import federation
from cloister.datasets.split import split
from cloister.errors import ConfigError, DataError


def _files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_part_gives_the_same_images_and_labels_as_the_whole(own_tree: tuple[str, Path], tmp_path: Path) -> None:
    layout, root = own_tree
    whole = federation(root, layout, "ci")
    seen: list[tuple[int, int]] = []
    trees = split(layout, root, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert tuple(tree.client for tree in trees) == whole.clients
    assert seen[-1] == (sum(tree.images for tree in trees),) * 2
    for tree in trees:
        for given in (tree.folder, tree.folder.parent):
            part = federation(given, layout, "ci")
            assert part.clients == (tree.client,)
            assert part.num_classes == whole.num_classes
            mine, theirs = part.load(tree.client, 16, 8), whole.load(tree.client, 16, 8)
            np.testing.assert_array_equal(mine.images, theirs.images)
            np.testing.assert_array_equal(mine.labels, theirs.labels)
            np.testing.assert_array_equal(mine.cameras, theirs.cameras)
            np.testing.assert_array_equal(mine.infrared, theirs.infrared)


def test_a_part_holds_nothing_of_another_client(own_tree: tuple[str, Path], tmp_path: Path) -> None:
    layout, root = own_tree
    whole = federation(root, layout, "ci")
    trees = split(layout, root, tmp_path / "out")
    images = [{name for name in _files(tree.folder) if name.endswith((".jpg", ".bmp"))} for tree in trees]
    assert sum(map(len, images)) == len(set().union(*images))
    for tree, own in zip(trees, images, strict=True):
        assert len(own) == tree.images
        assert all(whole.may_open(tree.client, whole.sources[0].folder / name) for name in _files(tree.folder))
        for index in (tree.folder / "idx").glob("train_*.txt"):
            assert {line.rpartition(" ")[0] for line in index.read_text().splitlines()} <= own
    if layout == "sysu-mm01":
        assert "cam1/0111/0001.jpg" not in images[0]  # in no list


def test_images_are_hard_links_where_possible_and_copies_elsewhere(
    own_sysu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = split("sysu-mm01", own_sysu, tmp_path / "linked")
    assert all(tree.linked == tree.images for tree in linked)
    image = linked[0].folder / "cam1/0003/0001.jpg"
    assert image.samefile(own_sysu / "cam1/0003/0001.jpg")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(splits.os, "link", refuse)
    copied = split("sysu-mm01", own_sysu, tmp_path / "copied")
    assert all(tree.linked == 0 for tree in copied)
    copy = copied[0].folder / "cam1/0003/0001.jpg"
    assert copy.read_bytes() == image.read_bytes()
    assert not copy.samefile(image)


def test_a_folder_that_exists_is_never_merged_into(own_sysu: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "cam3").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cam3: expected no such folder, found one; choose an empty output folder"):
        split("sysu-mm01", own_sysu, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["cam3"]


def test_a_missing_image_stops_the_split_and_leaves_no_half_client(own_llcm: Path, tmp_path: Path) -> None:
    (own_llcm / "vis" / "0090" / "0090_c04_s1000_f0_vis.jpg").unlink()
    with pytest.raises(DataError, match=r"client cam4: .*0090_c04_s1000_f0_vis\.jpg: expected an image, found no file"):
        split("llcm", own_llcm, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["cam1", "cam2", "cam3"]


def test_a_full_disk_is_named(own_regdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(splits.os, "replace", full)
    with pytest.raises(DataError, match=r"client visible: .* cannot be written .*No space left.*; free disk space"):
        split("regdb", own_regdb, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_only_camera_protocols_cut_a_data_set(own_regdb: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protocol: expected ci or uci"):
        split("regdb", own_regdb, tmp_path / "out", protocol="ei")


def test_a_part_of_another_data_set_is_refused(own_llcm: Path, tmp_path: Path) -> None:
    tree = split("llcm", own_llcm, tmp_path / "out")[0]
    with pytest.raises(DataError, match="expected a client of regdb, found one of llcm"):
        federation(tree.folder, "regdb", "ci")
    (tree.folder / "client.json").write_text('{"layout": "llcm"}')
    with pytest.raises(DataError, match=r"client\.json: expected JSON with layout, client and identities"):
        federation(tree.folder, "llcm", "ci")
