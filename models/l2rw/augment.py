"""Training images: uint8 batches to augmented, normalised float tensors.

In order (L2RW code): pad with black, random crop of the original size, horizontal flip with probability 1/2, ImageNet
normalisation, channel exchange. Visible and infrared images are treated alike.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cloister.models.l2rw.config import TrainConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.5870, 0.1140)

_COPIES = tuple(tuple(float(channel == source) for channel in range(3)) for source in range(3))
_SOURCES = {
    "rgb-copy": _COPIES,
    "rgb-copy-luma": (*_COPIES, LUMA),
    "grey": (LUMA,),
    "none": (),
}


def prepare(images: Tensor) -> Tensor:
    """Return uint8 ``[B, H, W, 3]`` as normalised float ``[B, 3, H, W]``, as the network takes it for evaluation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device)[:, None, None]
    values = images.permute(0, 3, 1, 2).contiguous().float()
    return values.mul_(1.0 / (255.0 * std)).sub_(mean / std)


def augment(
    images: Tensor, settings: TrainConfig, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Return uint8 ``[B, H, W, 3]`` in main memory as an augmented float batch ``[B, 3, H, W]`` on ``device``.

    Draws from ``generator`` (on the CPU) alone, the same number of values whatever the settings' probabilities.
    """
    cropped = crop_and_flip(images, settings.crop_padding, generator).to(device)
    return exchange(prepare(cropped), settings, generator)


def crop_and_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Return each image of ``[B, H, W, 3]`` shifted by up to ``padding`` pixels, black moving in, half of them flipped.

    One copy per image: a gather over the batch takes four to twenty times as long on a CPU.
    """
    batch, height, width, _ = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator).tolist()
    flip = (torch.rand(batch, generator=generator) < 0.5).tolist()
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    out = torch.empty_like(images)
    for index in range(batch):
        crop = padded[index, top[index] : top[index] + height, left[index] : left[index] + width]
        out[index] = crop.flip(1) if flip[index] else crop
    return out


def exchange(values: Tensor, settings: TrainConfig, generator: torch.Generator) -> Tensor:
    """Return normalised images ``[B, 3, H, W]``, some with all channels replaced by one mixture of the three.

    With ``channel_probability``, one of the sources that ``channel_augmentation`` names, equally likely: a channel,
    or luma.
    """
    batch, sources = len(values), _SOURCES[settings.channel_augmentation]
    gate = torch.rand(batch, generator=generator) < settings.channel_probability
    choice = torch.randint(0, max(1, len(sources)), (batch,), generator=generator)
    if not sources:
        return values
    mixtures = torch.tensor(sources)[choice][:, None, :].expand(-1, 3, -1)
    mix = torch.where(gate[:, None, None], mixtures, torch.eye(3)).to(values.device)
    return torch.bmm(mix, values.flatten(2)).view_as(values)
