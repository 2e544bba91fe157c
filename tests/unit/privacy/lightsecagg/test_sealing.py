"""Sealed shares: readable by their receiver, by nobody else, and in no other place."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.field import centred, integers
from cloister.privacy.lightsecagg.messages import SealedShare, Share
from cloister.privacy.lightsecagg.sealing import opened, pair_key, sealed
from cloister.privacy.lightsecagg.server import Server
from cloister.privacy.lightsecagg.user import User
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.keys import KeyPair, Secret

VALUES = np.array([3, 1, 4], np.uint64)
SHARE = Share(sender=1, receiver=2, number=7, values=VALUES)


@pytest.fixture(scope="module")
def pairs() -> dict[int, KeyPair]:
    return {place: KeyPair.generate() for place in range(1, 6)}


def key(lsa: SimpleNamespace, pairs: dict[int, KeyPair], place: int, peer: int, **terms: Any) -> Secret:
    return pair_key(pairs[place], place, pairs[peer].public, peer, lsa.terms(**terms))


def test_a_session_over_the_wire_in_which_the_server_passes_sealed_shares_on(
    lsa: SimpleNamespace, pairs: dict[int, KeyPair]
) -> None:
    terms = lsa.terms()
    users = {place: User(terms, place, NoiseSource.fresh()) for place in pairs}
    server = Server(terms)
    passed = []
    for place, user in users.items():
        for share in user.offer(1):
            passed.append(sealed(share, key(lsa, pairs, place, share.receiver), terms).encode(terms))
            assert share.values.astype("<u4").tobytes() not in passed[-1]
    for data in passed:
        share = SealedShare.decode(data, terms)
        users[share.receiver].receive(opened(share, key(lsa, pairs, share.receiver, share.sender), terms))
    vectors = {place: np.arange(6) - 3 * place for place in users}
    for place in (1, 2, 3, 5):
        server.take(users[place].upload(1, integers(vectors[place])))
    total = server.open(dict.fromkeys(server.waiting, 1))
    for place in (4, 2, 5, 1):  # user 4 did not upload, and answers; user 3 uploaded, and has gone
        total.take(users[place].answer(total.request))
    assert centred(total.total()).tolist() == sum(vectors[place] for place in (1, 2, 3, 5)).tolist()


def test_both_sides_have_the_same_key_and_others_have_another(lsa: SimpleNamespace, pairs: dict[int, KeyPair]) -> None:
    one = bytes(key(lsa, pairs, 1, 2).view())
    assert one == bytes(key(lsa, pairs, 2, 1).view())
    assert one != bytes(key(lsa, pairs, 1, 3).view())
    assert one != bytes(key(lsa, pairs, 1, 2, session=bytes(16)).view())
    assert one != bytes(pair_key(pairs[1], 3, pairs[2].public, 2, lsa.terms()).view())


@pytest.mark.parametrize("change", [{"sender": 3}, {"receiver": 3}, {"number": 8}, {"sealed": b"\0" * 80}])
def test_a_share_that_was_moved_or_changed_does_not_open(
    lsa: SimpleNamespace, pairs: dict[int, KeyPair], change: dict[str, Any]
) -> None:
    terms, secret = lsa.terms(), key(lsa, pairs, 1, 2)
    closed = sealed(SHARE, secret, terms)
    assert opened(closed, secret, terms).values.tolist() == VALUES.tolist()
    with pytest.raises(SecureSumError):
        opened(dataclasses.replace(closed, **change), secret, terms)
    with pytest.raises(SecureSumError):
        opened(closed, key(lsa, pairs, 3, 2), terms)


def test_what_is_inside_must_be_what_the_outside_says(
    lsa: SimpleNamespace, pairs: dict[int, KeyPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, secret = lsa.terms(), key(lsa, pairs, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Share, "encode", lambda self, terms: other)
        other = bytes(34)
        with pytest.raises(SecureSumError, match="expected share of version 1"):
            opened(sealed(SHARE, secret, terms), secret, terms)
    other = dataclasses.replace(SHARE, number=9).encode(terms)
    with monkeypatch.context() as patch:
        patch.setattr(Share, "encode", lambda self, terms: other)
        with pytest.raises(SecureSumError, match="upload 7 from user 1 inside its seal, found one of upload 9"):
            opened(sealed(SHARE, secret, terms), secret, terms)


def test_places_outside_the_terms_have_no_key(lsa: SimpleNamespace, pairs: dict[int, KeyPair]) -> None:
    with pytest.raises(SecureSumError, match="from 1 to 5, found 6"):
        pair_key(pairs[1], 1, pairs[2].public, 6, lsa.terms())
