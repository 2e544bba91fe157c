"""The clients of one protocol on data that lie at one place: who has which images, and who may open which file."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloister.datasets.images import Progress, read_images
from cloister.datasets.records import SHARED, Layout, Modality, Record
from cloister.errors import ConfigError, DataError


@dataclass(frozen=True)
class ClientImages:
    """One client's training images, decoded.

    ``images`` uint8 ``[N, H, W, 3]`` RGB; ``labels`` int64 ``[N]`` in ``range(num_classes)``; ``cameras``
    int64 ``[N]`` from 1; ``infrared`` bool ``[N]``.
    """

    client: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    cameras: NDArray[np.int64]
    infrared: NDArray[np.bool_]


@dataclass(frozen=True)
class ClientRow:
    """One line of a federation's client table. ``modality`` is ``visible``, ``infrared`` or ``both``."""

    client: str
    identities: int
    images: int
    modality: str


@dataclass(frozen=True)
class Source:
    """One data set of a federation: its folder and its block of the label space."""

    layout: Layout
    folder: Path
    identities: int
    offset: int


@dataclass(frozen=True)
class Federation:
    """The clients of a protocol on data that lie at one place. Made by :func:`federation`; picklable; opens nothing
    until asked.
    """

    protocol: str
    clients: tuple[str, ...]
    sources: tuple[Source, ...]
    target: str
    split: int
    hold_out: bool
    guarded: tuple[tuple[str, Layout], ...] = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Width of the label space: identities of all sources together."""
        return sum(source.identities for source in self.sources)

    @property
    def label_space(self) -> dict[str, int]:
        """Identities per data set, in block order: what every client must be told to number alike."""
        return {source.layout.name: source.identities for source in self.sources}

    def records(self, client: str) -> list[tuple[Source, Record]]:
        """Return a client's training records and the data set each belongs to; opens index files, no image.

        Raises :class:`DataError` if the client has no image.
        """
        self._known(client)
        found = []
        for source in self.sources:
            if self.protocol == "ei" and source.layout.name != client:
                continue
            parts = (client,) if self.protocol in ("ci", "uci") else source.layout.clients
            for part in parts:
                records = source.layout.train(source.folder, part, self.split, self.hold_out, source.identities)
                found += [(source, record) for record in records]
        if not found:
            folders = ", ".join(str(source.folder) for source in self.sources)
            raise DataError(
                f"client {client}: expected training images in {folders}, found none; "
                "restore the camera's folder from the data set's archive"
            )
        return found

    def load(
        self, client: str, height: int, width: int, cache: Path | None = None, *, progress: Progress | None = None
    ) -> ClientImages:
        """Return a client's training images; ``cache`` is a folder of this client alone (see ``read_images``).

        Opens the client's own files and the shared indexes only. Raises :class:`DataError` naming client and file for
        a missing or corrupt image, an empty camera, or an index that does not parse.
        """
        found = self.records(client)
        base = Path(os.path.commonpath([source.folder for source, _ in found]))
        paths = [(source.folder / record.path).relative_to(base).as_posix() for source, record in found]
        images = read_images(base, paths, height, width, cache=cache, owner=f"client {client}", progress=progress)
        return ClientImages(
            client=client,
            images=images,
            labels=np.array([source.offset + record.identity for source, record in found], np.int64),
            cameras=np.array([record.camera for _, record in found], np.int64),
            infrared=np.array([record.modality is Modality.INFRARED for _, record in found], np.bool_),
        )

    def may_open(self, client: str, path: Path) -> bool:
        """Return whether this client's process may open (or list) ``path``. Does no input or output.

        True for the client's own files, the shared index files of its data set and everything outside the data-set
        folders; false for any other path inside one, and for a data-set folder itself unless the client owns it whole.
        """
        text = os.path.abspath(path)
        for folder, layout in self.guarded:
            if text == folder or text.startswith(folder + os.sep):
                return self._owns(client, layout, text[len(folder) + 1 :].split(os.sep))
        return True

    def table(self) -> list[ClientRow]:
        """Return identities, images and modality per client, from the index files of *all* clients.

        For the simulation's record and the command line; a client's process cannot call it.
        """
        return [self.row(client) for client in self.clients]

    def row(self, client: str) -> ClientRow:
        """Return one client's line of :meth:`table`."""
        found = self.records(client)
        modalities = {record.modality.value for _, record in found}
        identities = {source.offset + record.identity for source, record in found}
        return ClientRow(client, len(identities), len(found), "both" if len(modalities) > 1 else modalities.pop())

    def _owns(self, client: str, layout: Layout, parts: list[str]) -> bool:
        sources = [source.layout.name for source in self.sources]
        if self.protocol == "es":
            return layout.name in sources
        if self.protocol == "ei":
            return layout.name == client
        return layout.name in sources and layout.owner([part for part in parts if part]) in (client, SHARED)

    def _known(self, client: str) -> None:
        if client not in self.clients:
            raise ConfigError(f"client {client!r}: expected one of {', '.join(self.clients)}; correct the name")
