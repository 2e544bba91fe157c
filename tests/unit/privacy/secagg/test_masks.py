"""Masks: the published cipher, streams that cancel between two clients, and that have nothing else in common."""

import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from scipy import stats

from cloister.errors import SecureSumError
from cloister.privacy.secagg import masks
from cloister.privacy.secagg.keys import KeyPair, Secret, derive, message
from cloister.privacy.secagg.masks import Stream

SEED = bytes(range(32))
STREAM = Stream(session=b"s" * 32, round=3, layout=b"l" * 32, bits=32)
LIMIT = 1e-6  # seeds are fixed: a p-value below this is a defect, not chance


def mask(stream: Stream, length: int, seed: bytes = SEED, name: str = "update") -> np.ndarray[Any, Any]:
    vector = np.zeros(length, stream.dtype)
    stream.add(vector, Secret(seed), name)
    return vector


def chacha20(key: bytes, length: int) -> bytes:
    return Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(length))


def test_the_cipher_gives_the_published_words() -> None:
    for key, words in (
        (bytes(32), "ade0b876 903df1a0 e56a5d40 28bd8653"),
        (SEED, "7d2bfd39 6a19c5d9 7703bd8d 494adcb8"),
    ):
        assert [f"{word:08x}" for word in np.frombuffer(chacha20(key, 16), "<u4")] == words.split()


@pytest.mark.parametrize(("bits", "width"), [(1, 4), (18, 4), (32, 4), (33, 8), (64, 8)])
def test_a_mask_is_the_key_stream_of_a_key_bound_to_everything(bits: int, width: int) -> None:
    length = 70_000  # more than one chunk
    numbers = [number.to_bytes(8) for number in (3, bits, length)]
    info = message("cloister mask", b"l" * 32, b"update", *numbers)
    key = bytes(derive(Secret(SEED), salt=b"s" * 32, info=info).view())
    expected = np.frombuffer(chacha20(key, width * length), f"<u{width}") & ((1 << bits) - 1)
    assert np.array_equal(mask(dataclasses.replace(STREAM, bits=bits), length), expected)


@pytest.mark.parametrize("bits", [18, 32, 48, 64])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 1_000_000])
def test_the_masks_of_two_clients_cancel(bits: int, length: int) -> None:
    one, other = KeyPair.generate(), KeyPair.generate()
    stream = dataclasses.replace(STREAM, bits=bits)
    values = np.random.default_rng(0).integers(0, 1 << bits, (2, length), stream.dtype)
    masked = values.copy()
    stream.add(masked[0], one.agree(other.public, salt=b"session", info=b"mask"), "update")
    stream.subtract(masked[1], other.agree(one.public, salt=b"session", info=b"mask"), "update")
    modulus = stream.dtype((1 << bits) - 1)
    assert np.array_equal((masked[0] + masked[1]) & modulus, (values[0] + values[1]) & modulus)
    assert (masked <= modulus).all()
    if length >= 15:
        assert (masked[0] != values[0]).any()
        assert (masked[1] != values[1]).any()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


