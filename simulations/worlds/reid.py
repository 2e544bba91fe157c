"""The world ``reid``: procedural pedestrians, written to disk as SYSU-MM01, RegDB or LLCM.

Identity lies in body shape, cut of the clothes, accessories, texture and material; each camera has its own place,
light, colours and viewpoint; infrared light sees materials and not colours. What is learned from colour in one
visible camera is therefore of no use to an infrared one. Not every person passes every camera.

Beside the layout's own files the data-set folder gets ``manifest.json``: seed, preset and every person's and camera's
factors. No reader opens it, and no client may.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cloister.datasets.reid import LAYOUTS
from cloister.errors import ConfigError, DataError
from cloister.randomness import SeedTree
from cloister.simulations.worlds.reid_people import Person, draw_person
from cloister.simulations.worlds.reid_picture import Plane, Sensor
from cloister.simulations.worlds.reid_scenes import Camera, backdrop, draw_camera, take
from cloister.simulations.worlds.reid_sizes import SIZES, Size

MANIFEST = "manifest.json"
VERSION = 1
_LOG = logging.getLogger("cloister.worlds")
_VISIBLE, _INFRARED, _THERMAL = Sensor.VISIBLE, Sensor.NEAR_INFRARED, Sensor.THERMAL

# Per layout and camera: place, room (cameras of one room share the background), sensors, usual side of the people.
_CAMERAS: dict[str, tuple[tuple[str, str, tuple[Sensor, ...], float], ...]] = {
    "sysu-mm01": (
        ("room", "room 1", (_VISIBLE,), 0.1),
        ("corridor", "room 2", (_VISIBLE,), 0.7),
        ("corridor", "room 2", (_INFRARED,), -0.2),
        ("gate", "gate", (_VISIBLE,), -0.8),
        ("garden", "garden", (_VISIBLE,), 0.4),
        ("passage", "passage", (_INFRARED,), 0.5),
    ),
    "regdb": (("gate", "roof", (_VISIBLE,), 0.0), ("gate", "roof", (_THERMAL,), 0.0)),
    "llcm": tuple(
        (place, f"place {index}", (_VISIBLE, _INFRARED), yaw)
        for index, (place, yaw) in enumerate(
            zip(
                ("gate", "room", "passage", "garden", "corridor", "passage", "room", "gate", "garden"),
                (0.0, 0.8, -0.6, 2.6, 0.3, -1.1, 1.4, 3.0, -0.2),
                strict=True,
            )
        )
    ),
}


@dataclass(frozen=True)
class Shot:
    """One picture to take: the person's running number, the camera from 1, the sensor, the frame, and its file."""

    person: int
    camera: int
    sensor: Sensor
    frame: int
    path: str


