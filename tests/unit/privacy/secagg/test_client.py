"""What a server may try on a client: each is refused with its reason and ends the session, not the round."""

import copy
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from secagg_round import Faults, Round, Site, identity

from cloister.errors import SecureSumError
from cloister.privacy.secagg.client import State
from cloister.privacy.secagg.keys import Identity, KeyPair, seal
from cloister.privacy.secagg.messages import (
    SEALED_BYTES,
    Advertise,
    Agreement,
    Cohort,
    Consistency,
    Delivery,
    Shares,
    Survivors,
    Unmask,
    pair,
)
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.reasons import Reason
from cloister.privacy.secagg.server import Phase
from cloister.privacy.secagg.shares import SHARE_BYTES, KeyShare, SeedShare
from cloister.privacy.secagg.wire import Kind, header

SITE = Site.of(6, adversaries=0.0, dropouts=0.2, minimum=5)
VICTIM, PEER, OTHER = SITE.clients[2], SITE.clients[0], SITE.clients[5]
NEXT = {Phase.SHARES: Cohort, Phase.MASKED: Delivery, Phase.CONSISTENCY: Survivors, Phase.UNMASK: Agreement}
Forge = Callable[[Round, Any], Any]


@dataclass(frozen=True)
class Attack:
    """What the server sends the victim instead of the request of a phase, and why it is refused."""

    phase: Phase
    reason: Reason
    forge: Forge


def with_keys(round: Round, cohort: Cohort, client: int, signer: Identity | None = None, **changes: Any) -> Cohort:
    """Return the cohort with other keys of one client, signed by ``signer`` or not at all."""
    changed = [replace(each, **changes) if each.client == client else each for each in cohort.advertised]
    if signer:
        changed = [each.signed(signer) if each.client == client else each for each in changed]
    return replace(cohort, advertised=tuple(changed))


def of_terms(made: Round, cohort: Cohort, **changes: Any) -> Cohort:
    """Return a cohort that everybody signed, but for other terms."""
    terms = replace(made.site.terms, **changes)
    signed = [replace(each, round=terms.round, scope=terms.digest) for each in cohort.advertised]
    advertised = tuple(each.signed(identity(each.client)) for each in signed)
    return Cohort(round=terms.round, scope=terms.digest, advertised=advertised)


def another(round: Round, phase: Phase) -> Any:
    """Return what the victim was sent in that phase of another session of the same round."""
    return NEXT[phase].decode(Round(round.site).until(phase).requests[VICTIM])


def survivors_of(round: Round, *gone: int) -> Survivors:
    members = frozenset(round.site.clients) - set(gone)
    return Survivors.of(round.site.terms.round, round.server._group.session, round.site.clients, members)  # type: ignore[union-attr]


def signatures(round: Round, survivors: Survivors, *signers: int) -> tuple[tuple[int, bytes], ...]:
    """Return the signatures that these clients would give under these survivors."""
    scope = {"round": survivors.round, "scope": survivors.scope, "survivors": survivors.digest()}
    return tuple((each, Consistency(client=each, **scope).signed(identity(each)).signature) for each in signers)


def advertised(round: Round, client: int) -> Advertise:
    return Advertise.decode(round.answers[Phase.ADVERTISE][client])


def sealed_by(round: Round, peer: int, *, place: int) -> bytes:
    """Return a pair of shares for the victim, sealed by a peer, for a place of its choice."""
    group: Any = round.server._group
    key = group.sealing_key(round.clients[peer]._own.sealing, peer, VICTIM, sender=peer)
    text = pair(SeedShare(place, bytes(SHARE_BYTES)), KeyShare(place, bytes(SHARE_BYTES)))
    return seal(key, text, group.associated(peer, VICTIM))


def test_a_peers_sealed_shares_open_if_they_are_for_this_place() -> None:
    round = Round(SITE).until(Phase.MASKED)
    delivery = Delivery.decode(round.requests[VICTIM])
    sealed = ((PEER, sealed_by(round, PEER, place=3)), *delivery.sealed[1:])
    round.clients[VICTIM].receive(replace(delivery, sealed=sealed).encode(), SITE.vector(VICTIM))


