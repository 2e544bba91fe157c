"""BatchNorm as a policy of a federation: how activations are normalised, and whose statistics are used."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cloister.models.l2rw.config import Normalisation


class BatchNorm(_BatchNorm):
    """Batch normalisation of ``[B, C]`` or ``[B, C, H, W]``, without the step counter that PyTorch's keeps.

    The counter is unused with a fixed momentum, and an average of integers over clients has no meaning.
    ``frozen``: the stored statistics are used in training too and never change, nor do weight and bias, which belong to
    them: such a layer comes out of a pretrained network.
    """

    def __init__(self, channels: int, *, frozen: bool = False) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None
        self.frozen = frozen
        self.weight.requires_grad_(not frozen)
        self.bias.requires_grad_(not frozen)

    def forward(self, values: Tensor) -> Tensor:
        """Return the normalised values, same shape."""
        batch_statistics = self.training and not self.frozen
        return functional.batch_norm(
            values,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            batch_statistics,
            self.momentum or 0.0,
            self.eps,
        )

    def reset_running_stats(self) -> None:
        """Set the statistics to mean 0 and variance 1."""
        self.get_buffer("running_mean").zero_()
        self.get_buffer("running_var").fill_(1.0)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments)  # PyTorch's would add the counter again


def make_norm(policy: Normalisation, channels: int) -> nn.Module:
    """Return the normalisation layer of ``policy`` for ``channels`` channels, its affine part 1 and 0.

    Under ``group``: at most 32 groups of at least two channels (Wu and He, ECCV 2018), also for the neck, where a
    group is a run of neighbouring features of one image.
    """
    if policy == "group":
        return nn.GroupNorm(math.gcd(32, max(1, channels // 2)), channels)
    return BatchNorm(channels, frozen=policy == "frozen")


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace BatchNorm statistics by those of ``batches``, pairs of (images, infrared mask) without labels.

    The rule for a camera that took no part in training, or for clients whose statistics never left them
    (``normalisation = "local"``): run this on the camera's first frames. Each batch weighs the same. The model is left
    in the mode it was in; frozen and GroupNorm layers are left alone.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and not module.frozen]
    momenta, mode = [norm.momentum for norm in norms], model.training
    model.train()
    try:
        for number, (images, infrared) in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1.0 / number  # the first batch replaces what was stored
            model(images, infrared)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(mode)
