"""Gradient inversion of the re-identification task: its network, losses and batches, with and without protection."""

import pytest
import torch
from torch import Tensor

from cloister.models.l2rw.augment import IMAGENET_MEAN, IMAGENET_STD
from cloister.models.l2rw.config import ModelConfig, Normalisation, TrainConfig
from cloister.models.l2rw.losses import training_losses
from cloister.models.l2rw.network import Output
from cloister.models.l2rw.spec import ReidSpec
from cloister.privacy.audits.inversion import Attack, LocalSteps, Simulation, reconstruct, recover_labels
from cloister.privacy.clipping import clip_flat

SHAPE = (3, 32, 32)
BATCH = (0, 1, 2, 3)
LABELS = torch.tensor([3, 3, 7, 7])  # two people, two pictures each


def loss(output: Output, labels: Tensor) -> Tensor:
    """What a camera minimises."""
    terms = training_losses(TrainConfig(), output.logits, output.feature, output.pooled, labels, None)
    return torch.stack(list(terms.values())).sum()


def prepare(images: Tensor) -> Tensor:
    return (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def camera(normalisation: Normalisation, *batches: tuple[int, ...]) -> Simulation:
    config = ModelConfig(
        blocks=(1, 1, 1, 1), width=4, image_height=32, image_width=32, num_classes=12, normalisation=normalisation
    )
    network = ReidSpec(config).build(torch.Generator().manual_seed(0)).train()
    return Simulation(network, loss, LocalSteps(batches=batches, rate=0.1), prepare=prepare)


def pictures() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(BATCH,), ((0, 2), (1, 3))])
def test_the_search_nears_a_plain_release_and_not_a_noised_one(steps: tuple[tuple[int, ...], ...]) -> None:
    client = camera("group", *steps)
    plain = client.update(pictures(), LABELS)
    draws, clipped = torch.Generator().manual_seed(2), clip_flat(plain, 1.0).values
    private = {name: value + torch.randn(value.shape, generator=draws) for name, value in clipped.items()}
    attack = Attack(iterations=25, step=0.03, total_variation=0.0)
    seen, hidden = (
        reconstruct(client, target, SHAPE, LABELS, attack, torch.Generator().manual_seed(3)).loss
        for target in (plain, private)
    )
    assert seen < 0.75
    assert hidden > seen + 0.1


def test_the_people_of_a_batch_are_read_off_the_heads_update() -> None:
    update = camera("averaged", BATCH).update(pictures(), LABELS)
    assert recover_labels(update["head.weight"], 2).tolist() == [3, 7]
