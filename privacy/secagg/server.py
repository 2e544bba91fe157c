"""The server's side of secure aggregation: takes messages as they come, goes on with who is left, and sums.

    advertise -> shares -> masked -> consistency -> unmask -> done          each also -> aborted

Free of transport and of time: whoever carries the messages calls :meth:`ServerSession.receive` for each that arrives,
and :meth:`ServerSession.close` when nobody is missing or the phase's deadline has passed; what ``close`` returns is
sent. A client that did not answer in a phase is out from then on, and what it sends later is not read. The next round
is a new session, in which it may take part again.

The server checks what it needs for an exact sum. That it learns no more than the sum is what the clients check.

Source: Bonawitz et al. 2017, figure 4.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cloister.errors import SecureSumError
from cloister.privacy.secagg.checks import check_cohort
from cloister.privacy.secagg.group import Group
from cloister.privacy.secagg.masks import Words
from cloister.privacy.secagg.messages import (
    Advertise,
    Agreement,
    Cohort,
    Consistency,
    Delivery,
    Masked,
    Shares,
    Signed,
    Survivors,
    Unmask,
    longest,
    zeros,
)
from cloister.privacy.secagg.reasons import Reason, reason_of, refusal
from cloister.privacy.secagg.shares import KeyShare, SeedShare
from cloister.privacy.secagg.terms import Terms
from cloister.privacy.secagg.unmasking import remove_masks, some
from cloister.privacy.secagg.wire import Kind, kind_of


class Phase(StrEnum):
    """What the server waits for."""

    ADVERTISE = "advertise"
    SHARES = "shares"
    MASKED = "masked"
    CONSISTENCY = "consistency"
    UNMASK = "unmask"
    DONE = "done"
    ABORTED = "aborted"


class Receipt(StrEnum):
    """What became of a message: only the first counts."""

    COUNTED = "counted"
    REPEATED = "repeated"
    LATE = "late"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Sum:
    """The exact sum modulo 2^bits over ``clients``, ascending, of the vectors that they sent."""

    vector: Words = field(repr=False)
    clients: tuple[int, ...]


_TYPES: dict[Phase, type[Signed]] = {
    Phase.ADVERTISE: Advertise,
    Phase.SHARES: Shares,
    Phase.MASKED: Masked,
    Phase.CONSISTENCY: Consistency,
    Phase.UNMASK: Unmask,
}
_PHASES = tuple(_TYPES)
_KINDS = {kind.kind: phase for phase, kind in _TYPES.items()}
_REMEMBERED = 100


class ServerSession:
    """One sum. ``clients``: who was asked; ``roster``: the Ed25519 public key of each.

    ``phase``: what is waited for. ``result``: the sum, once ``phase`` is done. ``reason``: why, once it is aborted.
    ``dropped``: for each phase that was closed, who did not answer in it. ``refused``: the last hundred messages that
    were not taken, in words.

    Memory: one vector, and the one that is being added; not one for each client.
    """

    def __init__(self, *, terms: Terms, roster: Mapping[int, bytes], clients: Iterable[int]) -> None:
        self.terms = terms
        self.phase = Phase.ADVERTISE
        self.result: Sum | None = None
        self.reason: Reason | None = None
        self.dropped: dict[Phase, tuple[int, ...]] = {}
        self.refused: deque[str] = deque(maxlen=_REMEMBERED)
        self._roster = dict(roster)
        self._asked = tuple(sorted(set(clients)))
        if unknown := set(self._asked) - set(roster):
            raise refusal(Reason.KEY_SUBSTITUTION, f"clients: expected those of the roster, found {sorted(unknown)}")
        self._answers: dict[int, Signed] = {}
        self._group: Group | None = None
        self._shared: frozenset[int] = frozenset()  # whose shares were delivered
        self._summed: frozenset[int] = frozenset()  # whose vectors are in the total
        self._survivors: Survivors | None = None
        self._total = zeros(terms.size, terms.bits)

    @property
    def masked_sum(self) -> Words:
        """The sum modulo 2^bits of the masked vectors that are there: a copy, before any mask is removed."""
        return self._total & self._total.dtype.type((1 << self.terms.bits) - 1)

    def missing(self) -> tuple[int, ...]:
        """Return who was asked in this phase and has not answered, ascending."""
        return tuple(client for client in self._asked if client not in self._answers)

    def receive(self, message: bytes) -> Receipt:
        """Take a message from any client, at any time, in any order. Never raises for what a message holds."""
        try:
            phase = _KINDS.get(kind_of(message))
            if self.phase not in _TYPES or (phase is not None and _PHASES.index(phase) < _PHASES.index(self.phase)):
                return Receipt.LATE
            if phase is not self.phase:
                raise refusal(Reason.UNEXPECTED, f"expected one of phase {self.phase}, found another")
            if len(message) > (most := self._longest(_TYPES[phase].kind)):
                raise refusal(Reason.MALFORMED, f"expected at most {most} bytes, found {len(message)}")
            answer = _TYPES[phase].decode(message)
            self._check(answer)
        except SecureSumError as error:
            self.refused.append(f"{self.phase}: {error.args[0]}")
            return Receipt.REFUSED
        if answer.client in self._answers:
            return Receipt.REPEATED
        self._take(answer)
        return Receipt.COUNTED

    def close(self) -> dict[int, bytes]:
        """End the phase and return the next message for each client that is still there; nothing after the last.

        Raises :class:`~cloister.errors.SecureSumError`, whose text begins with a :class:`Reason`, if too few are left;
        the session is then aborted, and there is no sum.
        """
        if self.phase not in _TYPES:
            raise refusal(self.reason or Reason.UNEXPECTED, f"this session is {self.phase}; start a new round")
        self.dropped[self.phase] = self.missing()
        try:
            messages = self._next()
        except SecureSumError as error:
            self.phase, self.reason = Phase.ABORTED, reason_of(error)
            self._answers.clear()
            self._total = self._total[:0]
            raise
        self._asked, self._answers = tuple(messages), {}
        self.phase = _PHASES[_PHASES.index(self.phase) + 1] if messages else Phase.DONE
        return messages

    # Messages ---------------------------------------------------------------------------------------------------------

    def _check(self, answer: Signed) -> None:
        """Refuse an answer that is of another session, not its sender's, or not what an honest client sends."""
        if answer.round != self.terms.round:
            raise refusal(Reason.OLD_ROUND, f"expected round {self.terms.round}, found {answer.round}")
        if answer.scope != (self._group.session if self._group else self.terms.digest):
            raise refusal(Reason.STALE_SESSION, f"client {answer.client}: expected this session, found another")
        if answer.client not in self._asked:
            raise refusal(Reason.UNEXPECTED, f"expected a client that was asked in this phase, found {answer.client}")
        answer.verify(self._roster[answer.client])
        if isinstance(answer, Shares):
            group = self._joined()
            wanted: object = group.graph[answer.client]
            found: object = tuple(holder for holder, _ in answer.sealed)
        elif isinstance(answer, Masked):
            wanted, found = (self.terms.bits, self.terms.size), (answer.bits, answer.vector.size)
        elif isinstance(answer, Consistency):
            wanted, found = self._survivors and self._survivors.digest(), answer.survivors
        elif isinstance(answer, Unmask):
            wanted = self._shown_by(answer.client)
            found = tuple((peer, type(share), share.place) for peer, share in answer.shown)
        else:
            return
        if wanted != found:
            kind = answer.kind.name.lower()
            raise refusal(Reason.MALFORMED, f"client {answer.client}: expected what this session asks, found {kind}")

    def _shown_by(self, client: int) -> tuple[tuple[int, type[SeedShare] | type[KeyShare], int], ...]:
        """Return whose shares ``client`` shows, of which kind and of which place: never both kinds for one peer."""
        group = self._joined()
        peers = (peer for peer in group.graph[client] if peer in self._shared)
        place = group.places[client]
        return tuple((peer, SeedShare if peer in self._summed else KeyShare, place) for peer in peers)

    def _take(self, answer: Signed) -> None:
        if isinstance(answer, Masked):
            self._total += answer.vector  # wraps; bits above the modulus are cut off at the end
            answer = replace(answer, vector=answer.vector[:0].copy())
        self._answers[answer.client] = answer

    def _longest(self, kind: Kind) -> int:
        if self._group is not None:
            return self._group.longest(kind)
        clients = len(self._asked)
        return longest(kind, clients=clients, holders=clients, size=self.terms.size, bits=self.terms.bits)

    # Phases -----------------------------------------------------------------------------------------------------------

    def _next(self) -> dict[int, bytes]:
        """Return what follows the phase that ends."""
        return {
            Phase.ADVERTISE: self._show_keys,
            Phase.SHARES: self._deliver,
            Phase.MASKED: self._name_survivors,
            Phase.CONSISTENCY: self._show_signatures,
            Phase.UNMASK: self._unmask,
        }[self.phase]()

    def _show_keys(self) -> dict[int, bytes]:
        advertised = tuple(answer for _, answer in sorted(self._answers.items()) if isinstance(answer, Advertise))
        self._enough(self.terms.minimum)
        cohort = Cohort(round=self.terms.round, scope=self.terms.digest, advertised=advertised)
        check_cohort(cohort, self.terms, self._roster)
        self._group = Group.of(self.terms, cohort)
        return dict.fromkeys(self._group.clients, cohort.encode())

    def _deliver(self) -> dict[int, bytes]:
        group = self._joined()
        self._enough(group.fewest)
        boxes: dict[int, list[tuple[int, bytes]]] = {client: [] for client in sorted(self._answers)}
        for sender, answer in sorted(self._answers.items()):
            for holder, sealed in answer.sealed if isinstance(answer, Shares) else ():
                if holder in boxes:
                    boxes[holder].append((sender, sealed))
        self._shared = frozenset(boxes)
        round, scope = self.terms.round, group.session
        return {client: Delivery(round=round, scope=scope, sealed=tuple(box)).encode() for client, box in boxes.items()}

    def _name_survivors(self) -> dict[int, bytes]:
        group = self._joined()
        self._enough(group.fewest)
        self._summed = frozenset(self._answers)
        self._survivors = Survivors.of(self.terms.round, group.session, group.clients, self._summed)
        return dict.fromkeys(sorted(self._summed), self._survivors.encode())

    def _show_signatures(self) -> dict[int, bytes]:
        group = self._joined()
        self._enough(group.quorum)
        signatures = tuple((client, answer.signature) for client, answer in sorted(self._answers.items()))
        agreement = Agreement(round=self.terms.round, scope=group.session, signatures=signatures[: group.quorum])
        return dict.fromkeys(sorted(self._answers), agreement.encode())

    def _unmask(self) -> dict[int, bytes]:
        answers = {client: answer for client, answer in self._answers.items() if isinstance(answer, Unmask)}
        group = self._joined()
        remove_masks(self._total, group, shared=self._shared, summed=self._summed, shown=answers)
        self._total &= self._total.dtype.type((1 << self.terms.bits) - 1)
        self.result = Sum(vector=self._total, clients=tuple(sorted(self._summed)))
        return {}

    def _enough(self, wanted: int) -> None:
        if (found := len(self._answers)) < wanted:
            raise refusal(
                Reason.TOO_FEW,
                f"round {self.terms.round}, {self.phase}: expected at least {wanted} clients, found {found}; missing "
                f"are {some(self.missing())}. Nothing was learned; ask again in the next round",
            )

    def _joined(self) -> Group:
        assert self._group is not None  # phases after the first have one
        return self._group
