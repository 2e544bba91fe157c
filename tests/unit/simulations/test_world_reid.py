"""The world ``reid``: exact counts in the real layouts, the same from the same seed, and light that obeys its rules."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cloister.datasets import reid as readers
from cloister.datasets.check import check
from cloister.datasets.reid import LAYOUTS, federation
from cloister.errors import ConfigError, DataError
from cloister.randomness import SeedTree
from cloister.simulations.worlds import reid, reid_scenes
from cloister.simulations.worlds.reid import folder_name, write
from cloister.simulations.worlds.reid_body import Pose
from cloister.simulations.worlds.reid_people import MATERIALS, PATTERNS, draw_cloth, draw_person
from cloister.simulations.worlds.reid_picture import Sensor, View, paint
from cloister.simulations.worlds.reid_sizes import SIZES, Size

# The tiny presets with pictures of 24 x 12 pixels and fewer of them: fast, and of the same structure.
SMALL = {
    "sysu-mm01": Size(
        24, 12, 7, 3, 4,
        ((5, 12), (5, 10), (9, 18), (8, 17), (9, 18), (6, 13)),
        ((2, 4), (2, 4), (4, 8), (3, 6), (4, 8), (3, 6)),
    ),
    "regdb": Size(24, 12, 4, 0, 4, ((4, 8), (4, 8))),
    "llcm": Size(
        24, 12, 5, 0, 4,
        ((2, 4), (2, 5), (3, 6), (3, 7), (4, 8), (5, 10), (2, 4), (2, 4), (3, 9)),
        ((1, 2), (1, 2), (2, 4), (2, 4), (4, 8), (3, 6), (1, 2), (1, 2), (1, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", list(SMALL))
def test_the_written_tree_is_the_layout_with_exact_counts(layout: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = write(layout, tmp_path, "tiny", 3, lambda done, total: seen.append((done, total)), size=SMALL[layout])
    assert folder == tmp_path / folder_name(layout)
    report = check(layout, folder, identities_per_batch=1, images_per_identity=1)
    assert report.ok, report.problems
    assert tuple((row.identities, row.images) for row in report.clients) == SMALL[layout].cameras
    assert federation(folder, layout, "ci").num_classes == SMALL[layout].train + SMALL[layout].validation
    assert seen[-1] == (report.images_opened,) * 2
    found = readers.test_split(folder, layout)
    assert {r.identity for r in found.visible} == {r.identity for r in found.infrared}  # every query has an answer
    assert len({r.identity for r in found.visible}) == SMALL[layout].test
    if layout == "llcm":
        assert 3 not in {r.camera for r in found.infrared}  # as in reality


@pytest.mark.parametrize("layout", list(SIZES))
@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_plans_the_counts_it_promises(layout: str, preset: str) -> None:
    size = SIZES[layout][preset]
    plan = {"sysu-mm01": reid._sysu, "regdb": reid._regdb, "llcm": reid._llcm}[layout]
    numbers, shots, _ = plan(size, SeedTree(experiment="test", seed=0))
    assert len(set(numbers)) == len(numbers) == size.train + size.validation + size.test
    assert len({shot.path for shot in shots}) == len(shots)
    training = range(size.train + size.validation)
    for camera, (identities, images) in enumerate(size.cameras, start=1):
        own = [shot for shot in shots if shot.camera == camera and (shot.person in training)]
        assert (len({shot.person for shot in own}), len(own)) == (identities, images)
        assert identities >= 8
        assert images >= 64
    if preset == "paper":
        assert size.cameras == tuple(LAYOUTS[layout].published.values())
    for person in range(len(numbers)):
        own = (
            {shot.sensor is Sensor.VISIBLE for shot in shots if shot.person == person} if preset != "paper" else {0, 1}
        )
        assert own == {True, False}  # nobody without both kinds of light
    if layout != "regdb":
        assert min(identities for identities, _ in size.cameras) < len(training)  # not everybody is everywhere


def test_the_paper_preset_has_the_published_test_sums() -> None:
    test = SIZES["sysu-mm01"]["paper"].test_cameras
    assert sum(images for _, images in (test[2], test[5])) == 3803  # infrared queries
    assert sum(identities for camera, (identities, _) in enumerate(test) if camera not in (2, 5)) == 301  # gallery


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    folders = [
        write("regdb", tmp_path / name, seed=seed, size=SMALL["regdb"])
        for name, seed in zip("abc", (1, 1, 2), strict=True)
    ]
    first, second, other = (contents(folder) for folder in folders)
    assert first == second
    assert not {data for name, data in first.items() if name.endswith(".bmp")} & set(other.values())


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_larger_world_has_the_same_first_people(tmp_path: Path) -> None:
    more = dataclasses.replace(SMALL["regdb"], train=5, test=5, cameras=((5, 10), (5, 10)))
    small = write("regdb", tmp_path / "a", size=SMALL["regdb"])
    large = write("regdb", tmp_path / "b", size=more)
    name = "Thermal/3/walk_front_t_00020_3.bmp"
    assert (small / name).read_bytes() == (large / name).read_bytes()


def test_a_world_that_is_there_is_kept_and_anything_else_is_refused(tmp_path: Path) -> None:
    folder = write("regdb", tmp_path, size=SMALL["regdb"])
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert write("regdb", tmp_path, size=SMALL["regdb"]) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r"RegDB: expected nothing or the tiny world of seed 1, found something else"):
        write("regdb", tmp_path, seed=1, size=SMALL["regdb"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["RegDB"]
    with pytest.raises(ConfigError, match=r"expected a layout and preset of .*sysu-mm01 \(tiny\|small\|paper\)"):
        write("regdb", tmp_path, "huge")
    with pytest.raises(ConfigError, match="layout: expected one of"):
        folder_name("market")


def test_a_full_disk_leaves_no_half_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reid.os, "replace", full)
    with pytest.raises(DataError, match=r"RegDB: world cannot be written .*No space left.*; free disk space"):
        write("regdb", tmp_path, size=SMALL["regdb"])
    assert list(tmp_path.iterdir()) == []


# Makes a world: tells when the first picture is done, and then waits for a line, if it is to wait.
MAKER = """
import logging, pathlib, sys
from cloister.simulations.worlds.reid import write
from cloister.simulations.worlds.reid_sizes import Size

