"""Settings: what is taken, what is refused, and what the refusal says."""

from typing import Any

import pydantic
import pytest
from pydantic import Field

from cloister.config import Config, known_keys
from cloister.errors import ConfigError


class Optimiser(Config):
    rate: float = 0.1
    milestones: tuple[int, ...] = ()


class Training(Config):
    epochs: int = Field(1, ge=1)
    name: str = "sgd"
    nesterov: bool = False
    optimiser: Optimiser = Optimiser()
    extra: dict[str, Any] = Field(default_factory=dict)


def refusal(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Training.parse(values, "run.toml")
    return str(caught.value).removeprefix("[E100] ").splitlines()


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    assert refusal({"epoch": 3}) == ["run.toml: unknown key 'epoch'; did you mean 'epochs'?"]


def test_an_unknown_key_like_no_other_gets_the_list_of_known_ones() -> None:
    known = "epochs, extra, name, nesterov, optimiser"
    assert refusal({"zzz": 3}) == [f"run.toml: unknown key 'zzz'; known keys: {known}"]


def test_a_nested_key_is_compared_with_those_of_its_own_table() -> None:
    assert refusal({"optimiser": {"rates": 1.0}}) == [
        "run.toml: unknown key 'optimiser.rates'; did you mean 'rate'?",
    ]


def test_every_fault_gets_a_line_of_its_own() -> None:
    lines = refusal({"epochs": "3", "optimiser": {"rate": [], "step": 1}})
    assert len(lines) == 3
    assert lines[0].startswith("run.toml: epochs: Input should be a valid integer")
    assert lines[0].endswith("(found '3')")
    assert lines[1].startswith("run.toml: optimiser.rate: ")
    assert lines[2].startswith("run.toml: unknown key 'optimiser.step'")


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": "3"},
        {"epochs": 3.0},
        {"epochs": True},
        {"epochs": 0},
        {"name": 3},
        {"nesterov": 1},
        {"nesterov": "true"},
        {"optimiser": {"rate": "0.1"}},
        {"optimiser": {"rate": True}},
        {"optimiser": {"milestones": [1.5]}},
        {"optimiser": {"milestones": 1}},
        {"optimiser": 3},
    ],
)
def test_nothing_is_made_to_fit(values: dict[str, Any]) -> None:
    assert len(refusal(values)) == 1


def test_integers_are_taken_for_floats() -> None:
    rate = Training.parse({"optimiser": {"rate": 1}}, "run.toml").optimiser.rate
    assert rate == 1.0
    assert isinstance(rate, float)


def test_lists_become_tuples_at_every_depth() -> None:
    values = {"optimiser": {"milestones": [1, 2]}, "extra": {"a": {"b": [[1], [2, 3]]}}}
    config = Training.parse(values, "run.toml")
    assert config.optimiser.milestones == (1, 2)
    assert config.extra == {"a": {"b": ((1,), (2, 3))}}
    assert values["extra"] == {"a": {"b": [[1], [2, 3]]}}  # what was given is as it was


def test_a_configuration_cannot_be_changed() -> None:
    config = Training.parse({}, "run.toml")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


def test_what_is_printed_can_be_parsed() -> None:
    config = Training.parse({"epochs": 4, "optimiser": {"milestones": [3]}}, "run.toml")
    assert Training.parse(config.model_dump(), "print") == config


def test_known_keys_at_a_path() -> None:
    assert known_keys(Training, ("optimiser",)) == ["rate", "milestones"]
    assert known_keys(Training, ("extra", "a")) == list(Training.model_fields)  # beyond the models: those above