def write(
    layout: str,
    root: Path,
    preset: str = "tiny",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    *,
    size: Size | None = None,
) -> Path:
    """Write the world to ``root/<SYSU-MM01|RegDB|LLCM>`` and return that folder; ``size`` overrides the preset's.

    The same layout, size and seed give the same pictures. A folder that already holds exactly this world is left as it
    is; the folder appears under its name only when complete. Whoever asks for a world while another process makes it
    waits for that; what a killed process left is cleared away. ``progress`` is called with (pictures done, total).

    Raises :class:`ConfigError` for an unknown name, :class:`DataError` if something else lies at the folder or the
    disk is full.
    """
    if layout not in LAYOUTS or preset not in SIZES[layout]:
        known = ", ".join(f"{name} ({'|'.join(SIZES[name])})" for name in SIZES)
        raise ConfigError(f"world reid: expected a layout and preset of {known}; found {layout!r} and {preset!r}")
    chosen = size or SIZES[layout][preset]
    folder = root / LAYOUTS[layout].folder
    head = {
        "world": "reid",
        "version": VERSION,
        "layout": layout,
        "preset": preset,
        "seed": seed,
        "size": asdict(chosen),
    }
    if folder.exists():
        _same(folder, json.loads(json.dumps(head)))
        return folder
    partial = root / f".{LAYOUTS[layout].folder}.partial"
    try:
        with _alone(root):
            if folder.exists():  # another process was faster
                _same(folder, json.loads(json.dumps(head)))
                return folder
            shutil.rmtree(partial, ignore_errors=True)
            try:
                world = _World(layout, chosen, SeedTree(experiment=f"world/reid/{layout}", seed=seed))
                _write(partial, world, head, progress)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{folder}: world cannot be written ({error}); free disk space or choose another folder"
        ) from error
    return folder


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process, however it ends; wait while another process has it."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("%s: another process makes a world here; waiting for it", root)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def folder_name(layout: str) -> str:
    """Return the name of a layout's data-set folder, such as ``SYSU-MM01``."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
    return LAYOUTS[layout].folder


def _same(folder: Path, head: dict[str, object]) -> None:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if {key: found.get(key) for key in head} != head:
        raise DataError(
            f"{folder}: expected nothing or the {head['preset']} world of seed {head['seed']}, found something else; "
            "choose another folder or delete this one"
        )


class _World:
    """People, cameras and places of one seed, drawn when first asked for."""

    def __init__(self, layout: str, size: Size, seeds: SeedTree) -> None:
        self.layout, self.size, self.seeds = layout, size, seeds
        self.people: dict[int, Person] = {}
        self.cameras: dict[int, Camera] = {}
        self._places: dict[tuple[str, Sensor], Plane] = {}

    def person(self, number: int) -> Person:
        if number not in self.people:
            self.people[number] = draw_person(self.seeds.numpy(purpose=f"identity/{number}"))
        return self.people[number]

    def camera(self, number: int) -> Camera:
        if number not in self.cameras:
            place, room, sensors, yaw = _CAMERAS[self.layout][number - 1]
            generator = self.seeds.numpy(purpose=f"camera/{number}")
            self.cameras[number] = draw_camera(generator, f"cam{number}", place, room, sensors, yaw)
        return self.cameras[number]

    def take(self, shot: Shot, folder: Path) -> None:
        camera = self.camera(shot.camera)
        place = (camera.room, shot.sensor)
        if place not in self._places:
            generator = self.seeds.numpy(purpose=f"room/{camera.room}")
            self._places[place] = backdrop(camera.place, generator, shot.sensor, self.size.height, self.size.width)
        generator = self.seeds.numpy(purpose=f"picture/{shot.camera}/{shot.sensor}/{shot.person}/{shot.frame}")
        person, size = self.person(shot.person), self.size
        image = take(camera, shot.sensor, self._places[place], person, generator, size.height, size.width, size.away)
        path = folder / shot.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".bmp":
            image.save(path)
        else:
            image.save(path, quality=92, subsampling=0)


def _write(folder: Path, world: _World, head: dict[str, object], progress: Callable[[int, int], None] | None) -> None:
    plan = {"sysu-mm01": _sysu, "regdb": _regdb, "llcm": _llcm}[world.layout]
    numbers, shots, texts = plan(world.size, world.seeds)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for done, shot in enumerate(shots, start=1):
        world.take(shot, folder)
        if progress is not None:
            progress(done, len(shots))
    people = {str(numbers[number]): asdict(world.person(number)) for number in range(len(numbers))}
    cameras = [asdict(world.camera(number + 1)) for number in range(len(_CAMERAS[world.layout]))]
    (folder / MANIFEST).write_text(
        json.dumps({**head, "cameras": cameras, "people": people}, indent=1), encoding="utf-8"
    )


Plan = tuple[list[int], list[Shot], dict[str, str]]
"""(number on disk of every person, pictures, index files)."""


def _visits(counts: tuple[tuple[int, int], ...], people: int, first: int) -> Iterator[tuple[int, int, int]]:
    """Yield (camera, person, pictures): each camera sees a run of the people, alternately from either end.

    The two ends overlap in the middle, so some are seen by few cameras and some by all; counts are exact.
    """
    for index, (seen, pictures) in enumerate(counts):
        start = people - seen if index in (3, 5, 7) else 0
        for place in range(seen):
            yield index + 1, first + start + place, pictures // seen + (place < pictures % seen)


def _sysu(size: Size, seeds: SeedTree) -> Plan:
    training, total = size.train + size.validation, size.train + size.validation + size.test
    generator = seeds.numpy(purpose="numbers")
    numbers = [int(number) + 1 for number in generator.permutation(max(533, total))[:total]]
    shots = []
    for counts, people, first in ((size.cameras, training, 0), (size.test_cameras, size.test, training)):
        for camera, person, pictures in _visits(counts, people, first):
            sensor = _CAMERAS["sysu-mm01"][camera - 1][2][0]
            for frame in range(pictures):
                path = f"cam{camera}/{numbers[person]:04d}/{frame + 1:04d}.jpg"
                shots.append(Shot(person, camera, sensor, frame, path))
    groups = {
        "train": numbers[: size.train],
        "val": numbers[size.train : training],
        "test": numbers[training:],
        "available": numbers,
    }
    texts = {f"exp/{name}_id.txt": ",".join(map(str, sorted(group))) + "\n" for name, group in groups.items()}
    return numbers, shots, texts


def _regdb(size: Size, seeds: SeedTree) -> Plan:
    total = size.train + size.test
    numbers = list(range(1, total + 1))
    names: dict[tuple[str, int], list[str]] = {}
    shots = []
    for camera, (kind, sensor) in enumerate((("visible", _VISIBLE), ("thermal", _THERMAL)), start=1):
        seen, pictures = size.cameras[camera - 1]
        for person in range(total):
            for frame in range(pictures // seen):
                number = 10 * person + frame
                path = f"{kind.title()}/{person + 1}/walk_front_{kind[0]}_{number:05d}_{person + 1}.bmp"
                names.setdefault((kind, person), []).append(path)
                shots.append(Shot(person, camera, sensor, frame, path))
    texts = {}
    for split in range(1, 11):
        order = seeds.numpy(purpose=f"split/{split}").permutation(total)
        for part, people in (("train", order[: size.train]), ("test", order[size.train :])):
            for kind in ("visible", "thermal"):
                lines = (f"{path} {label}\n" for label, who in enumerate(people) for path in names[kind, int(who)])
                texts[f"idx/{part}_{kind}_{split}.txt"] = "".join(lines)
    return numbers, shots, texts


def _llcm(size: Size, seeds: SeedTree) -> Plan:
    total = size.train + size.test
    numbers = [int(number) + 1 for number in seeds.numpy(purpose="numbers").permutation(max(1064, total))[:total]]
    label = {number: index for index, number in enumerate(sorted(numbers[: size.train]))}
    shots: list[Shot] = []
    lines: dict[str, list[str]] = {"vis": [], "nir": []}
    for camera, person, pictures in _visits(size.cameras, size.train, 0):
        for frame in range(pictures):
            kind, name = ("vis", "nir")[frame % 2], f"{numbers[person]:04d}"
            path = f"{kind}/{name}/{name}_c{camera:02d}_s{100000 + person}_f{frame + 1}_{kind}.jpg"
            shots.append(Shot(person, camera, _VISIBLE if kind == "vis" else _INFRARED, frame, path))
            lines[kind].append(f"{path} {label[numbers[person]]}\n")
    for camera, person, pictures in _visits(size.test_cameras, size.test, size.train):
        for frame in range(pictures):
            kind = "vis" if camera == 3 else ("vis", "nir")[frame % 2]  # the real near-infrared camera 3 is empty
            name = f"{numbers[person]:04d}"
            path = f"test_{kind}/cam{camera}/{name}/{name}_c{camera:02d}_s{100000 + person}_f{frame + 1}_{kind}.jpg"
            shots.append(Shot(person, camera, _VISIBLE if kind == "vis" else _INFRARED, frame, path))
    texts = {f"idx/train_{kind}.txt": "".join(sorted(part)) for kind, part in lines.items()}
    texts["idx/test_id.txt"] = ",".join(map(str, sorted(numbers[size.train :]))) + "\n"
    return numbers, shots, texts
