"""Visible-infrared person re-identification: three published data sets, cut into the clients of a protocol.

Protocols (L2RW, arXiv 2503.12232, section 3; ``uci`` is that of its successor L2RW+):

- ``ci``, ``uci``: a client is one camera of one data set; labels agree across the cameras.
- ``ei``: a client is one whole data set (an *entity*); label spaces are made disjoint by offsets.
- ``es``: no federation. One client, ``pooled``, has every source. With a single source it is the pooled baseline of
  ``ci``, in the same label space.

A client's process reads its own files and the shared index files, nothing else; :meth:`Federation.may_open` says so
for any path and an audit hook elsewhere enforces it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cloister.datasets.federation import ClientImages, ClientRow, Federation, Source
from cloister.datasets.images import read_image, read_images
from cloister.datasets.llcm import LLCM
from cloister.datasets.records import ClientFile, Layout, Modality, Record, locate, read_client_file
from cloister.datasets.regdb import RegDB
from cloister.datasets.sysu_mm01 import INDOOR_CAMERAS, SysuMM01
from cloister.errors import ConfigError, DataError

__all__ = [
    "LAYOUTS",
    "POOLED",
    "PROTOCOLS",
    "ClientImages",
    "ClientRow",
    "Federation",
    "Modality",
    "Record",
    "TestSplit",
    "federation",
    "read_image",
    "read_images",
    "test_split",
    "validation_split",
]

# The order of the label blocks when data sets are joined: RegDB, LLCM, SYSU-MM01 as in the L2RW code.
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (RegDB(), LLCM(), SysuMM01())}
PROTOCOLS = ("ci", "uci", "ei", "es")
POOLED = "pooled"


def federation(
    root: Path,
    layout: str,
    protocol: str,
    *,
    split: int = 1,
    sources: Sequence[str] = (),
    target: str = "",
    label_space: Mapping[str, int] | None = None,
    hold_out: bool = False,
) -> Federation:
    """Return the clients of ``protocol`` on the data at ``root``.

    ``ci``, ``uci``: ``layout`` names the data set; ``root`` is its folder or the parent of that. ``ei``, ``es``:
    ``sources`` name the data sets (``layout`` alone if empty), ``target`` the unseen one; ``root`` is the folder that
    holds ``SYSU-MM01/``, ``RegDB/``, ``LLCM/``. ``split`` is RegDB's (1 to 10). ``hold_out`` keeps SYSU-MM01's
    validation identities out of training.

    ``label_space`` (identities per data set) is what the clients agreed on. Without it the shared index files, or
    ``client.json`` in one client's tree, are read here and now: an entity's process cannot do that, so the server
    counts once and tells every client :attr:`Federation.label_space`.

    Raises :class:`ConfigError` for an unknown or contradictory name, :class:`DataError` for a missing folder or index.
    """
    names = _source_names(layout, protocol, tuple(sources), target)
    if not 1 <= split <= 10:
        raise ConfigError(f"split: expected RegDB's split 1 to 10, found {split}")
    made: list[Source] = []
    only: ClientFile | None = None
    for name in names:
        folder = locate(root, LAYOUTS[name])
        only = read_client_file(folder)
        if label_space is not None:
            identities = _agreed(label_space, name)
        else:
            identities = only.identities if only else LAYOUTS[name].count(folder, split, hold_out)
        made.append(Source(LAYOUTS[name], folder, identities, sum(source.identities for source in made)))
    clients = {"ei": tuple(names), "es": (POOLED,)}.get(protocol, made[0].layout.clients)
    if only is not None and protocol in ("ci", "uci"):
        if only.layout != names[0]:
            raise DataError(f"{made[0].folder}: expected a client of {names[0]}, found one of {only.layout}")
        clients = (only.client,)
    return Federation(protocol, clients, tuple(made), target, split, hold_out, _guarded(made))


def _source_names(layout: str, protocol: str, sources: tuple[str, ...], target: str) -> list[str]:
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {protocol!r}")
    names = sources if sources and protocol in ("ei", "es") else (layout,)
    for name in (*names, *((target,) if target else ())):
        if name not in LAYOUTS:
            raise ConfigError(f"data set: expected one of {', '.join(LAYOUTS)}, found {name!r}")
    if protocol in ("ci", "uci") and sources not in ((), (layout,)):
        raise ConfigError(f"sources: expected none for protocol {protocol}, found {sources}; set the layout instead")
    if protocol == "ei" and target in names:
        raise ConfigError(f"target: expected a data set that is not a source, found {target!r}")
    return [name for name in LAYOUTS if name in names]


def _agreed(label_space: Mapping[str, int], name: str) -> int:
    if label_space.get(name, 0) < 1:
        raise ConfigError(f"label_space: expected the number of identities of {name}, found {dict(label_space)}")
    return label_space[name]


def _guarded(sources: Sequence[Source]) -> tuple[tuple[str, Layout], ...]:
    """Return the data-set folders, as given and with links resolved, and their siblings of the two other layouts."""
    found: dict[str, Layout] = {}
    for source in sources:
        for folder in (os.path.abspath(source.folder), os.path.realpath(source.folder)):
            found[folder] = source.layout
    for source in sources:
        for layout in LAYOUTS.values():
            sibling = source.folder.parent / layout.folder
            for folder in (os.path.abspath(sibling), os.path.realpath(sibling)):
                found.setdefault(folder, layout)
    return tuple(found.items())


@dataclass(frozen=True)
class TestSplit:
    """The test images of one data set, for the server's evaluation only.

    ``visible`` and ``infrared`` are each sorted by (identity, camera, file name); paths are relative to ``folder``.
    Searching in one direction takes one of them as queries and draws the gallery from the other.
    """

    __test__: ClassVar[bool] = False  # the name is not that of a pytest class

    layout: str
    folder: Path
    visible: tuple[Record, ...]
    infrared: tuple[Record, ...]

    def of(self, modality: Modality) -> tuple[Record, ...]:
        """Return the records of one modality."""
        return self.infrared if modality is Modality.INFRARED else self.visible

    def indoor(self) -> "TestSplit":
        """Return SYSU-MM01's indoor search: visible images of cameras 1 and 2 only."""
        if self.layout != SysuMM01.name:
            raise ConfigError(f"indoor search: expected {SysuMM01.name}, found {self.layout}; use all search")
        visible = tuple(record for record in self.visible if record.camera in INDOOR_CAMERAS)
        return TestSplit(self.layout, self.folder, visible, self.infrared)


