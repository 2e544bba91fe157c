"""The local optimiser: SGD with Nesterov momentum, the backbone at its own rate, momentum kept by parameter name."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cloister.models.l2rw.config import TrainConfig
from cloister.models.l2rw.network import ReidNetwork


def is_backbone(name: str) -> bool:
    """Return whether a parameter belongs to the backbone: everything but neck and head."""
    return not name.startswith(("neck.", "head."))


def make_optimiser(
    network: ReidNetwork, settings: TrainConfig, momenta: Mapping[str, Tensor] | None = None
) -> torch.optim.SGD:
    """Return the optimiser, its first group the backbone, its second neck and head.

    ``momenta``: momentum buffers by parameter name, as :func:`momentum_buffers` gave them; the weights they belong
    to were averaged away since, but the released code keeps them, and so do we. Rates are set by :func:`set_rate`.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if is_backbone(name)], "peak": settings.backbone_learning_rate},
        {"params": [p for name, p in named if not is_backbone(name)], "peak": settings.learning_rate},
    ]
    optimiser = torch.optim.SGD(
        groups,
        lr=0.0,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,
    )
    if settings.momentum > 0:
        # Zero is what a buffer starts from. The fused step makes none for a parameter whose first gradient comes late.
        for name, parameter in named:
            kept = (momenta or {}).get(name)
            buffer = torch.zeros_like(parameter) if kept is None else kept.to(parameter.device)
            optimiser.state[parameter]["momentum_buffer"] = buffer
    return optimiser


def momentum_buffers(network: ReidNetwork, optimiser: torch.optim.SGD) -> dict[str, Tensor]:
    """Return the momentum buffers by parameter name."""
    return {
        name: optimiser.state[parameter]["momentum_buffer"]
        for name, parameter in network.named_parameters()
        if "momentum_buffer" in optimiser.state.get(parameter, {})
    }


def set_rate(optimiser: torch.optim.SGD, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its peak."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["peak"]
