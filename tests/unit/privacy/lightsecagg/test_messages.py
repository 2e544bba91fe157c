"""Messages: there and back, and decoders that refuse everything else without a crash or a large allocation."""

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.field import PRIME
from cloister.privacy.lightsecagg.messages import Answer, Request, SealedShare, Share, Upload

VALUES = np.array([0, 1, PRIME - 1], np.uint64)
MESSAGES: dict[str, Any] = {
    "share": Share(sender=1, receiver=5, number=7, values=VALUES),
    "sealed": SealedShare(sender=1, receiver=5, number=7, sealed=b"x" * 60),
    "upload": Upload(sender=2, number=7, values=np.tile(VALUES, 2)),
    "request": Request(step=3, weights={(2, 9): 1, (1, 7): 4, (5, 0): 2, (4, 2**32 - 1): 5}),
    "answer": Answer(sender=5, step=3, values=VALUES),
}
every = pytest.mark.parametrize("name", MESSAGES)


def equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and all(
        np.array_equal(value, getattr(other, key)) if isinstance(value, np.ndarray) else value == getattr(other, key)
        for key, value in vars(one).items()
    )


@every
def test_there_and_back(lsa: SimpleNamespace, name: str) -> None:
    terms, message = lsa.terms(heaviest=5), MESSAGES[name]
    data = message.encode(terms)
    back = type(message).decode(data, terms)
    assert equal(back, message)
    assert back.encode(terms) == data


@every
def test_every_truncation_and_every_longer_message_is_refused(lsa: SimpleNamespace, name: str) -> None:
    terms, message = lsa.terms(heaviest=5), MESSAGES[name]
    data = message.encode(terms)
    for wrong in [data[:size] for size in range(len(data))] + [data + b"\0" * 80, data + data]:
        if name == "sealed" and 80 <= len(wrong) <= 144:  # its cipher's overhead is the cipher's business
            continue
        with pytest.raises(SecureSumError, match="LightSecAgg"):
            type(message).decode(wrong, terms)


@every
def test_another_session_kind_or_version_is_refused(lsa: SimpleNamespace, name: str) -> None:
    terms, message = lsa.terms(heaviest=5), MESSAGES[name]
    data = message.encode(terms)
    with pytest.raises(SecureSumError, match="expected this session, found another"):
        type(message).decode(data, lsa.terms(heaviest=5, session=bytes(16)))
    for place, value in ((0, 0), (4, 2), (5, 99)):
        wrong = bytearray(data)
        wrong[place] = value
        with pytest.raises(SecureSumError, match=f"expected {name} of version 1, found kind"):
            type(message).decode(bytes(wrong), terms)


@every
@given(data=st.data())
def test_a_fuzzed_message_is_refused_or_is_a_message(lsa: SimpleNamespace, name: str, data: st.DataObject) -> None:
    terms, message = lsa.terms(heaviest=5), MESSAGES[name]
    wrong = bytearray(message.encode(terms))
    for _ in range(data.draw(st.integers(1, 4))):
        wrong[data.draw(st.integers(0, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = type(message).decode(bytes(wrong), terms)
    except SecureSumError:
        return
    assert found.encode(terms) == bytes(wrong)


@every
@given(st.binary(max_size=200))
def test_noise_is_refused(lsa: SimpleNamespace, name: str, data: bytes) -> None:
    with pytest.raises(SecureSumError):
        type(MESSAGES[name]).decode(data, lsa.terms())


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({(1, 7): 1, (1, 8): 1}, "a user twice"),
        ({(1, 7): 6}, "weights from 1 to 5, found 6"),
        ({(1, 7): 0}, "weights from 1 to 5, found 0"),
        ({(0, 7): 1}, "a place from 1 to 5, found 0"),
        ({(6, 7): 1}, "a place from 1 to 5, found 6"),
        ({(user, 0): 1 for user in range(1, 7)}, "at most 5 uploads"),
    ],
)
def test_requests_outside_the_terms_are_refused(
    lsa: SimpleNamespace, weights: dict[tuple[int, int], int], reason: str
) -> None:
    terms = lsa.terms(heaviest=5)
    with pytest.raises(SecureSumError, match=reason):
        Request.decode(Request(step=1, weights=weights).encode(terms), terms)


def test_a_count_that_promises_more_allocates_nothing(lsa: SimpleNamespace) -> None:
    terms = lsa.terms(users=16384, heaviest=5)
    data = bytearray(Request(step=1, weights={(1, 1): 1}).encode(terms))
    data[26:30] = (16384).to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(SecureSumError, match="16384 in 12"):
            Request.decode(bytes(data), terms)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_elements_from_the_prime_on_are_refused(lsa: SimpleNamespace) -> None:
    terms = lsa.terms()
    data = Upload(sender=1, number=1, values=np.full(6, PRIME, np.uint64)).encode(terms)
    with pytest.raises(SecureSumError, match="elements below the prime"):
        Upload.decode(data, terms)


def test_numbers_beyond_32_bits_are_not_sent(lsa: SimpleNamespace) -> None:
    with pytest.raises(SecureSumError, match="fit 32 bits"):
        Upload(sender=1, number=2**32, values=np.zeros(6, np.uint64)).encode(lsa.terms())
