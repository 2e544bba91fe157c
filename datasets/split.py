"""``cloister data split``: one tree of a data set becomes one tree per client, each fit to be carried to its site."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cloister.datasets.images import Progress
from cloister.datasets.records import CLIENT_FILE, ClientFile, Record
from cloister.datasets.reid import federation
from cloister.errors import ConfigError, DataError


@dataclass(frozen=True)
class ClientTree:
    """One client's part: ``folder`` holds ``images`` images, of which ``linked`` are hard links and not copies."""

    client: str
    folder: Path
    images: int
    linked: int


def split(
    layout: str, root: Path, out: Path, *, protocol: str = "ci", progress: Progress | None = None
) -> list[ClientTree]:
    """Write ``out/<client>/<data set>/`` for every camera client and return what was written.

    Each is a valid tree of the same layout: the client's own images (training, validation, test), its own index
    lines, and ``client.json`` with the width of the whole label space. Labels stay those of the whole data set:
    SYSU-MM01 keeps ``exp/*.txt`` (identity numbers of all cameras), the index lines of RegDB and LLCM carry them.
    Images are hard links where the file system allows, else copies; a linked file is one file, do not edit it.

    A tree appears under its name only when complete. Raises :class:`ConfigError` for a protocol whose clients are not
    parts of a data set, :class:`DataError` if a client's folder already exists or an image is missing.
    """
    if protocol not in ("ci", "uci"):
        raise ConfigError(
            f"protocol: expected ci or uci, whose clients are cameras, found {protocol!r}; "
            "an ei client is a whole data set: give it that folder"
        )
    made = federation(root, layout, protocol)
    source = made.sources[0]
    owned = {client: source.layout.recordings(source.folder, client) for client in made.clients}
    for client in owned:
        if (out / client).exists():
            raise DataError(f"{out / client}: expected no such folder, found one; choose an empty output folder")
    total, done, trees = sum(map(len, owned.values())), 0, []
    for client, records in owned.items():
        partial = out / f".{client}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        folder, linked = partial / source.layout.folder, 0
        try:
            _write(folder, CLIENT_FILE, ClientFile(layout, client, made.num_classes).text())
            for name, text in source.layout.indexes(source.folder, client).items():
                _write(folder, name, text)
            for record in records:
                linked += _bring(source.folder, folder, record, client)
                done += 1
                if progress is not None:
                    progress(done, total)
            os.replace(partial, out / client)
        except OSError as error:
            raise DataError(f"client {client}: {folder}: cannot be written ({error}); free disk space") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        trees.append(ClientTree(client, out / client / source.layout.folder, len(records), linked))
    return trees


def _write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _bring(source: Path, folder: Path, record: Record, client: str) -> bool:
    """Put one image into a client's tree; return whether it is a hard link."""
    origin, target = source / record.path, folder / record.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not origin.is_file():
        raise DataError(
            f"client {client}: {origin}: expected an image, found no file; "
            "restore it from the data set's archive, or take it out of the index file"
        )
    try:
        os.link(origin, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(origin, target)
        return False
    return True
