"""What the re-identification readers share: one image as data, the interface of a layout, index-file parsing.

A *layout* is a published data set's folder structure. Its readers take path components and index lines apart; they
never count characters, so a parent folder of any name does no harm.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from cloister.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
SHARED = "shared"
CLIENT_FILE = "client.json"


class Modality(StrEnum):
    """The light an image was taken in; near infrared and thermal are both ``INFRARED``."""

    VISIBLE = "visible"
    INFRARED = "infrared"


@dataclass(frozen=True, slots=True)
class Record:
    """One image of one subject.

    ``path`` is relative to the data-set folder, with ``/``. ``identity`` is the row in the data set's own label space
    (0, 1, ...) for a training record and the number on disk for a test record. ``camera`` counts from 1.
    """

    path: str
    identity: int
    camera: int
    modality: Modality


class Layout(ABC):
    """One data set as it lies on disk, and how it is cut into camera clients.

    Methods that take a ``client`` open nothing but that client's files and the index files that :meth:`owner` calls
    shared. ``root`` is always the data-set folder itself.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    clients: ClassVar[tuple[str, ...]]
    published: ClassVar[Mapping[str, tuple[int, int]]]
    """Per client, the (identities, images) of the real training set."""
    published_identities: ClassVar[int]

    @abstractmethod
    def count(self, root: Path, split: int, hold_out: bool) -> int:
        """Return the width of the label space, counted in the index files."""

    @abstractmethod
    def train(self, root: Path, client: str, split: int, hold_out: bool, identities: int) -> list[Record]:
        """Return one client's training records, labels in ``range(identities)``; the list may be empty."""

    @abstractmethod
    def test(self, root: Path, split: int) -> list[Record]:
        """Return every test record, sorted by (identity, camera, file name)."""

    @abstractmethod
    def recordings(self, root: Path, client: str) -> list[Record]:
        """Return all images of one client that any index names: training, validation and test, every split."""

    @abstractmethod
    def indexes(self, root: Path, client: str) -> dict[str, str]:
        """Return the index files (relative path -> text) of a tree that holds only this client's images."""

    @abstractmethod
    def owner(self, parts: Sequence[str]) -> str:
        """Return who owns the file at these components below the folder: a client, ``SHARED``, or ``""``."""

    def image_lists(self, root: Path) -> dict[str, str]:
        """Return the index files of ``path label`` lines that are there, each with the only client it may name.

        Relative path -> client, ``""`` for any.
        """
        return {}

    def validation(self, root: Path) -> list[Record]:
        """Return the records of the identities set aside for validation.

        Raises :class:`DataError` where the data set names none.
        """
        raise DataError(
            f"{self.folder}: expected a list of validation identities, found that this data set has none; "
            "use test_split() of a source data set for source-domain validation"
        )

    def labelled(self, record: Record, identities: int, source: Path) -> Record:
        """Return ``record``; raise :class:`DataError` unless its label lies in the label space."""
        if not 0 <= record.identity < identities:
            raise DataError(
                f"{source}: {record.path}: expected a label in 0..{identities - 1}, found {record.identity}; "
                "correct the index file or the label space of the experiment"
            )
        return record


def locate(root: Path, layout: Layout) -> Path:
    """Return the data-set folder: ``root/<folder>`` if that exists, else ``root`` itself.

    Raises :class:`DataError` if ``root`` does not exist.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected the folder of {layout.folder} or its parent, found none; check the path")
    inner = root / layout.folder
    return inner if inner.is_dir() else root


def read_text(path: Path) -> str:
    """Return an index file's text; raise :class:`DataError` that names it if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{path}: expected an index file, found none; restore it from the data set's archive or correct the path"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: index file cannot be read ({error}); restore it from the archive") from error


def read_identities(path: Path) -> list[int]:
    """Return the comma-separated identity numbers of a one-line file, sorted.

    Raises :class:`DataError` for an empty list, a token that is not a positive number, or a repeated number.
    """
    tokens = [token.strip() for token in read_text(path).replace("\n", ",").split(",") if token.strip()]
    bad = [token for token in tokens if not token.isdecimal()]
    if bad or not tokens or len(set(map(int, tokens))) != len(tokens):
        found = f"{bad[0]!r}" if bad else ("an empty file" if not tokens else "a number twice")
        raise DataError(
            f"{path}: expected one line of distinct comma-separated identity numbers, found {found}; "
            "restore the file from the data set's archive"
        )
    return sorted(map(int, tokens))


def read_index(path: Path) -> list[tuple[str, int]]:
    """Return (relative path, label) of every ``path label`` line; blank lines are skipped.

    Raises :class:`DataError` with the line number if a line has another form or a path that leaves the folder.
    """
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, label = (["", *line.strip().rsplit(maxsplit=1)])[-2:]
        name = name.replace("\\", "/")
        if not name or not label.isdecimal() or name.startswith("/") or ".." in name.split("/"):
            raise DataError(
                f"{path}: line {number}: expected 'relative/path label', found {line.strip()[:80]!r}; "
                "restore the file from the data set's archive"
            )
        entries.append((name, int(label)))
    return entries


def count_labels(labels: Iterable[int], source: Path) -> int:
    """Return how many labels there are; raise :class:`DataError` unless they are exactly 0, 1, ..., n - 1."""
    present = set(labels)
    if not present:
        raise DataError(f"{source}: expected at least one line, found none; restore the index file from the archive")
    gaps = sorted(set(range(max(present) + 1)) - present)
    if gaps:
        raise DataError(
            f"{source}: expected labels 0..{max(present)} without a gap, found none for {gaps[:5]}; "
            "if this is one client's part of a data set, keep the client.json that `cloister data split` wrote"
        )
    return len(present)


def list_folder(folder: Path, what: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden, sorted by name.

    Raises :class:`DataError` that says ``what`` the folder should have been.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: expected the folder of {what}, found {error.strerror or error}; "
            "restore it from the data set's archive or correct the path"
        ) from None


def list_images(folder: Path, what: str) -> list[str]:
    """Return the sorted names of the image files in a folder; other files are ignored."""
    return [entry.name for entry in list_folder(folder, what) if entry.name.lower().endswith(IMAGE_SUFFIXES)]


def in_order(records: Iterable[Record]) -> list[Record]:
    """Return the records by identity, then camera, then file name: the order in which the L2RW code draws galleries."""
    return sorted(records, key=lambda record: (record.identity, record.camera, record.path))


@dataclass(frozen=True, slots=True)
class ClientFile:
    """What ``client.json`` says about a tree that holds one client of a data set.

    ``identities`` is the width of the whole data set's label space, of which this client holds a part.
    """

    layout: str
    client: str
    identities: int

    def text(self) -> str:
        """Return the file's JSON text."""
        return json.dumps({"layout": self.layout, "client": self.client, "identities": self.identities}) + "\n"


def read_client_file(folder: Path) -> ClientFile | None:
    """Return what ``client.json`` in a data-set folder says, or None where there is no such file."""
    path = folder / CLIENT_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return ClientFile(str(values["layout"]), str(values["client"]), int(values["identities"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: expected JSON with layout, client and identities, found {error!r}; run `cloister data split`"
        ) from error
