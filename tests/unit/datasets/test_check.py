"""``cloister data check``: a sound tree passes, each kind of damage is found, named, and given a next step."""

import json
import shutil
from pathlib import Path

import pytest

from cloister.datasets.check import check
from cloister.datasets.records import Layout
from cloister.datasets.reid import LAYOUTS
from cloister.datasets.split import split
from cloister.errors import DataError

LENIENT = {"identities_per_batch": 1, "images_per_identity": 1}
IMAGES = {"sysu-mm01": 25 * 3, "regdb": 24, "llcm": 68 + 10}


def test_a_sound_tree_passes_and_every_image_is_opened_once(own_tree: tuple[str, Path]) -> None:
    layout, root = own_tree
    seen: list[tuple[int, int]] = []
    report = check(layout, root, progress=lambda done, total: seen.append((done, total)), **LENIENT)
    assert report.ok, report.problems
    assert report.images_opened == IMAGES[layout]
    assert seen[-1] == (IMAGES[layout], IMAGES[layout])
    assert len(report.clients) == len(LAYOUTS[layout].clients)
    assert "not the" in report.notes[0]  # a stand-in, not the published set: a note and no problem
    assert json.loads(json.dumps(report.as_json()))["ok"] is True
    assert "0 problems" in str(report)


def test_every_bad_image_is_listed(own_sysu: Path) -> None:
    (own_sysu / "cam1" / "0003" / "0002.jpg").write_bytes(b"no image")
    path = own_sysu / "cam6" / "0009" / "0001.jpg"  # a test identity
    path.write_bytes(path.read_bytes()[:200])
    report = check("sysu-mm01", own_sysu, **LENIENT)
    assert not report.ok
    assert [Path(problem.where).parts[-3:] for problem in report.problems] == [
        ("cam1", "0003", "0002.jpg"),
        ("cam6", "0009", "0001.jpg"),
    ]
    assert all(problem.next_step.startswith("restore") for problem in report.problems)
    sampled = check("sysu-mm01", own_sysu, every=5, **LENIENT)
    assert sampled.images_opened == 15


def test_a_client_too_small_for_one_batch_is_a_problem(own_tree: tuple[str, Path]) -> None:
    report = check(*own_tree)
    small = [problem for problem in report.problems if problem.where == f"client {report.clients[0].client}"]
    assert len(small) == 2
    assert "expected at least 8 identities for one batch, found" in small[0].message
    assert "expected at least 64 images (one batch), found" in small[1].message
    assert all(problem.next_step for problem in small)


def test_a_missing_camera_and_a_missing_index_are_problems(own_sysu: Path, own_regdb: Path) -> None:
    shutil.rmtree(own_sysu / "cam5")
    report = check("sysu-mm01", own_sysu, **LENIENT)
    (problem,) = report.problems
    assert problem.where == "client cam5"
    assert "expected the folder of SYSU-MM01 camera 5" in problem.message
    (own_regdb / "idx" / "test_thermal_7.txt").unlink()
    report = check("regdb", own_regdb, **LENIENT)
    (problem,) = report.problems
    assert problem.where == "split 7"
    assert "test_thermal_7.txt: expected an index file" in problem.message


def test_people_who_are_trained_on_and_tested_are_a_problem(own_sysu: Path) -> None:
    (own_sysu / "exp" / "test_id.txt").write_text("2,7,9")
    (problem,) = check("sysu-mm01", own_sysu, **LENIENT).problems
    assert problem.where == "test split"
    assert problem.message.endswith("test_id.txt: expected no identity of train_id.txt, found [7]")


TEST_INDEX, LLCM_INDEX = "test_thermal_4.txt", "train_nir.txt"


@pytest.mark.parametrize(
    ("own_tree", "name", "again", "message"),
    [
        ("regdb", TEST_INDEX, "{path} {label}", "expected one line for each image, found 1 that are not so: {path}"),
        ("llcm", LLCM_INDEX, "{path} {label}", "expected one line for each image, found 1 that are not so: {path}"),
        ("regdb", TEST_INDEX, "{path} {other}", "expected one label for each image, found 1 that are not so: {path}"),
        ("llcm", LLCM_INDEX, "{path} {other}", "expected one label for each image, found 1 that are not so: {path}"),
        (
            "regdb",
            TEST_INDEX,
            "Visible/2/male_back_v_00000_2.bmp {label}",
            "expected thermal images only, found 1 that are not so: Visible/2/male_back_v_00000_2.bmp",
        ),
    ],
    indirect=["own_tree"],
)
def test_a_line_too_many_is_a_problem(own_tree: tuple[str, Path], name: str, again: str, message: str) -> None:
    layout, root = own_tree
    index = root / "idx" / name
    path, _, label = index.read_text().splitlines()[-1].rpartition(" ")
    values = {"path": path, "label": label, "other": int(label) - 1}
    index.write_text(index.read_text() + again.format(**values) + "\n")
    (problem,) = check(layout, root, **LENIENT).problems
    assert (problem.where, problem.message) == (str(index), message.format(**values))
    assert problem.next_step.startswith("restore the file")


def test_lists_of_the_other_modality_are_one_problem_each(own_regdb: Path) -> None:
    one, other = (own_regdb / "idx" / f"train_{kind}_2.txt" for kind in ("visible", "thermal"))
    texts = one.read_text(), other.read_text()
    one.write_text(texts[1])
    other.write_text(texts[0])
    problems = check("regdb", own_regdb, **LENIENT).problems
    assert [Path(problem.where).name for problem in problems] == [one.name, other.name]
    assert "expected visible images only, found 6 that are not so: Thermal/" in problems[0].message


def test_a_missing_image_of_an_index_is_a_problem(own_llcm: Path) -> None:
    path = own_llcm / "nir" / "0004" / "0004_c08_s1000_f1_nir.jpg"
    path.unlink()
    (problem,) = check("llcm", own_llcm, **LENIENT).problems
    assert (problem.where, problem.message) == (str(path), "client cam8: expected an image, found no file")


def test_differences_from_the_published_counts_are_notes(own_sysu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: type[Layout] = type(LAYOUTS["sysu-mm01"])
    monkeypatch.setattr(kind, "published_identities", 5)
    report = check("sysu-mm01", own_sysu, **LENIENT)
    assert report.ok
    assert report.notes[0] == "client cam1: 2 identities and 6 images; published: 194 and 4721"


def test_one_clients_part_passes_too(own_tree: tuple[str, Path], tmp_path: Path) -> None:
    layout, root = own_tree
    for tree in split(layout, root, tmp_path / "out"):
        report = check(layout, tree.folder, **LENIENT)
        assert report.ok, report.problems
        assert [row.client for row in report.clients] == [tree.client]


def test_no_usable_index_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_id\.txt: expected an index file, found none"):
        check("sysu-mm01", tmp_path)
