"""The one-stream network against published counts and a functional reference written from the architecture."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import ConfigError
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.network import ReidNetwork, gem
from cloister.models.l2rw.normalisation import BatchNorm, calibrate, make_norm
from cloister.models.l2rw.spec import ReidSpec

TINY = ModelConfig(width=4, blocks=(1, 2, 1, 1), image_height=64, image_width=32, num_classes=5)


def build(config: ModelConfig = TINY, seed: int = 0) -> ReidNetwork:
    return ReidSpec(config).build(torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet50() -> ReidNetwork:
    return build(ModelConfig(num_classes=395))


def test_parameter_counts_are_the_published_ones(resnet50: ReidNetwork) -> None:
    sizes = {name: parameter.numel() for name, parameter in resnet50.named_parameters()}
    assert sum(size for name, size in sizes.items() if name.startswith(("stem.", "stages."))) == 23_508_032
    assert sum(size for name, size in sizes.items() if name.startswith("neck.")) == 4_096
    assert sizes["head.weight"] == 395 * 2_048
    assert sum(buffer.numel() for buffer in resnet50.buffers()) == 57_216
    assert all(buffer.is_floating_point() for buffer in resnet50.buffers())


def test_last_stage_keeps_its_resolution(resnet50: ReidNetwork) -> None:
    seen = []
    hook = resnet50.stages[3].register_forward_hook(lambda module, inputs, output: seen.append(output[0].shape))
    with torch.no_grad():
        resnet50.eval()(torch.zeros(1, 3, 288, 144))
    hook.remove()
    assert seen == [(1, 2048, 18, 9)]


def test_initial_values(resnet50: ReidNetwork) -> None:
    weight, head = resnet50.neck.weight, resnet50.head.weight
    assert weight.mean().item() == pytest.approx(1.0, abs=1e-3)
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not resnet50.neck.bias.any()
    assert resnet50.neck.bias.requires_grad
    assert resnet50.head.bias is None
    assert head.std().item() == pytest.approx(0.001, rel=0.01)
    stem = resnet50.stem.conv.weight  # He et al., ICCV 2015, by fan-out: sqrt(2 / (7 * 7 * 64))
    assert stem.std().item() == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.02)


def test_weights_come_from_the_given_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = build(seed=3), build(seed=3), build(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    for name, values in first.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not torch.equal(first.stem.conv.weight, other.stem.conv.weight)


def reference_stage(state: dict[str, Tensor], index: int, values: Tensor, blocks: int, stride: int) -> Tensor:
    """One stage in evaluation mode (He et al., figure 5 right, stride in the 3x3 convolution), up to its last sum."""

    def norm(name: str, inputs: Tensor) -> Tensor:
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
        return inputs * scale[:, None, None] + shift[:, None, None]

    total = values
    for block in range(blocks):
        prefix, step = f"stages.{index}.blocks.{block}", stride if block == 0 else 1
        values = total.clamp_min(0) if block else values
        inner = norm(f"{prefix}.norm1", functional.conv2d(values, state[f"{prefix}.conv1.weight"])).clamp_min(0)
        inner = functional.conv2d(inner, state[f"{prefix}.conv2.weight"], stride=step, padding=1)
        inner = functional.conv2d(norm(f"{prefix}.norm2", inner).clamp_min(0), state[f"{prefix}.conv3.weight"])
        outer = values
        if block == 0:
            outer = functional.conv2d(values, state[f"{prefix}.shortcut.0.weight"], stride=step)
            outer = norm(f"{prefix}.shortcut.1", outer)
        total = norm(f"{prefix}.norm3", inner) + outer
    return total


def test_evaluation_matches_a_functional_reference() -> None:
    network = build()
    with torch.no_grad():
        for name, values in network.named_buffers():  # statistics that do something
            values.copy_(torch.rand_like(values) + (0.5 if "var" in name else -0.5))
    network.double().eval()
    state, images = network.state_dict(), torch.randn(3, 3, 64, 32, dtype=torch.float64)
    scale = state["stem.norm.weight"] / (state["stem.norm.running_var"] + 1e-5).sqrt()
    values = functional.conv2d(images, state["stem.conv.weight"], stride=2, padding=3)
    values = (values - state["stem.norm.running_mean"][:, None, None]) * scale[:, None, None]
    values = functional.max_pool2d((values + state["stem.norm.bias"][:, None, None]).clamp_min(0), 3, 2, 1)
    for index, (blocks, stride) in enumerate(zip(TINY.blocks, (1, 2, 2, 1), strict=True)):
        values = reference_stage(state, index, values, blocks, stride).clamp_min(0)
    pooled = (values.flatten(2) ** 3).mean(2).add(1e-12) ** (1 / 3)
    feature = (pooled - state["neck.running_mean"]) / (state["neck.running_var"] + 1e-5).sqrt() * state["neck.weight"]
    feature = feature + state["neck.bias"]
    output = network(images)
    torch.testing.assert_close(output.logits, feature @ state["head.weight"].T)
    unit = feature / feature.norm(dim=1, keepdim=True)
    torch.testing.assert_close(output.feature, unit.float(), check_dtype=False)
    unit = pooled / pooled.norm(dim=1, keepdim=True)
    torch.testing.assert_close(output.pooled, unit.float(), check_dtype=False)
    assert output.stages == ()


def test_training_gives_raw_features_and_five_means_before_relu() -> None:
    network = build()
    output = network(torch.randn(6, 3, 64, 32))
    assert [level.shape for level in output.stages] == [(6, 4), (6, 16), (6, 32), (6, 64), (6, 128)]
    # A batch-normalised stem has zero mean over batch and positions; behind a ReLU no mean could be negative.
    assert output.stages[0].mean(0).abs().max() < 1e-5
    assert all((level < 0).any() for level in output.stages)
    assert not torch.allclose(output.pooled.norm(dim=1), torch.ones(6), atol=1e-2)
    torch.testing.assert_close(output.logits, output.feature @ network.head.weight.T)


def test_gem_is_the_scaled_p_norm() -> None:
    values = torch.rand(2, 5, 6, 3)
    expected = functional.lp_pool2d(values, 3.0, (6, 3)).flatten(1) / 18 ** (1 / 3)
    torch.testing.assert_close(gem(values, 3.0), expected)
    assert gem(torch.zeros(1, 1, 2, 2), 3.0).item() == pytest.approx(1e-4)  # the cube root of 1e-12


@pytest.mark.parametrize("shape", [(8, 6), (4, 6, 5, 3)])
def test_batch_norm_is_pytorchs_without_the_counter(shape: tuple[int, ...]) -> None:
    ours = make_norm("averaged", 6)
    theirs = nn.BatchNorm1d(6) if len(shape) == 2 else nn.BatchNorm2d(6)
    for _ in range(3):
        values = torch.randn(shape) * 2 + 1
        torch.testing.assert_close(ours(values), theirs(values))
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(values), theirs(values))
    expected = {name: value for name, value in theirs.state_dict().items() if name != "num_batches_tracked"}
    assert set(ours.state_dict()) == set(expected)
    ours.load_state_dict({name: value.clone() for name, value in expected.items()})  # strict, without metadata


def test_frozen_batch_norm_never_moves_but_the_neck_learns() -> None:
    network = build(TINY.model_copy(update={"normalisation": "frozen"}))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    output = network.train()(torch.randn(4, 3, 64, 32))
    output.logits.square().sum().backward()
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name
    assert network.stem.norm.weight.grad is None
    assert network.neck.weight.grad is not None
    single = network(torch.randn(1, 3, 64, 32))  # no statistics of a batch are needed
    assert torch.isfinite(single.feature).all()


def test_group_norm_has_no_buffers_and_keeps_images_apart() -> None:
    network = build(TINY.model_copy(update={"normalisation": "group"}))
    assert list(network.buffers()) == []
    assert not any(isinstance(module, BatchNorm) for module in network.modules())
    images = torch.randn(3, 3, 64, 32)
    torch.testing.assert_close(network(images).feature[:1], network(images[:1]).feature)


def test_neck_bias_can_be_held_at_zero() -> None:
    assert not build(TINY.model_copy(update={"train_neck_bias": False})).neck.bias.requires_grad


def test_calibrate_stores_the_mean_of_batch_statistics() -> None:
    network = build().eval()
    batches = [torch.randn(4, 3, 64, 32) + shift for shift in (0.0, 1.0, 2.0)]
    calibrate(network, [(images, torch.zeros(4, dtype=torch.bool)) for images in batches])
    stem = [functional.conv2d(images, network.stem.conv.weight, stride=2, padding=3) for images in batches]
    means = torch.stack([values.mean((0, 2, 3)) for values in stem]).mean(0)
    variances = torch.stack([values.var((0, 2, 3)) for values in stem]).mean(0)
    torch.testing.assert_close(network.stem.norm.running_mean, means)
    torch.testing.assert_close(network.stem.norm.running_var, variances)
    assert not network.training
    assert network.stem.norm.momentum == 0.1


def test_building_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes"):
        build(TINY.model_copy(update={"num_classes": 0}))
