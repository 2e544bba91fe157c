"""Does a model or a loss mix records? Then no bound on one record's gradient bounds what she changes.

Clipping a record's gradient protects her only if nobody else's gradient depends on her. BatchNorm on batch statistics
breaks that, and so do losses over pairs, means over the batch and statistics that a forward pass writes down. What is
known by its type is found by its type; everything else is tried out on a few records.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from cloister.privacy.per_record import ClipGroups, Loss, Records, UnitGradients, clip_into

_TOLERANCE = 1e-4
"""Relative; single precision and another order of sums give 1e-6, and a mean over three records changes by a third."""
_LOOSE = 1e-2
"""Where batches of two sizes or two ways to a gradient are compared: in bfloat16 or TF32 they round differently."""
Gradients = tuple[Tensor | None, ...]
"""One tensor for each parameter that learns; None where the loss does not depend on it."""
_INSTEAD = "use a loss of single records, or noise on whole updates (unit client)"


def mixing_layers(module: nn.Module) -> list[str]:
    """Return, for each layer whose type says that it mixes records as it is now, the reason and what to use instead.

    A BatchNorm layer that is in evaluation mode, or has a true attribute ``frozen``, uses stored statistics only and
    mixes nothing.
    """
    reasons = []
    for name, layer in module.named_modules():
        kind = f"layer {name or 'model'} ({type(layer).__name__})"
        if isinstance(layer, _InstanceNorm):
            if layer.track_running_stats and layer.training:
                reasons.append(
                    f"{kind} writes the records' statistics into a buffer without noise; use track_running_stats=False"
                )
        elif isinstance(layer, _BatchNorm):
            fixed = not layer.training or getattr(layer, "frozen", False) is True
            if not fixed or layer.running_mean is None:
                reasons.append(
                    f"{kind} normalises each record by the statistics of its batch; use GroupNorm, or stored "
                    "statistics (evaluation mode with its weight and bias frozen)"
                )
    return reasons


def coupled(module: nn.Module, loss: Loss, records: Records) -> list[str]:
    """Return every reason found why records influence each other's losses or gradients; none: no coupling was found.

    ``records``: a few, at least two (the same one twice will do); real or made up, for a model that mixes nothing never
    fails here, whatever they are. The first is changed and the last is taken away; losses and gradients of the others
    must stay. Parameters, buffers, gradients and modes of the module are as before afterwards, and so is torch's
    generator.

    A loss that draws random numbers (from torch) is tried with the first record changed only: without the last one it
    would draw others.
    """
    reasons = mixing_layers(module)
    if len(records[0]) < 2:
        return reasons
    base = _trial(module, loss, records)
    if base.losses.shape != records[0].shape[:1]:
        shape = f"the loss has the shape {tuple(base.losses.shape)} for {len(records[0])} records"
        return [*reasons, f'{shape}, so records cannot be told apart; use reduction="none"']
    changed = _trial(module, loss, tuple(map(_with_another_first, records)))
    if not _same(changed.losses[1:], base.losses[1:]):
        reasons.append(f"a record's loss depends on other records; {_INSTEAD}")
    elif not _same(changed.gradient, base.gradient):
        reasons.append(f"a record's gradient depends on other records; {_INSTEAD}")
    elif _same(_trial(module, loss, records, seed=1).losses, base.losses):
        fewer = _trial(module, loss, tuple(values[:-1] for values in records))
        if not _same(fewer.losses, base.losses[:-1], _LOOSE):
            reasons.append("a record's loss depends on how many others there are; do not divide by their number")
    if base.written and not reasons:
        reasons.append(f"the forward pass writes into {base.written[:5]} without noise; freeze what writes there")
    return reasons


def single_gradients(module: nn.Module, loss: Loss, records: Records) -> list[Gradients]:
    """Return the gradient of each record's loss by what learns, from autograd alone; for :func:`misattributed`.

    Nothing may be attached to the module. Afterwards it is as before.
    """
    parameters = [values for values in module.parameters() if values.requires_grad]
    with _untouched(module), _seeded(module, 0):
        losses = loss(module, records)
        return [torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True) for value in losses]


def misattributed(gradients: UnitGradients, records: Records, single: Sequence[Gradients]) -> bool:
    """Return whether ``gradients`` takes others for the gradients of single records than autograd does.

    ``single``: what :func:`single_gradients` returned for the same ``records``. Opacus's hooks see what goes through a
    layer's forward. A weight that is also used elsewhere, or a batch that is not the first dimension, gives wrong
    gradients without an error. Compared are sums that are clipped at half the median norm, where directions and norms
    count, and sums that are not clipped. Afterwards the module is as before.
    """
    module, groups, count = gradients.module, gradients.groups, len(records[0])
    rows = [
        None if column[0] is None else torch.stack([values.flatten() for values in column if values is not None])
        for column in zip(*single, strict=True)
    ]
    norms = torch.stack([_flat([values for values in row if values is not None]).norm() for row in single])
    norms = norms[norms.isfinite()]
    half, twice = (float(norms.median()) / 2, float(norms.max()) * 2) if norms.any() else (1.0, 1.0)
    for bound in (half or twice, twice):
        gradients.groups = ClipGroups.of(gradients.names, {"": bound})
        expected, found = gradients.zeros(), gradients.zeros()
        try:
            clip_into(
                expected, [None if values is None else values.clone() for values in rows], count, gradients.groups
            )
            with _untouched(module), _seeded(module, 0):
                gradients.add(found, records, [1] * count)
        finally:
            gradients.groups = groups
        if not _same(_flat(found), _flat(expected), _LOOSE):
            return True
    return False


@dataclass(frozen=True)
class _Trial:
    """Losses ``[B]``, the flat gradient of the second one, and the buffers that the forward pass changed."""

    losses: Tensor
    gradient: Tensor
    written: tuple[str, ...]


def _trial(module: nn.Module, loss: Loss, records: Records, seed: int = 0) -> _Trial:
    parameters = [values for values in module.parameters() if values.requires_grad]
    buffers = {name: values.clone() for name, values in module.named_buffers()}
    with _untouched(module), _seeded(module, seed):
        losses = loss(module, records)
        written = tuple(name for name, values in module.named_buffers() if not torch.equal(values, buffers[name]))
        found: Sequence[Tensor | None] = ()
        if losses.ndim == 1 and len(losses) > 1 and losses.requires_grad:
            found = torch.autograd.grad(losses[1], parameters, allow_unused=True)
    return _Trial(losses.detach(), _flat([values for values in found if values is not None]), written)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([values.flatten() for values in tensors]) if tensors else torch.zeros(0)


def _with_another_first(values: Tensor) -> Tensor:
    """Return the same tensor with its first row replaced by another: the last one's, negated where that exists."""
    changed = values.clone()
    changed[0] = -values[-1] if values.is_floating_point() else values[-1]
    return changed


def _same(one: Tensor, two: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Return whether two tensors agree to a small part of their largest finite value."""
    largest = two.double().abs().nan_to_num(0.0, 0.0, 0.0).max() if two.numel() else 0.0
    return torch.allclose(one.double(), two.double(), rtol=0.0, atol=tolerance * float(largest), equal_nan=True)


@contextmanager
def _seeded(module: nn.Module, seed: int) -> Iterator[None]:
    """Fix torch's generators inside the block, and put them back afterwards."""
    devices = sorted({values.device.index for values in module.parameters() if values.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Switch dropout off, and put modes and buffers back afterwards."""
    dropouts = [layer for layer in module.modules() if isinstance(layer, _DropoutNd) and layer.training]
    buffers = [(values, values.clone()) for values in module.buffers()]
    for layer in dropouts:
        layer.training = False
    try:
        yield
    finally:
        for layer in dropouts:
            layer.training = True
        with torch.no_grad():
            for values, before in buffers:
                values.copy_(before)
