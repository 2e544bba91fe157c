"""Terms, limits, and what follows from the keys of a cohort: session, graph, quorum, fewest clients."""

import math
import struct
from dataclasses import replace
from typing import Any

import pytest
from secagg_round import Site, identity

from cloister.errors import SecureSumError
from cloister.privacy.secagg.group import Group, session_of
from cloister.privacy.secagg.keys import KeyPair
from cloister.privacy.secagg.messages import Advertise, Cohort
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.terms import Limits, Terms

TERMS = Site.of(6).terms


def cohort(terms: Terms, count: int) -> Cohort:
    scope: dict[str, Any] = {"round": terms.round, "scope": terms.digest}
    keys = [(KeyPair.generate().public, KeyPair.generate().public) for _ in range(count)]
    advertised = tuple(
        Advertise(client=client, sealing=one, masking=other, **scope) for client, (one, other) in enumerate(keys, 1)
    )
    return Cohort(advertised=advertised, **scope)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("run", [b"", bytes(31), bytes(33)]),
        ("layout", [b"", bytes(31), bytes(33)]),
        ("round", [0, -1, 1 << 32]),
        ("size", [0, -1, (1 << 36) + 1]),
        ("bits", [0, -1, 65]),
        ("minimum", [0, 1, 1 << 32]),
        ("adversaries", [-0.1, -0.0, 1.0, math.nan, math.inf]),
        ("dropouts", [-0.1, -0.0, 1.0, math.nan, math.inf]),
    ],
)
def test_terms_out_of_range_are_refused(field: str, wrong: list[Any]) -> None:
    for value in wrong:
        with pytest.raises(SecureSumError):
            replace(TERMS, **{field: value})


def test_terms_that_are_sent_out_of_range_are_refused_too() -> None:
    encoded = TERMS.encode()
    for value in (math.nan, -0.0, 1.0):
        at = encoded.index(struct.pack(">d", 0.3))
        with pytest.raises(SecureSumError):
            Terms.decode(encoded[:at] + struct.pack(">d", value) + encoded[at + 8 :])
    with pytest.raises(SecureSumError, match="a server of 3 kinds, found 3"):
        Terms.decode(encoded[:-1] + b"\x03")


def test_every_number_of_the_terms_changes_their_digest() -> None:
    changes: list[dict[str, Any]] = [
        {"run": bytes(32)},
        {"round": 6},
        {"layout": bytes(32)},
        {"size": 21},
        {"bits": 31},
        {"minimum": 4},
        {"adversaries": 0.11},
        {"dropouts": 0.31},
        {"server": Server.CURIOUS},
    ]
    assert len(changes) == len(vars(TERMS))
    assert len({TERMS.digest, *(replace(TERMS, **change).digest for change in changes)}) == 10


def test_the_fewest_clients_are_the_minimum_or_all_but_the_dropouts() -> None:
    terms = replace(TERMS, minimum=5, dropouts=0.1)
    assert [terms.least(n) for n in (5, 6, 10, 11, 30, 100)] == [5, 6, 9, 10, 27, 90]
    assert replace(TERMS, minimum=28, dropouts=0.1).least(30) == 28


@pytest.mark.parametrize("wrong", [{"minimum_cohort": 1}, {"most_dropouts": 1.0}, {"least_adversaries": -0.1}])
def test_limits_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SecureSumError, match="limits: expected"):
        Limits(**{"minimum_cohort": 3, "most_dropouts": 0.3, "least_adversaries": 0.1, **wrong})


def test_the_session_follows_from_terms_and_every_key() -> None:
    whole = cohort(TERMS, 6)
    sessions = {session_of(TERMS, whole), session_of(replace(TERMS, round=6), whole)}
    for index in range(6):
        for name in ("client", "sealing", "masking"):
            each = replace(whole.advertised[index], **{name: 99 if name == "client" else bytes(32)})
            changed = (*whole.advertised[:index], each, *whole.advertised[index + 1 :])
            sessions.add(session_of(TERMS, replace(whole, advertised=changed)))
    assert len(sessions) == 2 + 18
    signed = tuple(each.signed(identity(each.client)) for each in whole.advertised)
    assert session_of(TERMS, replace(whole, advertised=signed)) in sessions


@pytest.mark.parametrize("server", [Server.SEMI_MALICIOUS, Server.MALICIOUS])
@pytest.mark.parametrize("adversaries", [0.0, 0.05, 0.1, 0.2])
def test_two_sets_cannot_both_have_a_quorum(server: Server, adversaries: float) -> None:
    terms = replace(TERMS, adversaries=adversaries, dropouts=0.1, server=server)
    for count in (*range(8, 31), 64, 101):
        group = Group.of(terms, cohort(terms, count))
        colluding = math.ceil(adversaries * count - 1e-9)
        honest = count - colluding
        assert 2 * (group.quorum - colluding) > honest  # each honest client signs one set
        assert group.quorum <= group.fewest  # those that stay are enough
        assert group.fewest > group.parameters.threshold
        # Of shares too: a server that asks for one kind here and for the other there.
        assert 2 * group.parameters.threshold > group.parameters.degree


def test_a_curious_server_needs_no_more_than_the_threshold() -> None:
    terms = replace(TERMS, server=Server.CURIOUS)
    group = Group.of(terms, cohort(terms, 20))
    assert group.quorum == group.parameters.threshold


def test_the_graph_follows_from_the_keys() -> None:
    terms = replace(TERMS, adversaries=0.05, server=Server.CURIOUS)
    graphs = [Group.of(terms, cohort(terms, 40)).graph for _ in range(2)]
    assert graphs[0] != graphs[1]
    for graph in graphs:
        assert all(client in graph[peer] for client, peers in graph.items() for peer in peers)


def test_too_few_clients_for_any_threshold_are_refused() -> None:
    with pytest.raises(SecureSumError, match="shrunken cohort"):
        Group.of(TERMS, cohort(TERMS, 4))


def test_mask_seeds_are_the_same_on_both_sides_and_sealing_keys_are_of_one_direction() -> None:
    pairs = {client: (KeyPair.generate(), KeyPair.generate()) for client in (1, 2, 3, 4, 5, 6)}
    scope: dict[str, Any] = {"round": TERMS.round, "scope": TERMS.digest}
    advertised = tuple(
        Advertise(client=client, sealing=one.public, masking=other.public, **scope)
        for client, (one, other) in pairs.items()
    )
    terms = replace(TERMS, adversaries=0.0, dropouts=0.1)
    group = Group.of(terms, Cohort(advertised=advertised, **scope))
    seeds = [bytes(group.mask_seed(pairs[a][1], a, b).view()) for a, b in ((1, 2), (2, 1), (1, 3))]
    assert seeds[0] == seeds[1] != seeds[2]
    keys = [
        bytes(group.sealing_key(pairs[a][0], a, b, sender=sender).view())
        for a, b, sender in ((1, 2, 1), (2, 1, 1), (1, 2, 2), (2, 1, 2))
    ]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    later = replace(group, session=bytes(32))
    assert bytes(later.mask_seed(pairs[1][1], 1, 2).view()) != seeds[0]
    assert bytes(replace(group, terms=replace(terms, round=6)).mask_seed(pairs[1][1], 1, 2).view()) != seeds[0]