def fresh() -> bytes:
    return KeyPair.generate().public


def first(message: Any) -> Any:
    """Return a message with the first entry of its list changed in one bit."""
    name = "sealed" if hasattr(message, "sealed") else "signatures"
    (client, data), *rest = getattr(message, name)
    return replace(message, **{name: ((client, bytes([data[0] ^ 1]) + data[1:]), *rest)})


ATTACKS: dict[str, Attack] = {
    # Keys.
    "a peer's keys are the server's": Attack(
        Phase.SHARES, Reason.KEY_SUBSTITUTION, lambda r, m: with_keys(r, m, PEER, sealing=fresh(), masking=fresh())
    ),
    "a peer's masking key is the server's": Attack(
        Phase.SHARES, Reason.KEY_SUBSTITUTION, lambda r, m: with_keys(r, m, PEER, masking=fresh())
    ),
    "a peer's keys are signed by somebody else": Attack(
        Phase.SHARES, Reason.KEY_SUBSTITUTION, lambda r, m: with_keys(r, m, PEER, Identity.generate(), sealing=fresh())
    ),
    "a peer's two keys are exchanged": Attack(
        Phase.SHARES,
        Reason.KEY_SUBSTITUTION,
        lambda r, m: with_keys(r, m, PEER, sealing=advertised(r, PEER).masking, masking=advertised(r, PEER).sealing),
    ),
    "a peer's keys are under another's name": Attack(
        Phase.SHARES,
        Reason.KEY_SUBSTITUTION,
        lambda r, m: with_keys(r, m, PEER, **{k: getattr(advertised(r, OTHER), k) for k in ("sealing", "masking")}),
    ),
    "a colluding peer copies another's key": Attack(
        Phase.SHARES,
        Reason.KEY_SUBSTITUTION,
        lambda r, m: with_keys(r, m, PEER, identity(PEER), masking=advertised(r, OTHER).masking),
    ),
    "a colluding peer has one key for both purposes": Attack(
        Phase.SHARES,
        Reason.KEY_SUBSTITUTION,
        lambda r, m: with_keys(r, m, PEER, identity(PEER), masking=advertised(r, PEER).sealing),
    ),
    "the victim's own keys are others": Attack(
        Phase.SHARES, Reason.KEY_SUBSTITUTION, lambda r, m: with_keys(r, m, VICTIM, sealing=fresh())
    ),
    "a client that nobody knows": Attack(
        Phase.SHARES,
        Reason.KEY_SUBSTITUTION,
        lambda r, m: replace(
            m, advertised=(*m.advertised[:-1], replace(m.advertised[-1], client=999).signed(Identity.generate()))
        ),
    ),
    "keys that were signed for other terms": Attack(
        Phase.SHARES,
        Reason.KEY_SUBSTITUTION,
        lambda r, m: replace(of_terms(r, m, layout=bytes(32)), scope=m.scope),
    ),
    # Cohorts.
    "keys of too few clients": Attack(
        Phase.SHARES, Reason.SHRUNKEN_COHORT, lambda r, m: replace(m, advertised=m.advertised[:4])
    ),
    "keys without the victim's": Attack(
        Phase.SHARES,
        Reason.LEFT_OUT,
        lambda r, m: replace(m, advertised=tuple(each for each in m.advertised if each.client != VICTIM)),
    ),
    "shares of too few neighbours": Attack(
        Phase.MASKED, Reason.SHRUNKEN_COHORT, lambda r, m: replace(m, sealed=m.sealed[:3])
    ),
    "too few survivors": Attack(Phase.CONSISTENCY, Reason.SHRUNKEN_COHORT, lambda r, m: survivors_of(r, PEER, OTHER)),
    "survivors without the victim": Attack(Phase.CONSISTENCY, Reason.LEFT_OUT, lambda r, m: survivors_of(r, VICTIM)),
    # The graph.
    "shares of a client outside the cohort": Attack(
        Phase.MASKED, Reason.CHOSEN_GRAPH, lambda r, m: replace(m, sealed=(*m.sealed[1:], (999, bytes(SEALED_BYTES))))
    ),
    "the victim's own shares": Attack(
        Phase.MASKED,
        Reason.CHOSEN_GRAPH,
        lambda r, m: replace(m, sealed=tuple(sorted((*m.sealed[1:], (VICTIM, m.sealed[0][1]))))),
    ),
    # Shares.
    "a share that was changed": Attack(Phase.MASKED, Reason.BAD_SHARE, lambda r, m: first(m)),
    "two peers' shares exchanged": Attack(
        Phase.MASKED,
        Reason.BAD_SHARE,
        lambda r, m: replace(
            m, sealed=((m.sealed[0][0], m.sealed[1][1]), (m.sealed[1][0], m.sealed[0][1]), *m.sealed[2:])
        ),
    ),
    "shares of another session": Attack(
        Phase.MASKED, Reason.BAD_SHARE, lambda r, m: replace(m, sealed=another(r, Phase.MASKED).sealed)
    ),
    "a colluding peer's shares for another's place": Attack(
        Phase.MASKED,
        Reason.BAD_SHARE,
        lambda r, m: replace(m, sealed=((PEER, sealed_by(r, PEER, place=1)), *m.sealed[1:])),
    ),
    "the victim's own sealed shares, sent back": Attack(
        Phase.MASKED,
        Reason.BAD_SHARE,
        lambda r, m: replace(
            m, sealed=((PEER, dict(Shares.decode(r.answers[Phase.SHARES][VICTIM]).sealed)[PEER]), *m.sealed[1:])
        ),
    ),
    # Different cohorts for different clients.
    "fewer peers' shares delivered than survived": Attack(
        Phase.CONSISTENCY, Reason.SPLIT_COHORT, lambda r, m: (r.clients[VICTIM]._held._pairs.pop(PEER), m)[1]
    ),
    "signatures under other survivors": Attack(
        Phase.UNMASK,
        Reason.SPLIT_COHORT,
        lambda r, m: replace(m, signatures=signatures(r, survivors_of(r, OTHER), *r.site.clients[:2])),
    ),
    "too few signatures": Attack(
        Phase.UNMASK,
        Reason.SPLIT_COHORT,
        lambda r, m: replace(m, signatures=tuple(each for each in m.signatures if each[0] != VICTIM)[:2]),
    ),
    "no signatures": Attack(Phase.UNMASK, Reason.SPLIT_COHORT, lambda r, m: replace(m, signatures=())),
    "one signature under another's name": Attack(
        Phase.UNMASK,
        Reason.SPLIT_COHORT,
        lambda r, m: replace(m, signatures=(m.signatures[0], (m.signatures[1][0], m.signatures[0][1]))),
    ),
    "a signature that was changed": Attack(Phase.UNMASK, Reason.SPLIT_COHORT, lambda r, m: first(m)),
    "signatures of clients outside the cohort": Attack(
        Phase.UNMASK, Reason.SPLIT_COHORT, lambda r, m: replace(m, signatures=(*m.signatures, (999, bytes(64))))
    ),
    "signatures of another session": Attack(
        Phase.UNMASK, Reason.SPLIT_COHORT, lambda r, m: replace(m, signatures=another(r, Phase.UNMASK).signatures)
    ),
    "other survivors after the first": Attack(Phase.UNMASK, Reason.BOTH_SHARES, lambda r, m: survivors_of(r, OTHER)),
    "the same survivors again": Attack(Phase.UNMASK, Reason.UNEXPECTED, lambda r, m: survivors_of(r)),
    # Replays, of whole messages: the victim's part is in them.
    "the cohort of an old round": Attack(Phase.SHARES, Reason.OLD_ROUND, lambda r, m: of_terms(r, m, round=4)),
    "the cohort of other terms": Attack(Phase.SHARES, Reason.STALE_SESSION, lambda r, m: of_terms(r, m, bits=31)),
    "the cohort of a later round": Attack(Phase.SHARES, Reason.STALE_SESSION, lambda r, m: of_terms(r, m, round=6)),
    **{
        f"{phase} of another session": Attack(phase, Reason.STALE_SESSION, lambda r, m: another(r, r.server.phase))
        for phase in (Phase.MASKED, Phase.CONSISTENCY, Phase.UNMASK)
    },
    **{
        f"{phase} of an old round": Attack(phase, Reason.OLD_ROUND, lambda r, m: replace(m, round=4))
        for phase in (Phase.MASKED, Phase.CONSISTENCY, Phase.UNMASK)
    },
    # Bytes.
    "survivors of more clients": Attack(
        Phase.CONSISTENCY, Reason.MALFORMED, lambda r, m: replace(m, cohort=8, members=b"\xff")
    ),
    **{f"{phase} cut": Attack(phase, Reason.MALFORMED, lambda r, m: m.encode()[:-1]) for phase in NEXT},
    **{f"{phase} cut in the header": Attack(phase, Reason.MALFORMED, lambda r, m: m.encode()[:20]) for phase in NEXT},
    **{f"{phase} and a byte": Attack(phase, Reason.MALFORMED, lambda r, m: m.encode() + b"\0") for phase in NEXT},
    **{
        f"{phase} and a megabyte": Attack(phase, Reason.MALFORMED, lambda r, m: m.encode() + bytes(1 << 20))
        for phase in NEXT
    },
    **{f"nothing in {phase}": Attack(phase, Reason.MALFORMED, lambda r, m: b"") for phase in NEXT},
    # Order.
    **{
        f"{kind.__name__} in {phase}": Attack(
            phase,
            Reason.UNEXPECTED,
            lambda r, m, kind=kind: header(kind.kind, m.round, m.scope) + bytes(4),  # type: ignore[misc]
        )
        for phase in NEXT
        for kind in NEXT.values()
        if kind is not NEXT[phase] and not (phase is Phase.UNMASK and kind is Survivors)
    },
    "a client's message": Attack(Phase.SHARES, Reason.UNEXPECTED, lambda r, m: r.answers[Phase.ADVERTISE][PEER]),
}