def test_split(root: Path, layout: str, *, split: int = 1) -> TestSplit:  # noqa: PT028 (no pytest function)
    """Return a data set's test images: SYSU-MM01 and LLCM by ``test_id.txt``, RegDB by the split's test lists.

    Raises :class:`DataError` if an index is missing or either modality has no image.
    """
    found, folder = _layout(layout), locate(root, _layout(layout))
    return _as_split(layout, folder, found.test(folder, split), "test")


def validation_split(root: Path, layout: str) -> TestSplit:
    """Return SYSU-MM01's 99 validation identities as a test split, for a model trained with ``hold_out``.

    RegDB and LLCM name no validation identities; :func:`test_split` of a *source* data set serves there, because the
    people it shows take no part in training.
    """
    found, folder = _layout(layout), locate(root, _layout(layout))
    return _as_split(layout, folder, found.validation(folder), "validation")


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ConfigError(f"layout: expected one of {', '.join(LAYOUTS)}, found {name!r}")
    return LAYOUTS[name]


def _as_split(layout: str, folder: Path, records: Sequence[Record], what: str) -> TestSplit:
    visible = tuple(record for record in records if record.modality is Modality.VISIBLE)
    infrared = tuple(record for record in records if record.modality is Modality.INFRARED)
    for modality, part in (("visible", visible), ("infrared", infrared)):
        if not part:
            raise DataError(
                f"{folder}: expected {modality} {what} images, found none; "
                "restore the index files and folders from the data set's archive"
            )
    return TestSplit(layout, folder, visible, infrared)
