"""Settings: what is taken, what is refused, and what the refusal says."""

from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import Field

from cloister.config import Config, locate
from cloister.errors import ConfigError


class Optimiser(Config):
    rate: float = 0.1
    milestones: tuple[int, ...] = ()


class Flat(Config):
    mode: Literal["flat"] = "flat"
    bound: float = 1.0


class Layered(Config):
    mode: Literal["layered"] = "layered"
    bounds: dict[str, float] = Field(default_factory=dict)


Clip = Annotated[Flat | Layered, Field(discriminator="mode")]


class Training(Config):
    epochs: int = Field(1, ge=1)
    name: str = "sgd"
    nesterov: bool = False
    optimiser: Optimiser = Optimiser()
    clip: Clip | None = None
    share: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 0.5
    stages: tuple[int, int] = (1, 2)
    more: tuple[Optimiser, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)


def refusal(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Training.parse(values, "run.toml")
    return str(caught.value).removeprefix("[E100] ").splitlines()


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    assert refusal({"epoch": 3}) == ["run.toml: unknown key 'epoch'; did you mean 'epochs'?"]


def test_an_unknown_key_like_no_other_gets_the_list_of_known_ones() -> None:
    known = "clip, epochs, extra, more, name, nesterov, optimiser, share, stages"
    assert refusal({"zzz": 3}) == [f"run.toml: unknown key 'zzz'; known keys: {known}"]


def test_a_nested_key_is_compared_with_those_of_its_own_table() -> None:
    assert refusal({"optimiser": {"rates": 1.0}}) == [
        "run.toml: unknown key 'optimiser.rates'; did you mean 'rate'?",
    ]


NUMBER, INTEGER = "Input should be a valid number", "Input should be a valid integer"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"clip": {"mode": "flat", "bond": 1.0}}, "unknown key 'clip.bond'; did you mean 'bound'?"),
        ({"clip": {"mode": "layered", "bound": 1.0}}, "unknown key 'clip.bound'; did you mean 'bounds'?"),
        ({"clip": {"mode": "flat", "bound": "x"}}, f"clip.bound: {NUMBER} (found 'x')"),
        ({"clip": {"mode": "layered", "bounds": {"head": "x"}}}, f"clip.bounds.head: {NUMBER} (found 'x')"),
        ({"share": 1.5}, f"share: {INTEGER}; or Input should be less than or equal to 1 (found 1.5)"),
        ({"share": "x"}, f"share: {INTEGER}; or {NUMBER} (found 'x')"),
        ({"stages": [1, "x"]}, f"stages[1]: {INTEGER} (found 'x')"),
        ({"stages": [1]}, "stages[1]: Field required (found (1,))"),
        ({"more": [{}, {"rates": 1}]}, "unknown key 'more[1].rates'; did you mean 'rate'?"),
        ({"more": [{"milestones": [3, None]}]}, f"more[0].milestones[1]: {INTEGER} (found None)"),
        ({"optimiser": 3}, "optimiser: Input should be a table (found 3)"),
        ({"optimiser": [1]}, "optimiser: Input should be a table (found (1,))"),
    ],
)
def test_a_key_inside_unions_and_lists_is_named_as_it_is_written(values: dict[str, Any], line: str) -> None:
    assert refusal(values) == [f"run.toml: {line}"]
    with pytest.raises(ConfigError) as caught:
        Training.parse(values, at="settings.train")
    full = line.replace("unknown key '", "unknown key 'settings.train.")
    assert str(caught.value) == "[E100] " + (full if full != line else f"settings.train.{line}")


def test_a_table_as_a_whole_is_named_where_its_keys_contradict_each_other() -> None:
    class Pair(Config):
        low: int = 0
        high: int = 1

        @pydantic.model_validator(mode="after")
        def _in_order(self) -> "Pair":
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    class Outer(Config):
        pair: Pair = Pair()

    for model, values, expected in ((Outer, {"pair": {"low": 2}}, "a.pair"), (Pair, {"low": 2}, "a")):
        with pytest.raises(ConfigError) as caught:
            model.parse(values, "x", at="a")
        assert str(caught.value) == f"[E100] x: {expected}: low is above high"


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
        {"optimiser": {"rate": float("inf")}},
        {"optimiser": {"rate": float("nan")}},
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
    assert locate(Training, ("optimiser", "x")) == (["optimiser", "x"], ["rate", "milestones"])
    assert locate(Training, ("extra", "a")) == (["extra", "a"], list(Training.model_fields))  # those of the last table
