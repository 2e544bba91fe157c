"""The rotation: the right matrix, its inverse, lengths kept, spikes spread."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from cloister.errors import PlanError
from cloister.privacy.rotation import hadamard, padded, rotate, unrotate

SEED = bytes(range(32))


@pytest.mark.parametrize("size", [1, 2, 8, 128])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_transform_is_sylvesters_matrix(size: int, kind: type) -> None:
    for column, expected in zip(np.eye(size, dtype=kind), linalg.hadamard(size), strict=True):
        hadamard(column)
        assert column.dtype == kind
        np.testing.assert_array_equal(column, expected)


def test_a_rotation_is_signs_then_the_matrix_then_the_root_of_the_length() -> None:
    stream = hashlib.shake_256(b"cloister rotation" + SEED).digest(2)
    signs = np.array([1 - 2 * (byte >> (7 - place) & 1) for byte in stream for place in range(8)])
    vector = np.array([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, 5.0, 3.0, -5.0])
    expected = linalg.hadamard(16) @ (signs * [*vector, 0, 0, 0, 0, 0]) / math.sqrt(16)
    np.testing.assert_allclose(rotate(vector, SEED), expected, atol=1e-13)
    assert len({rotate(vector, bytes([first]) * 32).tobytes() for first in range(20)}) > 10


@given(size=st.integers(1, 300), key=st.binary(min_size=32, max_size=32))
def test_what_is_rotated_comes_back_and_keeps_its_length(size: int, key: bytes) -> None:
    vector = np.random.default_rng(size).normal(size=size)
    rotated = rotate(vector, key)
    assert rotated.shape == (padded(size),)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(vector), rel=1e-12)
    np.testing.assert_allclose(unrotate(rotated, key, size), vector, atol=1e-12)
    np.testing.assert_allclose(unrotate(rotated * 3 + rotated, key, size), 4 * vector, atol=1e-12)
    assert vector[0] == np.random.default_rng(size).normal(size=size)[0]  # neither changes what it was given


def test_a_spike_is_spread_over_all_coordinates_alike() -> None:
    spike = np.zeros(1000)
    spike[7] = 32.0
    np.testing.assert_allclose(np.abs(rotate(spike, SEED)), 1.0)


def test_coordinates_have_the_variance_of_a_share_of_the_length() -> None:
    vector = np.linspace(-1, 2, 256)
    seeds = (hashlib.sha256(bytes([number // 256, number % 256])).digest() for number in range(2000))
    found = np.stack([rotate(vector, seed) for seed in seeds]) / (np.linalg.norm(vector) / 16)
    assert np.abs(found.mean(0)).max() < 6 / math.sqrt(2000)
    assert np.abs((found**2).mean(0) - 1).max() < 6 * math.sqrt(2 / 2000)
    for deviations in (2, 3, 4):
        assert (np.abs(found) > deviations).mean() < 2 * math.exp(-(deviations**2) / 2)


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)])
def test_lengths_are_padded_to_powers_of_two(size: int, expected: int) -> None:
    assert padded(size) == expected


def test_what_cannot_be_rotated_is_refused() -> None:
    with pytest.raises(PlanError, match="at least one number"):
        padded(0)
    with pytest.raises(PlanError, match=r"expected a vector, found shape \(2, 2\)"):
        rotate(np.ones((2, 2)), SEED)
    for seed in (bytes(31), bytearray(32)):
        with pytest.raises(PlanError, match="public seed of 32 bytes"):
            rotate(np.ones(2), seed)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="expected 8 numbers for a vector of 5"):
        unrotate(np.ones(4), SEED, 5)
