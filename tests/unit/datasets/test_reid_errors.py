"""Bad input: the error names the client, the file, what was found, and the next step."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cloister.datasets import images, reid
from cloister.datasets.reid import federation
from cloister.errors import DataError


def test_a_missing_root_and_a_missing_index_are_named(tmp_path: Path, own_sysu: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: expected the folder of SYSU-MM01 or its parent, found none; check"):
        federation(tmp_path / "nowhere", "sysu-mm01", "ci")
    (own_sysu / "exp" / "val_id.txt").unlink()
    with pytest.raises(DataError, match=r"val_id\.txt: expected an index file, found none; restore"):
        federation(own_sysu, "sysu-mm01", "ci")
    (own_sysu / "exp" / "val_id.txt").write_bytes(b"\xff\xfe1,2")
    with pytest.raises(DataError, match=r"val_id\.txt: index file cannot be read"):
        federation(own_sysu, "sysu-mm01", "ci")


@pytest.mark.parametrize(
    ("text", "found"),
    [("3,x7,12", "'x7'"), ("3,-7", "'-7'"), ("", "an empty file"), ("3,7,3", "a number twice"), ("3;7", "'3;7'")],
)
def test_a_malformed_identity_list_is_named(own_sysu: Path, text: str, found: str) -> None:
    (own_sysu / "exp" / "train_id.txt").write_text(text)
    with pytest.raises(DataError, match=rf"train_id\.txt: expected one line .* found {found}; restore"):
        federation(own_sysu, "sysu-mm01", "ci")


def test_an_identity_in_two_lists_is_refused(own_sysu: Path) -> None:
    (own_sysu / "exp" / "val_id.txt").write_text("5,7")
    with pytest.raises(DataError, match=r"val_id\.txt: expected no identity of train_id\.txt, found \[7\]"):
        federation(own_sysu, "sysu-mm01", "ci")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("test", "2,9,12", r"test_id\.txt: expected no identity of train_id\.txt, found \[12\]; restore both"),
        ("test", "5,2,40", r"test_id\.txt: expected no identity of val_id\.txt, found \[5, 40\]; restore both"),
        ("val", "5,7", r"val_id\.txt: expected no identity of train_id\.txt, found \[7\]; restore both"),
    ],
)
def test_nobody_is_scored_on_people_who_are_trained_on(own_sysu: Path, name: str, text: str, found: str) -> None:
    (own_sysu / "exp" / f"{name}_id.txt").write_text(text)
    with pytest.raises(DataError, match=found):
        (reid.test_split if name == "test" else reid.validation_split)(own_sysu, "sysu-mm01")


def test_a_tree_to_be_searched_only_needs_no_training_lists(own_sysu: Path) -> None:
    whole = reid.test_split(own_sysu, "sysu-mm01")
    for name in ("train", "val"):
        (own_sysu / "exp" / f"{name}_id.txt").unlink()
    assert reid.test_split(own_sysu, "sysu-mm01") == whole


@pytest.mark.parametrize(
    "line", ["Visible/1/a.bmp", "Visible/1/a.bmp one", "Visible/1/a.bmp -1", "../secret/a.bmp 0", "/etc/passwd 0", "7"]
)
def test_a_malformed_index_line_is_named(own_regdb: Path, line: str) -> None:
    path = own_regdb / "idx" / "train_visible_1.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"train_visible_1\.txt: line 7: expected 'relative/path label', found"):
        federation(own_regdb, "regdb", "ci")


def test_labels_must_be_whole_and_inside_the_label_space(own_regdb: Path) -> None:
    agreed = federation(own_regdb, "regdb", "ci").label_space
    path = own_regdb / "idx" / "train_thermal_1.txt"
    path.write_text(path.read_text().replace(".bmp 2", ".bmp 3"))
    with pytest.raises(DataError, match=r"expected a label in 0\.\.2, found 3; correct"):
        federation(own_regdb, "regdb", "ci", label_space=agreed).load("thermal", 16, 8)
    path.with_name("train_visible_1.txt").write_text(path.read_text())
    with pytest.raises(DataError, match=r"expected labels 0\.\.3 without a gap, found none for \[2\]"):
        federation(own_regdb, "regdb", "ci")


def test_a_label_space_that_the_lists_contradict_is_refused(own_sysu: Path) -> None:
    made = federation(own_sysu, "sysu-mm01", "ci", label_space={"sysu-mm01": 395})
    with pytest.raises(DataError, match="expected 395 training identities as the experiment says, found 5"):
        made.load("cam1", 16, 8)


@pytest.mark.parametrize("camera", ["_x01_", "_c00_", "_c10_", "_c01-", "_c1a_", "_c01"])
def test_an_llcm_file_name_without_a_camera_is_named(own_llcm: Path, camera: str) -> None:
    path = own_llcm / "idx" / "train_vis.txt"
    path.write_text(path.read_text().replace("0017_c01_", f"0017{camera}"))
    with pytest.raises(DataError, match=rf"0017{camera}s1000_f0_vis\.jpg: expected a file name with _c<camera>_"):
        federation(own_llcm, "llcm", "ci")


def test_an_empty_or_missing_camera_is_named(own_sysu: Path) -> None:
    shutil.rmtree(own_sysu / "cam4")
    with pytest.raises(DataError, match=r"cam4: expected the folder of SYSU-MM01 camera 4, found No such file"):
        federation(own_sysu, "sysu-mm01", "ci").load("cam4", 16, 8)
    (own_sysu / "cam4" / "0005").mkdir(parents=True)
    with pytest.raises(DataError, match=r"client cam4: expected training images in .*SYSU-MM01, found none; restore"):
        federation(own_sysu, "sysu-mm01", "ci").load("cam4", 16, 8)


def _victim(root: Path, layout: str) -> tuple[str, Path]:
    made = federation(root, layout, "ci")
    client = made.clients[-1]
    return client, root / made.records(client)[1][1].path


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("harm", ["truncated", "no image", "empty", "missing", "folder"])
def test_a_bad_image_is_named_and_leaves_no_cache(
    own_tree: tuple[str, Path], harm: str, cached: bool, tmp_path: Path
) -> None:
    layout, root = own_tree
    client, path = _victim(root, layout)
    whole = path.read_bytes()
    if layout == "sysu-mm01" and harm == "missing":
        path.unlink()
        path.symlink_to("nowhere")  # a file that is merely absent is no longer listed there
    elif harm in ("missing", "folder"):
        path.unlink()
    if harm == "folder":
        path.mkdir()
    if harm in ("truncated", "no image", "empty"):
        path.write_bytes({"truncated": whole[: len(whole) // 2], "no image": b"GIF is not", "empty": b""}[harm])
    cache = tmp_path / "cache" if cached else None
    with pytest.raises(DataError) as raised:
        federation(root, layout, "ci").load(client, 16, 8, cache)
    message = str(raised.value)
    assert message.startswith(f"[E200] client {client}: {path}: expected a")
    assert "; restore it" in message
    assert cache is None or not cache.exists() or list(cache.iterdir()) == []


def test_the_cache_is_reused_and_follows_the_files(own_sysu: Path, tmp_path: Path) -> None:
    changed, other = (own_sysu / "cam1" / "0003" / f"000{frame}.jpg" for frame in (1, 3))
    length = max(len(changed.read_bytes()), len(other.read_bytes()))
    for path in (changed, other):
        path.write_bytes(path.read_bytes().ljust(length, b"\0"))  # of one size: the time alone must tell
    made = federation(own_sysu, "sysu-mm01", "ci")
    plain, first = made.load("cam1", 16, 8), made.load("cam1", 16, 8, tmp_path / "c")
    np.testing.assert_array_equal(plain.images, first.images)
    assert isinstance(first.images, np.memmap)
    (kept,) = (tmp_path / "c").iterdir()
    stamp = kept.stat().st_mtime_ns
    second = made.load("cam1", 16, 8, tmp_path / "c")
    assert kept.stat().st_mtime_ns == stamp
    second.images[:] = 0  # stays in this process
    np.testing.assert_array_equal(made.load("cam1", 16, 8, tmp_path / "c").images, plain.images)
    changed.write_bytes(other.read_bytes())
    os.utime(changed, ns=(1, 1))
    third = made.load("cam1", 16, 8, tmp_path / "c")
    np.testing.assert_array_equal(third.images[0], plain.images[2])
    assert made.load("cam1", 32, 8, tmp_path / "c").images.shape == (6, 32, 8, 3)


def test_a_full_disk_is_an_error_and_leaves_nothing(
    own_sysu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "replace", full)
    with pytest.raises(DataError, match=r"client cam1: .*\.npy: image cache of 0 MB cannot be written .*No space left"):
        federation(own_sysu, "sysu-mm01", "ci").load("cam1", 16, 8, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_broken_cache_file_is_named(own_sysu: Path, tmp_path: Path) -> None:
    made = federation(own_sysu, "sysu-mm01", "ci")
    made.load("cam1", 16, 8, tmp_path / "c")
    (kept,) = (tmp_path / "c").iterdir()
    kept.write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"image cache cannot be read .*; delete the file"):
        made.load("cam1", 16, 8, tmp_path / "c")


def test_a_test_split_without_one_modality_is_named(own_llcm: Path) -> None:
    shutil.rmtree(own_llcm / "test_nir")
    with pytest.raises(DataError, match="expected infrared test images, found none"):
        reid.test_split(own_llcm, "llcm")
