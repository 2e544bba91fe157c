"""Client-level noise on sums, sound and broken: canary clients tell which is which.

A federation of 30 clients and 150 canaries over two rounds. Canaries send five times the bound, as a malicious or
unlucky client would, in the first round only or in both. Claimed is the exact epsilon of two Gaussian releases.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from cloister.privacy.audits.canaries import Canaries, audit_canaries
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.clipping import clip_flat
from cloister.privacy.gaussian import exact_epsilon
from cloister.privacy.noise import NoiseSource

Array = NDArray[np.float64]

CLIP, Z, DELTA, CLIENTS = 2.0, 1.5, 1e-5, 30
CANARIES = Canaries(seed=11, size=6000, count=150, unused=150)
KEY = NoiseSource(b"client-level noise of two rounds")
CLAIM = exact_epsilon(Z / math.sqrt(2), DELTA)


@dataclass(frozen=True)
class Federation:
    """Two rounds of clip, weigh, sum, noise; every field is a place where implementations go wrong."""

    clip: Callable[[Array], Array] = lambda update: clip_flat({"w": update}, CLIP).values["w"]
    clip_sum: Callable[[Array], Array] = lambda total: total
    weight: float = 1.0
    noise: float = Z * CLIP
    noise_of_round: Callable[[int], int] = lambda number: number

    def release(self, number: int, *, canaries: bool) -> Array:
        draws = KEY.fork("updates", number)
        total = sum(self.clip(draws.gaussian(CANARIES.size, 0.01)) for _ in range(CLIENTS))
        if canaries:
            # a canary's weight is its number of records, which is what a broken federation does not bound
            total = total + sum(self.weight * self.clip(update) for update in CANARIES.updates(5 * CLIP))
        released = self.clip_sum(np.asarray(total, dtype=np.float64))
        if self.noise:
            source = KEY.fork("noise", self.noise_of_round(number))
            released = released + source.gaussian(CANARIES.size, self.noise)
        return released


def both_rounds(federation: Federation) -> AuditResult:
    """Canaries in both rounds, seen in the final model."""
    change = federation.release(1, canaries=True) + federation.release(2, canaries=True)
    return audit_canaries(CANARIES, CANARIES.cosines(change), delta=DELTA, claimed=CLAIM)


def one_round(federation: Federation) -> AuditResult:
    """Canaries in the first round only, seen in the difference of the two releases."""
    change = federation.release(1, canaries=True) - federation.release(2, canaries=False)
    return audit_canaries(CANARIES, CANARIES.cosines(change), delta=DELTA, claimed=CLAIM)


SOUND = Federation()
BROKEN = {
    "noise off": replace(SOUND, noise=0.0),
    "noise a tenth": replace(SOUND, noise=SOUND.noise / 10),
    "noise for a bound of 1": replace(SOUND, noise=Z / 4),
    "clip off": replace(SOUND, clip=lambda update: update),
    "clip after the sum": replace(
        SOUND,
        clip=lambda update: update,
        clip_sum=lambda total: clip_flat({"w": total}, CLIP * (CLIENTS + CANARIES.count)).values["w"],
    ),
    "weights unbounded": replace(SOUND, weight=6.0),
    "noise once for two releases": replace(SOUND, noise_of_round=lambda number: 0),
}


def test_sound_sums_pass_and_the_attack_is_no_straw_man() -> None:
    final = both_rounds(SOUND)
    assert final.passed
    assert one_round(SOUND).passed
    assert final.numbers["estimate"] == pytest.approx(CLAIM, rel=0.4)
    assert final.epsilon is not None
    assert final.epsilon > 0.3 * CLAIM


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sums_are_caught(name: str) -> None:
    assert not all(attack(BROKEN[name]).passed for attack in (both_rounds, one_round))
