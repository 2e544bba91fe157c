"""Clients that are broken in one way each, and a server that makes the most of it: it learns what it must not.

Every attack runs against the sound client too, which gives nothing away, and refuses it where it can see it. What an
attack learns is exact: a single client's vector, or a sum over fewer clients than the terms allow.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from secagg_round import Faults, Round, Site

from cloister.errors import SecureSumError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.checks import Checks
from cloister.privacy.secagg.client import ClientSession, State
from cloister.privacy.secagg.group import VECTOR, Group
from cloister.privacy.secagg.held import Held, Own
from cloister.privacy.secagg.keys import KeyPair, Secret, seal, unseal
from cloister.privacy.secagg.masks import Words
from cloister.privacy.secagg.messages import (
    Advertise,
    Agreement,
    Cohort,
    Consistency,
    Delivery,
    Masked,
    Shares,
    Survivors,
    Unmask,
    pair,
    unpair,
)
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.reasons import Reason
from cloister.privacy.secagg.server import Phase
from cloister.privacy.secagg.shares import SHARE_BYTES, KeyShare, SeedShare, join_key, join_seed, split_key, split_seed
from cloister.privacy.secagg.terms import Limits
from cloister.privacy.secagg.unmasking import remove_masks

SITE = Site.of(6, adversaries=0.0, dropouts=0.2, minimum=5)
VICTIM = SITE.clients[2]
Sessions = type[ClientSession]


# What a server can do -------------------------------------------------------------------------------------------------


def group_of(round: Round) -> Group:
    group = round.server._group
    assert group is not None
    return group


def masked(round: Round, client: int = VICTIM) -> Words:
    return Masked.decode(round.answers[Phase.MASKED][client]).vector.copy()


def read(group: Group, vector: Words, client: int, *, seed: Secret | None, pair: KeyPair | None) -> list[int]:
    """Return what remains of one client's masked vector without the masks that these secrets give."""
    peers = group.graph[client]
    seeds = {peer: group.mask_seed(pair, client, peer) for peer in peers} if pair else {}
    add = [shared for peer, shared in seeds.items() if peer > client]
    subtract = [shared for peer, shared in seeds.items() if peer < client]
    group.stream.apply(vector, VECTOR, add=add, subtract=[*subtract, *([seed] if seed else [])])
    return vector.tolist()


def name_survivors(round: Round, members: Iterable[int]) -> Survivors:
    group = group_of(round)
    return Survivors.of(group.terms.round, group.session, group.clients, frozenset(members))


def agree(round: Round, survivors: Survivors, signers: Mapping[int, bytes]) -> Agreement:
    signatures = tuple(sorted(signers.items()))
    return Agreement(round=survivors.round, scope=survivors.scope, signatures=signatures)


def ask(round: Round, members: frozenset[int], asked: Iterable[int]) -> dict[int, Unmask]:
    """Name survivors to some clients, pass their signatures on, and return what they show."""
    survivors, signed, shown = name_survivors(round, members), {}, {}
    for client in asked:
        try:
            signed[client] = Consistency.decode(round.clients[client].receive(survivors.encode())).signature
        except SecureSumError as error:
            round.refused[client] = error
    for client in signed:
        try:
            answer = round.clients[client].receive(agree(round, survivors, signed).encode())
            shown[client] = Unmask.decode(answer)
        except SecureSumError as error:
            round.refused[client] = error
    return shown


def shares_of(shown: Mapping[int, Unmask], peer: int, kind: type) -> list[Any]:
    return [share for each in shown.values() for of, share in each.shown if of == peer and type(share) is kind]


def joined(shares: list[Any], threshold: int) -> Any:
    """Return the secret of these shares, or None where there are too few."""
    if len(shares) < threshold:
        return None
    join: Any = join_seed if isinstance(shares[0], SeedShare) else join_key
    try:
        return join(shares)
    except SecureSumError:
        return None


