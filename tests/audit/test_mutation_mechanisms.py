"""Broken twins of the Gaussian mechanisms, each attacked from outside, must be caught; the sound ones must pass.

Two worlds differ in one client, the canary, whose update, records and weight the attacker has chosen; the attacker also
knows everybody else's. Each run starts from a key of its own. The attacker scores what is released, and a lower bound
on epsilon is computed from the scores of many runs of either world. A twin is caught when the bound is above what the
mechanism claims.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cloister.privacy.audits.bounds import epsilon_from_scores
from cloister.privacy.clipping import clip_flat
from cloister.privacy.events import Relation, Unit
from cloister.privacy.gaussian import exact_epsilon
from cloister.privacy.local import LocalGaussian, noised_centres
from cloister.privacy.noise import NoiseSource

BOUND, NOISE_MULTIPLIER, CAP, ROUNDS, DELTA = 0.5, 2.0, 10.0, 2, 1e-5
RUNS, ROOT = 500, NoiseSource(bytes(range(32)))
DIRECTION = np.array([0.6, 0.8, 0.0])
ACROSS = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Client:
    """An update for each round and a number of records."""

    updates: tuple[np.ndarray, np.ndarray]
    records: float = 5.0


OTHERS = [
    Client((-9 * DIRECTION, -9 * DIRECTION)),
    Client((0.1 * ACROSS, -0.1 * ACROSS), 30.0),
    Client((ACROSS, ACROSS)),
]
CANARY = Client((1e3 * DIRECTION, 1e3 * DIRECTION), 1000.0)  # far beyond the clip and the cap, against the others
ONCE = Client((1e3 * DIRECTION, 0 * DIRECTION), 1000.0)  # in the first round only


class Sound:
    """The sum of clipped, weighted updates plus noise, as a trusted server would release it in each round."""

    def __init__(self, source: NoiseSource) -> None:
        self.source = source

    def released(self, clients: list[Client]) -> np.ndarray:
        return np.stack([self.total(clients, round) + self.noise(round) for round in range(ROUNDS)])

    def total(self, clients: list[Client], round: int) -> np.ndarray:
        parts = [self.weight(client) * self.clipped(client.updates[round]) for client in clients]
        return np.asarray(np.sum(parts, axis=0))

    def clipped(self, update: np.ndarray) -> np.ndarray:
        return np.asarray(clip_flat({"update": update}, BOUND).values["update"])

    def weight(self, client: Client) -> float:
        return min(client.records / CAP, 1.0)

    def noise(self, round: int) -> np.ndarray:
        return self.source.fork("round", round).gaussian(3, NOISE_MULTIPLIER * BOUND)


class NoiseOff(Sound):
    def noise(self, round: int) -> np.ndarray:
        return np.zeros(3)


class NoiseTenth(Sound):
    def noise(self, round: int) -> np.ndarray:
        return super().noise(round) / 10


class ClipOff(Sound):
    def clipped(self, update: np.ndarray) -> np.ndarray:
        return update


class ClipAfterSum(Sound):
    """Clips the mean to the bound, as if that bounded a client's part in it."""

    def total(self, clients: list[Client], round: int) -> np.ndarray:
        number = len(OTHERS)
        mean = np.sum([self.weight(client) * client.updates[round] for client in clients], axis=0) / number
        return number * self.clipped(mean)


class NoiseOnce(Sound):
    """The same noise in both rounds."""

    def noise(self, round: int) -> np.ndarray:
        return super().noise(0)


class WeightsUnbounded(Sound):
    def weight(self, client: Client) -> float:
        return client.records / CAP


def both(released: np.ndarray) -> float:
    return float((released @ DIRECTION).sum())


def difference(released: np.ndarray) -> float:
    return float((released[0] - released[1]) @ DIRECTION)


def attacked(
    make: Callable[[NoiseSource], Sound],
    score: Callable[[np.ndarray], float],
    canary: Client,
    runs: int = RUNS,
    audit: int = 0,
) -> float:
    """The lower bound on epsilon that an attacker with this score and this canary proves."""

    def world(clients: list[Client], name: str) -> np.ndarray:
        sources = (ROOT.fork(audit, name, run) for run in range(runs))
        return np.array([score(make(source).released(clients)) for source in sources])

    return epsilon_from_scores(world([*OTHERS, canary], "with"), world(OTHERS, "without"), delta=DELTA)


CLAIM = exact_epsilon(NOISE_MULTIPLIER / ROUNDS**0.5, DELTA)


@pytest.mark.parametrize(
    ("broken", "score", "canary"),
    [
        (NoiseOff, both, CANARY),
        (NoiseTenth, both, CANARY),
        (ClipOff, both, CANARY),
        (ClipAfterSum, both, CANARY),
        (NoiseOnce, difference, ONCE),
        (WeightsUnbounded, both, CANARY),
    ],
)
def test_a_broken_sum_is_caught(broken: type[Sound], score: Callable[[np.ndarray], float], canary: Client) -> None:
    assert attacked(broken, score, canary) > CLAIM


@pytest.mark.parametrize(("score", "canary"), [(both, CANARY), (difference, ONCE)])
def test_the_sound_sum_passes_the_same_attacks(score: Callable[[np.ndarray], float], canary: Client) -> None:
    assert attacked(Sound, score, canary) <= CLAIM


@pytest.mark.slow
def test_the_attack_on_the_sound_sum_sees_something() -> None:
    """So that passing is no sign of blindness: the canary moves the score by 0.7 standard deviations."""
    assert attacked(Sound, both, CANARY, runs=1500) > 0.2


