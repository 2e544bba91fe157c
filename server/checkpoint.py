"""Checkpoints of a whole run, one folder per round, written so that ``kill -9`` at any moment loses nothing.

A checkpoint holds the global weights, everything the strategy remembers, and what was already recorded. It is written
into a folder of another name, synced to disk, and renamed; a folder that carries the right name is therefore
complete, and the digests of its parts are checked again on reading. No pickle: safetensors and JSON.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cloister.errors import RunError
from cloister.flower import NDArray

_NAME = re.compile(r"round-(\d{6})")
_KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after ``round`` rounds.

    ``arrays``: global weights by state-dict name. ``strategy``: the strategy's own arrays. ``state``: JSON values
    (the strategy's scalars, what was recorded so far).
    """

    round: int
    arrays: Mapping[str, NDArray]
    strategy: Mapping[str, NDArray]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint under ``folder`` and return its path; older ones but the last are removed.

    Raises :class:`RunError` when it cannot be written (disk full): earlier checkpoints are untouched.
    """
    target = folder / f"round-{checkpoint.round:06d}"
    temporary = folder / f".{target.name}.partial"  # a killed process's is written over when its round runs again
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _save_arrays(temporary / "arrays.safetensors", checkpoint.arrays)
        _save_arrays(temporary / "strategy.safetensors", checkpoint.strategy)
        digests = {name: _digest(temporary / name) for name in ("arrays.safetensors", "strategy.safetensors")}
        content = {"round": checkpoint.round, "digests": digests, "state": checkpoint.state}
        _write_synced(temporary / "state.json", json.dumps({**content, "digest": _seal(content)}).encode())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"checkpoint {target}: cannot be written ({error}); free disk space, then `cloister resume` continues "
            "from the last complete round"
        ) from error
    for number in rounds(folder)[:-_KEPT]:
        shutil.rmtree(folder / f"round-{number:06d}", ignore_errors=True)
    return target


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None if there is none yet.

    Raises :class:`RunError` if checkpoints exist but none of them can be read.
    """
    problems = []
    for number in reversed(rounds(folder)):
        try:
            return _load(folder / f"round-{number:06d}")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            problems.append(f"round {number}: {error}")
    if problems:
        raise RunError(f"{folder}: no checkpoint can be read ({'; '.join(problems)}); start the run again")
    return None


def rounds(folder: Path) -> list[int]:
    """Return the rounds that have a checkpoint under ``folder``, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name)))


def _load(path: Path) -> Checkpoint:
    content = json.loads((path / "state.json").read_bytes())
    if not isinstance(content, dict) or content.pop("digest", None) != _seal(content):
        raise ValueError(f"{path / 'state.json'} is damaged: its digest is not the recorded one")
    for name, digest in content["digests"].items():
        if _digest(path / name) != digest:
            raise ValueError(f"{path / name} is damaged: its digest is not the recorded one")
    return Checkpoint(
        round=int(content["round"]),
        arrays=load_file(path / "arrays.safetensors"),
        strategy=load_file(path / "strategy.safetensors"),
        state=content["state"],
    )


def _save_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    save_file({name: np.ascontiguousarray(values).reshape(values.shape) for name, values in arrays.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _seal(content: Mapping[str, Any]) -> str:
    """Return the digest of JSON values, which is the same before and after they were written."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