def refused(session: Any, message: Any, vector: Any = None) -> Reason:
    """Return why a session refuses a message; assert that it has ended and forgotten."""
    with pytest.raises(SecureSumError) as caught:
        session.receive(message if isinstance(message, bytes) else message.encode(), vector)
    assert caught.value.args[0].startswith(f"{session.reason}: ")
    assert session.state is State.ABORTED
    assert not session._held.peers
    for secret in (session._own.seed, session._own.sealing._secret, session._own.masking._secret):
        with pytest.raises(SecureSumError, match="wiped"):
            secret.view()
    reason: Reason = session.reason
    return reason


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_server_may_try_is_refused_with_its_reason(name: str) -> None:
    attack = ATTACKS[name]
    round = Round(SITE).until(attack.phase)
    session, request = round.clients[VICTIM], round.requests[VICTIM]
    forged = attack.forge(round, NEXT[attack.phase].decode(request))
    vector = SITE.vector(VICTIM) if isinstance(forged, Delivery) or attack.phase is Phase.MASKED else None
    assert refused(session, forged, vector) is attack.reason
    with pytest.raises(SecureSumError, match="this session has ended"):
        session.receive(request)  # not even what it waited for
    # Everybody else has their sum: the victim has dropped out.
    round.run()
    result = round.server.result
    assert result is not None
    lost = attack.phase in (Phase.SHARES, Phase.MASKED)
    assert result.clients == tuple(client for client in SITE.clients if client != VICTIM or not lost)
    assert result.vector.tolist() == SITE.sum(result.clients)