@pytest.mark.slow
def test_fewer_than_one_sound_sum_in_twenty_is_accused() -> None:
    audits = 40
    accused = [audit for audit in range(audits) if attacked(Sound, both, CANARY, runs=50, audit=audit + 1) > CLAIM]
    assert len(accused) < audits / 20


# Noise of each client's own: what two clients release must not share any.


def local_scores(value: float, *, same_seed: bool) -> np.ndarray:
    """The difference of what the canary and a client whose value the attacker knows release."""
    mechanism = LocalGaussian(
        bound=BOUND, noise_multiplier=NOISE_MULTIPLIER, unit=Unit.CLIENT, relation=Relation.REPLACE_ONE
    )

    def difference(source: NoiseSource) -> float:
        released = [
            mechanism.release(np.array([each]), source.fork("round", 1) if same_seed else source.fork("round", 1, name))
            for name, each in (("canary", value), ("known", 0.1))
        ]
        return float(released[0][0] - released[1][0])

    return np.array([difference(ROOT.fork("local", str(value), run)) for run in range(RUNS)])


@pytest.mark.parametrize("same_seed", [True, False])
def test_the_same_seed_on_all_clients_is_caught_and_own_noise_passes(same_seed: bool) -> None:
    found = epsilon_from_scores(
        local_scores(BOUND, same_seed=same_seed), local_scores(-BOUND, same_seed=same_seed), delta=DELTA
    )
    assert (found > exact_epsilon(NOISE_MULTIPLIER, DELTA)) == same_seed


# Class centres: one person more, with records of two classes.

SETTINGS: dict[str, Any] = {
    "classes": 3,
    "bound": BOUND,
    "contributions": 1,
    "noise_multiplier": 3.0,
    "count_multiplier": 3.0,
    "least": 1,
    "unit": Unit.SUBJECT,
    "relation": Relation.ADD_REMOVE,
}
CENTRES_CLAIM = exact_epsilon(3.0 / 2**0.5, DELTA)  # sums and counts
Centres = Callable[..., tuple[np.ndarray, np.ndarray]]


def sound_centres(features: np.ndarray, labels: np.ndarray, units: np.ndarray, noise: Any) -> Any:
    found = noised_centres(features, labels, units, noise=noise, **SETTINGS)
    return found.values, found.kept


def centres_of_records(features: np.ndarray, labels: np.ndarray, units: np.ndarray, noise: Any) -> Any:
    """Protects records and claims to protect people."""
    return sound_centres(features, labels, np.arange(len(labels)), noise)


def centres_of_held_classes(features: np.ndarray, labels: np.ndarray, units: np.ndarray, noise: Any) -> Any:
    """Gives no noise to classes that the client does not hold, and so shows which they are."""
    values, kept = sound_centres(features, labels, units, noise)
    held = np.isin(kept, labels)
    return values[held], kept[held]


class CountsInTheClear:
    """Noise on everything but counts."""

    def __init__(self, source: NoiseSource) -> None:
        self.source = source

    def permutation(self, n: int) -> np.ndarray:
        return self.source.permutation(n)

    def gaussian(self, shape: Any, std: float) -> np.ndarray:
        return np.zeros(shape) if shape == SETTINGS["classes"] else self.source.gaussian(shape, std)


def centres_with_clear_counts(features: np.ndarray, labels: np.ndarray, units: np.ndarray, noise: Any) -> Any:
    return sound_centres(features, labels, units, CountsInTheClear(noise))


LOUD = (np.tile([0.0, 50.0], (40, 1)), np.tile([1, 2], 20))  # many large records, half of a class nobody else has
QUIET = (np.array([[0.0, 0.1]]), np.array([2]))  # one small record, counted in full
Canary = tuple[np.ndarray, np.ndarray]


def centre_scores(mechanism: Centres, score: Callable[..., float], canary: Canary | None) -> np.ndarray:
    features, labels, units = np.tile([0.1, 0.0], (3, 1)), np.array([0, 0, 1]), np.array([0, 1, 2])
    if canary is not None:
        features, labels = np.concatenate([features, canary[0]]), np.concatenate([labels, canary[1]])
        units = np.concatenate([units, np.full(len(canary[1]), 9)])
    sources = (ROOT.fork("centres", int(canary is None), run) for run in range(RUNS))
    return np.array([score(*mechanism(features, labels, units, source)) for source in sources])


def along(values: np.ndarray, kept: np.ndarray) -> float:
    """The direction of the canary's features, over all rows."""
    return float(values[:, 1].sum())


def lone_class(values: np.ndarray, kept: np.ndarray) -> float:
    return float(2 in kept)


def centres_bound(mechanism: Centres, score: Callable[..., float], canary: Canary) -> float:
    members, others = (centre_scores(mechanism, score, each) for each in (canary, None))
    return epsilon_from_scores(members, others, delta=DELTA)


ATTACKS = [
    (centres_of_records, along, LOUD),
    (centres_of_held_classes, lone_class, LOUD),
    (centres_with_clear_counts, lone_class, QUIET),
]


@pytest.mark.parametrize(("broken", "score", "canary"), ATTACKS)
def test_broken_class_centres_are_caught(broken: Centres, score: Callable[..., float], canary: Canary) -> None:
    assert centres_bound(broken, score, canary) > CENTRES_CLAIM


@pytest.mark.parametrize(("score", "canary"), [attack[1:] for attack in ATTACKS])
def test_sound_class_centres_pass_the_same_attacks(score: Callable[..., float], canary: Canary) -> None:
    assert centres_bound(sound_centres, score, canary) <= CENTRES_CLAIM