logging.basicConfig(stream=sys.stdout, format="%(message)s")
told = []

def progress(done, total):
    if not told:
        told.append(print("painting", flush=True))
        if sys.argv[2] == "wait":
            sys.stdin.readline()

write("regdb", pathlib.Path(sys.argv[1]), size=Size(24, 12, 4, 0, 4, ((4, 8), (4, 8))), progress=progress)
print("made", flush=True)
"""


@contextmanager
def maker(root: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-c", MAKER, str(root), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_that_make_one_world_make_it_once(tmp_path: Path) -> None:
    whole = contents(write("regdb", tmp_path / "alone", size=SMALL["regdb"]))
    root = tmp_path / "shared"
    with maker(root, "wait") as first:
        assert line(first) == "painting"
        with maker(root, "go") as second:
            assert line(second).endswith("another process makes a world here; waiting for it")
            assert not (root / "RegDB").exists()
            print(file=first.stdin, flush=True)
            assert line(first) == "made"
            assert line(second) == "made"  # and painted nothing
            assert (first.wait(), second.wait()) == (0, 0)
    assert contents(root / "RegDB") == whole
    assert [entry.name for entry in root.iterdir()] == ["RegDB"]


def test_what_a_killed_process_left_of_a_world_is_cleared_away(tmp_path: Path) -> None:
    whole = contents(write("regdb", tmp_path / "alone", size=SMALL["regdb"]))
    root = tmp_path / "shared"
    with maker(root, "wait") as killed:
        assert line(killed) == "painting"
    (left,) = root.iterdir()
    (left / "idx" / "stray.txt").write_text("from another size")
    folder = write("regdb", root, size=SMALL["regdb"])
    assert contents(folder) == whole
    assert [entry.name for entry in root.iterdir()] == ["RegDB"]


def test_the_manifest_tells_the_truth_and_disturbs_no_reader(tmp_path: Path) -> None:
    folder = write("sysu-mm01", tmp_path, seed=4, size=SMALL["sysu-mm01"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["seed"], manifest["preset"], len(manifest["cameras"])) == (4, "tiny", 6)
    on_disk = {int(entry.name) for camera in range(1, 7) for entry in (folder / f"cam{camera}").iterdir()}
    assert {int(number) for number in manifest["people"]} == on_disk
    assert not federation(folder, "sysu-mm01", "ci").may_open("cam1", folder / "manifest.json")


def _picture(person: object, sensor: Sensor, yaw: float = 0.3) -> np.ndarray:
    canvas = np.full((96, 48, 3), 0.3, np.float32)
    paint(canvas, person, Pose(0.7, yaw), View(80.0, 24.0, 91.0, 0.1, (0.0, 0.25, 0.968), 0.4), sensor)
    return canvas


def _dyed(cloth: object) -> object:
    return dataclasses.replace(cloth, colour=cloth.second, second=(0.9, 0.1, 0.1))


@pytest.mark.parametrize("seed", range(5))
def test_infrared_light_does_not_see_colour(seed: int) -> None:
    person = draw_person(np.random.default_rng(seed))
    garments = {name: _dyed(getattr(person, name)) for name in ("top", "inner", "bottom", "shoes", "accessory")}
    dyed = dataclasses.replace(person, **garments, skin=(0.2, 0.9, 0.2), hair_colour=(0.0, 0.0, 1.0))
    assert np.abs(_picture(person, Sensor.VISIBLE) - _picture(dyed, Sensor.VISIBLE)).max() > 0.1
    for sensor in (Sensor.NEAR_INFRARED, Sensor.THERMAL):
        np.testing.assert_array_equal(_picture(person, sensor), _picture(dyed, sensor))
        assert np.ptp(_picture(person, sensor), axis=2).max() == 0  # three equal channels


@pytest.mark.parametrize("seed", range(5))
def test_visible_light_does_not_see_the_infrared_dye(seed: int) -> None:
    person = draw_person(np.random.default_rng(seed))
    treated = dataclasses.replace(person, top=dataclasses.replace(person.top, infrared=0.0, infrared_second=1.0))
    np.testing.assert_array_equal(_picture(person, Sensor.VISIBLE), _picture(treated, Sensor.VISIBLE))
    assert np.abs(_picture(person, Sensor.NEAR_INFRARED) - _picture(treated, Sensor.NEAR_INFRARED)).max() > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_shape_and_viewpoint_show_in_every_light(seed: int) -> None:
    person = draw_person(np.random.default_rng(seed))
    wider = dataclasses.replace(person, girth=person.girth + 0.5)
    background = _picture(person, Sensor.VISIBLE)[0, 0]
    for sensor in Sensor:
        figure, broad = (np.abs(_picture(one, sensor)[:80] - background).max(axis=2) > 0.02 for one in (person, wider))
        assert broad.sum() > figure.sum()
        assert np.abs(_picture(person, sensor) - _picture(person, sensor, yaw=2.0)).max() > 0.1


def test_reflectance_comes_from_the_material_and_is_independent_of_colour() -> None:
    generator = np.random.default_rng(0)
    cloths = [draw_cloth(generator, PATTERNS, (1,) * len(PATTERNS)) for _ in range(3000)]
    luma = np.array([np.dot((0.299, 0.587, 0.114), cloth.colour) for cloth in cloths])
    infrared = np.array([cloth.infrared for cloth in cloths])
    assert abs(np.corrcoef(luma, infrared)[0, 1]) < 0.06  # 3 standard errors of 3,000 independent pairs
    for name, material in MATERIALS.items():
        own = [cloth.infrared for cloth in cloths if cloth.material == name]
        assert material.infrared[0] <= min(own)
        assert max(own) <= material.infrared[1]


def test_skin_is_bright_and_hair_between_skin_and_dark_cloth_in_infrared() -> None:
    people = [draw_person(np.random.default_rng(seed)) for seed in range(50)]
    assert all(MATERIALS["leather"].infrared[1] < person.hair_infrared < 0.86 for person in people)


def test_cameras_of_one_room_share_the_background_in_both_lights() -> None:
    seeds = SeedTree(experiment="room", seed=0)
    places = [
        reid_scenes.backdrop("corridor", seeds.numpy(purpose="room"), sensor, 48, 24)
        for sensor in (Sensor.VISIBLE, Sensor.NEAR_INFRARED)
    ]
    grey = [place.mean(axis=2) - place.mean(axis=2).mean() for place in places]
    together = float((grey[0] * grey[1]).sum() / np.sqrt((grey[0] ** 2).sum() * (grey[1] ** 2).sum()))
    assert places[0].shape == (48, 96, 3)
    assert together > 0.5
