"""ImageNet weights from a file, in the key naming that published ResNets have (``conv1``, ``layer1.0.bn2``, ...).

Nothing is downloaded. A ``.pth`` file is read with ``weights_only``: it can hold tensors, not code.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cloister.errors import WeightsError
from cloister.models.l2rw.network import ReidNetwork

_BLOCK = re.compile(r"stages\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\.(?P<layer>\w+)(?P<index>\.[01])?\.(?P<entry>\w+)")
_STEM = re.compile(r"(?:stem|visible|infrared)\.(?P<layer>conv|norm)\.(?P<entry>\w+)")
_UNUSED = re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked")


def load(network: ReidNetwork, file: str | Path) -> None:
    """Copy the backbone of ``file`` (``.safetensors``, ``.pth`` or ``.pt``) into ``network``.

    Both stems of a two-stream network get the same weights. Neck, head and non-local blocks keep theirs. GroupNorm
    layers take the weight and bias of BatchNorm and leave its statistics. Every key and shape is checked first, and the
    network is untouched if one does not fit. Raises :class:`WeightsError` naming the file, the key, what was
    expected and what was found.
    """
    path = Path(file)
    found = _read(path)
    live = dict(network.state_dict(keep_vars=True))
    wanted = {name: source for name in live if (source := source_key(name))}
    for name, source in wanted.items():
        _check(path, source, live[name], found.get(source))
    used = set(wanted.values())
    statistics = {key for key in found if key.endswith((".running_mean", ".running_var"))}
    unknown = sorted(key for key in set(found) - used if not _UNUSED.fullmatch(key))
    if network.config.normalisation == "group":
        unknown = [key for key in unknown if key not in statistics]
    if unknown:
        raise WeightsError(
            f"{path}: expected a network with {network.config.blocks} blocks per stage, found the further keys "
            f"{unknown[:3]} ({len(unknown)} in all); set settings.model.blocks to the file's, or give another file"
        )
    with torch.no_grad():
        for name, source in wanted.items():
            live[name].copy_(found[source])


def source_key(name: str) -> str:
    """Return the published name of one of our backbone's entries; "" for an entry that has no counterpart."""
    if match := _STEM.fullmatch(name):
        layer = {"conv": "conv1", "norm": "bn1"}[match["layer"]]
        return f"{layer}.{match['entry']}"
    if match := _BLOCK.fullmatch(name):
        layer = match["layer"].replace("norm", "bn").replace("shortcut", "downsample")
        return f"layer{int(match['stage']) + 1}.{match['block']}.{layer}{match['index'] or ''}.{match['entry']}"
    return ""


def _check(path: Path, key: str, expected: Tensor, found: Tensor | None) -> None:
    if found is None or found.shape != expected.shape or not found.is_floating_point():
        what = "no such key" if found is None else f"{tuple(found.shape)} of {found.dtype}"
        raise WeightsError(
            f"{path}: {key}: expected shape {tuple(expected.shape)}, found {what}; "
            "give ImageNet weights of a ResNet with the blocks and width of [settings.model], or set pretrained to ''"
        )


def _read(path: Path) -> dict[str, Tensor]:
    readers = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    reader = readers.get(path.suffix)
    if reader is None:
        raise WeightsError(
            f"{path}: expected a file ending in {', '.join(readers)}; convert the weights to one of them"
        )
    if not path.is_file():
        raise WeightsError(
            f"{path}: expected a weight file, found none; correct settings.model.pretrained or set it to ''"
        )
    values = reader(path)
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise WeightsError(
            f"{path}: expected a state dict of tensors, found {type(values).__name__}; save only the dict"
        )
    return values


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: expected safetensors, found a file that does not parse ({error}); get it anew"
        ) from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor errors of many types, all of them this file's fault
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: expected tensors only, found a file that does not load ({reason}); get it anew"
        ) from error
