"""Image files to one uint8 array, kept as a memory map where a private folder is given."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cloister.errors import DataError

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)


def read_image(path: Path, height: int, width: int, owner: str = "data set") -> NDArray[np.uint8]:
    """Return one image as uint8 ``[height, width, 3]``, converted to RGB and Lanczos-resized.

    Raises :class:`DataError` that names ``owner`` and the file if it is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            return np.asarray(rgb.resize((width, height), Image.Resampling.LANCZOS))
    except FileNotFoundError:
        raise DataError(
            f"{owner}: {path}: expected an image, found no file; "
            "restore it from the data set's archive, or take it out of the index file"
        ) from None
    except BROKEN as error:
        raise DataError(
            f"{owner}: {path}: expected a readable image, found a corrupt one ({error}); "
            "restore it from the data set's archive; `cloister data check` lists all such files"
        ) from error


def read_images(
    folder: Path,
    paths: Sequence[str],
    height: int,
    width: int,
    *,
    cache: Path | None = None,
    owner: str = "data set",
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Return the images at ``folder / path`` as one uint8 array ``[len(paths), height, width, 3]``.

    With ``cache``, the array is written there once, whole and then renamed, and from then on memory-mapped; what is
    written to the returned array stays in this process. The file's name is a hash of the paths, the image files' sizes
    and times, and the target size, so a changed data set is read anew.

    Raises :class:`DataError` for the first missing or corrupt image, or if the cache cannot be written.
    """
    if cache is None:
        images = np.empty((len(paths), height, width, 3), np.uint8)
        for index, image in enumerate(_decoded(folder, paths, height, width, owner, progress)):
            images[index] = image
        return images
    target = cache / f"{_key(folder, paths, height, width, owner)}.npy"
    if not target.is_file():
        _write(target, (len(paths), height, width, 3), _decoded(folder, paths, height, width, owner, progress), owner)
    try:
        return np.lib.format.open_memmap(target, mode="c")
    except (OSError, ValueError) as error:
        raise DataError(f"{owner}: {target}: image cache cannot be read ({error}); delete the file") from error


def _decoded(
    folder: Path, paths: Sequence[str], height: int, width: int, owner: str, progress: Progress | None
) -> Iterator[NDArray[np.uint8]]:
    for index, path in enumerate(paths):
        yield read_image(folder / path, height, width, owner)
        if progress is not None:
            progress(index + 1, len(paths))


def _write(target: Path, shape: tuple[int, ...], images: Iterable[NDArray[np.uint8]], owner: str) -> None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, _header(shape))
            for image in images:
                file.write(image.tobytes())
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(
            f"{owner}: {target}: image cache of {int(np.prod(shape)) / 1e6:.0f} MB cannot be written ({error}); "
            "free disk space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _header(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}


def _key(folder: Path, paths: Sequence[str], height: int, width: int, owner: str) -> str:
    digest = hashlib.sha256(f"{height}x{width}".encode())
    for path in paths:
        try:
            status = os.stat(folder / path)
        except OSError as error:
            raise DataError(
                f"{owner}: {folder / path}: expected an image, found {error.strerror or error}; "
                "restore it from the data set's archive, or take it out of the index file"
            ) from None
        digest.update(f"\x1f{path}\x1f{status.st_size}\x1f{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
