"""The graph: regular, symmetric, the same for everybody, and in an order that only the beacon decides."""

import hashlib
import hmac

import pytest
from scipy import stats

from cloister.errors import SecureSumError
from cloister.privacy.secagg.graph import neighbours

SEED = bytes(range(32))


def test_the_ring_is_the_order_of_digests_of_beacon_and_number() -> None:
    def digest(client: int) -> bytes:
        parts = (b"cloister ring", SEED, client.to_bytes(8))
        return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()

    ring = sorted(range(9), key=digest)
    found = neighbours(SEED, range(9), 4)
    for index, client in enumerate(ring):
        assert set(found[client]) == {ring[(index + step) % 9] for step in (-2, -1, 1, 2)}


def test_everybody_finds_the_same_graph_whatever_order_the_clients_are_named_in() -> None:
    assert neighbours(SEED, [5, 2, 9, 7, 30, 1], 2) == neighbours(SEED, [1, 2, 5, 7, 9, 30], 2)


def test_the_complete_graph_joins_everybody_with_everybody() -> None:
    for clients in ([4, 1, 7], [4, 1, 7, 2]):
        found = neighbours(SEED, clients, len(clients) - 1)
        assert found == {client: tuple(sorted({*clients} - {client})) for client in clients}


def test_every_pair_is_joined_as_often_as_any_other() -> None:
    counts = dict.fromkeys(((a, b) for a in range(7) for b in range(a)), 0)
    for number in range(3000):
        for client, others in neighbours(hmac.digest(SEED, number.to_bytes(8), "sha256"), range(7), 2).items():
            for other in others:
                counts[max(client, other), min(client, other)] += 1
    assert sum(counts.values()) == 3000 * 7 * 2
    # The edges of one ring are not independent, which only lowers the statistic.
    assert stats.chisquare([count / 2 for count in counts.values()]).pvalue > 1e-6


def test_a_bit_of_the_beacon_changes_the_graph() -> None:
    graphs = set()
    for bit in range(0, 256, 5):
        seed = bytearray(SEED)
        seed[bit // 8] ^= 1 << bit % 8
        graphs.add(tuple(neighbours(bytes(seed), range(20), 4)[0]))
    assert len(graphs) > 45


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_what_is_no_beacon_is_refused(seed: bytes) -> None:
    with pytest.raises(SecureSumError, match="beacon of 32 bytes"):
        neighbours(seed, range(5), 2)


@pytest.mark.parametrize("clients", [[1, 2, 2], [-1, 2, 3], [0, 0, 0]])
def test_numbers_that_are_none_are_refused(clients: list[int]) -> None:
    with pytest.raises(SecureSumError, match="different numbers of clients"):
        neighbours(SEED, clients, 2)


@pytest.mark.parametrize(("count", "degree"), [(5, 3), (5, 0), (5, 5), (5, -2), (6, 6), (6, 3), (0, 2), (1, 0)])
def test_degrees_that_no_ring_has_are_refused(count: int, degree: int) -> None:
    with pytest.raises(SecureSumError, match="expected an even degree"):
        neighbours(SEED, range(count), degree)
