"""RegDB as on disk: ``Visible/``, ``Thermal/`` and ``idx/{train,test}_{visible,thermal}_{1..10}.txt``.

An index line is ``Visible/<n>/<name>.bmp <label>``, labels 0..205. There are no camera folders: the modality is the
camera. Source: Nguyen et al., "Person recognition system based on a combination of body images from visible light
and thermal cameras", Sensors 17(3), 2017; the ten splits are those of github.com/mangye16/Cross-Modal-Re-ID-baseline.
"""

from collections.abc import Mapping, Sequence
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
    read_index,
    read_text,
)

SPLITS = range(1, 11)
_CAMERA = {"visible": 1, "thermal": 2}
_MODALITY = {"visible": Modality.VISIBLE, "thermal": Modality.INFRARED}


class RegDB(Layout):
    """Two clients, ``visible`` and ``thermal``; 206 training and 206 test identities in each of ten splits."""

    name: ClassVar[str] = "regdb"
    folder: ClassVar[str] = "RegDB"
    clients: ClassVar[tuple[str, ...]] = ("visible", "thermal")
    published: ClassVar[Mapping[str, tuple[int, int]]] = {"visible": (206, 2060), "thermal": (206, 2060)}
    published_identities: ClassVar[int] = 206

    def count(self, root: Path, split: int, hold_out: bool) -> int:
        """Return the number of labels in the split's visible index, or in the thermal one where that is absent."""
        path = _index(root, "train", "visible", split)
        path = path if path.is_file() else _index(root, "train", "thermal", split)
        return count_labels((label for _, label in read_index(path)), path)

    def train(self, root: Path, client: str, split: int, hold_out: bool, identities: int) -> list[Record]:
        """Return one modality's training records, in index order; opens no other index file."""
        path = _index(root, "train", client, split)
        return [self.labelled(record, identities, path) for record in _records(path, client)]

    def test(self, root: Path, split: int) -> list[Record]:
        """Return the split's visible and thermal test records; identities are the labels of the test lists."""
        lists = (_records(_index(root, "test", client, split), client) for client in self.clients)
        return in_order(record for records in lists for record in records)

    def recordings(self, root: Path, client: str) -> list[Record]:
        """Return one modality's images of every split, each path once."""
        found = (record for path in _present(root, client) for record in _records(path, client))
        return list({record.path: record for record in found}.values())

    def indexes(self, root: Path, client: str) -> dict[str, str]:
        """Return the client's own index files of every split; their labels are already those of the whole set."""
        return {f"idx/{path.name}": read_text(path) for path in _present(root, client)}

    def image_lists(self, root: Path) -> dict[str, str]:
        """Return the index files of every split; each names images of one modality."""
        return {f"idx/{path.name}": client for client in self.clients for path in _present(root, client)}

    def owner(self, parts: Sequence[str]) -> str:
        """Return the modality that the first folder, or the index file's name, belongs to."""
        if len(parts) == 2 and parts[0] == "idx":
            return next((client for client in self.clients if f"_{client}_" in parts[1]), "")
        if tuple(parts) == (CLIENT_FILE,):
            return SHARED
        return parts[0].lower() if parts and parts[0].lower() in self.clients else ""


def _index(root: Path, part: str, client: str, split: int) -> Path:
    return root / "idx" / f"{part}_{client}_{split}.txt"


def _present(root: Path, client: str) -> list[Path]:
    paths = [_index(root, part, client, split) for part in ("train", "test") for split in SPLITS]
    return [path for path in paths if path.is_file()]


def _records(path: Path, client: str) -> list[Record]:
    return [Record(name, label, _CAMERA[client], _MODALITY[client]) for name, label in read_index(path)]
