"""LLCM as on disk: ``idx/train_{vis,nir}.txt``, ``idx/test_id.txt`` and ``test_{vis,nir}/cam{1..9}/{identity:04d}/``.

A training line is ``relative/path label`` and the file name says ``_c<camera>_``. Source: Zhang and Wang, "Diverse
embedding expansion network and low-light cross-modality benchmark for visible-infrared person re-identification",
CVPR 2023, and github.com/ZYK100/LLCM.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from cloister.datasets.records import (
    CLIENT_FILE,
    SHARED,
    Layout,
    Modality,
    Record,
    count_labels,
    in_order,
    list_folder,
    list_images,
    read_identities,
    read_index,
    read_text,
)
from cloister.errors import DataError

_INDEX = {"train_vis.txt": Modality.VISIBLE, "train_nir.txt": Modality.INFRARED}
_TEST = {"test_vis": Modality.VISIBLE, "test_nir": Modality.INFRARED}
_CAMERA = re.compile(r"_c0*([1-9]\d*)_")
_SHARED_FILES = {("idx", "train_vis.txt"), ("idx", "train_nir.txt"), ("idx", "test_id.txt"), (CLIENT_FILE,)}


class LLCM(Layout):
    """Nine camera clients, most of them with images of both modalities; 713 training and 351 test identities.

    The two training indexes name the images of *all* cameras, so every client reads names that are not its own. Where
    that is too much, cut the tree with ``cloister data split``.
    """

    name: ClassVar[str] = "llcm"
    folder: ClassVar[str] = "LLCM"
    clients: ClassVar[tuple[str, ...]] = tuple(f"cam{camera}" for camera in range(1, 10))
    published: ClassVar[Mapping[str, tuple[int, int]]] = {
        "cam1": (21, 343),
        "cam2": (20, 137),
        "cam3": (345, 5733),
        "cam4": (353, 5843),
        "cam5": (661, 8019),
        "cam6": (687, 8450),
        "cam7": (72, 1002),
        "cam8": (40, 1089),
        "cam9": (24, 305),
    }
    published_identities: ClassVar[int] = 713

    def count(self, root: Path, split: int, hold_out: bool) -> int:
        """Return the number of labels in the two training indexes together."""
        return count_labels((record.identity for record in _indexed(root)), root / "idx" / "train_{vis,nir}.txt")

    def train(self, root: Path, client: str, split: int, hold_out: bool, identities: int) -> list[Record]:
        """Return one camera's training records, visible before infrared, each in index order."""
        records = (self.labelled(record, identities, root / "idx") for record in _indexed(root))
        return [record for record in records if f"cam{record.camera}" == client]

    def test(self, root: Path, split: int) -> list[Record]:
        """Return the test records of ``idx/test_id.txt``; a camera may lack one modality (near-infrared camera 3)."""
        wanted = set(read_identities(root / "idx" / "test_id.txt"))
        return in_order(record for camera in range(1, 10) for record in _test_camera(root, camera, wanted))

    def recordings(self, root: Path, client: str) -> list[Record]:
        """Return the camera's training images and its images in the two test trees."""
        wanted = set(read_identities(root / "idx" / "test_id.txt"))
        own = [record for record in _indexed(root) if f"cam{record.camera}" == client]
        return own + list(_test_camera(root, int(client.removeprefix("cam")), wanted))

    def indexes(self, root: Path, client: str) -> dict[str, str]:
        """Return the two training indexes with the client's own lines only, and the test identities."""
        texts = {"idx/test_id.txt": read_text(root / "idx" / "test_id.txt")}
        for name in _INDEX:
            own = [(path, label) for path, label in read_index(root / "idx" / name) if _camera(root, path) == client]
            texts[f"idx/{name}"] = "".join(f"{path} {label}\n" for path, label in own)
        return texts

    def image_lists(self, root: Path) -> dict[str, str]:
        """Return the two training indexes; they name images of all cameras."""
        return {f"idx/{name}": "" for name in _INDEX if (root / "idx" / name).is_file()}

    def owner(self, parts: Sequence[str]) -> str:
        """Return the camera in the file name, or the camera folder of a test tree; the three indexes are shared."""
        if tuple(parts) in _SHARED_FILES:
            return SHARED
        if len(parts) >= 2 and parts[0] in _TEST:
            return parts[1] if parts[1] in self.clients else ""
        match = _CAMERA.search(parts[-1]) if parts else None
        return f"cam{match[1]}" if match else ""


def _camera(root: Path, path: str) -> str:
    match = _CAMERA.search(path.rsplit("/", 1)[-1])
    if match is None or f"cam{match[1]}" not in LLCM.clients:
        raise DataError(
            f"{root / 'idx'}: {path}: expected a file name with _c<camera>_, camera 1 to 9, found none; "
            "restore the index files from the data set's archive"
        )
    return f"cam{match[1]}"


def _indexed(root: Path) -> list[Record]:
    return [
        Record(path, label, int(_camera(root, path).removeprefix("cam")), modality)
        for name, modality in _INDEX.items()
        for path, label in read_index(root / "idx" / name)
    ]


def _test_camera(root: Path, camera: int, wanted: set[int]) -> Iterator[Record]:
    for tree, modality in _TEST.items():
        folder = root / tree / f"cam{camera}"
        if not folder.is_dir():
            continue
        for entry in list_folder(folder, f"{tree} camera {camera}"):
            if entry.name.isdecimal() and int(entry.name) in wanted and entry.is_dir():
                for name in list_images(folder / entry.name, f"identity {entry.name} in {tree}/cam{camera}"):
                    yield Record(f"{tree}/cam{camera}/{entry.name}/{name}", int(entry.name), camera, modality)
