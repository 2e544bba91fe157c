"""What a round of secure aggregation is, in numbers that both sides know before it begins, and what a site accepts."""

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from cloister.errors import SecureSumError
from cloister.privacy.secagg.masks import LONGEST_BYTES, words
from cloister.privacy.secagg.parameters import Parameters, Server, derive
from cloister.privacy.secagg.reasons import Reason, refusal
from cloister.privacy.secagg.wire import DIGEST, Kind, Reader, header

_SERVERS = (Server.CURIOUS, Server.SEMI_MALICIOUS, Server.MALICIOUS)  # weakest first; the place is what is sent
_NUMBERS = struct.Struct(">QBIddB")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One round: every session, key, mask and signature of it is bound to the digest of these numbers.

    ``run``: 32 bytes, the digest of the run and of its plan. ``round``: from 1. ``layout``: digest of the vector's
    layout; ``size``: its coordinates; ``bits``: the sum is modulo 2^bits. ``minimum``: the fewest clients that a sum
    may be over. ``adversaries``, ``dropouts``: the shares of clients that may collude with the server, and that may
    drop out; ``server``: what the server may do. Degree and threshold follow from these and from the number of clients
    that advertised keys.

    Raises :class:`SecureSumError` for values out of range.
    """

    run: bytes
    round: int
    layout: bytes
    size: int
    bits: int
    minimum: int
    adversaries: float
    dropouts: float
    server: Server

    def __post_init__(self) -> None:
        """Refuse values that no round has."""
        problems = {
            "run, layout: expected digests of 32 bytes": len(self.run) != DIGEST or len(self.layout) != DIGEST,
            f"round: expected 1 to 2^32 - 1, found {self.round}": not 1 <= self.round < 1 << 32,
            f"minimum: expected at least 2, found {self.minimum}": not 2 <= self.minimum < 1 << 32,
            f"adversaries: expected a share below 1, found {self.adversaries}": not _share(self.adversaries),
            f"dropouts: expected a share below 1, found {self.dropouts}": not _share(self.dropouts),
        }
        wrong = [problem for problem, found in problems.items() if found]
        if wrong:
            raise SecureSumError(f"terms: {'; '.join(wrong)}")
        if not 1 <= self.size <= LONGEST_BYTES // words(self.bits)().itemsize:
            raise SecureSumError(f"terms: size: expected at least 1 and at most 2^38 bytes in all, found {self.size}")

    @property
    def digest(self) -> bytes:
        """The SHA-256 of :meth:`encode`."""
        return hashlib.sha256(self.encode()).digest()

    def least(self, clients: int) -> int:
        """Return the fewest of ``clients`` that the sum may be over: ``minimum``, and all but the share of dropouts."""
        return max(self.minimum, math.ceil(round((1 - self.dropouts) * clients, 9)))

    def parameters(self, clients: int) -> Parameters:
        """Return degree and threshold for this many clients; raises :class:`SecureSumError` where there are none."""
        return _derived(clients, self.adversaries, self.dropouts, self.server)

    def encode(self) -> bytes:
        """Return the terms as bytes, equal for equal terms."""
        server = _SERVERS.index(self.server)
        numbers = (self.size, self.bits, self.minimum, self.adversaries, self.dropouts, server)
        return header(Kind.TERMS, self.round, self.run) + self.layout + _NUMBERS.pack(*numbers)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return what :meth:`encode` was called on; raises :class:`SecureSumError` for any other bytes."""
        reader = Reader(data, Kind.TERMS)
        layout = reader.take(DIGEST)
        size, bits, minimum, adversaries, dropouts, server = _NUMBERS.unpack(reader.take(_NUMBERS.size))
        reader.end()
        if server >= len(_SERVERS):
            raise reader.error(f"a server of {len(_SERVERS)} kinds, found {server}")
        return cls(
            run=reader.scope,
            round=reader.round,
            layout=layout,
            size=size,
            bits=bits,
            minimum=minimum,
            adversaries=adversaries,
            dropouts=dropouts,
            server=_SERVERS[server],
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a site's owner asks of every sum that its clients take part in, whatever the terms say.

    ``minimum_cohort``: the fewest clients, both that advertise keys and that are in the sum. ``most_dropouts``: the
    largest share of a cohort that may be missing from the sum. ``least_adversaries``: the smallest share of colluding
    clients that thresholds must allow for. ``weakest_server``: the least that a server is taken to be capable of.

    Raises :class:`SecureSumError` for values out of range.
    """

    minimum_cohort: int
    most_dropouts: float
    least_adversaries: float
    weakest_server: Server = Server.MALICIOUS

    def __post_init__(self) -> None:
        """Refuse a site that would take part in sums over itself alone, or in none."""
        if self.minimum_cohort < 2 or not _share(self.most_dropouts) or not _share(self.least_adversaries):
            raise SecureSumError(
                "limits: expected a minimum cohort of at least 2 and shares below 1, found "
                f"{self.minimum_cohort}, {self.most_dropouts} and {self.least_adversaries}"
            )

    def admit(self, terms: Terms) -> None:
        """Raise :class:`SecureSumError` with every reason if the terms promise less than this."""
        problems = {
            f"minimum {terms.minimum} is below {self.minimum_cohort}": terms.minimum < self.minimum_cohort,
            f"dropouts {terms.dropouts} are above {self.most_dropouts}": terms.dropouts > self.most_dropouts,
            f"adversaries {terms.adversaries} are below {self.least_adversaries}": terms.adversaries
            < self.least_adversaries,
            f"a {terms.server} server is less than a {self.weakest_server} one": _SERVERS.index(terms.server)
            < _SERVERS.index(self.weakest_server),
        }
        wrong = [problem for problem, found in problems.items() if found]
        if wrong:
            raise refusal(Reason.WEAK_TERMS, f"{'; '.join(wrong)}; the plan or the site's policy must change")


@lru_cache(maxsize=256)  # one process may hold many sessions of the same round
def _derived(clients: int, adversaries: float, dropouts: float, server: Server) -> Parameters:
    return derive(clients, adversaries=adversaries, dropouts=dropouts, server=server)


def _share(value: float) -> bool:
    return 0 <= value < 1 and math.copysign(1, value) > 0  # one zero, so that equal terms are equal bytes
