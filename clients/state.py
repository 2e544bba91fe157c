"""A client's private memory between rounds: files in a folder of its own, one version per round."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cloister.errors import RunError

_VERSION = re.compile(r"(?P<name>.+)-(?P<round>\d{6})\.safetensors")

_KEPT = 3  # versions on disk: this round's, and those that a resume from either of the last two checkpoints asks for


class ClientState:
    """Named groups of tensors that stay at one client.

    A group saved in round ``r`` is a file of its own, written whole and then renamed, so a process killed at any
    moment leaves the last complete version. :meth:`load` in round ``r`` reads the newest version *before* ``r``: a
    round that is run again starts from the same memory. Without a folder, nothing is kept.
    """

    def __init__(self, folder: Path | None, round_number: int) -> None:
        """Open the memory in ``folder`` as it was before round ``round_number``."""
        self.folder = folder
        self.round = round_number

    def load(self, name: str) -> dict[str, torch.Tensor] | None:
        """Return the group as of the last round before this one, or None if there is none."""
        earlier = [number for number in self._versions(name) if number < self.round]
        if self.folder is None or not earlier:
            return None
        path = self.folder / f"{name}-{max(earlier):06d}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"client state {path}: cannot be read ({error}); resume from an earlier round") from error

    def save(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep a group as of this round; drop versions that no resume can ask for."""
        if self.folder is None:
            return
        path = self.folder / f"{name}-{self.round:06d}.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise RunError(f"client state {path}: cannot be written ({error}); free disk space and resume") from error
        for number in sorted(self._versions(name))[:-_KEPT]:
            (self.folder / f"{name}-{number:06d}.safetensors").unlink(missing_ok=True)

    def _versions(self, name: str) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        matches = (_VERSION.fullmatch(entry.name) for entry in self.folder.iterdir())
        return [int(match["round"]) for match in matches if match and match["name"] == name]
