"""Who sums with whom: everything that follows from the list of advertised keys, the same on every side.

The session is the hash of the terms and of all keys, and the order on the graph's ring comes from that hash. So each
client works out for itself whose masks it adds and who holds its shares; a server that shows other keys, or another
order of them, gets another session, in which nothing fits.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cloister.privacy.secagg.graph import neighbours
from cloister.privacy.secagg.keys import KeyPair, Secret, message
from cloister.privacy.secagg.masks import Stream
from cloister.privacy.secagg.messages import Advertise, Cohort, longest
from cloister.privacy.secagg.parameters import Parameters, Server
from cloister.privacy.secagg.reasons import Reason, because
from cloister.privacy.secagg.terms import Terms
from cloister.privacy.secagg.wire import Kind

VECTOR = "vector"
"""The name under which the one vector of a session is masked."""


@dataclass(frozen=True)
class Group:
    """The clients of a session and what each is to each. Made by :meth:`of` from keys that were checked."""

    terms: Terms
    keys: Mapping[int, Advertise]
    session: bytes
    parameters: Parameters
    graph: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, terms: Terms, cohort: Cohort) -> "Group":
        """Return the group of these keys; raises :class:`SecureSumError` if no parameters protect so few clients."""
        keys = {each.client: each for each in cohort.advertised}
        with because(Reason.SHRUNKEN_COHORT):
            parameters = terms.parameters(len(keys))
        session = session_of(terms, cohort)
        graph = _graph(session, tuple(keys), parameters.degree)
        return cls(terms, keys, session, parameters, graph)

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """The cohort, ascending."""
        return tuple(self.keys)

    @cached_property
    def places(self) -> Mapping[int, int]:
        """Where each client's shares are evaluated: its number in the cohort, from 1."""
        return {client: place for place, client in enumerate(self.clients, 1)}

    @property
    def quorum(self) -> int:
        """How many clients must have signed one set of survivors before any shows a share.

        Where the server may lie, so many that two sets cannot both have them: colluding clients sign both, others one.
        """
        if self.terms.server is Server.CURIOUS:
            return self.parameters.threshold
        clients = len(self.keys)
        colluding = math.ceil(round(self.terms.adversaries * clients, 9))
        return max(self.parameters.threshold, (clients + colluding) // 2 + 1)

    @property
    def fewest(self) -> int:
        """The fewest clients that the sum may be over. The threshold is below it, whatever the graph."""
        return self.terms.least(len(self.keys))

    @property
    def stream(self) -> Stream:
        """The masks of this session."""
        return Stream(self.session, self.terms.round, self.terms.layout, self.terms.bits)

    def longest(self, kind: Kind) -> int:
        """Return the most bytes that a message of this kind can have here."""
        size, bits, holders = self.terms.size, self.terms.bits, self.parameters.degree
        return longest(kind, clients=len(self.keys), holders=holders, size=size, bits=bits)

    def mask_seed(self, pair: KeyPair, one: int, other: int) -> Secret:
        """Return the seed that two clients share, from the masking keys of ``one`` and the public key of ``other``."""
        first, second = sorted((one, other))
        numbers = (number.to_bytes(4) for number in (first, second, self.terms.round))
        return pair.agree(self.keys[other].masking, salt=self.session, info=message("mask", *numbers))

    def sealing_key(self, pair: KeyPair, mine: int, peer: int, *, sender: int) -> Secret:
        """Return the key under which one of two clients, ``sender``, seals one text for the other."""
        info = message("seal", sender.to_bytes(4), (mine + peer - sender).to_bytes(4))
        return pair.agree(self.keys[peer].sealing, salt=self.session, info=info)

    def associated(self, sender: int, receiver: int) -> bytes:
        """Return what a sealed pair of shares is bound to."""
        return message("shares", sender.to_bytes(4), receiver.to_bytes(4), self.session)


@lru_cache(maxsize=4)  # the same for all clients of a cohort, many of which one process may simulate
def _graph(session: bytes, clients: tuple[int, ...], degree: int) -> Mapping[int, tuple[int, ...]]:
    return neighbours(session, clients, degree)


def session_of(terms: Terms, cohort: Cohort) -> bytes:
    """Return the session's identity: a hash of the terms and of all keys in the order of clients."""
    parts = (part for each in cohort.advertised for part in (each.client.to_bytes(4), each.sealing, each.masking))
    return hashlib.sha256(message("secure aggregation, session", terms.digest, *parts)).digest()