def test_every_reason_of_a_client_is_tried() -> None:
    elsewhere = {Reason.SECOND_UNMASK, Reason.WEAK_TERMS, Reason.OWN_VECTOR, Reason.WRONG_SHARES, Reason.TOO_FEW}
    assert {attack.reason for attack in ATTACKS.values()} == set(Reason) - elsewhere


def test_nothing_is_answered_after_shares_were_shown() -> None:
    round = Round(SITE)
    round.run()
    session = round.clients[VICTIM]
    assert session.state is State.DONE
    session.abort()
    assert session.state is State.DONE
    other = survivors_of(round, OTHER)
    agreement = Agreement(round=other.round, scope=other.scope, signatures=signatures(round, other, *SITE.clients[:5]))
    for message in (other.encode(), agreement.encode(), round.requests.get(VICTIM, b"")):
        with pytest.raises(SecureSumError, match="second request to unmask"):
            session.receive(message)
    assert session.reason is Reason.SECOND_UNMASK
    with pytest.raises(SecureSumError, match="unexpected message"):
        session.start()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"minimum": 4}, "minimum 4 is below 5"),
        ({"dropouts": 0.3}, "dropouts 0.3 are above 0.2"),
        ({"adversaries": 0.05}, "adversaries 0.05 are below 0.1"),
        ({"server": Server.SEMI_MALICIOUS}, "a semi-malicious server is less than a malicious one"),
        ({"server": Server.CURIOUS}, "a curious server is less than a malicious one"),
    ],
)
def test_terms_weaker_than_the_site_allows_are_refused(changes: dict[str, Any], part: str) -> None:
    site = Site.of(6, minimum=5, dropouts=0.2, adversaries=0.1)
    with pytest.raises(SecureSumError) as caught:
        site.session(VICTIM, terms=replace(site.terms, **changes))
    assert str(Reason.WEAK_TERMS) in str(caught.value)
    assert part in str(caught.value)
    site.session(VICTIM, terms=replace(site.terms, minimum=6, dropouts=0.1, adversaries=0.2))  # stronger ones are fine