def all_of(kind: Sessions, site: Site = SITE) -> dict[int, Sessions]:
    return dict.fromkeys(site.clients, kind)


# Attacks: each returns whether the server learned what it must not, and the reasons that clients gave -----------------


def asks_again(kind: Sessions) -> tuple[bool, set[Reason]]:
    """After the sum, name survivors without the victim: its key comes on top of its seed."""
    round = Round(SITE, kinds=all_of(kind))
    round.run()
    group, honest = group_of(round), {c: Unmask.decode(data) for c, data in round.answers[Phase.UNMASK].items()}
    seed = joined(shares_of(honest, VICTIM, SeedShare), group.parameters.threshold)
    others = [client for client in SITE.clients if client != VICTIM]
    key = joined(shares_of(ask(round, frozenset(others), others), VICTIM, KeyShare), group.parameters.threshold)
    reasons = {session.reason for session in round.clients.values() if session.reason}
    if seed is None or key is None:
        return False, reasons
    vector = read(group, masked(round), VICTIM, seed=seed, pair=KeyPair.of(key))
    return vector == SITE.vector(VICTIM).tolist(), reasons


def substitutes_keys(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Play all the other clients towards the victim, under keys of the server's own."""
    session = SITE.session(VICTIM, kind)
    mine, terms = Advertise.decode(session.start()), SITE.terms
    fakes = {client: Own() for client in SITE.clients if client != VICTIM}
    scope = {"round": terms.round, "scope": terms.digest}
    advertised = [
        mine
        if client == VICTIM
        else Advertise(
            client=client, sealing=fakes[client].sealing.public, masking=fakes[client].masking.public, **scope
        )
        for client in SITE.clients
    ]
    cohort = Cohort(advertised=tuple(advertised), **scope)
    group = Group.of(terms, cohort)
    try:
        sealed = dict(Shares.decode(session.receive(cohort.encode())).sealed)
        opened, delivered = [], []
        for fake, own in fakes.items():
            key = group.sealing_key(own.sealing, fake, VICTIM, sender=VICTIM)
            opened.append(unpair(unseal(key, sealed[fake], group.associated(VICTIM, fake))))
            key = group.sealing_key(own.sealing, fake, VICTIM, sender=fake)
            place = group.places[VICTIM]
            text = pair(SeedShare(place, bytes(SHARE_BYTES)), KeyShare(place, bytes(SHARE_BYTES)))
            delivered.append((fake, seal(key, text, group.associated(fake, VICTIM))))
        request = Delivery(round=terms.round, scope=group.session, sealed=tuple(delivered))
        vector = Masked.decode(session.receive(request.encode(), SITE.vector(VICTIM))).vector.copy()
    except SecureSumError:
        return False, {session.reason}
    seed, key = join_seed(each[0] for each in opened), join_key(each[1] for each in opened)
    return read(group, vector, VICTIM, seed=seed, pair=KeyPair.of(key)) == SITE.vector(VICTIM).tolist(), set()


def subtracts_halves(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Subtract one tensor of the masked vector from the other: a mask that both have is gone."""
    vector, half = masked(Round(SITE, kinds=all_of(kind)).until(Phase.CONSISTENCY)), SITE.terms.size // 2
    own = SITE.vector(VICTIM)
    return bool((vector[:half] - vector[half:] == own[:half] - own[half:]).all()), set()


class Later(Site):
    """The same site in another session, with other vectors."""

    def vector(self, client: int) -> Words:
        return super().vector(client + 1000)


def subtracts_sessions(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Subtract a client's masked vectors of two sessions, after both were summed: a mask that both have is gone."""
    kinds, later, plain = all_of(kind), Later(SITE.clients, SITE.terms, SITE.limits), []
    for round in (Round(SITE, kinds=kinds), Round(later, kinds=kinds)):
        round.until(Phase.UNMASK)
        shown = {client: Unmask.decode(round.answer(client, Phase.UNMASK) or b"") for client in SITE.clients}
        seed = joined(shares_of(shown, VICTIM, SeedShare), group_of(round).parameters.threshold)
        vector = masked(round)
        round.clients[VICTIM].stream_of(group_of(round)).subtract(vector, seed, VECTOR)
        plain.append(vector)
    return bool((plain[0] - plain[1] == SITE.vector(VICTIM) - later.vector(VICTIM)).all()), set()


def calls_the_victim_late(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Have the victim's vector and say that it never came: its key comes, and only its own mask is left."""
    round = Round(SITE, kinds=all_of(kind)).until(Phase.CONSISTENCY)
    others = frozenset(SITE.clients) - {VICTIM}
    shown, group = ask(round, others, sorted(others)), group_of(round)
    key = joined(shares_of(shown, VICTIM, KeyShare), group.parameters.threshold)
    vector = masked(round)
    if key is not None:
        return read(group, vector, VICTIM, seed=None, pair=KeyPair.of(key)) == SITE.vector(VICTIM).tolist(), set()
    # A client that shows the wrong kind: the victim's seed, and everybody else's keys, which are as good as its own.
    seed = joined(shares_of(shown, VICTIM, SeedShare), group.parameters.threshold)
    for peer in group.graph[VICTIM]:
        other = joined(shares_of(shown, peer, KeyShare), group.parameters.threshold)
        if other is None:
            return False, set()
        shared = group.mask_seed(KeyPair.of(other), peer, VICTIM)
        group.stream.apply(vector, VECTOR, **({"subtract": [shared]} if peer < VICTIM else {"add": [shared]}))
    return read(group, vector, VICTIM, seed=seed, pair=None) == SITE.vector(VICTIM).tolist(), set()


TWELVE = Site.of(12, adversaries=0.0)


def splits_views(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Name other survivors to each of twelve clients, all of them enough, and sum over eight where nine are promised.

    Each of the last four is dead for everybody who shows its key, and for none of those is itself.
    """
    round = Round(TWELVE, kinds=all_of(kind, TWELVE)).until(Phase.CONSISTENCY)
    group, target, rest = group_of(round), TWELVE.clients[:8], TWELVE.clients[8:]
    assert group.fewest == 9
    shown = {}
    for index, client in enumerate(TWELVE.clients):
        alive = client if client in rest else rest[index % 4]
        survivors = name_survivors(round, (*target, alive))
        signed = {each: bytes(64) for each in (*target, alive) if each != client}
        try:
            round.clients[client].receive(survivors.encode())
            shown[client] = Unmask.decode(round.clients[client].receive(agree(round, survivors, signed).encode()))
        except SecureSumError:
            continue
    reasons = {session.reason for session in round.clients.values() if session.reason}
    total = sum((masked(round, client) for client in target[1:]), masked(round, target[0]))
    useful = {
        client: replace(
            each,
            shown=tuple((of, share) for of, share in each.shown if isinstance(share, SeedShare) == (of in target)),
        )
        for client, each in shown.items()
    }
    try:
        everybody, summed = frozenset(TWELVE.clients), frozenset(target)
        remove_masks(total, group, shared=everybody, summed=summed, shown=useful)
    except SecureSumError:
        return False, reasons
    return total.tolist() == TWELVE.sum(target), reasons


THIRTY = Site.of(30, adversaries=0.05, server=Server.CURIOUS)


def chooses_the_graph(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Deliver to the victim the shares of colluding clients that are not its neighbours: it masks with them alone."""
    victim = THIRTY.clients[0]
    round = Round(THIRTY, kinds={victim: kind}).until(Phase.MASKED)
    group, session = group_of(round), round.clients[victim]
    colluding = [client for client in THIRTY.clients if client not in (victim, *group.graph[victim])]
    pairs, sealed = {}, []
    for client in colluding:
        own = round.clients[client]._own
        key = group.sealing_key(own.sealing, client, victim, sender=client)
        place = group.places[victim]
        text = pair(SeedShare(place, bytes(SHARE_BYTES)), KeyShare(place, bytes(SHARE_BYTES)))
        sealed.append((client, seal(key, text, group.associated(client, victim))))
        pairs[client] = KeyPair.of(own.masking.secret())
    sealed = sealed[: group.parameters.degree]
    request = Delivery(round=group.terms.round, scope=group.session, sealed=tuple(sealed))
    try:
        answer = session.receive(request.encode(), THIRTY.vector(victim))
    except SecureSumError:
        return False, {session.reason}
    vector = Masked.decode(answer).vector.copy()
    del round.requests[victim]
    round.phase()
    everybody = [client for client in THIRTY.clients if client != victim]
    shown = ask(round, frozenset(THIRTY.clients), everybody)
    seed = joined(shares_of(shown, victim, SeedShare), group.parameters.threshold)
    for client, _ in sealed:
        shared = group.mask_seed(pairs[client], client, victim)
        group.stream.apply(vector, VECTOR, **({"subtract": [shared]} if client < victim else {"add": [shared]}))
    return read(group, vector, victim, seed=seed, pair=None) == THIRTY.vector(victim).tolist(), set()


def shrinks_the_cohort(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Ask the victim into a sum with two colluding clients, who subtract what is theirs."""
    site = Site.of(3, adversaries=0.0, dropouts=0.0, minimum=3)
    victim, limits = site.clients[0], Limits(minimum_cohort=5, most_dropouts=0.2, least_adversaries=0.0)
    round = Round(site)
    try:
        round.clients[victim] = site.session(victim, kind, limits=limits)
    except SecureSumError as error:
        return False, {reason for reason in Reason if str(reason) in str(error)}
    result = round.run().result
    assert result is not None
    rest = result.vector - site.vector(site.clients[1]) - site.vector(site.clients[2])
    return rest.tolist() == site.vector(victim).tolist(), set()


FULL = Site.of(10, adversaries=0.0, dropouts=0.1)


def drops_some_after_the_fact(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Have everybody's vector and name seven survivors, where nine are promised: the sum over the seven."""
    round = Round(FULL, kinds=all_of(kind, FULL)).until(Phase.CONSISTENCY)
    group, few = group_of(round), frozenset(FULL.clients[:7])
    assert group.fewest == 9
    shown = ask(round, few, sorted(few))
    reasons = {session.reason for session in round.clients.values() if session.reason}
    total = sum((masked(round, client) for client in FULL.clients[1:7]), masked(round, FULL.clients[0]))
    try:
        remove_masks(total, group, shared=frozenset(FULL.clients), summed=few, shown=shown)
    except SecureSumError:
        return False, reasons
    return total.tolist() == FULL.sum(few), reasons


def asks_the_round_again(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Ask for the same round twice, the second time without the victim: the difference is its vector."""
    first, second = Round(SITE, kinds=all_of(kind)), Round(SITE, Faults(lost={VICTIM: (Phase.ADVERTISE, "answer")}))
    whole = first.run().result
    try:
        for client in SITE.clients:
            second.clients[client] = SITE.session(client, kind, last_round=SITE.terms.round)
    except SecureSumError as error:
        return False, {reason for reason in Reason if str(reason) in str(error)}
    rest = second.run().result
    assert whole is not None
    assert rest is not None
    return (whole.vector - rest.vector).tolist() == SITE.vector(VICTIM).tolist(), set()


TEN = Site.of(10, adversaries=0.2, dropouts=0.2)


def colludes_within_the_stated_share(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Join the shares of the victim's secrets that two of ten clients hold, where two may collude."""
    victim, colluding = TEN.clients[4], TEN.clients[:2]
    round = Round(TEN, kinds={victim: kind}).until(Phase.MASKED)
    for client in TEN.clients:
        round.answers.setdefault(Phase.MASKED, {})[client] = round.answer(client, Phase.MASKED) or b""
    held = [round.clients[client]._held._pairs[victim] for client in colluding]
    seed, key = joined([each[0] for each in held], 2), joined([each[1] for each in held], 2)
    if seed is None or key is None:
        return False, set()
    vector = read(group_of(round), masked(round, victim), victim, seed=seed, pair=KeyPair.of(key))
    return vector == TEN.vector(victim).tolist(), set()


def reads_memory_after_the_end(kind: Sessions) -> tuple[bool, set[Reason]]:
    """Look into the memory of a client whose session ended before its secrets were used."""
    session = Round(SITE, kinds=all_of(kind)).until(Phase.MASKED).clients[VICTIM]
    buffers = [session._own.seed._data, session._own.masking._secret._data]
    with pytest.raises(SecureSumError):
        session.receive(b"not a message")
    return any(any(each) for each in buffers), {session.reason}


# Broken clients -------------------------------------------------------------------------------------------------------


class AnswersAgain(ClientSession):
    """Shows the other kind of share when it is asked again."""

    class Keeps(Held):
        def show(self, peer: int, *, survived: bool) -> SeedShare | KeyShare:
            return self._pairs[peer][0 if survived else 1]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._held = self.Keeps()

    def receive(self, message: bytes, vector: Words | None = None) -> bytes:
        if self.state is State.DONE:
            self.state = State.MASKED
        return super().receive(message, vector)


def unchecked(*names: str) -> Sessions:
    """Return a client that leaves out some of the checks."""

    class Unchecked(ClientSession):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            for name in names:
                setattr(self._checks, name, lambda *_: None)

    return Unchecked


class CountsSignaturesOnly(ClientSession):
    """Counts signatures of consistency, and verifies none."""

    class Counts(Checks):
        def agreement(self, group: Group, agreement: Agreement, survivors: Survivors) -> None:
            if len(agreement.signatures) + 1 < group.quorum:
                raise SecureSumError("too few")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._checks = self.Counts(options["client"], options["terms"], options["roster"])


class OneSeedForTwoTensors(ClientSession):
    """Masks both halves of its vector with the same stream."""

    def _add_masks(self, group: Group, peers: tuple[int, ...], vector: Words) -> None:
        half, seeds = vector.size // 2, {peer: group.mask_seed(self._own.masking, self.client, peer) for peer in peers}
        for part in (vector[:half], vector[half:]):
            group.stream.add(part, self._own.seed, VECTOR)
            for peer, seed in seeds.items():
                (group.stream.add if peer < self.client else group.stream.subtract)(part, seed, VECTOR)


class LongTermKeys(ClientSession):
    """Has the same masking key in every session: not what the protocol says, and yet no leak while seeds are bound."""

    keys: ClassVar[dict[int, bytes]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        key = self.keys.setdefault(self.client, bytes(self._own.masking.secret().view()))
        self._own.masking = KeyPair(Secret(key))

    def stream_of(self, group: Group) -> Any:
        return group.stream


class NoSessionInTheSeed(LongTermKeys):
    """Derives what it masks with from keys and round alone."""

    keys: ClassVar[dict[int, bytes]] = {}

    def stream_of(self, group: Group) -> Any:
        return replace(group, session=bytes(32)).stream

    def _add_masks(self, group: Group, peers: tuple[int, ...], vector: Words) -> None:
        super()._add_masks(replace(group, session=bytes(32)), peers, vector)


class Bound(ClientSession):
    """The sound client, which says where its own mask comes from."""

    def stream_of(self, group: Group) -> Any:
        return group.stream


class NoSelfMask(ClientSession):
    """Adds only the masks that it has in common with others."""

    def _add_masks(self, group: Group, peers: tuple[int, ...], vector: Words) -> None:
        super()._add_masks(group, peers, vector)
        group.stream.subtract(vector, self._own.seed, VECTOR)


class ShowsTheWrongKind(ClientSession):
    """Shows seeds of the dead and keys of the living."""

    class Inverted(Held):
        def show(self, peer: int, *, survived: bool) -> SeedShare | KeyShare:
            return super().show(peer, survived=not survived)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._held = self.Inverted()


class AllowsAnyTerms(ClientSession):
    """Does not ask what the site's owner allows."""

    def __init__(self, **options: Any) -> None:
        options["limits"] = Limits(minimum_cohort=2, most_dropouts=0.9, least_adversaries=0.0)
        super().__init__(**options)


class ForgetsRounds(ClientSession):
    """Does not know which rounds it took part in."""

    def __init__(self, **options: Any) -> None:
        options.pop("last_round", None)
        super().__init__(**options)


class SharesTooEasily(ClientSession):
    """Lets any two holders read its secrets."""

    def _split(self, group: Group) -> Any:
        holders, source = group.graph[self.client], NoiseSource.fresh()
        places = [group.places[holder] for holder in holders]
        seeds = split_seed(self._own.seed, 2, places, source)
        yield from zip(holders, seeds, split_key(self._own.masking.secret(), 2, places, source), strict=True)


class DoesNotWipe(ClientSession):
    """Ends, and keeps everything."""

    def _end(self, reason: Reason) -> None:
        self.state, self.reason = State.ABORTED, reason


@dataclass(frozen=True)
class Case:
    """An attack, the client on which it works, and the reason that a sound client gives, if it can see the attack."""

    attack: Callable[[Sessions], tuple[bool, set[Reason]]]
    broken: Sessions
    reason: Reason | None = None
    sound: Sessions = ClientSession


CASES = {
    "reveals both kinds": Case(asks_again, AnswersAgain, Reason.SECOND_UNMASK),
    "checks no signature of keys": Case(substitutes_keys, unchecked("keys"), Reason.KEY_SUBSTITUTION),
    "one seed for two tensors": Case(subtracts_halves, OneSeedForTwoTensors),
    "no session in the mask seed": Case(subtracts_sessions, NoSessionInTheSeed, sound=Bound),
    "no session in the mask seed: only that": Case(subtracts_sessions, NoSessionInTheSeed, sound=LongTermKeys),
    "no self mask": Case(calls_the_victim_late, NoSelfMask),
    "the wrong kind of share": Case(calls_the_victim_late, ShowsTheWrongKind),
    "consistency skipped": Case(splits_views, unchecked("agreement"), Reason.SPLIT_COHORT),
    "consistency counted but not verified": Case(splits_views, CountsSignaturesOnly, Reason.SPLIT_COHORT),
    "graph of the server's choice": Case(chooses_the_graph, unchecked("peers"), Reason.CHOSEN_GRAPH),
    "any cohort, however small": Case(shrinks_the_cohort, AllowsAnyTerms, Reason.WEAK_TERMS),
    "survivors not counted": Case(drops_some_after_the_fact, unchecked("survivors"), Reason.SHRUNKEN_COHORT),
    "a round twice": Case(asks_the_round_again, ForgetsRounds, Reason.OLD_ROUND),
    "a threshold of two": Case(colludes_within_the_stated_share, SharesTooEasily),
    "secrets not wiped": Case(reads_memory_after_the_end, DoesNotWipe, Reason.MALFORMED),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_server_learns_from_the_broken_client_and_nothing_from_the_sound_one(name: str) -> None:
    case = CASES[name]
    learned, _ = case.attack(case.broken)
    assert learned
    learned, reasons = case.attack(case.sound)
    assert not learned
    assert case.reason is None or case.reason in reasons


@pytest.mark.slow
def test_broken_clients_are_honest_otherwise() -> None:
    """With an honest server, their sums are right: what is broken shows only under attack."""
    quiet = [AnswersAgain, CountsSignaturesOnly, LongTermKeys, AllowsAnyTerms, ForgetsRounds, SharesTooEasily]
    for kind in (*quiet, DoesNotWipe, unchecked("keys", "peers", "survivors", "agreement")):
        result = Round(SITE, kinds=all_of(kind)).run().result
        assert result is not None
        assert result.vector.tolist() == SITE.sum(SITE.clients)
