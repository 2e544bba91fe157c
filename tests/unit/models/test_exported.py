"""Models as folders: written, loaded, the same to the last bit; anything else refused."""

import json
from pathlib import Path

import pytest
import torch

from cloister.errors import ConfigError, WeightsError
from cloister.models.exported import CONFIG_NAME, WEIGHTS_NAME, from_pretrained, save_pretrained
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.spec import ReidSpec
from cloister.models.spec import ModelSpec


def spec(**more: object) -> ReidSpec:
    values = {"blocks": (1, 1, 1, 1), "width": 8, "image_height": 64, "image_width": 32, "num_classes": 5, **more}
    return ReidSpec(ModelConfig.parse(values, "test"))


@pytest.mark.parametrize("normalisation", ["pooled", "group", "frozen"])
@pytest.mark.parametrize("architecture", ["one-stream", "two-stream"])
def test_outputs_are_identical(tmp_path: Path, normalisation: str, architecture: str) -> None:
    made = spec(normalisation=normalisation, architecture=architecture)
    model = made.build(torch.Generator().manual_seed(7))
    with torch.no_grad():
        for name, values in model.named_buffers():
            if name.endswith("running_var"):
                values.add_(0.5)
    save_pretrained(tmp_path / "out", made, model.state_dict())
    loaded = from_pretrained(tmp_path / "out")
    assert not loaded.training
    images, infrared = torch.randn(4, 3, 64, 32), torch.tensor([True, False, True, False])
    with torch.no_grad():
        one, other = model.eval()(images, infrared), loaded(images, infrared)
    assert torch.equal(one.feature, other.feature)
    assert torch.equal(one.logits, other.logits)


def test_initial_weights_from_a_file_are_not_asked_for_again(tmp_path: Path) -> None:
    made = spec()
    model = made.build(torch.Generator().manual_seed(7))
    pretrained = ReidSpec(made.config.model_copy(update={"pretrained": "/nowhere/resnet.pth"}))
    save_pretrained(tmp_path, pretrained, model.state_dict())
    assert "nowhere" not in (tmp_path / CONFIG_NAME).read_text()
    from_pretrained(tmp_path)


def test_a_specification_without_values_leaves_weights_alone(tmp_path: Path) -> None:
    class Own(ModelSpec):
        build = groups = None  # type: ignore[assignment]

    Own.__abstractmethods__ = frozenset()
    files = save_pretrained(tmp_path, Own(), {"w": torch.ones(2)})  # type: ignore[abstract]
    assert [path.name for path in files] == [WEIGHTS_NAME]
    with pytest.raises(WeightsError, match="expected an exported model"):
        from_pretrained(tmp_path)


BROKEN = {
    "another module": lambda config: {**config, "model": "os:system"},
    "another class": lambda config: {**config, "model": "cloister.models.l2rw.config:ModelConfig"},
    "no class": lambda config: {**config, "model": "cloister.models.l2rw.spec:Nothing"},
    "no model": lambda config: {"config": config["config"]},
    "no table": lambda config: [1, 2],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_configuration_is_refused(tmp_path: Path, name: str) -> None:
    made = spec()
    save_pretrained(tmp_path, made, made.build(torch.Generator()).state_dict())
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps(BROKEN[name](config)))
    with pytest.raises(WeightsError, match="expected an exported model"):
        from_pretrained(tmp_path)


def test_a_configuration_with_an_unknown_key_names_it(tmp_path: Path) -> None:
    made = spec()
    save_pretrained(tmp_path, made, made.build(torch.Generator()).state_dict())
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    config["config"]["widht"] = 3
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="widht"):
        from_pretrained(tmp_path)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    save_pretrained(tmp_path, spec(), spec(width=16).build(torch.Generator()).state_dict())
    with pytest.raises(WeightsError, match="does not fit"):
        from_pretrained(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    made = spec()
    save_pretrained(tmp_path, made, made.build(torch.Generator()).state_dict())
    (tmp_path / WEIGHTS_NAME).write_bytes((tmp_path / WEIGHTS_NAME).read_bytes()[:-9])
    with pytest.raises(WeightsError, match="expected an exported model"):
        from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        save_pretrained(tmp_path / "file", spec(), {})
