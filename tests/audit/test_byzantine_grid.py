"""The grid of robust rules, of what is done before them, and of attacks, on softmax regression over skewed clients."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.errors import QuorumError
from cloister.simulations.attacks import ATTACKS
from cloister.strategies.mixing import prepared
from cloister.strategies.rules import RULES

CLIENTS, HOSTILE, CLASSES, WIDTH, RECORDS, ROUNDS = 24, 5, 5, 10, 40, 40
RATE, MOMENTUM = 0.5, 0.5
SPREAD, SKEW = 0.8, 0.4
BEFORE: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "bucketing": {"mixing": "bucketing"},
    "nnm": {"mixing": "nnm"},
    "arc + nnm": {"radius": "arc", "mixing": "nnm"},
}
STRENGTHS = {"sign-flip": 10.0, "ipm": 10.0, "alie": 1.5, "noise": 10.0}
COLUMNS = ("none", "label-flip", "backdoor", *sorted(ATTACKS.keys() - {"scaled"}))


@dataclass(frozen=True)
class World:
    """Features (clients, records, width) with a constant one, one-hot labels, and test data that all share."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    root_x: np.ndarray
    root_y: np.ndarray


def draw(generator: np.random.Generator, centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    features = centres[labels] + generator.normal(size=(*labels.shape, WIDTH))
    return np.concatenate([features, np.ones((*labels.shape, 1))], axis=-1)


@cache
def world() -> World:
    generator = np.random.default_rng(11)
    centres = SPREAD * generator.normal(size=(CLASSES, WIDTH))
    shares = generator.dirichlet(np.full(CLASSES, SKEW), size=CLIENTS)
    labels = np.stack([generator.choice(CLASSES, size=RECORDS, p=share) for share in shares])
    test, root = generator.integers(CLASSES, size=1000), generator.integers(CLASSES, size=60)
    onehot = np.eye(CLASSES)
    return World(
        draw(generator, centres, labels),
        onehot[labels],
        draw(generator, centres, test),
        test,
        draw(generator, centres, root),
        onehot[root],
    )


def triggered(x: np.ndarray) -> np.ndarray:
    marked = x.copy()
    marked[..., 0] = 6.0
    return marked


def poisoned(attack: str) -> tuple[np.ndarray, np.ndarray]:
    """The clients' data; the first ones' as an attack on data leaves them."""
    x, y = world().x.copy(), world().y.copy()
    if attack == "label-flip":
        y[:HOSTILE] = y[:HOSTILE, :, ::-1]
    if attack == "backdoor":
        x[:HOSTILE] = triggered(x[:HOSTILE])
        y[:HOSTILE] = np.eye(CLASSES)[0]
    return x, y


def gradient(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean gradient of the cross-entropy, one row per client."""
    logits = x @ weights.reshape(WIDTH + 1, CLASSES)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    errors = odds / odds.sum(axis=-1, keepdims=True) - y
    return (x.swapaxes(-1, -2) @ errors / x.shape[-2]).reshape(*x.shape[:-2], -1)


def train(rule: str, before: str, attack: str) -> np.ndarray:
    """Return the weights after all rounds; raises QuorumError where the rule refuses."""
    x, y = poisoned(attack)
    weights, momentum = np.zeros((WIDTH + 1) * CLASSES), np.zeros((CLIENTS, (WIDTH + 1) * CLASSES))
    last = np.zeros_like(weights)
    generator = np.random.default_rng(3)
    for _ in range(ROUNDS):
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient(weights, x, y)
        changes = -RATE * momentum
        own, honest = changes[:HOSTILE], changes[HOSTILE:]
        if attack in ATTACKS:
            own = ATTACKS[attack](honest, own, STRENGTHS.get(attack), generator)
        elif attack == "backdoor":
            own = ATTACKS["scaled"](honest, own, None, generator)
        keywords: dict[str, dict[str, Any]] = {
            "multikrum": {"selected": CLIENTS - HOSTILE},
            "centred-clipping": {"centre": last, "radius": 0.3},
            "fltrust": {"root": -RATE * gradient(weights, world().root_x, world().root_y)},
        }
        given = {"radius": "none", "mixing": "none", "generator": generator, **BEFORE[before]}
        vectors, malicious = prepared(np.concatenate([own, honest]), HOSTILE, **given)
        if rule == "multikrum":
            keywords[rule]["selected"] = len(vectors) - malicious
        last = RULES[rule](vectors, malicious, **keywords.get(rule, {}))
        weights = weights + last
    return weights


def accuracy(weights: np.ndarray) -> float:
    found = (world().test_x @ weights.reshape(WIDTH + 1, CLASSES)).argmax(axis=1)
    return float((found == world().test_y).mean())


def fooled(weights: np.ndarray) -> float:
    """The share of marked test records, not of class 0, that are taken for class 0."""
    others = triggered(world().test_x[world().test_y != 0])
    return float(((others @ weights.reshape(WIDTH + 1, CLASSES)).argmax(axis=1) == 0).mean())


@cache
def cell(rule: str, before: str, attack: str) -> tuple[float, float] | None:
    """Return accuracy and the share of marked records that are taken for class 0; None where the rule refuses."""
    try:
        weights = train(rule, before, attack)
    except QuorumError:
        return None
    return accuracy(weights), fooled(weights)


def score(rule: str, before: str, attack: str) -> float:
    found = cell(rule, before, attack)
    assert found is not None, (rule, before, attack)
    return found[0]


ROBUST = sorted(RULES.keys() - {"mean"})
UNMIXED = {"krum", "multikrum", "bulyan"}  # need more vectors than 24 clients in pairs are


def test_without_attackers_a_mean_learns_and_attackers_end_that() -> None:
    assert score("mean", "none", "none") > 0.75
    assert max(score("mean", "none", attack) for attack in ("ipm", "sign-flip")) < 0.2
    assert score("mean", "none", "noise") < 0.5
    assert (cell("mean", "none", "backdoor") or (0, 0))[1] > 0.9
    assert score("mean", "none", "nan") > 0.75  # what is not finite is dropped by every rule, by this one too


@pytest.mark.parametrize("rule", ROBUST)
def test_a_robust_rule_keeps_its_accuracy_under_every_attack(rule: str) -> None:
    for before in BEFORE:
        for attack in COLUMNS:
            if rule in UNMIXED and before == "bucketing":
                dropped = attack in ("nan", "inf")  # five clients fewer, and none of them hostile
                assert (cell(rule, before, attack) is not None) == dropped
                continue
            # Pairs double the share of hostile vectors, to 5 of 12; mimics are worst for whoever follows one client.
            loss, least = (0.4, 0.4) if before == "bucketing" else (0.16, 0.5)
            assert score(rule, before, attack) > score(rule, before, "none") - loss, (before, attack)
            assert score(rule, before, attack) > least, (before, attack)


@pytest.mark.parametrize("rule", ["krum", "bulyan"])
def test_mixing_repairs_rules_that_follow_few_clients_where_data_differ(rule: str) -> None:
    for attack in ("none", "mimic", "label-flip", "alie"):
        assert score(rule, "nnm", attack) > score(rule, "none", attack) + 0.03, attack


@pytest.mark.parametrize("rule", ROBUST)
def test_a_backdoor_needs_a_rule_without_outliers(rule: str) -> None:
    planted = {before: cell(rule, before, "backdoor") for before in ("none", "nnm")}
    worst = max(found[1] for found in planted.values() if found is not None)
    if rule == "centred-clipping":  # each client moves it by the radius at most, but in any direction
        assert worst > 0.3
    elif rule == "geometric-median":
        assert (planted["nnm"] or (0, 1))[1] < 0.1
    else:
        assert worst < 0.1


def table() -> Iterator[str]:
    """Yield the lines of the table in the documentation: accuracy in percent, `-` where the rule refuses."""
    yield f"| rule | before | {' | '.join(COLUMNS)} | fooled |"
    yield f"| --- | --- {'| ---: ' * (len(COLUMNS) + 1)}|"
    for rule in RULES:
        for before in BEFORE:
            found = [cell(rule, before, attack) for attack in COLUMNS]
            marked = cell(rule, before, "backdoor")
            values = [None if it is None else it[0] for it in found] + [None if marked is None else marked[1]]
            shown = " | ".join("-" if it is None else f"{100 * it:.0f}" for it in values)
            yield f"| `{rule}` | {before} | {shown} |"


def test_the_documentation_shows_what_is_measured(project: Path) -> None:
    page = (project / "docs" / "robust.md").read_text()
    shown = {tuple(row[:2]): row[2:] for row in map(cells, page.splitlines()) if len(row) == len(COLUMNS) + 3}
    for line in table():
        rule, before, *values = cells(line)
        for mine, theirs in zip(values, shown[rule, before], strict=True):
            if mine.isdigit():
                assert abs(int(mine) - int(theirs)) <= 4, line
            else:
                assert set(mine) == set(theirs) or mine == theirs, line


def cells(line: str) -> list[str]:
    return [part.strip() for part in line.strip().strip("|").split("|")]


if __name__ == "__main__":
    print("\n".join(table()))
