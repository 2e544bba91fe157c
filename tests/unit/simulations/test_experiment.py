"""Experiments: files, presets, overrides, and that what is printed is what runs."""

from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigError
from cloister.simulations import experiment
from cloister.simulations.experiment import Experiment, merge, names, parse_override
from cloister.strategies.config import FedProxConfig, L2RWConfig

PRESETS = ("tiny", "small", "paper")
TOY = """
name = "toy"
task = "toy_task:Toy"
rounds = 4
[settings.train]
rate = 0.1
steps = [1, 2]
[strategy]
name = "fedprox"
mu = 0.5
[strategy.quorum]
replies = 0.5
[baselines.same]
[baselines.plain.strategy]
name = "fedavg"
[baselines.slow]
rounds = 9
[baselines.slow.settings.train]
rate = 0.01
[presets.tiny]
rounds = 2
[presets.tiny.settings.train]
rate = 1.0
[presets.other]
strategy = { name = "fedavg" }
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return path


def load(path: Path, *overrides: str, **values: Any) -> Experiment:
    return Experiment.load(str(path), overrides=overrides, **values)


def refusal(path: Path, *overrides: str, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, *overrides, **values)
    return str(caught.value)


# Every experiment that is shipped


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", names())
def test_a_shipped_experiment_prints_the_file_that_reproduces_it(name: str, preset: str, tmp_path: Path) -> None:
    loaded = Experiment.load(name, preset=preset, data="/data")
    assert (loaded.name, loaded.preset, loaded.data) == (name, preset, "/data")
    assert loaded.title
    printed = tmp_path / "printed.toml"
    printed.write_text(loaded.to_toml())
    again = load(printed)
    assert again == loaded
    assert again.to_toml() == loaded.to_toml()
    for baseline in loaded.baselines:
        assert again.baseline(baseline) == loaded.baseline(baseline)


def test_the_stable_names_are_shipped() -> None:
    pairs = ("l-s-to-r", "r-l-to-s", "r-s-to-l")
    expected = {"reid-ci", "reid-uci", *(f"reid-ei-{pair}" for pair in pairs), *(f"reid-es-{pair}" for pair in pairs)}
    assert expected <= set(names())


def test_presets_change_numbers_only() -> None:
    """The keys and words of the paper's run are those of every preset: one code path."""

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items() if key not in ("preset", "settings")}
        return value if isinstance(value, str) else type(value).__name__

    for name in names():
        one, *others = (shape(Experiment.load(name, preset=preset).model_dump()) for preset in PRESETS)
        assert all(other == one for other in others)


def test_a_preset_is_laid_over_the_papers_numbers() -> None:
    paper, tiny = Experiment.load("reid-ci"), Experiment.load("reid-ci", preset="tiny")
    assert paper.preset == "paper"
    assert "model" not in paper.settings
    assert tiny.settings["model"]["blocks"] == (1, 1, 1, 1)
    assert tiny.settings["data"] == paper.settings["data"]
    assert isinstance(tiny.strategy, L2RWConfig)


def test_what_extends_another_takes_its_presets_too() -> None:
    extended = Experiment.load("reid-ei-r-l-to-s", preset="tiny")
    assert extended.rounds == 24
    assert extended.settings["model"] == Experiment.load("reid-ci", preset="tiny").settings["model"]
    assert extended.settings["data"]["sources"] == ("regdb", "llcm")


# Overrides


def test_overrides_come_last(toy: Path) -> None:
    loaded = load(toy, "rounds=7", "settings.train.rate=0.3", "settings.train.rate=0.4", preset="tiny")
    assert (loaded.rounds, loaded.settings["train"]) == (7, {"rate": 0.4, "steps": (1, 2)})


