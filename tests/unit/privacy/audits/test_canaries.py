"""Canary clients: directions, cosines, and the epsilon of a sum with noise."""

import numpy as np
import pytest

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import gaussian_epsilon
from cloister.privacy.audits.canaries import Canaries, CanaryWatch, audit_canaries, flatten, unflatten

CANARIES = Canaries(seed=7, size=20_000, count=100, unused=200)
DELTA = 1e-5


def released(z: float, canaries: Canaries = CANARIES) -> np.ndarray:
    """The change of a model after one noisy sum over clients of which the canaries are a part."""
    noise = np.random.default_rng(5).normal(0, 2.0 * z, canaries.size)
    return (sum(canaries.updates(2.0)) + noise) / 300


def test_directions_are_repeatable_unit_vectors_and_almost_orthogonal() -> None:
    first, second = CANARIES.direction(0), CANARIES.direction(1)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert (first == CANARIES.direction(0)).all()
    assert abs(first @ second) < 6 / np.sqrt(CANARIES.size)
    assert np.linalg.norm(CANARIES.update(3, 2.5)) == pytest.approx(2.5, abs=1e-4)


def test_the_cosine_is_that_of_the_definition() -> None:
    change = np.random.default_rng(0).normal(size=CANARIES.size)
    found = CANARIES.cosines(change)
    assert found.shape == (300,)
    assert found[17] == pytest.approx(CANARIES.direction(17) @ change / np.linalg.norm(change), abs=1e-6)
    assert found.std() == pytest.approx(1 / np.sqrt(CANARIES.size), rel=0.2)


@pytest.mark.parametrize("z", [1.0, 2.0])
def test_the_estimate_is_the_epsilon_of_the_noise(z: float) -> None:
    true = gaussian_epsilon(1.0, z, z, DELTA)
    canaries = Canaries(seed=7, size=20_000, count=800, unused=800)
    result = audit_canaries(canaries, canaries.cosines(released(z, canaries)), delta=DELTA, claimed=true)
    assert result.passed
    assert result.epsilon is not None
    assert 0.5 * true < result.epsilon < true
    assert result.numbers["estimate"] == pytest.approx(true, rel=0.25)
    assert result.numbers["std-unused"] == pytest.approx(result.numbers["std-expected"], rel=0.2)


def test_too_little_noise_is_caught() -> None:
    true = gaussian_epsilon(1.0, 1.0, 1.0, DELTA)
    result = audit_canaries(CANARIES, CANARIES.cosines(released(0.1)), delta=DELTA, claimed=true)
    assert not result.passed
    assert result.tpr_at_fpr["0.01"] == 1.0


def test_the_watch_keeps_the_maximum_over_rounds_and_the_whole_change() -> None:
    start, steps = np.zeros(CANARIES.size), [released(1.0), -released(2.0)]
    watch = CanaryWatch(CANARIES, start)
    watch.see(steps[0])
    watch.see(steps[0])  # a void round
    watch.see(steps[0] + steps[1])
    assert watch.rounds == 3
    expected = np.maximum(CANARIES.cosines(steps[0]), CANARIES.cosines(steps[1]))
    assert np.allclose(watch.most, expected, atol=1e-6)
    assert np.allclose(watch.final(), CANARIES.cosines(steps[0] + steps[1]), atol=1e-6)


def test_named_arrays_become_one_vector_and_back() -> None:
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array(7.0, dtype=np.float32)}
    vector = flatten(arrays, ["a", "b"])
    assert vector.tolist() == [7, 0, 1, 2, 3, 4, 5]
    back = unflatten(vector, arrays, ["a", "b"])
    assert all((back[name] == arrays[name]).all() and back[name].dtype == arrays[name].dtype for name in arrays)
    assert back["b"].shape == (2, 3)


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(AuditError, match="at least 8 used"):
        Canaries(seed=0, size=10, count=7, unused=100)
    with pytest.raises(AuditError, match="not one in use"):
        CANARIES.update(100, 1.0)
    for change in (np.zeros(CANARIES.size), np.full(CANARIES.size, np.nan), np.ones(3)):
        with pytest.raises(AuditError, match="finite change of 20000"):
            CANARIES.cosines(change)