def test_a_round_is_answered_once() -> None:
    assert SITE.session(VICTIM, last_round=4).state is State.NEW
    for last_round in (5, 6):
        with pytest.raises(SecureSumError, match="replay of an old round"):
            SITE.session(VICTIM, last_round=last_round)


def test_a_roster_must_hold_this_client_and_nobody_twice() -> None:
    roster = SITE.roster
    for wrong in ({**roster, VICTIM: roster[PEER]}, {PEER: roster[PEER]}, {**roster, 999: roster[OTHER]}):
        with pytest.raises(SecureSumError, match="key substitution: roster"):
            SITE.session(VICTIM, roster=wrong)


@pytest.mark.parametrize(
    "vector",
    [
        None,
        [1] * 20,
        np.zeros(19, np.uint32),
        np.zeros(21, np.uint32),
        np.zeros((20, 1), np.uint32),
        np.zeros(20, np.int32),
        np.zeros(20, np.uint64),
        np.zeros(20, np.float32),
        np.full(20, 1 << 18, np.uint32),
    ],
    ids=lambda each: f"{each.dtype}{each.shape}" if isinstance(each, np.ndarray) else str(type(each)),
)
def test_a_vector_that_does_not_fit_is_refused(vector: Any) -> None:
    site = Site.of(4, adversaries=0.0, dropouts=0.0, bits=18)
    round = Round(site).until(Phase.MASKED)
    assert refused(round.clients[2], round.requests[2], vector) is Reason.OWN_VECTOR


def test_a_vector_belongs_to_one_message_only() -> None:
    for phase in (Phase.SHARES, Phase.CONSISTENCY, Phase.UNMASK):
        round = Round(SITE).until(phase)
        assert refused(round.clients[VICTIM], round.requests[VICTIM], SITE.vector(VICTIM)) is Reason.OWN_VECTOR


def test_the_callers_vector_stays_as_it_was() -> None:
    round = Round(SITE).until(Phase.MASKED)
    vector = SITE.vector(VICTIM)
    round.clients[VICTIM].receive(round.requests[VICTIM], vector)
    assert vector.tolist() == SITE.vector(VICTIM).tolist()


def test_own_secrets_are_wiped_before_the_masked_vector_leaves_and_shares_when_they_are_shown() -> None:
    round = Round(SITE).until(Phase.MASKED)
    session = round.clients[VICTIM]
    buffers = [session._own.seed._data, session._own.sealing._secret._data, session._own.masking._secret._data]
    assert all(any(each) for each in buffers)
    session.receive(round.requests[VICTIM], SITE.vector(VICTIM))
    assert not any(any(each) for each in buffers)
    round = Round(SITE)
    round.run()
    assert not round.clients[VICTIM]._held.peers