def test_keywords_come_after_overrides_and_none_is_not_given(toy: Path) -> None:
    assert load(toy, "data='/a'", data="/b", seed=None).data == "/b"
    assert load(toy, "data='/a'", data=None).data == "/a"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", {"a": 3}),
        ("a = 3", {"a": 3}),
        ("a=1e-3", {"a": 1e-3}),
        ("a=true", {"a": True}),
        ("a='x y'", {"a": "x y"}),
        ('a="3"', {"a": "3"}),
        ("a=word", {"a": "word"}),
        ("a=/data/SYSU-MM01", {"a": "/data/SYSU-MM01"}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": ""}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a=['b', 'c']", {"a": ["b", "c"]}),
        ("a={b = 1}", {"a": {"b": 1}}),
        ("a.b.c=2.5", {"a": {"b": {"c": 2.5}}}),
        ("local-only.b=1", {"local-only": {"b": 1}}),
    ],
)
def test_an_override_is_a_nested_table(text: str, value: dict[str, Any]) -> None:
    assert parse_override(text) == value


@pytest.mark.parametrize("text", ["rounds", "", "=3", " = 3"])
def test_an_override_without_key_or_value_is_refused(text: str, toy: Path) -> None:
    assert f"--set {text!r}: expected key.path=value" in refusal(toy, text)


def test_a_misspelt_override_is_named(toy: Path) -> None:
    assert "unknown key 'round'; did you mean 'rounds'?" in refusal(toy, "round=3")
    assert "unknown key 'engine.worker'; did you mean 'workers'?" in refusal(toy, "engine.worker=3")
    assert "mu" in refusal(toy, "strategy.name=fedavg", "strategy.mu=0.1")
    assert "unknown key 'a'" in refusal(toy, "a..b=1")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds='3'", "rounds: Input should be a valid integer"),
        ("rounds=0", "rounds: Input should be greater than or equal to 1"),
        ("seed=-1", "seed: "),
        ("engine.name='spark'", "engine.name: Input should be 'local' or 'ray' (found 'spark')"),
        ("strategy=fedavg", "--set strategy=fedavg: strategy: Input should be a table (found 'fedavg')"),
        ("strategy.name=fedbest", "strategy.name: expected one of "),
        ("name='a/b'", "expected a name without slashes"),
        ("name=''", "expected a name without slashes"),
        ("tracking=wandb", "tracking: Input should be "),
        ("settings=3", "settings: "),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(override: str, said: str, toy: Path) -> None:
    text = refusal(toy, override)
    assert said in text
    assert str(toy) in text


# Tables


def test_tables_are_merged_key_by_key() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}
    assert merge(base, {"a": {"c": {"f": 3}}, "e": [2]}) == {"a": {"b": 1, "c": {"d": 2, "f": 3}}, "e": [2]}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}


def test_a_value_replaces_a_table_and_a_table_a_value() -> None:
    assert merge({"a": {"b": 1}}, {"a": 3}) == {"a": 3}
    assert merge({"a": 3}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_another_strategy_starts_from_its_own_parameters(toy: Path) -> None:
    assert load(toy).strategy == FedProxConfig.parse({"mu": 0.5, "quorum": {"replies": 0.5}}, "test")
    same = load(toy, "strategy.name=fedprox", "strategy.mu=0.25").strategy
    assert same.model_dump() == {**load(toy).strategy.model_dump(), "mu": 0.25}
    other = load(toy, "strategy.name=fedavg").strategy
    assert (other.name, other.quorum.replies) == ("fedavg", type(other.quorum)().replies)
    assert load(toy, preset="other").strategy.name == "fedavg"


# Presets of a file


def test_a_file_names_the_preset_that_it_means(toy: Path) -> None:
    toy.write_text('preset = "tiny"\n' + TOY)
    assert load(toy).rounds == 2
    assert load(toy, preset="paper").rounds == 4
    assert load(toy, preset="paper").preset == "paper"


def test_an_unknown_preset_is_refused_wherever_it_stands(toy: Path) -> None:
    said = "toy.toml: no preset 'tny'; expected one of tiny, other, paper"
    assert said in refusal(toy, preset="tny")
    toy.write_text('preset = "tny"\n' + TOY)
    assert said in refusal(toy)


def test_a_printed_experiment_is_one_preset_for_good(tmp_path: Path) -> None:
    printed = tmp_path / "printed.toml"
    printed.write_text(Experiment.load("reid-ci", preset="tiny").to_toml())
    assert load(printed, preset="tiny").preset == "tiny"
    for other in ("paper", "small"):
        assert f"no preset {other!r}; expected one of tiny" in refusal(printed, preset=other)


@pytest.mark.parametrize("text", ["presets = 3", "presets = []", "[presets]\ntiny = 3", "[[presets]]\nrounds = 3"])
def test_presets_that_are_no_tables_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text)
    assert "odd.toml: presets: expected one table for each, [presets.NAME]" in refusal(path)


