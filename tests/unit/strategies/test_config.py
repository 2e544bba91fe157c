"""Strategy settings: parsed by name, refused with the right hint, printable back."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from cloister.config import Config
from cloister.errors import ConfigError
from cloister.strategies.config import FedProxConfig, L2RWConfig, StrategyConfig


class Experiment(Config):
    """As an experiment embeds a strategy."""

    strategy: StrategyConfig
    rounds: int = 1


def test_the_name_chooses_the_class_on_its_own_and_inside_another_configuration() -> None:
    config = StrategyConfig.parse({"name": "fedprox", "mu": 0.5}, "x.toml")
    assert config == FedProxConfig(mu=0.5)
    experiment = Experiment.parse({"strategy": {"name": "l2rw", "weighting": "sqrt"}}, "x.toml")
    assert experiment.strategy == L2RWConfig(weighting="sqrt")
    assert Experiment.parse({"strategy": config}, "x.toml").strategy is config


@pytest.mark.parametrize("name", sorted(set(StrategyConfig.kinds) - {"fltrust", "fedbuff"}))
@pytest.mark.parametrize("more", [{}, {"cohort_size": 5}, {"fraction": 0.5, "quorum": {"replies": 2}}])
def test_what_is_printed_can_be_parsed_again(name: str, more: dict[str, Any]) -> None:
    experiment = Experiment.parse({"strategy": {"name": name, **more}}, "x.toml")
    assert Experiment.parse(experiment.model_dump(), "printed") == experiment
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


@pytest.mark.parametrize("more", [{}, {"concurrency": 9, "buffer": 2, "quorum": {"replies": 2}}])
def test_settings_of_buffers_are_printed_and_parsed_again(more: dict[str, Any]) -> None:
    experiment = Experiment.parse({"strategy": {"name": "fedbuff", **more}}, "x.toml")
    assert Experiment.parse(experiment.model_dump(), "printed") == experiment


@pytest.mark.parametrize("name", ["fltrust", "bulyan"])
def test_settings_of_robust_rules_are_printed_and_parsed_again(name: str) -> None:
    values = {
        "name": name,
        "malicious": 2,
        "mixing": "nnm",
        "clip": 1.5,
        **({"root": "a"} if name == "fltrust" else {}),
    }
    experiment = Experiment.parse({"strategy": values}, "x.toml")
    printed = experiment.model_dump()
    assert {key: printed["strategy"][key] for key in values} == values
    assert Experiment.parse(printed, "printed") == experiment
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "krum", "weighting": "examples"}, "weighting: Input should be 'uniform'"),
        ({"name": "krum", "mixing": "nmm"}, "mixing: Input should be 'none', 'bucketing' or 'nnm' (found 'nmm')"),
        ({"name": "krum", "clip": 0.0}, "greater than 0"),
        ({"name": "fltrust"}, "root: Field required"),
        ({"name": "fltrust", "root": "a", "cohort_size": 3}, "the root client must be in every cohort"),
        ({"name": "fltrust", "root": "a", "fraction": 0.5}, "the root client must be in every cohort"),
        ({"name": "fedprox", "mu2": 1}, "mu2'; did you mean 'mu'?"),
        ({"name": "fedavg", "mu": 0.1}, "mu'; known keys: centres, cohort_size"),
        ({"name": "fedprx"}, "name: expected one of bulyan, centred-clipping, fedadagrad"),
        ({"name": "fedprx"}, "did you mean 'fedprox'? (found 'fedprx')"),
        ({"name": ["fedprox"]}, "name: expected one of"),
        ({}, "name: expected one of"),
        ({"name": "fedprox", "mu": "0.1"}, "mu: Input should be a valid number (found '0.1')"),
        ({"name": "fedprox", "mu": -1.0}, "mu: Input should be greater than or equal to 0"),
        ({"name": "fedavg", "fraction": 0.0}, "fraction: Input should be greater than 0"),
        ({"name": "fedavg", "fraction": 0.5, "cohort_size": 3}, "give fraction or cohort_size, not both"),
        ({"name": "fedavg", "quorum": {"replies": 1.5}}, "less than or equal to 1"),
        ({"name": "fedavg", "quorum": {"replies": 9}, "cohort_size": 5}, "replies = 9 can never be met by cohort_size"),
        ({"name": "fedavg", "quorum": {"deadlines": 3.0}}, "quorum.deadlines'; did you mean 'deadline_s'"),
        ({"name": "krum", "centres": {"mode": "aligned"}}, "centres'; known keys: clip, cohort_size"),
        ({"name": "l2rw", "centres": {"mode": "matched"}}, "centres.mode: Input should be 'aligned' (found 'matched')"),
        (
            {"name": "fedavg", "centres": {"mode": "aligned", "tau": 0.5}},
            "centres.tau'; known keys: average, mode, width",
        ),
    ],
)
def test_bad_settings_are_refused_with_file_key_and_hint(values: dict[str, Any], message: str) -> None:
    for parse in (
        lambda: StrategyConfig.parse(values, "mine.toml", at="strategy"),
        lambda: Experiment.parse({"strategy": values}, "mine.toml"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse()
        assert message in str(caught.value)
        assert re.search(r"mine\.toml: (unknown key ')?strategy[.:]", str(caught.value))


def test_settings_load_without_torch_and_flower() -> None:
    code = (
        "import sys, json, cloister.strategies.config; "
        "print(json.dumps([name for name in ('torch', 'flwr', 'ray') if name in sys.modules]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == []
