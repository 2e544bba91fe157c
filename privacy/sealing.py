"""Secret arrays at rest: encrypted and authenticated, so that they may lie in a checkpoint.

The noise of a matrix mechanism hides what each round added only while it is unknown. Whoever reads its state, or the
key of its source, can subtract it; so both are as secret as the data, and are written only sealed.

Format: arrays as safetensors, cut into parts; each part ChaCha20-Poly1305 (RFC 8439) under a key that HKDF-SHA256 (RFC
5869) makes for this one sealing from the key and 32 random bytes; the nonce is the part's number; context and number of
parts are authenticated with each. Keys are never used twice, so nonces need not be random, however many checkpoints.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cloister.errors import PrivacyError

Arrays = Mapping[str, npt.NDArray[Any]]
Sealed = dict[str, npt.NDArray[np.uint8]]

_KEY_BYTES = 32
_PART_BYTES = 1 << 28  # the cipher takes at most 2^31 bytes at a time


def seal(arrays: Arrays, *, key: bytes, context: str) -> Sealed:
    """Return ``arrays`` as uint8 arrays that only ``key`` opens, and only in the same ``context``.

    ``context`` says what this is and of when ("run 7, noise after round 12"): a sealed state of another run or round,
    put in the place of this one, does not open. It is not secret and not kept.

    Raises :class:`PrivacyError` for a key that is not 32 bytes.
    """
    content = memoryview(
        save({name: np.ascontiguousarray(values).reshape(values.shape) for name, values in arrays.items()})
    )
    parts = [content[start : start + _PART_BYTES] for start in range(0, len(content), _PART_BYTES)]
    salt = os.urandom(_KEY_BYTES)
    cipher = _cipher(key, salt)
    sealed = {"salt": np.frombuffer(salt, np.uint8)}
    for index, part in enumerate(parts):
        data = cipher.encrypt(_nonce(index), part, _associated(context, len(parts)))
        sealed[f"part {index}"] = np.frombuffer(data, np.uint8)
    return sealed


def unseal(sealed: Arrays, *, key: bytes, context: str) -> dict[str, npt.NDArray[Any]]:
    """Return what :func:`seal` was given.

    Raises :class:`PrivacyError` if anything was changed, left out or added, and for another key or context: which of
    them cannot be known.
    """
    count = max(len(sealed) - 1, 1)
    try:
        cipher = _cipher(key, sealed["salt"].tobytes())
        parts = [
            cipher.decrypt(_nonce(index), sealed[f"part {index}"].tobytes(), _associated(context, count))
            for index in range(count)
        ]
        return load(b"".join(parts))
    except (InvalidTag, KeyError, SafetensorError) as error:
        raise PrivacyError(
            f"sealed state: expected one that this machine's key opens as {context!r}, found none: it was changed, or "
            "belongs to another run, round or key; restore the key file that it was sealed with, or take another "
            "checkpoint"
        ) from error


KEY_NAME = "noise.key"
"""What a client and a server call the file of their key."""


def machine_key(path: Path) -> bytes:
    """Return the 32 secret bytes in the file ``path``, which is made of the system's randomness, mode 0600, if missing.

    The file appears whole or not at all, and processes that begin at the same time all get the same key.

    Raises :class:`PrivacyError` if it belongs to somebody else, others may read or change it, or it is not 32 bytes.
    """
    try:
        if not path.exists():
            _make(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(_KEY_BYTES + 1)
    except OSError as error:
        raise PrivacyError(
            f"key file {path}: cannot be read or made ({error}); give a path in a folder that is yours"
        ) from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PrivacyError(
            f"key file {path}: expected one that only this user can read, found mode {status.st_mode & 0o777:04o} of "
            f"user {status.st_uid}; others may know the key: move it away, and start again what it sealed"
        )
    if len(key) != _KEY_BYTES:
        found = "more" if len(key) > _KEY_BYTES else len(key)
        raise PrivacyError(
            f"key file {path}: expected {_KEY_BYTES} bytes, found {found}; restore it from a backup, or move it away "
            "and start again what it sealed"
        )
    return key


def _make(path: Path) -> None:
    """Write a new key beside ``path`` and link it there, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails where the file exists, unlike a rename
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name must outlive a crash, or what was sealed would be lost
        finally:
            os.close(folder)
    finally:
        temporary.unlink()


def _cipher(key: bytes, salt: bytes) -> ChaCha20Poly1305:
    if len(key) != _KEY_BYTES:
        raise PrivacyError(f"sealing key: expected {_KEY_BYTES} bytes, found {len(key)}; use machine_key")
    return ChaCha20Poly1305(HKDF(SHA256(), _KEY_BYTES, salt=salt, info=b"cloister sealed state").derive(key))


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "little")


def _associated(context: str, count: int) -> bytes:
    return count.to_bytes(8, "little") + context.encode()