# Files


def test_a_name_that_is_none_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"experiment 'reid-cx': no such file or name.*'reid-ci'"):
        Experiment.load("reid-cx")


def test_what_is_not_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text('name = "odd"\nrounds = \n')
    assert f"{path}: Invalid value (at line 2, column 10); expected a TOML file" in refusal(path)
    path.write_bytes(b"\xff\xfe")
    assert f"{path}: " in refusal(path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text('name = "odd"')
    text = refusal(path)
    assert all(f"{path}: {key}: Field required" in text for key in ("task", "rounds", "strategy"))


def test_a_file_beside_is_extended(toy: Path, tmp_path: Path) -> None:
    """Wherever the command is run, and before a shipped experiment of that name."""
    (tmp_path / "reid-ci").write_text(TOY)
    for base in ("toy.toml", "./toy.toml", str(toy), "reid-ci"):
        path = tmp_path / "mine.toml"
        path.write_text(f'extends = "{base}"\nname = "mine"\nseed = 3\n[strategy]\nmu = 0.75\n')
        mine = load(path)
        assert (mine.name, mine.seed, mine.rounds, mine.strategy.name) == ("mine", 3, 4, "fedprox")
        assert mine.strategy.model_dump()["mu"] == 0.75
        assert load(path, preset="tiny").rounds == 2


def test_what_extends_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "reid-cx"\nname = "mine"')
    text = refusal(path)
    assert f"{path}: extends: experiment 'reid-cx': no such file or name" in text
    assert text.count("[E100]") == 1


def test_a_circle_is_named(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.toml").write_text(f'extends = "{base}.toml"\nname = "{name}"')
    assert "b.toml: extends itself, by way of a.toml, b.toml, c.toml" in refusal(tmp_path / "a.toml")


# Baselines


def test_a_baseline_is_the_experiment_with_its_overrides(toy: Path) -> None:
    loaded = load(toy, preset="tiny")
    slow = loaded.baseline("slow")
    assert (slow.name, slow.rounds, slow.preset) == ("toy.slow", 9, "tiny")
    assert slow.settings["train"] == {"rate": 0.01, "steps": (1, 2)}
    assert slow.strategy == loaded.strategy
    assert slow.baselines == {}
    assert loaded.baseline("plain").strategy.name == "fedavg"


def test_a_baseline_that_changes_nothing_is_the_run_itself(toy: Path) -> None:
    loaded = load(toy)
    assert loaded.baseline("same").same_run(loaded)
    assert loaded.same_run(loaded.baseline("same"))
    assert not loaded.baseline("plain").same_run(loaded)
    assert not loaded.baseline("slow").same_run(loaded)
    assert not load(toy, "seed=1").same_run(loaded)
    assert not load(toy, "engine.threads=2").same_run(loaded)


def test_of_the_camera_protocols_baselines_one_is_the_run_itself() -> None:
    loaded = Experiment.load("reid-ci", preset="tiny")
    runs = {name: loaded.baseline(name) for name in loaded.baselines}
    assert [name for name, run in runs.items() if run.same_run(loaded)] == ["oracle-aligned"]
    assert runs["local-only"].strategy.name == "local-only"
    assert runs["pooled"].settings["data"]["protocol"] == "es"


def test_a_baseline_with_a_misspelt_key_is_named(toy: Path) -> None:
    toy.write_text(TOY + "[baselines.odd]\nround = 3\n")
    with pytest.raises(ConfigError, match=r"unknown key 'baselines\.odd\.round'; did you mean 'rounds'"):
        load(toy).baseline("odd")


def test_a_selection_is_not_part_of_a_baseline() -> None:
    loaded = Experiment.load("reid-ei-r-l-to-s", preset="tiny")
    assert loaded.selection
    assert loaded.baseline("local-only").selection == {}


def test_the_files_are_read_as_they_are_packaged() -> None:
    assert [path.suffix for path in experiment.FOLDER.iterdir() if path.is_file()] == [".toml"] * len(names())