CHANGED: dict[str, Callable[[int], np.ndarray[Any, Any]]] = {
    "session": lambda n: mask(dataclasses.replace(STREAM, session=flipped(STREAM.session, 77)), n),
    "round": lambda n: mask(dataclasses.replace(STREAM, round=2), n),
    "layout": lambda n: mask(dataclasses.replace(STREAM, layout=flipped(STREAM.layout, 255)), n),
    "name": lambda n: mask(STREAM, n, name="updatd"),
    "first bit of the seed": lambda n: mask(STREAM, n, seed=flipped(SEED, 0)),
    "last bit of the seed": lambda n: mask(STREAM, n, seed=flipped(SEED, 255)),
    "width": lambda n: mask(dataclasses.replace(STREAM, bits=31), n),
    "length": lambda n: mask(STREAM, n + 1)[:n],
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_whatever_changes_by_a_bit_changes_every_block(changed: Callable[[int], np.ndarray[Any, Any]]) -> None:
    blocks, low = 1000, (1 << 31) - 1
    one, other = mask(STREAM, 16 * blocks) & low, changed(16 * blocks) & low
    assert (one != other).reshape(blocks, 16).any(1).all()
    differing = int(np.bitwise_count(one ^ other).sum())
    assert stats.binomtest(differing, 31 * 16 * blocks, 0.5).pvalue > LIMIT


def test_every_bit_of_the_seed_counts() -> None:
    firsts = {mask(STREAM, 4, seed=flipped(SEED, bit)).tobytes() for bit in range(256)}
    assert len(firsts | {mask(STREAM, 4).tobytes()}) == 257


def test_flowers_masks_have_32_bits_of_seed_and_miss_the_largest_value_and_these_do_not() -> None:
    """The reason why this module exists: two seeds whose words have the same exclusive or give Flower the same mask."""
    other = flipped(flipped(SEED, 0), 32)
    one, two = (pseudo_rand_gen(seed, 4, [(1000,)])[0] for seed in (SEED, other))
    assert np.array_equal(one, two)
    assert one.max() == 2  # of 0 to 3
    stream = dataclasses.replace(STREAM, bits=2)
    assert not np.array_equal(mask(stream, 1000), mask(stream, 1000, seed=other))
    assert mask(stream, 1000).max() == 3


def test_names_and_layouts_do_not_run_into_each_other() -> None:
    one = mask(dataclasses.replace(STREAM, layout=b"ab"), 16, name="c")
    assert not np.array_equal(one, mask(dataclasses.replace(STREAM, layout=b"a"), 16, name="bc"))


@pytest.mark.parametrize(("bits", "pad"), [(4, 4), (32, 32), (64, 64)])
def test_a_masked_vector_is_uniform(bits: int, pad: int) -> None:
    stream, length = dataclasses.replace(STREAM, bits=bits), 100_000
    vector = np.full(length, 3, stream.dtype)
    stream.add(vector, Secret(SEED), "update")
    counts = np.bincount((vector >> stream.dtype(pad - 4)).astype(np.int64), minlength=16)
    assert stats.chisquare(counts).pvalue > LIMIT


def test_many_masks_at_once_are_the_masks_one_by_one() -> None:
    stream, length = dataclasses.replace(STREAM, bits=20), (1 << 16) + 100
    seeds = [bytes([number]) * 32 for number in range(6)]
    at_once = np.arange(length, dtype=np.uint32)
    one_by_one = at_once.copy()
    stream.apply(at_once, "update", add=map(Secret, seeds[:4]), subtract=map(Secret, seeds[4:]))
    for seed, act in zip(seeds, itertools.chain([stream.add] * 4, [stream.subtract] * 2), strict=True):
        act(one_by_one, Secret(seed), "update")
    assert np.array_equal(at_once, one_by_one)
    stream.apply(at_once, "update", add=map(Secret, seeds[4:]), subtract=map(Secret, seeds[:4]))
    assert np.array_equal(at_once, np.arange(length) % (1 << 20))


def test_memory_does_not_grow_with_vector_or_neighbours() -> None:
    vector = np.zeros(3_000_000, np.uint32)
    tracemalloc.start()
    try:
        STREAM.apply(vector, "update", add=[Secret(SEED)] * 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # the vector has 12 million bytes


def test_a_seed_is_not_wiped_by_its_use_and_a_wiped_one_masks_nothing() -> None:
    secret, vector = Secret(SEED), np.zeros(5, np.uint32)
    STREAM.add(vector, secret, "update")
    STREAM.subtract(vector, secret, "update")
    assert not vector.any()
    secret.wipe()
    with pytest.raises(SecureSumError, match="wiped"):
        STREAM.add(vector, secret, "update")
    assert not vector.any()


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.uint64),
        np.zeros(4, np.int32),
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.uint32),
        np.zeros(8, np.uint32)[::2],
        np.zeros(4, ">u4"),
        np.frombuffer(bytes(16), np.uint32),
        [0, 0],
    ],
)
def test_vectors_that_cannot_be_masked_in_place_are_refused(vector: np.ndarray[Any, Any]) -> None:
    with pytest.raises(SecureSumError, match="masks"):
        STREAM.add(vector, Secret(SEED), "update")


def test_a_vector_longer_than_a_key_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "LONGEST_BYTES", 400)
    mask(STREAM, 100)
    with pytest.raises(SecureSumError, match="at most 2\\^38 bytes"):
        mask(STREAM, 101)


@pytest.mark.parametrize("bits", [0, -1, 65, 32.0, True])
def test_widths_that_no_word_has_are_refused(bits: int) -> None:
    with pytest.raises(SecureSumError, match="modulus: expected"):
        dataclasses.replace(STREAM, bits=bits)


@pytest.mark.parametrize("change", [{"session": b""}, {"layout": b""}, {"round": -1}, {"round": 1 << 63}])
def test_streams_bound_to_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SecureSumError, match="expected a session, a layout and a round"):
        dataclasses.replace(STREAM, **change)
