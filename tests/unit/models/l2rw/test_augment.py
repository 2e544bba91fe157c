"""Augmentation: every pixel where it belongs, published normalisation, exchanged channels, one generator."""

import pytest
import torch

from cloister.models.l2rw.augment import IMAGENET_MEAN, IMAGENET_STD, augment, crop_and_flip, exchange, prepare
from cloister.models.l2rw.config import TrainConfig


def images(batch: int = 40, height: int = 24, width: int = 12) -> torch.Tensor:
    return torch.randint(1, 256, (batch, height, width, 3), dtype=torch.uint8)


def test_prepare_is_scaling_then_normalising() -> None:
    batch = images(2)
    expected = (batch.permute(0, 3, 1, 2).double() / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(
        IMAGENET_STD
    )[:, None, None]
    torch.testing.assert_close(prepare(batch), expected.float())
    assert prepare(torch.zeros(1, 1, 1, 3, dtype=torch.uint8)).flatten().tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    )


def test_crops_are_windows_of_the_padded_image() -> None:
    batch, padding = images(), 3
    found = crop_and_flip(batch, padding, torch.Generator().manual_seed(0))
    offsets, flips = set(), 0
    for image, result in zip(batch, found, strict=True):
        padded = torch.zeros(30, 18, 3, dtype=torch.uint8)
        padded[3:27, 3:15] = image
        places = [
            (top, left, flip)
            for top in range(7)
            for left in range(7)
            for flip in (False, True)
            if torch.equal(
                result,
                padded[top : top + 24, left : left + 12].flip(1) if flip else padded[top : top + 24, left : left + 12],
            )
        ]
        assert len(places) == 1
        offsets.add(places[0][:2])
        flips += places[0][2]
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(7))
    assert 10 <= flips <= 30


def test_no_padding_leaves_only_the_flip() -> None:
    batch = images()
    found = crop_and_flip(batch, 0, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(1)) for a, b in zip(found, batch, strict=True))


def kinds(values: torch.Tensor, result: torch.Tensor) -> list[str]:
    luma = (values * torch.tensor([0.2989, 0.5870, 0.1140])[:, None, None]).sum(1)
    sources = {"r": values[:, 0], "g": values[:, 1], "b": values[:, 2], "luma": luma}
    found = []
    for index in range(len(values)):
        names = [
            name
            for name, source in sources.items()
            if torch.allclose(result[index], source[index].expand(3, -1, -1), atol=1e-5)
        ]
        found.append("same" if torch.equal(result[index], values[index]) else names[0])
    return found


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("rgb-copy", {"same", "r", "g", "b"}),
        ("rgb-copy-luma", {"same", "r", "g", "b", "luma"}),
        ("grey", {"same", "luma"}),
        ("none", {"same"}),
    ],
)
def test_exchanged_channels(mode: str, expected: set[str]) -> None:
    values = torch.randn(200, 3, 4, 2)
    settings = TrainConfig(channel_augmentation=mode)  # type: ignore[arg-type]
    found = kinds(values, exchange(values, settings, torch.Generator().manual_seed(0)))
    assert set(found) == expected
    if mode != "none":
        assert 70 <= found.count("same") <= 130  # probability one half of 200
        settings = TrainConfig(channel_augmentation=mode, channel_probability=1.0)  # type: ignore[arg-type]
        assert "same" not in kinds(values, exchange(values, settings, torch.Generator().manual_seed(0)))


def test_infrared_images_stay_what_they_are_under_copies() -> None:
    grey = torch.randn(20, 1, 4, 2).expand(-1, 3, -1, -1)
    assert torch.equal(exchange(grey, TrainConfig(channel_probability=1.0), torch.Generator()), grey)


def test_draws_come_from_the_generator_alone() -> None:
    batch, settings = images(), TrainConfig()
    before = torch.get_rng_state()
    first, again = (augment(batch, settings, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == (40, 3, 24, 12)
    assert not torch.equal(first, augment(batch, settings, torch.Generator().manual_seed(2)))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    augment(batch, settings, generators[0])
    augment(batch, TrainConfig(channel_augmentation="none"), generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
