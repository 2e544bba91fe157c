"""Whole rounds of secure aggregation in one process, under a fault plan that says what goes wrong, and where.

Imported by tests in several folders (``pythonpath`` in ``pyproject.toml``).
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from cloister.errors import SecureSumError
from cloister.privacy.secagg.client import ClientSession, State
from cloister.privacy.secagg.keys import Identity
from cloister.privacy.secagg.masks import Words
from cloister.privacy.secagg.parameters import Server
from cloister.privacy.secagg.server import Phase, Receipt, ServerSession
from cloister.privacy.secagg.terms import Limits, Terms

PHASES = (Phase.ADVERTISE, Phase.SHARES, Phase.MASKED, Phase.CONSISTENCY, Phase.UNMASK)
POSITIONS = tuple(
    (phase, way) for phase in PHASES for way in ("request", "answer") if (phase, way) != (Phase.ADVERTISE, "request")
)
"""Where a client can fall silent: what it was to answer is lost on the way there, or its answer on the way back."""


@cache
def identity(client: int) -> Identity:
    return Identity.generate()


@dataclass(frozen=True)
class Site:
    """The clients of a federation, what they are asked, and what they accept."""

    clients: tuple[int, ...]
    terms: Terms
    limits: Limits

    @classmethod
    def of(cls, count: int, **changes: Any) -> "Site":
        """Return ``count`` clients, numbered with gaps, under terms and limits that ``changes`` may change."""
        values: dict[str, Any] = {
            "run": bytes(range(32)),
            "round": 5,
            "layout": bytes(reversed(range(32))),
            "size": 20,
            "bits": 32,
            "minimum": 3,
            "adversaries": 0.1,
            "dropouts": 0.3,
            "server": Server.MALICIOUS,
            **changes,
        }
        return cls(
            clients=tuple(range(2, 2 + 3 * count, 3)),
            terms=Terms(**values),
            limits=Limits(
                minimum_cohort=values["minimum"],
                most_dropouts=values["dropouts"],
                least_adversaries=values["adversaries"],
                weakest_server=values["server"],
            ),
        )

    @property
    def roster(self) -> dict[int, bytes]:
        return {client: identity(client).public for client in self.clients}

    def session(self, client: int, kind: type[ClientSession] = ClientSession, **changes: Any) -> Any:
        """Return one client's session."""
        values: dict[str, Any] = {
            "client": client,
            "identity": identity(client),
            "roster": self.roster,
            "terms": self.terms,
            "limits": self.limits,
            **changes,
        }
        return kind(**values)

    def server(self) -> ServerSession:
        return ServerSession(terms=self.terms, roster=self.roster, clients=self.clients)

    def vector(self, client: int) -> Words:
        """Return what a client sends: words over the whole range."""
        bits = self.terms.bits
        draws = np.random.default_rng(client).integers(0, 1 << min(bits, 63), self.terms.size, np.uint64)
        return draws.astype(np.uint32) if bits <= 32 else draws

    def sum(self, clients: Iterable[int]) -> list[int]:
        """Return the sum of these clients' vectors, by integers without bounds."""
        vectors = [self.vector(client).tolist() for client in clients]
        return [sum(column) % (1 << self.terms.bits) for column in zip(*vectors, strict=True)]


@dataclass(frozen=True)
class Faults:
    """What goes wrong in one round; the same plan goes wrong in the same way.

    ``lost``: where a client falls silent for good. ``late``: the phase whose answer arrives when it is closed.
    ``twice``: whose answers all arrive again, in the same phase and in the next one. ``seed``: of the order of arrival.
    """

    lost: Mapping[int, tuple[Phase, str]] = field(default_factory=dict)
    late: Mapping[int, Phase] = field(default_factory=dict)
    twice: frozenset[int] = frozenset()
    seed: int = 0

    @classmethod
    def drawn(cls, seed: int, clients: tuple[int, ...], share: float, *positions: tuple[Phase, str]) -> "Faults":
        """Return a plan in which a share of the clients is lost at these positions (default: anywhere)."""
        draw = random.Random(seed)
        gone = draw.sample(clients, round(share * len(clients)))
        lost = {client: draw.choice(positions or POSITIONS) for client in gone}
        return cls(lost=lost, twice=frozenset(draw.sample(clients, len(clients) // 2)), seed=seed)

    def silent(self, client: int, phase: Phase) -> bool:
        """Return whether the server gets no answer of a client in a phase, in time."""
        gone = [self.lost[client][0]] if client in self.lost else []
        gone += [self.late[client]] if client in self.late else []
        return any(PHASES.index(phase) >= PHASES.index(each) for each in gone)

    def summed(self, clients: tuple[int, ...]) -> tuple[int, ...]:
        """Return whose vectors the sum must be over: who got through with the first three answers."""
        return tuple(client for client in clients if not self.silent(client, Phase.MASKED))


@dataclass
class Round:
    """One round under one plan: call :meth:`run`, or :meth:`phase` for one phase after the other."""

    site: Site
    faults: Faults = field(default_factory=Faults)
    kinds: Mapping[int, type[ClientSession]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = self.site.server()
        self.clients = {
            client: self.site.session(client, self.kinds.get(client, ClientSession)) for client in self.site.clients
        }
        self.requests: dict[int, bytes] = {}
        self.answers: dict[Phase, dict[int, bytes]] = {}
        self.receipts: list[Receipt] = []
        self.refused: dict[int, SecureSumError] = {}
        self._order = random.Random(self.faults.seed)
        self._afterwards: list[bytes] = []

    def run(self) -> ServerSession:
        """Run to the end; raises what the server raises."""
        while self.server.phase in PHASES:
            self.phase()
        return self.server

    def until(self, phase: Phase) -> "Round":
        """Run until the server waits for ``phase``."""
        while self.server.phase is not phase:
            self.phase()
        return self

    def answer(self, client: int, phase: Phase) -> bytes | None:
        """Return what a client sends in a phase, or None if it is silent."""
        session = self.clients[client]
        if phase is Phase.ADVERTISE:
            return session.start()
        if session.state is State.ABORTED:
            return None
        try:
            return session.receive(self.requests[client], self.site.vector(client) if phase is Phase.MASKED else None)
        except SecureSumError as error:
            self.refused[client] = error
            return None

    def phase(self) -> None:
        """Collect the answers of the phase that the server waits for, in some order, and close it."""
        phase = self.server.phase
        asked = list(self.requests if phase is not Phase.ADVERTISE else self.clients)
        arriving, afterwards = self._afterwards, []
        for client in asked:
            at, way = self.faults.lost.get(client, (None, ""))
            if at is phase and way == "request":
                continue
            answer = self.answer(client, phase)
            if answer is None or at is phase:
                continue
            self.answers.setdefault(phase, {})[client] = answer
            if self.faults.late.get(client) is phase:
                afterwards.append(answer)
                continue
            arriving.append(answer)
            if client in self.faults.twice:
                arriving.append(answer)
                afterwards.append(answer)
        self._order.shuffle(arriving)
        self.receipts += [self.server.receive(message) for message in arriving]
        self._afterwards = afterwards
        self.requests = self.server.close()
