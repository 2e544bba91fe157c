"""Broken twins of distributed noise, attacked by a server that sees the sum, must be caught; the sound ones must pass.

The server knows every vector but the canary's, which is at the clip in one world and nothing in the other; in one
attack it has a client on its side, who tells it its noise. A lower bound on epsilon comes from the scores of many runs,
each with keys of its own. Twins that break the sum and not the secret are caught by its error.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cloister.privacy import distributed
from cloister.privacy.accounting import epsilon
from cloister.privacy.audits.bounds import epsilon_from_scores
from cloister.privacy.clipping import Clipped
from cloister.privacy.distributed import Distributed
from cloister.privacy.events import EventKind, Relation, Unit
from cloister.privacy.noise import NoiseSource
from cloister.privacy.rotation import unrotate

DELTA, RUNS, CLIENTS, SIZE = 1e-5, 200, 4, 15
SEED, ROOT = bytes(range(32)), NoiseSource(bytes(range(32)))
DIRECTION = np.zeros(SIZE)
DIRECTION[4] = 1.0
Sources = Callable[[int, int], NoiseSource]
Score = Callable[[Distributed, np.ndarray, NoiseSource], float]


def scheme(kind: type[Distributed] = Distributed, **values: Any) -> Distributed:
    common: dict[str, Any] = {
        "mechanism": EventKind.SKELLAM,
        "size": SIZE,
        "clip": 1.0,
        "bits": 14,
        "clients": CLIENTS,
        "least": CLIENTS,
        "noise_multiplier": 2.0,
        "unit": Unit.CLIENT,
        "relation": Relation.ZERO_OUT,
    }
    return kind(**{**common, **values})


def own(run: int, client: int) -> NoiseSource:
    return ROOT.fork("run", run, "client", client)


def shared(run: int, client: int) -> NoiseSource:
    return ROOT.fork("run", run)


def wrapped(plan: Distributed, parts: list[np.ndarray]) -> np.ndarray:
    return (np.sum(parts, axis=0, dtype=np.int64) % (1 << plan.bits)).astype(np.uint32)


def along(plan: Distributed, total: np.ndarray, told: NoiseSource) -> float:
    """How far the sum has moved in the canary's direction."""
    return float(plan.decode(total, SEED).vector @ DIRECTION)


def with_a_client(plan: Distributed, total: np.ndarray, told: NoiseSource) -> float:
    """The same, if everybody's noise is that of the client who told the server its key."""
    noise = plan.encode(np.zeros(plan.size), told, SEED).astype(np.int64)
    return along(plan, wrapped(plan, [total.astype(np.int64) - plan.clients * noise]), told)


def votes(plan: Distributed, total: np.ndarray, told: NoiseSource) -> float:
    return plan.decode(total, SEED).bits


def attacked(
    plan: Distributed,
    score: Score = along,
    *,
    canary: np.ndarray = 1e3 * DIRECTION,
    bit: float = 0.0,
    sources: Sources = own,
    noisy: int | None = None,
) -> float:
    """The lower bound on epsilon of a sum to which only so many clients add noise, the canary first."""

    def world(there: int) -> np.ndarray:
        scores = []
        for run in range(there * RUNS, (there + 1) * RUNS):
            parts = [plan.encode(canary * there, sources(run, 0), SEED, bit=bit * there)]
            parts += [
                plan.encode(np.zeros(SIZE), sources(run, client), SEED) for client in range(1, noisy or plan.clients)
            ]
            scores.append(score(plan, wrapped(plan, parts), sources(run, 1)))
        return np.array(scores)

    return epsilon_from_scores(world(1), world(0), delta=DELTA)


def claim(plan: Distributed) -> float:
    return epsilon([plan.event()], DELTA)


def noise_of(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], int]) -> None:
    """Let every client draw noise of another standard deviation, in steps, than the scheme says; none for 0."""

    def changed(draw: Any) -> Any:
        def drawn(std: int, n: int, source: NoiseSource) -> np.ndarray:
            return np.asarray(draw(change(std), n, source)) if change(std) else np.zeros(n, np.int64)

        return drawn

    table = {kind: (changed(draw), most) for kind, (draw, most) in distributed._SAMPLERS.items()}
    monkeypatch.setattr(distributed, "_SAMPLERS", table)


def unclipped(update: Any, bound: float) -> Any:
    return Clipped(dict(update), 0.5)


# What the server learns.


@pytest.mark.parametrize(("mechanism", "clients"), [(EventKind.SKELLAM, 4), (EventKind.DISCRETE_GAUSSIAN, 1)])
def test_the_sound_sum_passes(mechanism: EventKind, clients: int) -> None:
    plan = scheme(mechanism=mechanism, clients=clients, least=clients)
    assert attacked(plan) <= claim(plan)


def test_the_attack_sees_a_canary_that_little_noise_hides() -> None:
    """So that passing is no sign of blindness: a third of the noise, claimed as such, is measured to be no more."""
    plan = scheme(noise_multiplier=0.6)
    assert 1.2 < attacked(plan) <= claim(plan)


