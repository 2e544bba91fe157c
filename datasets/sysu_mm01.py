"""SYSU-MM01 as on disk: ``cam{1..6}/{identity:04d}/{frame:04d}.jpg`` and ``exp/*_id.txt``.

Cameras 3 and 6 are infrared; camera 3 stands in the same room as camera 2. Source: Wu et al., "RGB-infrared
cross-modality person re-identification", ICCV 2017, and github.com/wuancong/SYSU-MM01.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from cloister.datasets.records import (
    CLIENT_FILE,
    SHARED,
    Layout,
    Modality,
    Record,
    in_order,
    list_folder,
    list_images,
    read_identities,
    read_text,
)
from cloister.errors import DataError

INFRARED_CAMERAS = (3, 6)
INDOOR_CAMERAS = (1, 2)
INDEX_FILES = ("train_id.txt", "val_id.txt", "test_id.txt", "available_id.txt")


class SysuMM01(Layout):
    """Six single-modality camera clients; 395 training identities = 296 train + 99 validation, 96 test."""

    name: ClassVar[str] = "sysu-mm01"
    folder: ClassVar[str] = "SYSU-MM01"
    clients: ClassVar[tuple[str, ...]] = tuple(f"cam{camera}" for camera in range(1, 7))
    published: ClassVar[Mapping[str, tuple[int, int]]] = {
        "cam1": (194, 4721),
        "cam2": (195, 5753),
        "cam3": (392, 7909),
        "cam4": (382, 5811),
        "cam5": (390, 5973),
        "cam6": (200, 4000),
    }
    published_identities: ClassVar[int] = 395

    def count(self, root: Path, split: int, hold_out: bool) -> int:
        """Return the number of identities in ``exp/train_id.txt`` and, unless held out, ``exp/val_id.txt``."""
        return len(self.training_identities(root, hold_out))

    def training_identities(self, root: Path, hold_out: bool) -> list[int]:
        """Return the identity numbers whose sorted position is the label."""
        identities = read_identities(root / "exp" / "train_id.txt")
        if hold_out:
            return identities
        return sorted(identities + _apart(root, "val_id.txt", "train_id.txt"))

    def train(self, root: Path, client: str, split: int, hold_out: bool, identities: int) -> list[Record]:
        """Return one camera's training records by identity and file name."""
        pooled = self.training_identities(root, hold_out)
        if len(pooled) != identities:
            raise DataError(
                f"{root / 'exp'}: expected {identities} training identities as the experiment says, "
                f"found {len(pooled)}; correct the label space or use the same exp/ files at every client"
            )
        label = {identity: index for index, identity in enumerate(pooled)}
        found = self._camera(root, int(client.removeprefix("cam")), set(label))
        return [Record(r.path, label[r.identity], r.camera, r.modality) for r in found]

    def test(self, root: Path, split: int) -> list[Record]:
        """Return the records of ``exp/test_id.txt`` in all six cameras.

        Raises :class:`DataError` if one of these people is also in ``train_id.txt`` or ``val_id.txt``.
        """
        return self._of(root, _apart(root, "test_id.txt", "train_id.txt", "val_id.txt"))

    def validation(self, root: Path) -> list[Record]:
        """Return the records of ``exp/val_id.txt`` in all six cameras.

        Raises :class:`DataError` if one of these people is also in ``train_id.txt``.
        """
        return self._of(root, _apart(root, "val_id.txt", "train_id.txt"))

    def recordings(self, root: Path, client: str) -> list[Record]:
        """Return the camera's images of every identity in the train, validation and test lists."""
        wanted = {number for name in INDEX_FILES[:3] for number in read_identities(root / "exp" / name)}
        return list(self._camera(root, int(client.removeprefix("cam")), wanted))

    def indexes(self, root: Path, client: str) -> dict[str, str]:
        """Return ``exp/*_id.txt`` unchanged: labels are positions in the pooled list."""
        names = [name for name in INDEX_FILES if name in INDEX_FILES[:3] or (root / "exp" / name).is_file()]
        return {f"exp/{name}": read_text(root / "exp" / name) for name in names}

    def owner(self, parts: Sequence[str]) -> str:
        """Return the camera whose folder the file lies in; ``exp/`` is shared."""
        if parts and parts[0] in self.clients:
            return parts[0]
        return SHARED if tuple(parts) == (CLIENT_FILE,) or (len(parts) == 2 and parts[0] == "exp") else ""

    def _of(self, root: Path, identities: list[int]) -> list[Record]:
        wanted = set(identities)
        return in_order(record for camera in range(1, 7) for record in self._camera(root, camera, wanted))

    def _camera(self, root: Path, camera: int, wanted: set[int]) -> Iterator[Record]:
        modality = Modality.INFRARED if camera in INFRARED_CAMERAS else Modality.VISIBLE
        folder = f"cam{camera}"
        for entry in list_folder(root / folder, f"{self.folder} camera {camera}"):
            if entry.name.isdecimal() and int(entry.name) in wanted and entry.is_dir():
                for name in list_images(root / folder / entry.name, f"identity {entry.name} in {folder}"):
                    yield Record(f"{folder}/{entry.name}/{name}", int(entry.name), camera, modality)


def _apart(root: Path, name: str, *others: str) -> list[int]:
    """Return the identities of one list; raise :class:`DataError` if another list has one of them too.

    A list that is not there is passed over: nobody can train on the tree without it.
    """
    identities = read_identities(root / "exp" / name)
    for other in others:
        path = root / "exp" / other
        both = sorted(set(identities) & set(read_identities(path))) if path.is_file() else []
        if both:
            raise DataError(
                f"{root / 'exp' / name}: expected no identity of {other}, found {both[:5]}; "
                "restore both files from the data set's archive"
            )
    return identities
