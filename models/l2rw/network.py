"""The one-stream L2RW network: ResNet with an undivided last stage, GeM pooling, BatchNorm neck, bias-free head.

ResNet: He et al., CVPR 2016, with the stride in the 3x3 convolution and the last stage's stride 1. GeM: Radenovic et
al., TPAMI 2019. Neck: Luo et al., CVPR workshops 2019. Joined as in L2RW (arXiv 2503.12232, section 4.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.normalisation import BatchNorm, make_norm

MakeNorm = Callable[[int], nn.Module]
"""Makes a layer for a number of channels."""

EXPANSION = 4
GEM_EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the network says about B images.

    ``logits`` ``[B, num_classes]``. ``feature`` ``[B, D]`` behind the neck, ``pooled`` ``[B, D]`` before it; in
    evaluation both are l2-normalised, and ``feature`` is the one to rank by. ``stages``: in training, the five spatial
    means ``[B, C]`` of stem and stages before their ReLU; else empty.
    """

    logits: Tensor
    feature: Tensor
    pooled: Tensor
    stages: tuple[Tensor, ...] = ()


class Stem(nn.Module):
    """7x7 convolution of stride 2 and its normalisation; the ReLU is the caller's."""

    def __init__(self, width: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm = norm(width)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, width, H/2, W/2]``."""
        values: Tensor = self.norm(self.conv(images))
        return values


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut; the ReLU behind the sum is the caller's."""

    def __init__(self, channels: int, width: int, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        out = width * EXPANSION
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False), norm(width)
        self.conv3, self.norm3 = nn.Conv2d(width, out, 1, bias=False), norm(out)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), norm(out))

    def forward(self, values: Tensor) -> Tensor:
        """Return the sum before its ReLU."""
        inner = functional.relu(self.norm1(self.conv1(values)))
        inner = functional.relu(self.norm2(self.conv2(inner)))
        inner = self.norm3(self.conv3(inner))
        outer: Tensor = values if self.shortcut is None else self.shortcut(values)
        total: Tensor = inner + outer
        return total


class Stage(nn.Module):
    """Bottlenecks of one width; the first takes the stride. ``attention`` modules follow the last ones, one each."""

    def __init__(self, blocks: Sequence[Bottleneck], attention: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stage's output, and the last block's sum before its ReLU."""
        before, plain = values, len(self.blocks) - len(self.attention)
        for index, block in enumerate(self.blocks):
            before = block(values)
            values = functional.relu(before)
            if index >= plain:
                values = self.attention[index - plain](values)
        return values, before


def make_stages(
    config: ModelConfig, norm: MakeNorm, attention: MakeNorm | None = None, attended: Sequence[int] = (0, 0, 0, 0)
) -> list[Stage]:
    """Return the four stages, strides 1, 2, 2, 1, with ``attention`` behind the last ``attended`` blocks of each."""
    stages, channels = [], config.width
    for index, (count, stride) in enumerate(zip(config.blocks, (1, 2, 2, 1), strict=True)):
        width = config.width * 2**index
        out = width * EXPANSION
        blocks = [Bottleneck(out if block else channels, width, 1 if block else stride, norm) for block in range(count)]
        extra = [attention(out) for _ in range(min(attended[index], count))] if attention else []
        stages.append(Stage(blocks, extra))
        channels = out
    return stages


class ReidNetwork(nn.Module):
    """Everything behind the stem; subclasses bring the stem. Weights are undefined until :meth:`initialise`.

    The neck learns a scale (and a bias, as a subclass decides) under every normalisation policy: it has no
    counterpart in a pretrained network. Under ``frozen`` its statistics stay 0 and 1.
    """

    def __init__(self, config: ModelConfig, stages: list[Stage]) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(stages)
        self.neck = make_norm(config.normalisation, config.embedding)
        self.neck.get_parameter("weight").requires_grad_(True)
        self.head = nn.Linear(config.embedding, config.num_classes, bias=False)

    def enter(self, images: Tensor, infrared: Tensor | None) -> Tensor:
        """Return the stem's output before its ReLU."""
        raise NotImplementedError

    def forward(self, images: Tensor, infrared: Tensor | None = None) -> Output:
        """Return the output for normalised ``images`` ``[B, 3, H, W]``.

        ``infrared``: bool ``[B]``, which of them are infrared; only a two-stream network looks at it.
        """
        images = images.contiguous(memory_format=torch.channels_last)  # a fifth faster on a CPU, and on tensor cores
        before = self.enter(images, infrared)
        means = [before.mean((2, 3))] if self.training else []
        values = functional.max_pool2d(functional.relu(before), 3, stride=2, padding=1)
        for stage in self.stages:
            values, before = stage(values)
            if self.training:
                means.append(before.mean((2, 3)))
        pooled = gem(values, self.config.gem_p)
        feature = self.neck(pooled)
        logits = self.head(feature)
        if not self.training:
            feature = functional.normalize(feature.float(), dim=1)
            pooled = functional.normalize(pooled.float(), dim=1)
        return Output(logits=logits, feature=feature, pooled=pooled, stages=tuple(means))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Set every parameter and statistic, in module order, drawing from ``generator`` alone.

        Convolutions: He initialisation by fan-out. Normalisation: weight 1, bias 0, mean 0, variance 1, but for the
        neck's weight, N(1, 0.01). Head: N(0, 0.001). The second number is a standard deviation.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, (BatchNorm, nn.GroupNorm)):
                module.reset_parameters()
        nn.init.normal_(self.neck.get_parameter("weight"), 1.0, 0.01, generator=generator)
        nn.init.normal_(self.head.weight, 0.0, 0.001, generator=generator)


class OneStreamNetwork(ReidNetwork):
    """The L2RW network: visible and infrared images take the same way."""

    def __init__(self, config: ModelConfig) -> None:
        norm = partial(make_norm, config.normalisation)
        super().__init__(config, make_stages(config, norm))
        self.stem = Stem(config.width, norm)
        self.neck.get_parameter("bias").requires_grad_(config.train_neck_bias)

    def enter(self, images: Tensor, infrared: Tensor | None) -> Tensor:
        """Return the stem's output before its ReLU; the modality does not matter."""
        values: Tensor = self.stem(images)
        return values


def gem(values: Tensor, p: float) -> Tensor:
    """Return ``(mean_i x_i^p + 1e-12)^(1/p)`` over the positions of ``[B, C, H, W]`` >= 0, as ``[B, C]``."""
    return (values.pow(p).mean((2, 3)) + GEM_EPSILON).pow(1.0 / p)
