"""Secure aggregation's parts over generated inputs: whoever drops out, sums are exact and graphs hold together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.graph import neighbours
from cloister.privacy.secagg.keys import KeyPair, Secret, message, seal, unseal
from cloister.privacy.secagg.masks import Stream
from cloister.privacy.secagg.shares import join_key, join_seed, split_key, split_seed

SECRETS = st.binary(min_size=32, max_size=32)


@given(secret=SECRETS, places=st.lists(st.integers(1, 2**31 - 1), min_size=2, max_size=20, unique=True), data=st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, places: list[int], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(2, len(places)))
    shares = split_seed(Secret(secret), threshold, places, NoiseSource.fresh())
    some = data.draw(st.permutations(shares))[: data.draw(st.integers(threshold, len(places)))]
    assert join_seed(some).view() == secret


@given(
    seed=SECRETS,
    clients=st.lists(st.integers(0, 2**40), min_size=4, max_size=24, unique=True),
    half=st.integers(1, 5),
    data=st.data(),
)
def test_graphs_are_regular_symmetric_and_hold_together_when_some_leave(
    seed: bytes, clients: list[int], half: int, data: st.DataObject
) -> None:
    degree = min(2 * half, (len(clients) - 1) // 2 * 2)
    graph = neighbours(seed, clients, degree)
    assert graph.keys() == set(clients)
    for client, others in graph.items():
        assert len(set(others)) == len(others) == degree
        assert client not in others
        assert all(client in graph[other] for other in others)
    gone = set(data.draw(st.lists(st.sampled_from(clients), max_size=degree - 1, unique=True)))
    left = set(clients) - gone
    reached, edge = set(), {min(left)}
    while edge:
        reached |= edge
        edge = {other for client in edge for other in graph[client]} & left - reached
    assert reached == left  # a Harary graph of this degree is still one piece with degree - 1 clients gone


@settings(max_examples=25)
@given(
    count=st.integers(3, 7),
    bits=st.integers(1, 64),
    length=st.integers(0, 40),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_the_sum_is_exact_whoever_drops_out(count: int, bits: int, length: int, seed: int, data: st.DataObject) -> None:
    """The protocol in a few lines, on a complete graph: mask, lose some, open what must be opened, and only that."""
    stream = Stream(session=b"session", round=1, layout=b"layout", bits=bits)
    values = np.random.default_rng(seed).integers(0, 1 << bits, (count, length), np.uint64).astype(stream.dtype)
    pairs, selves = [KeyPair.generate() for _ in range(count)], [Secret.fresh() for _ in range(count)]
    places, source = range(1, count + 1), NoiseSource.fresh()
    key_shares = [split_key(pair.secret(), 2, places, source) for pair in pairs]
    seed_shares = [split_seed(each, 2, places, source) for each in selves]

    def others(client: int, pair: KeyPair, sign: int) -> list[Secret]:
        chosen = [peer for peer in range(count) if (peer - client) * sign > 0]
        return [pair.agree(pairs[peer].public, salt=b"session", info=b"mask") for peer in chosen]

    masked = values.copy()
    for client in range(count):
        add = [selves[client], *others(client, pairs[client], -1)]
        stream.apply(masked[client], "update", add=add, subtract=others(client, pairs[client], 1))
    dropped = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 2))
    stayed = [client for client in range(count) if client not in dropped]
    total = masked[stayed].sum(0, dtype=stream.dtype)
    for client in stayed:
        stream.subtract(total, join_seed(seed_shares[client][holder] for holder in stayed), "update")
    for client in dropped:
        pair = KeyPair.of(join_key(key_shares[client][holder] for holder in stayed))
        assert pair.public == pairs[client].public
        for peer in stayed:
            mask = pair.agree(pairs[peer].public, salt=b"session", info=b"mask")
            (stream.add if peer < client else stream.subtract)(total, mask, "update")
    modulus = stream.dtype((1 << bits) - 1)
    assert np.array_equal(total & modulus, values[stayed].sum(0, dtype=stream.dtype) & modulus)


@given(first=st.lists(st.binary(max_size=9), max_size=4), second=st.lists(st.binary(max_size=9), max_size=4))
def test_different_parts_are_different_messages(first: list[bytes], second: list[bytes]) -> None:
    assert (message("p", *first) == message("p", *second)) == (first == second)


@given(secret=SECRETS, text=st.binary(max_size=200), associated=st.binary(max_size=50))
def test_what_is_sealed_is_unsealed(secret: bytes, text: bytes, associated: bytes) -> None:
    assert unseal(Secret(secret), seal(Secret(secret), text, associated), associated) == text
