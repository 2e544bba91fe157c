"""A whole cohort's secure sum in one process: its time, its memory, and what goes over the wire.

Clients answer one after another, so that the seconds are those of one core doing everybody's work and the server's.
The dropouts leave where that costs the server most: after their shares were delivered, before their vectors are sent.
"""

import json
import resource
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloister.privacy.secagg.client import ClientSession
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.server import Phase, ServerSession
from cloister.privacy.secagg.terms import Limits, Terms

_WORD_BYTES = 4


@dataclass
class Cohort:
    """``clients`` sum vectors of ``size`` numbers; a share of ``dropouts`` is lost on the way."""

    clients: int
    size: int
    dropouts: float
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    sent: int = 0

    def run(self) -> dict[str, Any]:
        """Return what it took, by name; raises AssertionError where the sum is not exact."""
        identities = {number: Identity.generate() for number in range(1, self.clients + 1)}
        roster = {number: identity.public for number, identity in identities.items()}
        terms = Terms(
            run=bytes(32),
            round=1,
            layout=bytes(32),
            size=self.size,
            bits=32,
            minimum=3,
            adversaries=0.05,
            dropouts=max(self.dropouts, 0.05),
            server=Server.SEMI_MALICIOUS,
        )
        limits = Limits(minimum_cohort=3, most_dropouts=0.5, least_adversaries=0.0, weakest_server=Server.CURIOUS)
        server = ServerSession(terms=terms, roster=roster, clients=roster)
        sessions = {
            number: ClientSession(client=number, identity=identity, roster=roster, terms=terms, limits=limits)
            for number, identity in identities.items()
        }
        for session in sessions.values():
            self._receive(server, self._timed("clients", session.start))
        lost = set(range(1, int(self.dropouts * self.clients) + 1))
        expected, vector = np.zeros(self.size, np.uint32), np.arange(self.size, dtype=np.uint32)
        while server.phase is not Phase.DONE:
            messages = self._timed("server", server.close)
            for number, message in messages.items():
                self.sent += len(message)
                masked = server.phase is Phase.MASKED
                if masked and number in lost:
                    continue
                own = vector * np.uint32(number) if masked else None
                if own is not None:
                    expected += own
                self._receive(server, self._timed("clients", sessions[number].receive, message, own))
        assert server.result is not None
        assert np.array_equal(server.result.vector, expected)
        model = _WORD_BYTES * self.size * self.clients  # goes down in any case; updates come up
        plain = model + _WORD_BYTES * self.size * (self.clients - len(lost))
        return {
            **self.seconds,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "traffic": (model + self.sent) / plain,
        }

    def _receive(self, server: ServerSession, message: bytes) -> None:
        self.sent += len(message)
        self._timed("server", server.receive, message)

    def _timed(self, who: str, call: Any, *arguments: Any) -> Any:
        begin = time.perf_counter()
        found = call(*arguments)
        self.seconds[who] += time.perf_counter() - begin
        return found


def main() -> None:
    """Print what a cohort took as JSON: clients, size and dropouts are the arguments."""
    clients, size, dropouts = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(Cohort(clients, size, dropouts).run()))


if __name__ == "__main__":
    main()
