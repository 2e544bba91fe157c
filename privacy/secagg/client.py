"""A client's side of secure aggregation: a state machine that answers four messages, once each, or ends and forgets.

    new -> advertised -> shared -> masked -> confirmed -> done          each also -> aborted

A session is in one place: it cannot be copied or pickled, only moved as a whole (:mod:`.kept`), and a client that lost
it in the middle of a round has dropped out. Anything that is not the next message, or is not what an honest server
sends, ends the session: secrets are wiped and the rest of the round is refused. Secrets are wiped as soon as nothing
needs them, most of them before the masked vector leaves.

Source: Bonawitz et al. 2017, figure 4 (malicious server); Bell et al. 2020 for the k-regular graph.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

import numpy as np

from cloister.errors import SecureSumError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.checks import Checks
from cloister.privacy.secagg.group import VECTOR, Group
from cloister.privacy.secagg.held import Held, Own
from cloister.privacy.secagg.keys import Identity, seal, unseal
from cloister.privacy.secagg.masks import Words, words
from cloister.privacy.secagg.messages import (
    Advertise,
    Agreement,
    Cohort,
    Consistency,
    Delivery,
    Masked,
    Message,
    Shares,
    Signed,
    Survivors,
    Unmask,
    longest,
    pair,
    unpair,
)
from cloister.privacy.secagg.reasons import Reason, because, reason_of, refusal
from cloister.privacy.secagg.shares import KeyShare, SeedShare, split_key, split_seed
from cloister.privacy.secagg.terms import Limits, Terms
from cloister.privacy.secagg.wire import HEADER, Kind, kind_of

SomeSigned = TypeVar("SomeSigned", bound=Signed)


class State(StrEnum):
    """Where a session stands: named after what the client did last."""

    NEW = "new"
    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    DONE = "done"
    ABORTED = "aborted"


_NEXT = {
    State.ADVERTISED: Kind.COHORT,
    State.SHARED: Kind.DELIVERY,
    State.MASKED: Kind.SURVIVORS,
    State.CONFIRMED: Kind.AGREEMENT,
}
_AFTER = dict(zip(_NEXT.values(), (State.SHARED, State.MASKED, State.CONFIRMED, State.DONE), strict=True))


class ClientSession:
    """One client's part in one sum. Call :meth:`start`, then :meth:`receive` for each of the server's messages.

    ``client``: this client's number in ``roster``, which holds the Ed25519 public key of every client that may take
    part; the site got it from somebody other than the server. ``terms``: what the server asks for. ``limits``: what the
    site's owner asks of every sum. ``last_round``: the last round of this run that this client took part in, or 0.

    Guarantee, unless the session says otherwise by ending: the server, together with the share of clients that the
    terms allow for, learns from this client's messages no more than the sum of at least ``terms.minimum`` vectors, this
    one among them, of clients in the roster. The sum itself is not protected here; that is what noise is for.

    Raises :class:`~cloister.errors.SecureSumError` where the terms are weaker than the limits, are of an old round, or
    the identity is not the roster's.
    """

    def __init__(
        self,
        *,
        client: int,
        identity: Identity,
        roster: Mapping[int, bytes],
        terms: Terms,
        limits: Limits,
        last_round: int = 0,
    ) -> None:
        if roster.get(client) != identity.public or len(set(roster.values())) != len(roster):
            raise refusal(
                Reason.KEY_SUBSTITUTION,
                f"roster: expected the public key of this identity for client {client}, and no key twice; get the "
                "roster anew from whoever keeps it",
            )
        if terms.round <= last_round:
            raise refusal(Reason.OLD_ROUND, f"expected a round after {last_round}, found {terms.round}")
        limits.admit(terms)
        self.client = client
        self.terms = terms
        self.state = State.NEW
        self.reason: Reason | None = None
        self._identity = identity
        self._checks = Checks(client, terms, roster)
        self._own = Own()
        self._held = Held()
        self._group: Group | None = None
        self._advertised: Advertise | None = None
        self._survivors: Survivors | None = None

    # What the caller does ---------------------------------------------------------------------------------------------

    def start(self) -> bytes:
        """Return the first message, with this session's public keys."""
        if self.state is not State.NEW:
            self._end(Reason.UNEXPECTED)
            raise refusal(Reason.UNEXPECTED, "start: expected a new session, found one that had begun; make another")
        self._advertised = self._sign(
            Advertise(
                round=self.terms.round,
                scope=self.terms.digest,
                client=self.client,
                sealing=self._own.sealing.public,
                masking=self._own.masking.public,
            )
        )
        self.state = State.ADVERTISED
        return self._advertised.encode()

    def receive(self, message: bytes, vector: Words | None = None) -> bytes:
        """Return the answer to the server's next message.

        ``vector``, with the second message and no other: ``terms.size`` integers below 2^``terms.bits`` (uint32 where
        bits are at most 32, otherwise uint64). It is copied, and not kept.

        Raises :class:`~cloister.errors.SecureSumError`, whose text begins with a :class:`Reason`, for anything that an
        honest server does not send; the session is then aborted and its secrets are wiped.
        """
        if self.state is State.DONE:
            self.reason = Reason.SECOND_UNMASK
            raise refusal(Reason.SECOND_UNMASK, "shares were shown once and are gone; start a new round")
        if self.state is State.ABORTED:
            raise refusal(self.reason or Reason.UNEXPECTED, "this session has ended; start a new round")
        try:
            return self._answer(message, vector).encode()
        except SecureSumError as error:
            self._end(reason_of(error))
            raise
        except BaseException:
            self._end(Reason.UNEXPECTED)
            raise

    def abort(self) -> None:
        """End the session and wipe its secrets, as when the round's deadline has passed."""
        if self.state is not State.DONE:
            self._end(Reason.LEFT_OUT)

    # One answer each --------------------------------------------------------------------------------------------------

    def _answer(self, message: bytes, vector: Words | None) -> Message:
        kind = self._expected(message)
        if (vector is not None) != (kind is Kind.DELIVERY):
            raise refusal(Reason.OWN_VECTOR, "expected a vector with the delivery of shares, and with nothing else")
        if kind is Kind.COHORT:
            answer: Message = self._share(Cohort.decode(message))
        elif kind is Kind.DELIVERY and vector is not None:
            answer = self._mask(Delivery.decode(message), self._checked(vector))
        elif kind is Kind.SURVIVORS:
            answer = self._confirm(Survivors.decode(message))
        else:
            answer = self._unmask(Agreement.decode(message))
        self.state = _AFTER[kind]
        return answer

    def _expected(self, message: bytes) -> Kind:
        """Return the kind of the message if it is the next one, of this round and session."""
        kind, expected = kind_of(message), _NEXT.get(self.state)
        if kind is not expected:
            again = kind is Kind.SURVIVORS and self._survivors is not None
            if again and message != self._survivors.encode():  # type: ignore[union-attr]
                raise refusal(Reason.BOTH_SHARES, "a second, different set of survivors would get the other share")
            found, wanted = kind.name.lower(), expected.name.lower() if expected else "none before start()"
            raise refusal(Reason.UNEXPECTED, f"expected {wanted}, found {found}; the server starts a new round")
        most = self._longest(kind)
        if not HEADER <= len(message) <= most:
            raise refusal(Reason.MALFORMED, f"expected {HEADER} to {most} bytes, found {len(message)}")
        round, scope = int.from_bytes(message[5:9]), message[9:41]
        if round < self.terms.round:
            raise refusal(Reason.OLD_ROUND, f"expected round {self.terms.round}, found {round}")
        if round != self.terms.round or scope != (self._group.session if self._group else self.terms.digest):
            raise refusal(Reason.STALE_SESSION, f"expected this session of round {self.terms.round}, found another")
        return kind

    def _share(self, cohort: Cohort) -> Shares:
        """Check everybody's keys and seal a pair of shares for each holder."""
        self._checks.keys(cohort, self._advertised)
        group = self._group = Group.of(self.terms, cohort)
        sealed = tuple((holder, self._seal(group, holder, seed, key)) for holder, seed, key in self._split(group))
        return self._sign(Shares(**self._scope(group), sealed=sealed))

    def _mask(self, delivery: Delivery, vector: Words) -> Masked:
        """Open the peers' pairs of shares and add the masks of those who sent them."""
        group = self._joined()
        peers = tuple(peer for peer, _ in delivery.sealed)
        self._checks.peers(group, peers)
        for peer, sealed in delivery.sealed:
            with because(Reason.BAD_SHARE):
                self._held.put(peer, *self._open(group, peer, sealed))
        self._add_masks(group, peers, vector)
        self._own.wipe()  # what is needed of these secrets now lies, in shares, with the holders
        return self._sign(Masked(**self._scope(group), bits=self.terms.bits, vector=vector))

    def _confirm(self, survivors: Survivors) -> Consistency:
        """Check whose vectors are in the sum and sign that this client was shown them."""
        group = self._joined()
        self._checks.survivors(group, survivors, self._held.peers)
        self._survivors = survivors
        return self._sign(Consistency(**self._scope(group), survivors=survivors.digest()))

    def _unmask(self, agreement: Agreement) -> Unmask:
        """Check that enough clients were shown the same survivors, then show one share of each peer."""
        group, survivors = self._joined(), self._survivors
        assert survivors is not None
        self._checks.agreement(group, agreement, survivors)
        members = survivors.of_cohort(group.clients)
        shown = tuple((peer, self._held.show(peer, survived=peer in members)) for peer in sorted(self._held.peers))
        return self._sign(Unmask(**self._scope(group), shown=shown))

    # Steps ------------------------------------------------------------------------------------------------------------

    def _split(self, group: Group) -> Iterator[tuple[int, SeedShare, KeyShare]]:
        """Yield each holder with its share of the seed and of the masking key."""
        holders, threshold = group.graph[self.client], group.parameters.threshold
        places, source, secret = (
            [group.places[each] for each in holders],
            NoiseSource.fresh(),
            self._own.masking.secret(),
        )
        seeds = split_seed(self._own.seed, threshold, places, source)
        keys = split_key(secret, threshold, places, source)
        secret.wipe()
        yield from zip(holders, seeds, keys, strict=True)

    def _seal(self, group: Group, holder: int, seed: SeedShare, share: KeyShare) -> bytes:
        key = group.sealing_key(self._own.sealing, self.client, holder, sender=self.client)
        try:
            return seal(key, pair(seed, share), group.associated(self.client, holder))
        finally:
            key.wipe()

    def _open(self, group: Group, peer: int, sealed: bytes) -> tuple[SeedShare, KeyShare]:
        key = group.sealing_key(self._own.sealing, self.client, peer, sender=peer)
        try:
            seed, shared = unpair(unseal(key, sealed, group.associated(peer, self.client)))
        finally:
            key.wipe()
        if seed.place != group.places[self.client]:
            raise SecureSumError(f"client {peer}: expected shares at this client's place, found {seed.place}")
        return seed, shared

    def _add_masks(self, group: Group, peers: tuple[int, ...], vector: Words) -> None:
        """Add this client's own mask and those it has in common with ``peers``, in place."""
        seeds = {peer: group.mask_seed(self._own.masking, self.client, peer) for peer in peers}
        add = [self._own.seed, *(shared for peer, shared in seeds.items() if peer < self.client)]
        subtract = [shared for peer, shared in seeds.items() if peer > self.client]
        try:
            group.stream.apply(vector, VECTOR, add=add, subtract=subtract)
        finally:
            for shared in seeds.values():
                shared.wipe()

    # Small things -----------------------------------------------------------------------------------------------------

    def _checked(self, vector: Words) -> Words:
        """Return a copy of the caller's vector."""
        dtype, size, bits = words(self.terms.bits), self.terms.size, self.terms.bits
        if not isinstance(vector, np.ndarray) or vector.dtype != dtype or vector.shape != (size,):
            found = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
            raise refusal(Reason.OWN_VECTOR, f"expected {size} words of {dtype.__name__}, found {found}")
        if int(vector.max()) >> bits:
            raise refusal(Reason.OWN_VECTOR, f"expected integers below 2^{bits}, found a larger one")
        return vector.copy()

    def _longest(self, kind: Kind) -> int:
        if self._group is not None:
            return self._group.longest(kind)
        clients = len(self._checks.roster)
        return longest(kind, clients=clients, holders=clients, size=self.terms.size, bits=self.terms.bits)

    def _joined(self) -> Group:
        assert self._group is not None  # every state that gets here has one
        return self._group

    def _scope(self, group: Group) -> dict[str, Any]:
        return {"round": self.terms.round, "scope": group.session, "client": self.client}

    def _sign(self, message: SomeSigned) -> SomeSigned:
        return message.signed(self._identity)

    def _end(self, reason: Reason) -> None:
        """Wipe what is secret and refuse everything from now on."""
        self._own.wipe()
        self._held.clear()
        self.state, self.reason = State.ABORTED, reason

    def __repr__(self) -> str:
        """Return client, round and state; never a secret."""
        return f"ClientSession(client={self.client}, round={self.terms.round}, state={self.state})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: two holders of one session could each show one kind of share."""
        raise SecureSumError("a client's session cannot be copied or pickled; one that starts again has dropped out")
