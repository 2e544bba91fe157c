"""Sketches: linear modulo a power of two, bound to what was committed, and wrong for every wrong sum."""

import hashlib
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from cloister.errors import TranscriptError
from cloister.privacy import sketch as sketches

SEED = bytes(range(32))


def vectors(bits: int, count: int = 5, size: int = 20_000) -> list[Any]:
    generator = np.random.default_rng(bits)
    return [generator.integers(0, 2**bits, size, np.uint64).astype(sketches.word(bits)) for _ in range(count)]


def total(parts: list[Any], bits: int) -> Any:
    summed = np.zeros(parts[0].size, np.uint64)
    for part in parts:
        summed = (summed + part) & np.uint64(2**bits - 1)
    return summed.astype(sketches.word(bits))


def by_hand(vector: Any, seed: bytes, bits: int) -> tuple[int, ...]:
    """The definition, in Python's own integers."""
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(16 * vector.size))
    sums = [0] * 128
    for place, value in enumerate(vector):
        row = stream[16 * place : 16 * place + 16]
        for equation in range(128):
            if row[equation // 8] >> (7 - equation % 8) & 1:
                sums[equation] += int(value)
    return tuple(number % 2**bits for number in sums)


@pytest.mark.parametrize("bits", [1, 18, 32, 33, 64])
def test_a_sketch_is_what_its_definition_says(bits: int) -> None:
    vector = vectors(bits, 1, 300)[0]
    assert sketches.sketch(vector, SEED, bits) == by_hand(vector, SEED, bits)


@pytest.mark.parametrize("bits", [18, 32, 40, 64])
def test_sketches_add_up_to_the_sketch_of_the_sum(bits: int) -> None:
    parts = vectors(bits)
    found = sketches.added((sketches.sketch(part, SEED, bits) for part in parts), bits)
    assert found == sketches.sketch(total(parts, bits), SEED, bits)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_largest_numbers_are_summed_exactly(bits: int) -> None:
    vector = np.full(40_000, 2**bits - 1, sketches.word(bits))
    ones = sketches.sketch(np.ones(40_000, sketches.word(bits)), SEED, bits)
    assert sketches.sketch(vector, SEED, bits) == tuple(-count % 2**bits for count in ones)


@pytest.mark.parametrize("error", [1, 2**16, 2**31])
def test_every_error_shows_in_about_half_of_the_equations(error: int) -> None:
    """Also the one that a coefficient from all of Z_R misses half the time: a multiple of 2^(bits - 1)."""
    vector = vectors(32, 1)[0]
    wrong = vector.copy()
    wrong[777] += np.uint32(error)
    pairs = zip(sketches.sketch(vector, SEED, 32), sketches.sketch(wrong, SEED, 32), strict=True)
    differ = sum(a != b for a, b in pairs)
    assert 30 < differ < 98  # 64 expected, standard deviation 5.7


def test_parts_and_memory_order_do_not_matter() -> None:
    vector = vectors(32, 1)[0]
    whole = sketches.sketch(vector, SEED, 32)
    assert sketches.of_parts([vector[:8192], vector[8192:9000], vector[9000:]], SEED, 32) == whole
    assert sketches.sketch(vector.astype(np.uint64), SEED, 32) == whole
    assert sketches.sketch(np.stack([vector, vector], axis=1)[:, 0], SEED, 32) == whole


def test_the_challenge_follows_from_everything_that_it_judges() -> None:
    fixed: dict[str, Any] = {
        "run": "r",
        "round": 3,
        "layout": "aa" * 32,
        "bits": 32,
        "commitments": {"cam1": "bb" * 32, "cam2": "cc" * 32},
        "total": "dd" * 32,
    }
    seed = sketches.challenge(**fixed)
    assert len(seed) == 32
    others = [
        ("run", "s"),
        ("round", 4),
        ("layout", "ab" * 32),
        ("bits", 31),
        ("commitments", {"cam1": "bb" * 32}),
        ("commitments", {"cam1": "cc" * 32, "cam2": "bb" * 32}),
        ("total", "de" * 32),
    ]
    assert len({seed, *(sketches.challenge(**{**fixed, key: value}) for key, value in others)}) == 8
    turned = dict(reversed(fixed["commitments"].items()))
    assert sketches.challenge(**{**fixed, "commitments": turned}) == seed


def test_text_of_a_sketch() -> None:
    for bits in (20, 64):
        numbers = sketches.sketch(vectors(bits, 1, 50)[0], SEED, bits)
        text = sketches.to_hex(numbers, bits)
        assert sketches.from_hex(text, bits) == numbers
        with pytest.raises(TranscriptError, match="128 numbers"):
            sketches.from_hex(text[2:], bits)


def test_the_digest_is_of_little_endian_words() -> None:
    vector = np.array([1, 2, 2**18 - 1], np.uint64)
    expected = hashlib.sha256(bytes.fromhex("0100000002000000ffff0300")).hexdigest()
    assert sketches.vector_digest(vector, 18) == expected
    assert sketches.vector_digest(vector.astype(">u4"), 18) == expected
    assert sketches.vector_digest(vector, 40) != expected


@pytest.mark.parametrize("vector", [np.array([2**18], np.uint32), np.array([1], np.int64), np.array([1.0])])
def test_vectors_that_are_not_reduced_are_refused(vector: Any) -> None:
    with pytest.raises(TranscriptError, match="expected unsigned integers below 2\\^18"):
        sketches.vector_digest(vector, 18)
