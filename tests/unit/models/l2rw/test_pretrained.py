"""Weights from a file in the published ResNet key naming; every misfit is named and leaves the network as it was."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cloister.errors import WeightsError
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.pretrained import load, source_key
from cloister.models.l2rw.spec import ReidSpec

TINY = ModelConfig(width=4, blocks=(1, 2, 2, 1), num_classes=3)


def published(
    blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published bottleneck ResNet's state dict, from the architecture table alone."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{entry}": (channels,) for entry in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", width)
    inputs = width
    for stage, count in enumerate(blocks, start=1):
        inner = width * 2 ** (stage - 1)
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            sizes = ((inner, inputs, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1))
            for index, shape in enumerate(sizes, start=1):
                shapes[f"{prefix}.conv{index}.weight"] = shape
                norm(f"{prefix}.bn{index}", shape[0])
            if block == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * inner, inputs, 1, 1)
                norm(f"{prefix}.downsample.1", 4 * inner)
            inputs = 4 * inner
    shapes |= {"fc.weight": (classes, inputs), "fc.bias": (classes,)}
    return shapes


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) if shape else torch.tensor(7) for name, shape in shapes.items()
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "resnet.safetensors"
    save_file(weights(published((1, 2, 2, 1), 4, 10)), path)
    return path


def build(**changes: object) -> torch.nn.Module:
    return ReidSpec(TINY.model_copy(update=changes)).build(torch.Generator().manual_seed(1))


def test_names_are_those_of_the_published_fifty_layer_network() -> None:
    shapes = published()
    assert len(shapes) == 320
    learnt = {n: s for n, s in shapes.items() if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert sum(torch.Size(shape).numel() for shape in learnt.values()) == 25_557_032  # the published size
    with torch.device("meta"):
        from cloister.models.l2rw.network import OneStreamNetwork

        network = OneStreamNetwork(ModelConfig(num_classes=2))
    ours = {source_key(name): tuple(value.shape) for name, value in network.state_dict().items()}
    del ours[""]
    expected = {n: s for n, s in shapes.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    assert ours == expected


def test_every_entry_lands_in_its_place(file: Path) -> None:
    network, fresh, source = build(pretrained=str(file)), build(), weights(published((1, 2, 2, 1), 4, 10))
    state = network.state_dict()
    assert torch.equal(state["stem.norm.running_var"], source["bn1.running_var"])
    assert torch.equal(state["stages.2.blocks.1.conv2.weight"], source["layer3.1.conv2.weight"])
    assert torch.equal(state["stages.1.blocks.0.shortcut.1.bias"], source["layer2.0.downsample.1.bias"])
    for name, value in state.items():
        if name.startswith(("neck.", "head.")):
            assert torch.equal(value, fresh.state_dict()[name]), name
        else:
            assert torch.equal(value, source[source_key(name)]), name


def test_both_stems_of_two_streams_get_the_weights(file: Path) -> None:
    state = build(architecture="two-stream", pretrained=str(file)).state_dict()
    assert torch.equal(state["visible.conv.weight"], state["infrared.conv.weight"])
    assert torch.equal(state["infrared.norm.weight"], weights(published((1, 2, 2, 1), 4, 10))["bn1.weight"])
    assert not state["stages.1.attention.0.norm.weight"].any()


def test_group_norm_takes_weight_and_bias(file: Path) -> None:
    state = build(normalisation="group", pretrained=str(file)).state_dict()
    assert torch.equal(state["stem.norm.bias"], weights(published((1, 2, 2, 1), 4, 10))["bn1.bias"])


def test_pth_files_are_read_as_tensors_only(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(weights(published((1, 2, 2, 1), 4, 10)), path)
    expected = build(pretrained=str(file)).state_dict()
    for name, value in build(pretrained=str(path)).state_dict().items():
        assert torch.equal(value, expected[name])


def broken(tmp_path: Path, **changes: Tensor | None) -> Path:
    values: dict[str, Tensor | None] = {**weights(published((1, 2, 2, 1), 4, 10)), **changes}
    path = tmp_path / "broken.safetensors"
    save_file({name: value for name, value in values.items() if value is not None}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer2.1.conv1.weight": torch.zeros(8, 8, 1, 1)},
            r"layer2.1.conv1.weight: expected shape \(8, 32, 1, 1\), found \(8, 8",
        ),
        ({"bn1.running_var": None}, r"bn1.running_var: expected shape \(4,\), found no such key"),
        ({"conv1.weight": torch.zeros(4, 3, 7, 7, dtype=torch.int32)}, "conv1.weight.*int32"),
        ({"layer3.2.conv1.weight": torch.zeros(1)}, r"further keys \['layer3.2.conv1.weight'\].*model.blocks"),
    ],
)
def test_misfits_are_named_and_change_nothing(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    path, network = broken(tmp_path, **changes), build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load(network, path)
    assert str(path) in str(caught.value)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


class Payload:
    """Something that pickle would have to import."""


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    network, torn, code, wrapped = build(), *(tmp_path / name for name in ("torn.safetensors", "code.pth", "wrap.pt"))
    torn.write_bytes(b"\x00" * 9)
    torch.save({"conv1.weight": Payload()}, code)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, wrapped)
    (tmp_path / "weights.bin").write_bytes(b"")
    for path, message in (
        (torn, "does not parse"),
        (code, "does not load"),
        (wrapped, "expected a state dict of tensors"),
        (tmp_path / "missing.pth", "found none"),
        (tmp_path / "weights.bin", "ending in"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            load(network, path)
        assert str(path) in str(caught.value)
