"""The noise source: the right cipher, the right distributions, forks that repeat, and a key that stays inside."""

import copy
import hashlib
import hmac
import os
import pickle
import struct
import traceback
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from cloister.errors import PrivacyError
from cloister.privacy import noise
from cloister.privacy.noise import NoiseSource

KEY = bytes(range(32))
LIMIT = 1e-6  # keys are fixed: a p-value below this is a defect, not chance
DRAWS = 200_000


def chacha20(key: bytes, blocks: int, nonce: bytes = bytes(12)) -> bytes:
    """The keystream, written down from RFC 8439, section 2.3."""

    def quarter(x: list[int], a: int, b: int, c: int, d: int) -> None:
        for target, other, rotated, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[target] = (x[target] + x[other]) & 0xFFFFFFFF
            mixed = x[rotated] ^ x[target]
            x[rotated] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF

    stream = b""
    for counter in range(blocks):
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter]
        start += struct.unpack("<3I", nonce)
        x = list(start)
        for _ in range(10):
            for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
                quarter(x, a, b, c, d)
            for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(x, a, b, c, d)
        stream += struct.pack("<16I", *((word + first) & 0xFFFFFFFF for word, first in zip(x, start, strict=True)))
    return stream


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes."""
    extracted = hmac.digest(bytes(32), key, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def test_the_reference_ciphers_give_the_published_words() -> None:
    assert struct.unpack("<4I", chacha20(bytes(32), 1)[:16]) == (0xADE0B876, 0x903DF1A0, 0xE56A5D40, 0x28BD8653)
    assert struct.unpack("<4I", chacha20(KEY, 1)[:16]) == (0x7D2BFD39, 0x6A19C5D9, 0x7703BD8D, 0x494ADCB8)


def test_draws_are_consecutive_parts_of_a_chacha20_keystream() -> None:
    words = np.frombuffer(chacha20(hkdf(KEY, b"cloister noise stream"), 4), "<u8")
    source = NoiseSource(KEY)
    drawn = np.concatenate([source.uniform(5), source.uniform(27)])
    assert np.array_equal(drawn, ((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52)


def test_a_long_stream_goes_on_under_the_next_nonce_and_never_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_SEGMENT_BYTES", 128)
    key = hkdf(KEY, b"cloister noise stream")
    stream = b"".join(chacha20(key, 2, segment.to_bytes(12, "little")) for segment in range(3))
    words = np.frombuffer(stream, "<u8")
    drawn = NoiseSource(KEY).integers(1 << 63, words.size)
    assert np.array_equal(drawn, (words % np.uint64(1 << 63)).astype(np.int64))
    assert np.unique(drawn).size == drawn.size


def test_gaussians_have_the_normal_moments_and_distribution() -> None:
    values = NoiseSource(KEY).gaussian(DRAWS, 2.5) / 2.5
    assert stats.kstest(values, "norm").pvalue > LIMIT
    # Standard errors of mean, variance, skewness and kurtosis of n normal draws; 5 of them have probability 6e-7.
    for found, expected, variance in (
        (values.mean(), 0, 1),
        (values.var(), 1, 2),
        (stats.skew(values), 0, 6),
        (stats.kurtosis(values), 0, 24),
    ):
        assert abs(found - expected) < 5 * np.sqrt(variance / DRAWS)


def test_both_halves_of_a_box_muller_pair_are_normal_and_uncorrelated() -> None:
    values = NoiseSource(KEY).gaussian(1 << 16, 1.0)  # one chunk: cosines first, sines of the same pairs after them
    cosine, sine = np.split(values, 2)
    assert stats.kstest(sine, "norm").pvalue > LIMIT
    assert stats.kstest(cosine, "norm").pvalue > LIMIT
    for first, second in ((cosine, sine), (cosine**2, sine**2), (values[:-1], values[1:])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(len(first))


def test_uniform_draws_are_uniform_and_never_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    values = NoiseSource(KEY).uniform(DRAWS)
    assert stats.kstest(values, "uniform").pvalue > LIMIT
    for words, expected in ((0, 2.0**-53), (2**64 - 1, 1 - 2.0**-53)):
        monkeypatch.setattr(NoiseSource, "_words", lambda self, n, word=words: np.full(n, word, np.uint64))
        assert NoiseSource(KEY).uniform(1)[0] == expected
        assert np.isfinite(NoiseSource(KEY).gaussian(2, 1.0)).all()


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.25, 0.9, 1.0])
def test_bernoulli_is_true_as_often_as_asked(p: float) -> None:
    found = NoiseSource(KEY).bernoulli(p, DRAWS)
    assert found.dtype == np.bool_
    assert stats.binomtest(int(found.sum()), DRAWS, p).pvalue > LIMIT


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 10, 100])
def test_integers_are_uniform_below_the_bound(bound: int) -> None:
    counts = np.bincount(NoiseSource(KEY).integers(bound, DRAWS), minlength=bound)
    assert counts.size == bound
    assert bound == 1 or stats.chisquare(counts).pvalue > LIMIT


def test_integers_throw_away_the_words_that_would_bias_them() -> None:
    # Without rejection, remainders below 2^62 would come twice as often as the others: 2/3 instead of 1/2.
    bound = 3 << 61
    below = int((NoiseSource(KEY).integers(bound, DRAWS) < bound // 2).sum())
    assert stats.binomtest(below, DRAWS, 0.5).pvalue > LIMIT


def test_permutations_are_uniform_over_all_orders() -> None:
    source = NoiseSource(KEY)
    orders = [tuple(source.permutation(4)) for _ in range(12_000)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LIMIT


def test_a_permutation_is_drawn_again_when_two_words_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter((np.array([5, 5, 1], np.uint64), np.array([3, 2, 1], np.uint64)))
    monkeypatch.setattr(NoiseSource, "_words", lambda self, n: next(words))
    assert NoiseSource(KEY).permutation(3).tolist() == [2, 1, 0]


DRAW: dict[str, Callable[[NoiseSource, int], np.ndarray]] = {
    "gaussian": lambda source, n: source.gaussian(n, 1.0),
    "uniform": lambda source, n: source.uniform(n),
    "bernoulli": lambda source, n: source.bernoulli(0.5, n),
    "integers": lambda source, n: source.integers(1000, n),
    "permutation": lambda source, n: source.permutation(n),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_the_same_key_and_order_of_draws_give_the_same_numbers(draw: Callable[[NoiseSource, int], np.ndarray]) -> None:
    first, second = NoiseSource(KEY), NoiseSource(KEY)
    one, two = draw(first, 100), draw(first, 100)
    assert np.array_equal(one, draw(second, 100))
    assert np.array_equal(two, draw(second, 100))
    assert not np.array_equal(one, two)
    assert len(draw(first, 0)) == 0


def test_shapes_may_be_numbers_or_tuples_and_odd() -> None:
    source = NoiseSource(KEY)
    assert source.gaussian((3, 5), 1.0).shape == (3, 5)
    assert source.gaussian((), 1.0).shape == ()
    assert source.gaussian((4, 0), 1.0).shape == (4, 0)
    assert source.uniform((2, 2)).shape == (2, 2)
    many = source.gaussian((1 << 16) + 1, 1.0)
    assert (many != 0).all()
    assert np.unique(many).size == many.size


def test_a_fork_depends_on_key_and_labels_and_on_nothing_that_was_drawn() -> None:
    fresh, used = NoiseSource(KEY), NoiseSource(KEY)
    used.gaussian(1000, 1.0)
    used.fork("other").uniform(3)
    assert np.array_equal(fresh.fork("round", 3).uniform(50), used.fork("round", 3).uniform(50))
    assert not np.array_equal(fresh.fork("round", 3).uniform(50), NoiseSource(bytes(32)).fork("round", 3).uniform(50))


def test_every_list_of_labels_has_a_stream_of_its_own() -> None:
    source = NoiseSource(KEY)
    labels: list[tuple[str | int, ...]] = [("a",), ("a", "b"), ("ab",), ("asb",), ("", "ab"), ("ab", ""), ("1",), (1,)]
    labels += [("round", 1, "client", 2), ("round", 2, "client", 1), ("round", 12), (-1,), ("stream",), ("",), ("ä",)]
    streams = [source, source.fork("a").fork("b"), *(source.fork(*each) for each in labels)]
    firsts = [stream.integers(1 << 62, 1)[0] for stream in streams]
    assert len(set(firsts)) == len(streams)


def test_forks_are_independent_of_each_other_and_of_their_parent() -> None:
    parent = NoiseSource(KEY)
    streams = (parent.fork("round", 1), parent.fork("round", 2), parent.fork(1), parent)
    values = np.stack([stream.gaussian(DRAWS, 1.0) for stream in streams])
    correlations = np.corrcoef(values)[np.triu_indices(len(values), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(DRAWS)
    assert stats.kstest(values.sum(0) / 2, "norm").pvalue > LIMIT


def test_fresh_sources_differ() -> None:
    assert not np.array_equal(NoiseSource.fresh().uniform(4), NoiseSource.fresh().uniform(4))


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_source_is_not_copied_or_pickled(act: Callable[[NoiseSource], object]) -> None:
    with pytest.raises(PrivacyError, match="cannot be copied or pickled"):
        act(NoiseSource(KEY))


def test_the_key_is_in_no_text() -> None:
    key = os.urandom(32)
    texts = [repr(NoiseSource(key)), str(NoiseSource(key)), f"{NoiseSource(key)}"]
    for bad in (key[:-1], key + b"x"):
        with pytest.raises(PrivacyError) as caught:
            NoiseSource(bad)
        texts.append("".join(traceback.format_exception(caught.value)))
    for text in texts:
        assert key.hex() not in text
        assert repr(key[:-1])[2:-1] not in text
    assert not hasattr(NoiseSource(key), "__dict__")  # nothing that prints an object's attributes finds it


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "0" * 32, 5, None, bytearray(32)])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(PrivacyError, match="noise key: expected 32 bytes"):
        NoiseSource(key)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="expected a positive, finite standard deviation"):
        NoiseSource(KEY).gaussian(3, std)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(PrivacyError, match="expected a probability"):
        NoiseSource(KEY).bernoulli(p, 3)


@pytest.mark.parametrize("bound", [0, -1, (1 << 63) + 1])
def test_a_bound_that_no_word_holds_is_refused(bound: int) -> None:
    with pytest.raises(PrivacyError, match="expected a bound"):
        NoiseSource(KEY).integers(bound, 3)


@pytest.mark.parametrize("labels", [(), (1.5,), (True,), (b"a",), (None,)])
def test_labels_that_could_be_confused_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(PrivacyError, match="expected labels that are strings or integers"):
        NoiseSource(KEY).fork(*labels)


def test_another_process_may_fork_but_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    source, here = NoiseSource(KEY), os.getpid()
    expected = NoiseSource(KEY).fork("worker", 1).uniform(3)
    monkeypatch.setattr(noise.os, "getpid", lambda: here + 1)
    with pytest.raises(PrivacyError, match="would repeat the same noise"):
        source.uniform(3)
    assert np.array_equal(source.fork("worker", 1).uniform(3), expected)
