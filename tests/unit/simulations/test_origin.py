"""What an error about a setting names: its file, the override that set it, and its key in the table that holds it."""

from contextlib import nullcontext

import pytest

from cloister.errors import ConfigError, DataError
from cloister.simulations.origin import Origin, under

TRAIN = "settings.train.nope=1"


def said(origin: Origin, message: str, table: str = "") -> str:
    inner = under(table) if table else nullcontext()
    with pytest.raises(ConfigError) as caught, origin.named(), inner:
        raise ConfigError(message)
    return str(caught.value.args[0])


@pytest.mark.parametrize(
    ("override", "message", "named"),
    [
        (TRAIN, "unknown key 'settings.train.nope'; did you mean", True),
        ("settings.train={nope=1}", "unknown key 'settings.train.nope'; did you mean", True),
        ("strategy.mu=1", "strategy: give fraction or cohort_size, not both", False),
        ("strategy={mu=1}", "unknown key 'strategy.mu'; did you mean", True),
        ("rounds=x", "rounds: Input should be a valid integer", True),
        ("settings.train.nop=1", "unknown key 'settings.train.nope'; did you mean", False),
        ("train.nope=1", "unknown key 'settings.train.nope'; did you mean", False),
        ("rounds=2", "settings.train.peak_round: expected a round before the last, found 16 of 2 rounds", False),
        ("settings.model.blocks=[1]", "settings.model.blocks[3]: Field required", True),
    ],
)
def test_the_file_is_named_and_the_override_that_set_the_key(override: str, message: str, named: bool) -> None:
    found = said(Origin("a.toml", ("seed=1", override)), message)
    assert found == (f"a.toml, --set {override}: {message}" if named else f"a.toml: {message}")


def test_every_line_gets_its_own_source() -> None:
    origin = Origin("a.toml", (TRAIN, "rounds=0"))
    assert said(origin, "rounds: too few\nunknown key 'settings.train.nope'").splitlines() == [
        "a.toml, --set rounds=0: rounds: too few",
        f"a.toml, --set {TRAIN}: unknown key 'settings.train.nope'",
    ]


def test_keys_of_a_table_of_overrides_are_named_in_full() -> None:
    origin = Origin("a.toml", ("baselines.pooled.settings.train.nope=1",))
    found = said(origin, "unknown key 'settings.train.nope'", "baselines.pooled")
    assert found.endswith(": unknown key 'baselines.pooled.settings.train.nope'")
    assert "--set baselines.pooled.settings.train.nope=1" in found
    whole = "baselines.pooled.rounds: too few"
    assert said(Origin(), whole, "baselines.pooled") == whole
    advice = "evaluation.part: validation people are trained on; set settings.data.hold_out to true"
    assert said(Origin(), advice, "selection") == f"selection.{advice}"  # what it advises is another key


def test_other_errors_pass_as_they_are() -> None:
    with (
        pytest.raises(DataError, match=r"^\[E200\] settings.data: gone$"),
        Origin("a.toml").named(),
        under("selection"),
    ):
        raise DataError("settings.data: gone")
