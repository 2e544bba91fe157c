"""The two-stream AGW network, the reference for pooled training (Ye et al., TPAMI 2021).

A stem for each modality, shared stages, five non-local blocks, GeM pooling, a neck whose bias is never trained.
"""

from functools import partial

import torch
from torch import Tensor, nn

from cloister.errors import DataError
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.network import MakeNorm, ReidNetwork, Stem, make_stages
from cloister.models.l2rw.normalisation import make_norm

NON_LOCAL_BLOCKS = (0, 2, 3, 0)
_PROJECTION_STD = 0.01


class NonLocal(nn.Module):
    """Non-local block with a bottleneck of one channel, the affinity divided by the number of positions.

    ``out_i = x_i + norm(W y_i)``, ``y_i = 1/N sum_j theta(x_i) phi(x_j) g(x_j)`` (Wang et al., CVPR 2018, dot-product
    form). With one channel the affinity matrix has rank one, so the sum over j is taken once instead of N times.
    The norm starts at zero: the block begins as the identity.
    """

    def __init__(self, channels: int, norm: MakeNorm) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, 1, 1)
        self.phi = nn.Conv2d(channels, 1, 1)
        self.g = nn.Conv2d(channels, 1, 1)
        self.out = nn.Conv2d(1, channels, 1)
        self.norm = norm(channels)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[B, C, H, W]`` of the same shape."""
        summary = (self.phi(values) * self.g(values)).mean((2, 3), keepdim=True)
        change: Tensor = self.norm(self.out(self.theta(values) * summary))
        return values + change


class TwoStreamNetwork(ReidNetwork):
    """The AGW network: a stem for visible and one for infrared images, everything behind them shared."""

    def __init__(self, config: ModelConfig) -> None:
        norm = partial(make_norm, config.normalisation)
        super().__init__(config, make_stages(config, norm, partial(NonLocal, norm=norm), NON_LOCAL_BLOCKS))
        self.visible = Stem(config.width, norm)
        self.infrared = Stem(config.width, norm)
        self.neck.get_parameter("bias").requires_grad_(False)

    def enter(self, images: Tensor, infrared: Tensor | None) -> Tensor:
        """Return the stems' outputs before their ReLU, in the order of ``images``.

        A stem whose modality is absent from the batch does not run. Raises :class:`DataError` without ``infrared``.
        """
        if infrared is None:
            raise DataError(
                "two-stream network: expected a mask that says which images are infrared, found none; "
                "pass infrared, or use a one-stream network"
            )
        order = torch.cat([(~infrared).nonzero(), infrared.nonzero()]).flatten()
        parts = [
            stem(images[mask])
            for stem, mask in ((self.visible, ~infrared), (self.infrared, infrared))
            if bool(mask.any())
        ]
        return torch.cat(parts)[order.argsort()]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """As for one stream; non-local blocks: projections N(0, 0.01), biases 0, the norm behind them 0."""
        super().initialise(generator)
        for module in self.modules():
            if isinstance(module, NonLocal):
                for projection in (module.theta, module.phi, module.g, module.out):
                    nn.init.normal_(projection.weight, 0.0, _PROJECTION_STD, generator=generator)
                    nn.init.zeros_(projection.get_parameter("bias"))
                nn.init.zeros_(module.norm.get_parameter("weight"))
                nn.init.zeros_(module.norm.get_parameter("bias"))
