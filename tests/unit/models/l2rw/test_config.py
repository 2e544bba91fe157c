"""Settings: the defaults are the paper's, contradictions and misspellings are named."""

from typing import Any

import pytest

from cloister.errors import ConfigError
from cloister.models.l2rw.config import CameraConfig


def test_defaults_are_the_papers() -> None:
    config = CameraConfig.parse({}, "empty")
    model, train = config.model, config.train
    assert (model.blocks, model.width, model.image_height, model.image_width, model.gem_p) == (
        (3, 4, 6, 3),
        64,
        288,
        144,
        3,
    )
    assert (model.embedding, train.batch_size) == (2048, 64)
    assert (train.learning_rate, train.backbone_learning_rate, train.momentum, train.weight_decay) == (
        0.2,
        0.02,
        0.9,
        5e-4,
    )
    assert (train.mrb_weight, train.mrb_form, train.mrb_top_k, train.centre_feature) == (1, "cosine", 4, "normalised")
    assert (train.circle_margin, train.circle_scale, train.peak_round, train.schedule_order) == (
        0.45,
        64,
        16,
        "natural",
    )


def test_lists_of_a_toml_file_are_tuples_and_round_trip() -> None:
    values = {
        "model": {"blocks": [1, 1, 1, 1]},
        "data": {"protocol": "ei", "sources": ["regdb", "llcm"], "target": "sysu-mm01"},
    }
    config = CameraConfig.parse(values, "a.toml")
    assert config.data.sources == ("regdb", "llcm")
    assert CameraConfig.parse(config.model_dump(mode="json"), "again") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"learning_rte": 0.1}}, "learning_rte.*did you mean 'learning_rate'"),
        ({"model": {"blocks": [1, 1, 1]}}, "model.blocks"),
        ({"model": {"width": "64"}}, "model.width.*found '64'"),
        ({"data": {"protocol": "ci", "sources": ["regdb"]}}, "leave sources empty"),
        ({"data": {"protocol": "ei", "sources": ["regdb", "regdb"]}}, "two different sources"),
        ({"data": {"protocol": "uci"}}, 'model.head = "local"'),
        ({"data": {"split": 11}}, "data.split"),
        ({"train": {"sampling": "balanced"}}, "has one"),
        ({"train": {"sampling": "balanced", "images_per_identity": 3}}, "odd 3"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CameraConfig.parse(values, "a.toml")