def test_a_client_on_the_servers_side_does_not_help_against_noise_of_everybodys_own() -> None:
    plan = scheme()
    assert attacked(plan, with_a_client) <= claim(plan)


def test_one_seed_for_all_clients_is_caught() -> None:
    plan = scheme()
    assert attacked(plan, with_a_client, sources=shared) > claim(plan)


def test_no_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = scheme()
    noise_of(monkeypatch, lambda std: 0)
    assert attacked(plan) > claim(plan)


def test_sigma_over_n_where_sigma_over_its_root_is_accounted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = scheme(clients=16, least=16)
    noise_of(monkeypatch, lambda std: round(std / 4))
    assert attacked(plan) > claim(plan)


def test_vectors_that_are_not_clipped_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "clip_flat", unclipped)
    plan = scheme()
    assert attacked(plan, canary=10 * DIRECTION) > claim(plan)


def test_shares_that_are_missing_are_caught_unless_they_are_planned_for() -> None:
    """15 of 16 clients send vectors without noise, or drop out: what is left hides a quarter as well."""
    blind = scheme(clients=16, least=16)
    planned = scheme(clients=16, least=16, dishonest=15)
    assert attacked(blind, noisy=1) > claim(blind)
    assert attacked(planned, noisy=1) <= claim(planned)


class ForgetsTheBit(Distributed):
    """Noise for the vector alone, with a bit beside it."""

    @property
    def bound(self) -> float:
        return self.clip


@pytest.mark.parametrize("kind", [Distributed, ForgetsTheBit])
def test_a_bit_outside_the_budget_is_caught_and_one_inside_passes(kind: type[Distributed]) -> None:
    plan = scheme(kind, size=SIZE, bits_noise=1.02)
    found = attacked(plan, votes, canary=0 * DIRECTION, bit=0.5)
    assert (found > claim(plan)) == (kind is ForgetsTheBit)


# What the bound on a rounded vector needs.


def once(scaled: np.ndarray, bound: float, source: NoiseSource) -> np.ndarray:
    low = np.floor(scaled)
    return (low + (source.uniform(scaled.size) < scaled - low)).astype(np.int64)


def upwards(scaled: np.ndarray, bound: float, source: NoiseSource) -> np.ndarray:
    return np.asarray(np.copysign(np.ceil(np.abs(scaled)), scaled).astype(np.int64))


@pytest.mark.parametrize("rounded", [None, once, upwards])
def test_rounding_without_the_condition_on_the_norm_is_caught(monkeypatch: pytest.MonkeyPatch, rounded: Any) -> None:
    """256 halves: the vector that rounding lengthens most, as a client may have it."""
    plan = scheme(size=256, bits=8, clients=38, least=16)
    assert plan.scale == pytest.approx(8)
    noise_of(monkeypatch, lambda std: 0)
    if rounded:
        monkeypatch.setattr(distributed, "_rounded", rounded)
    halves = unrotate(np.full(256, 0.5 / plan.scale), SEED, 256)
    sent = [plan.encode(halves, own(run, 0), SEED).astype(np.int64) for run in range(300)]
    longest = max(int((steps**2).sum()) for steps in (np.where(one < 128, one, one - 256) for one in sent))
    assert (longest > plan.l2**2) == (rounded is not None)


# What makes the sum useless.


def error(plan: Distributed) -> float:
    """Root mean square error of the sum of one spike at the clip at every client, in parts of what noise explains."""
    spike = np.zeros(plan.size)
    spike[3] = 1.0
    parts = [plan.encode(spike, own(0, client), SEED) for client in range(CLIENTS)]
    errors = plan.decode(wrapped(plan, parts), SEED).vector - CLIENTS * spike
    return float(np.sqrt((errors**2).mean())) / plan.noise_multiplier


def unrotated(vector: np.ndarray, seed: bytes) -> np.ndarray:
    return np.pad(vector, (0, distributed.padded(vector.size) - vector.size))


def wide() -> Distributed:
    return scheme(size=4000, noise_multiplier=0.05)


def test_the_sound_sum_errs_by_its_noise() -> None:
    assert error(wide()) == pytest.approx(1, rel=0.1)


def test_a_spike_that_is_not_rotated_wraps_and_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rotate", unrotated)
    monkeypatch.setattr(distributed, "unrotate", lambda rotated, seed, size: rotated[:size])
    assert error(wide()) > 1.1


def test_a_modulus_that_is_too_small_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = distributed.fitting_scale
    monkeypatch.setattr(distributed, "fitting_scale", lambda *arguments: 8 * fitting(*arguments))
    assert error(wide()) > 1.1


def test_a_rotation_that_is_not_the_same_for_all_is_caught() -> None:
    plan = wide()
    parts = [plan.encode(np.ones(4000), own(0, client), bytes([client]) * 32) for client in range(CLIENTS)]
    errors = plan.decode(wrapped(plan, parts), SEED).vector - CLIENTS / math.sqrt(4000)
    assert np.sqrt((errors**2).mean()) / plan.noise_multiplier > 1.1
