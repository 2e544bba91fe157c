"""Every decoder of secure aggregation, given anything: the one message that the bytes are, or a SecureSumError."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import SecureSumError
from cloister.privacy.secagg import messages as m
from cloister.privacy.secagg.keys import PUBLIC_BYTES, SIGNATURE_BYTES
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.shares import SHARE_BYTES, KeyShare, SeedShare
from cloister.privacy.secagg.terms import Terms
from cloister.privacy.secagg.wire import Kind, header, kind_of

MESSAGES: dict[str, type[m.Message]] = {
    kind.__name__: kind
    for kind in (
        m.Advertise,
        m.Cohort,
        m.Shares,
        m.Delivery,
        m.Masked,
        m.Survivors,
        m.Consistency,
        m.Agreement,
        m.Unmask,
    )
}
DECODERS: dict[str, Callable[[bytes], Any]] = {name: kind.decode for name, kind in MESSAGES.items()}
DECODERS["Terms"] = Terms.decode
KINDS = {**{name: kind.kind for name, kind in MESSAGES.items()}, "Terms": Kind.TERMS}

LARGEST = (1 << 32) - 1
numbers = st.integers(0, LARGEST)
clients = st.lists(numbers, unique=True, max_size=5).map(sorted)
limb = st.integers(0, (1 << 61) - 2).map(lambda value: value.to_bytes(8, "little"))
values = st.lists(limb, min_size=SHARE_BYTES // 8, max_size=SHARE_BYTES // 8).map(b"".join)
kinds = st.sampled_from([SeedShare, KeyShare])
shares = st.builds(lambda kind, place, value: kind(place, value), kinds, st.integers(1, 2**31 - 1), values)
rates = st.floats(0, 1, exclude_max=True).map(abs)
terms = st.builds(
    Terms,
    run=st.binary(min_size=32, max_size=32),
    round=st.integers(1, LARGEST),
    layout=st.binary(min_size=32, max_size=32),
    size=st.integers(1, 1 << 35),
    bits=st.integers(1, 64),
    minimum=st.integers(2, LARGEST),
    adversaries=rates,
    dropouts=rates,
    server=st.sampled_from(Server),
)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def listed(content: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[tuple[int, Any], ...]]:
    return clients.flatmap(lambda ids: st.tuples(*(st.tuples(st.just(each), content) for each in ids)))


@st.composite
def vectors(draw: st.DrawFn) -> dict[str, Any]:
    bits = draw(st.integers(1, 64))
    words = draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=9))
    return {"bits": bits, "vector": np.array(words, np.uint32 if bits <= 32 else np.uint64)}


@st.composite
def survivors(draw: st.DrawFn) -> dict[str, Any]:
    cohort = draw(clients)
    there = draw(st.sets(st.sampled_from(cohort))) if cohort else set()
    made = m.Survivors.of(1, bytes(32), cohort, there)
    return {"cohort": made.cohort, "members": made.members}


@st.composite
def made(draw: st.DrawFn, name: str) -> Any:
    """Return any message of one kind."""
    if name == "Terms":
        return draw(terms)
    kind = MESSAGES[name]
    scope = {"round": draw(numbers), "scope": draw(exactly(32))}
    fields: dict[str, st.SearchStrategy[Any]] = {
        "Shares": st.fixed_dictionaries({"sealed": listed(exactly(m.SEALED_BYTES))}),
        "Delivery": st.fixed_dictionaries({"sealed": listed(exactly(m.SEALED_BYTES))}),
        "Advertise": st.fixed_dictionaries({"sealing": exactly(PUBLIC_BYTES), "masking": exactly(PUBLIC_BYTES)}),
        "Masked": vectors(),
        "Survivors": survivors(),
        "Consistency": st.fixed_dictionaries({"survivors": exactly(32)}),
        "Agreement": st.fixed_dictionaries({"signatures": listed(exactly(SIGNATURE_BYTES))}),
        "Unmask": st.fixed_dictionaries({"shown": listed(shares)}),
    }
    if name == "Cohort":
        keys = draw(listed(st.tuples(*[exactly(PUBLIC_BYTES)] * 2, exactly(SIGNATURE_BYTES))))
        advertised = tuple(
            m.Advertise(client=client, sealing=one, masking=two, signature=three, **scope)
            for client, (one, two, three) in keys
        )
        return m.Cohort(advertised=advertised, **scope)
    if issubclass(kind, m.Signed):
        scope |= {"client": draw(numbers), "signature": draw(exactly(SIGNATURE_BYTES))}
    return kind(**scope, **draw(fields[name]))


def fields_of(message: Any) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(message).items()}


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@settings(max_examples=25)
def test_a_message_is_what_its_bytes_say(name: str, data: st.DataObject) -> None:
    message = data.draw(made(name))
    encoded = message.encode()
    decoded = DECODERS[name](encoded)
    assert fields_of(decoded) == fields_of(message)
    assert decoded.encode() == encoded
    assert kind_of(encoded) is KINDS[name]


def survives(name: str, data: bytes) -> bool:
    """Return whether it was a message. Anything but that, or a refusal, fails the test, as does much memory."""
    tracemalloc.start()
    try:
        message = DECODERS[name](data)
        found = True
    except SecureSumError:
        found = False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50_000 + 12 * len(data), f"{peak} bytes for a message of {len(data)}"
    if found:
        assert message.encode() == data  # no two byte strings are one message
    return found


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.binary(max_size=400), scope=exactly(32))
@settings(max_examples=40)
def test_random_bytes_are_refused_or_are_a_message(name: str, data: bytes, scope: bytes) -> None:
    assert not survives(name, data)
    survives(name, header(KINDS[name], 1, scope) + data)


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@settings(max_examples=25)
def test_cut_longer_and_flipped_messages_are_refused_or_are_other_messages(name: str, data: st.DataObject) -> None:
    encoded = data.draw(made(name)).encode()
    assert survives(name, encoded)
    assert not survives(name, encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    assert not survives(name, encoded + data.draw(st.binary(min_size=1, max_size=9)))
    flipped = bytearray(encoded)
    flipped[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    survives(name, bytes(flipped))


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@settings(max_examples=20)
def test_huge_lengths_allocate_nothing(name: str, data: st.DataObject) -> None:
    encoded = bytearray(data.draw(made(name)).encode())
    for at in range(9, min(len(encoded), 120), data.draw(st.integers(5, 9))):
        for huge in (b"\xff" * 4, b"\x7f" + b"\xff" * 7):
            survives(name, bytes(encoded[:at]) + huge + bytes(encoded[at + len(huge) :]))


@pytest.mark.parametrize("name", DECODERS)
def test_other_kinds_versions_and_types_are_refused(name: str) -> None:
    for kind in Kind:
        head = b"CSA\x01" + bytes([kind])
        assert not survives(name, head + bytes(20))
        assert not survives(name, b"CSA\x02" + bytes([kind]) + bytes(200))
    for wrong in (None, "text", bytearray(200), memoryview(bytes(200)), 7):
        with pytest.raises(SecureSumError, match="expected bytes"):
            DECODERS[name](wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [8, 17, 18, 24, 31, 32, 33, 40, 63, 64])
def test_a_long_vector_is_decoded_in_little_memory_and_takes_the_bytes_of_its_bits(bits: int) -> None:
    words = np.arange(100_000, dtype=np.uint32 if bits <= 32 else np.uint64) % (1 << min(bits, 17))
    message = m.Masked(round=1, scope=bytes(32), client=3, bits=bits, vector=words)
    encoded = message.encode()
    assert len(encoded) == 41 + 4 + 1 + 8 + (bits + 7) // 8 * words.size + 64
    assert len(encoded) == m.longest(Kind.MASKED, clients=9, holders=8, size=words.size, bits=bits)
    assert survives("Masked", encoded)
    assert (m.Masked.decode(encoded).vector == words).all()


def test_a_vector_with_a_bit_above_its_modulus_is_refused() -> None:
    words = np.array([1 << 17, 1 << 18], np.uint32)
    encoded = m.Masked(round=1, scope=bytes(32), client=3, bits=18, vector=words).encode()
    with pytest.raises(SecureSumError, match=r"integers below 2\^18"):
        m.Masked.decode(encoded)


def test_clients_in_another_order_or_twice_are_refused() -> None:
    sealed = tuple((client, bytes(m.SEALED_BYTES)) for client in (4, 3))
    for pairs in (sealed, (sealed[0], sealed[0])):
        with pytest.raises(SecureSumError, match="ascending order"):
            m.Delivery.decode(m.Delivery(round=1, scope=bytes(32), sealed=pairs).encode())


def test_survivors_beyond_the_cohort_are_refused() -> None:
    encoded = m.Survivors.of(1, bytes(32), range(1, 11), {2, 10}).encode()
    assert m.Survivors.decode(encoded).of_cohort(range(1, 11)) == {2, 10}
    for bit in range(2, 8):
        with pytest.raises(SecureSumError, match="found more bits"):
            m.Survivors.decode(encoded[:-1] + bytes([encoded[-1] | 1 << bit]))


def test_a_share_of_no_kind_is_refused() -> None:
    share = SeedShare(1, bytes(SHARE_BYTES))
    encoded = bytearray(m.Unmask(round=1, scope=bytes(32), client=3, shown=((4, share),)).encode())
    at = encoded.index(b"s", 41)
    for byte in (b"\x00", b"b", b"S"):
        encoded[at : at + 1] = byte
        with pytest.raises(SecureSumError, match="of a seed or of a key"):
            m.Unmask.decode(bytes(encoded))


def test_nothing_secret_is_shown() -> None:
    share = SeedShare(1, b"\x07" * SHARE_BYTES)
    unmask = m.Unmask(round=1, scope=bytes(32), client=3, shown=((4, share),))
    masked = m.Masked(round=1, scope=bytes(32), client=3, bits=32, vector=np.full(3, 12345, np.uint32))
    assert repr(unmask) == f"Unmask(round=1, scope={bytes(32)!r}, client=3)"
    assert repr(masked) == f"Masked(round=1, scope={bytes(32)!r}, client=3, bits=32)"
