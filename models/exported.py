"""Models as folders: ``config.json`` says how to build one, ``model.safetensors`` holds its weights. No pickle."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cloister.errors import WeightsError
from cloister.models.spec import ModelSpec, check_groups

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


def save_pretrained(folder: Path, spec: ModelSpec, state: Mapping[str, Tensor]) -> list[Path]:
    """Write a model into ``folder`` and return the files; ``state`` has every entry of its state dict.

    A specification that has no values leaves no ``config.json``, and :func:`from_pretrained` cannot load the folder.
    Raises :class:`WeightsError` where it cannot be written.
    """
    kind = f"{type(spec).__module__}:{type(spec).__qualname__}"
    config, weights, values = folder / CONFIG_NAME, folder / WEIGHTS_NAME, spec.values()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if values is not None:
            config.write_text(json.dumps({"model": kind, "config": values}, indent=1) + "\n", encoding="utf-8")
        save_file({name: values.detach().cpu().contiguous().clone() for name, values in state.items()}, weights)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder}: the model cannot be written ({error}); choose another folder") from error
    return [config, weights] if values is not None else [weights]


def from_pretrained(folder: str | Path) -> nn.Module:
    """Return the model that :func:`save_pretrained` wrote, in evaluation mode; its outputs are the same, bit for bit.

    Only classes of this library are built. Raises :class:`WeightsError` that names the file and what is wrong with it.
    """
    config, weights = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        module, _, name = str(values["model"]).partition(":")
        kind = getattr(importlib.import_module(module), name) if module.startswith("cloister.models.") else None
        if not (isinstance(kind, type) and issubclass(kind, ModelSpec)):
            raise ValueError(f"expected a model specification of cloister.models, found {values['model']!r}")
        spec = kind.of(values["config"])
        state = load_file(weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        raise WeightsError(
            f"{folder}: expected an exported model, found none ({error}); export the run again"
        ) from error
    model = spec.build(torch.Generator().manual_seed(0))
    check_groups(model, spec.groups(model))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{weights}: does not fit {config} ({error}); export the run again") from error
    return model.eval()