def test_ending_wipes_in_every_state() -> None:
    for phase in (Phase.ADVERTISE, *NEXT):
        session = Round(SITE).until(phase).clients[VICTIM]
        buffers = [session._own.seed._data, session._own.sealing._secret._data, session._own.masking._secret._data]
        session.abort()
        assert not any(any(each) for each in buffers)
        assert not session._held.peers
        assert session.reason is Reason.LEFT_OUT
        with pytest.raises(SecureSumError):
            session.receive(b"")
        with pytest.raises(SecureSumError):
            session.start()


def test_so_does_an_error_that_nobody_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    round = Round(SITE).until(Phase.MASKED)
    session = round.clients[VICTIM]
    monkeypatch.setattr(session, "_add_masks", lambda *_: 1 // 0)
    buffer = session._own.seed._data
    with pytest.raises(ZeroDivisionError):
        session.receive(round.requests[VICTIM], SITE.vector(VICTIM))
    assert session.state is State.ABORTED
    assert not any(buffer)


def test_start_is_the_first_thing_and_happens_once() -> None:
    session = SITE.session(VICTIM)
    with pytest.raises(SecureSumError, match=r"unexpected message: expected none before start\(\)"):
        session.receive(header(Kind.COHORT, 5, SITE.terms.digest) + bytes(4))
    session = SITE.session(VICTIM)
    session.start()
    with pytest.raises(SecureSumError, match="unexpected message: start"):
        session.start()
    assert session.state is State.ABORTED


def test_secrets_are_in_no_text_no_log_and_no_pickle(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    round = Round(SITE).until(Phase.CONSISTENCY)
    session = round.clients[VICTIM]
    shares = [share.value for pair in session._held._pairs.values() for share in pair]
    texts = [repr(session), str(session), repr(session._held), repr(session._own), repr(round.server), caplog.text]
    with pytest.raises(SecureSumError) as caught:
        session.receive(survivors_of(round, PEER, OTHER).encode())
    texts += [repr(caught.value), str(caught.value)]
    assert repr(session) == f"ClientSession(client={VICTIM}, round=5, state=aborted)"
    for value in shares:
        assert not any(value.hex()[:16] in text or repr(value)[2:20] in text for text in texts)
    for each in (Round(SITE).until(Phase.CONSISTENCY).clients[VICTIM], round.clients[PEER]._held, SITE.session(VICTIM)):
        for take in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(SecureSumError, match="cannot be copied or pickled"):
                take(each)


def test_of_each_peer_one_kind_of_share_is_shown() -> None:
    gone = OTHER
    round = Round(SITE, Faults(lost={gone: (Phase.MASKED, "answer")}))
    round.run()
    kinds: dict[int, set[type]] = {client: set() for client in SITE.clients}
    for data in round.answers[Phase.UNMASK].values():
        for peer, share in Unmask.decode(data).shown:
            kinds[peer].add(type(share))
    assert kinds == {client: {KeyShare if client == gone else SeedShare} for client in SITE.clients}


def test_survivors_are_counted_in_all_and_among_neighbours() -> None:
    full = Site.of(10, adversaries=0.0, dropouts=0.1)
    round = Round(full).until(Phase.CONSISTENCY)
    session, group = round.clients[VICTIM], round.clients[VICTIM]._group
    assert (group.fewest, group.parameters.threshold) == (9, 6)

    def named(count: int) -> Survivors:
        return Survivors.of(5, group.session, group.clients, frozenset(full.clients[:count]))

    held = session._held.peers
    session._checks.survivors(group, named(9), held)
    with pytest.raises(SecureSumError, match="shrunken cohort: expected at least 9 clients in the sum, found 8"):
        session._checks.survivors(group, named(8), held)
    strict = replace(group, parameters=replace(group.parameters, threshold=9))
    with pytest.raises(SecureSumError, match="shrunken cohort: expected at least 9 neighbours in the sum, found 8"):
        session._checks.survivors(strict, named(9), held)
