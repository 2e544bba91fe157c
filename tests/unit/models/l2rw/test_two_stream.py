"""The AGW reference: its non-local blocks, its two stems, its size."""

import pytest
import torch

from cloister.errors import DataError
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.normalisation import make_norm
from cloister.models.l2rw.spec import ReidSpec
from cloister.models.l2rw.two_stream import NonLocal, TwoStreamNetwork
from cloister.models.spec import Group

TINY = ModelConfig(architecture="two-stream", width=4, blocks=(1, 2, 2, 1), num_classes=5)


def build(config: ModelConfig = TINY, seed: int = 0) -> TwoStreamNetwork:
    network = ReidSpec(config).build(torch.Generator().manual_seed(seed))
    assert isinstance(network, TwoStreamNetwork)
    return network


def test_size_at_fifty_layers() -> None:
    network = build(ModelConfig(architecture="two-stream", num_classes=395))
    backbone = sum(p.numel() for name, p in network.named_parameters() if not name.startswith(("neck.", "head.")))
    stem = 7 * 7 * 3 * 64 + 2 * 64
    blocks = sum(count * (3 * (c + 1) + 2 * c + 2 * c) for count, c in ((2, 512), (3, 1024)))
    assert backbone == 23_508_032 + stem + blocks
    assert [len(stage.attention) for stage in network.stages] == [0, 2, 3, 0]


def test_attention_never_outnumbers_blocks() -> None:
    assert [len(stage.attention) for stage in build().stages] == [0, 2, 2, 0]


def test_non_local_block_equals_the_full_affinity_matrix() -> None:
    torch.manual_seed(0)
    block = NonLocal(6, lambda channels: make_norm("averaged", channels)).eval()
    torch.nn.init.uniform_(block.norm.weight, 0.5, 2.0)
    values = torch.randn(2, 6, 5, 3)
    theta, phi, g = (layer(values).flatten(1) for layer in (block.theta, block.phi, block.g))
    affinity = theta[:, :, None] * phi[:, None, :] / 15  # [B, N, N], divided by the number of positions
    attended = (affinity @ g[:, :, None]).transpose(1, 2).reshape(2, 1, 5, 3)
    torch.testing.assert_close(block(values), values + block.norm(block.out(attended)))
    assert not torch.allclose(block(values), values)


def test_non_local_block_starts_as_the_identity() -> None:
    network, values = build(), torch.randn(2, 32, 8, 4)
    block = network.stages[1].attention[0]
    assert torch.equal(block(values), values)
    assert not block.norm.weight.any()


def test_each_modality_has_its_own_stem_and_keeps_its_place() -> None:
    network = build().eval()
    images, infrared = torch.randn(5, 3, 64, 32), torch.tensor([True, False, True, False, False])
    whole = network.enter(images, infrared)
    for index in range(5):
        stem = network.infrared if infrared[index] else network.visible
        torch.testing.assert_close(whole[index : index + 1], stem(images[index : index + 1]))
    assert not torch.allclose(network.visible(images), network.infrared(images))
    network(images, torch.ones(5, dtype=torch.bool))  # a batch of one modality


def test_a_missing_mask_is_an_error() -> None:
    with pytest.raises(DataError, match="infrared"):
        build()(torch.randn(2, 3, 64, 32))


def test_neck_bias_is_frozen() -> None:
    network = build()
    assert not network.neck.bias.requires_grad
    assert ReidSpec(TINY).groups(network)["neck.bias"] is Group.FROZEN
