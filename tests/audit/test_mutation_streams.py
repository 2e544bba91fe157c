"""Broken matrix mechanisms, each attacked as well as anybody can, must be caught; sound ones must pass.

Two worlds differ in one unit, whose updates all have the norm of the clip and one direction, and everybody else's are
zero. The adversary sees the noisy sum of every round along that direction and knows the mechanism, broken or not. In
both worlds that is Gaussian, with the same covariance, so that no test is better than to project on one vector and
compare with a threshold (Neyman and Pearson). Coordinates of one stream are independent repetitions of the whole run.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from cloister.privacy.audits.bounds import epsilon_lower_bound
from cloister.privacy.correlated import NoiseStream, factorise
from cloister.privacy.gaussian import exact_epsilon
from cloister.privacy.matrix import Vector
from cloister.privacy.noise import NoiseSource

ROUNDS, SEPARATION, CLIP, NOISE_MULTIPLIER, DELTA = 16, 4, 0.5, 1.0, 1e-2
KINDS: dict[str, dict[str, int]] = {"banded": {"bands": 4}, "blt": {"buffers": 2}, "tree": {}, "independent": {}}
CORRELATED = ["banded", "blt", "tree"]
REGULAR = range(0, ROUNDS, SEPARATION)
RUNS, KEY = 90_000, bytes(range(32))
CLAIM = exact_epsilon(NOISE_MULTIPLIER, DELTA)
Noise = Callable[[str], Vector]


class Repeating(NoiseSource):
    """A source that gives round 6 the numbers of round 4."""

    def fork(self, *labels: str | int) -> NoiseSource:
        return super().fork(*(("round", 4) if labels == ("round", 6) else labels))


def begun(kind: str, source: NoiseSource | None = None) -> NoiseStream:
    plan: dict[str, Any] = {"rounds": ROUNDS, "separation": SEPARATION, **KINDS[kind]}
    return NoiseStream(factorise(kind, **plan), source or NoiseSource(KEY))


def drawn(stream: NoiseStream, rounds: int = ROUNDS, std: float = 0.0) -> Vector:
    """Return the noise of some rounds (rounds, runs); ``std`` 0: as the plan says."""
    std = std or stream.std(NOISE_MULTIPLIER, CLIP)
    return np.array([stream.next({"runs": (RUNS,)}, std)["runs"] for _ in range(rounds)])


def sums(rounds: Sequence[int]) -> Vector:
    """Return what a unit that takes part in these rounds adds to the sum of each round."""
    return CLIP * np.isin(np.arange(ROUNDS), rounds).astype(np.float64)


def chosen(distance: float, trials: int) -> float:
    """Return the threshold between N(0, 1) and N(distance, 1) whose counts should show the largest epsilon."""
    normal = NormalDist()
    best = (-math.inf, 0.0)
    for threshold in np.linspace(0, distance + 3, 300):
        true, false = normal.cdf(distance - threshold), normal.cdf(-threshold)
        least = true - 3.5 * math.sqrt(true / trials) - DELTA
        most = false + 3.5 * math.sqrt(false / trials) + 8 / trials
        best = max(best, (least / most, float(threshold)))
    return best[1]


def attacked(noise: Vector, difference: Vector) -> float:
    """Return the epsilon that the best test shows, at 99.9 % confidence, of a mechanism with this noise.

    ``noise`` (values seen, runs); ``difference`` (values seen): between the two worlds. A third of the runs is what
    the adversary knows of the covariance; a third plays each world.
    """
    known, without, within = np.split(noise, 3, axis=1)
    variances, axes = np.linalg.eigh(np.cov(known))
    along = axes.T @ difference
    exact = variances < 1e-9 * variances.max()  # what has no noise at all decides alone, if it differs
    if np.linalg.norm(along[exact]) > 1e-6 * np.linalg.norm(difference):
        direction = axes[:, exact] @ along[exact]
    else:
        direction = axes[:, ~exact] @ (along[~exact] / variances[~exact])
    shift, spread = direction @ difference, np.std(direction @ known)
    threshold = spread * chosen(shift / spread, within.shape[1])
    return epsilon_lower_bound(
        int((direction @ within + shift > threshold).sum()),
        within.shape[1],
        int((direction @ without > threshold).sum()),
        without.shape[1],
        delta=DELTA,
        confidence=0.999,
    )


@cache
def plain(kind: str) -> Vector:
    return drawn(begun(kind))


def resumed(kind: str) -> Vector:
    """Stop after seven rounds, and go on from the state."""
    first, second = begun(kind), begun(kind)
    before = drawn(first, 7)
    second.restore(first.state())
    return np.concatenate([before, drawn(second, ROUNDS - 7)])


def forgetful(kind: str) -> Vector:
    """Lose the state after eight rounds, but never use a source again: noisier sums, at no cost in privacy."""
    return np.concatenate([drawn(begun(kind), 8), drawn(begun(kind, NoiseSource(bytes(32))), 8)])


def uncorrelated(kind: str) -> Vector:
    """Do not apply ``C^-1``, at the sensitivity of ``C``: again noisier sums, and more private than claimed."""
    return drawn(begun("independent"), std=begun(kind).std(NOISE_MULTIPLIER, CLIP))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [REGULAR, (3, 7, 15), (0,), (2, 6, 10, 14)])
def test_a_sound_stream_passes(kind: str, rounds: Sequence[int]) -> None:
    assert attacked(plain(kind), sums(rounds)) <= CLAIM


@pytest.mark.parametrize("noise", [resumed, forgetful, uncorrelated])
@pytest.mark.parametrize("kind", CORRELATED)
def test_what_only_looks_broken_passes(kind: str, noise: Noise) -> None:
    assert attacked(noise(kind), sums(REGULAR)) <= CLAIM


@pytest.mark.parametrize("kind", ["banded", "blt", "independent"])
def test_the_attack_is_as_strong_as_the_claim_is_tight(kind: str) -> None:
    assert attacked(plain(kind), sums(REGULAR)) > 0.75 * CLAIM


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_noise_in_two_rounds_is_caught(kind: str) -> None:
    assert attacked(drawn(begun(kind, Repeating(KEY))), sums(REGULAR)) > CLAIM


@pytest.mark.parametrize("kind", CORRELATED)
def test_the_sensitivity_of_independent_noise_is_caught(kind: str) -> None:
    noise = drawn(begun(kind), std=begun("independent").std(NOISE_MULTIPLIER, CLIP))
    assert attacked(noise, sums(REGULAR)) > CLAIM


@pytest.mark.parametrize("kind", KINDS)
def test_the_sensitivity_to_one_round_is_caught(kind: str) -> None:
    noise = drawn(begun(kind), std=NOISE_MULTIPLIER * CLIP)
    assert attacked(noise, sums(REGULAR)) > CLAIM


@pytest.mark.parametrize("kind", KINDS)
def test_a_separation_that_nobody_enforces_is_caught(kind: str) -> None:
    assert attacked(plain(kind), sums(range(ROUNDS))) > CLAIM


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_begins_again_after_a_resume_is_caught(kind: str) -> None:
    noise = np.concatenate([drawn(begun(kind), 8), drawn(begun(kind), 8)])
    assert attacked(noise, sums((0, 4))) > CLAIM


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_published_twice_with_other_replies_is_caught(kind: str) -> None:
    """Round 5 is replayed with its noise, but without the unit, whose reply came too late."""
    noise, difference = plain(kind), sums((1, 5))
    assert attacked(np.vstack([noise, noise[5]]), np.append(difference, 0.0)) > CLAIM
