"""How many neighbours a client masks against, and how many of them must agree to open a mask.

Both follow from stated rates: the share of clients that collude with the server, the share that drop out, and what the
server may do. Nobody sets them by hand.

Clients stand on a ring in a random order and are joined to the ``degree`` nearest ones (:mod:`.graph`). With n clients,
g = floor(adversaries n) colluding, d = floor(dropouts n) dropping out, S = ceil((1 - dropouts) n) staying and k
neighbours, H(n, m, k) being how many of m marked clients of n are among k drawn ones:

- the honest clients that stay are connected, or the sum of some of them would show: the probability that some pair is
  cut off is at most n (n - k - 1) / 2 times C(g + d, k) / C(n, k), which must be below 2^-41;
- no client has ``threshold`` colluding neighbours: t1 is the smallest t with Pr[H(n, g, k) > t] <= 2^-41 / n;
- every client keeps ``threshold`` neighbours: t2 is the largest t with Pr[H(n, S, k) < t] <= 2^-20 / n;
- a server that lies tells some neighbours that a client is there and others that it is not: it needs ``threshold``
  shares of both kinds, which the honest ones give it one kind each, so t1 becomes ceil((t1 + k - 1.25) / 2);
- the degree is the smallest even k with t1 < t2, the threshold t1 + 1.

A malicious server also decides which keys enter the hash that orders the ring, and can try many. 2^-41 is then 2^-81:
2^40 tries leave it the chance that the others have without any.

Below 30 clients, and where floor(adversaries n) = 0 would promise nothing, everybody is everybody's neighbour. Nothing
is then left to chance: the threshold is above g = ceil(adversaries n), or above (n + g) / 2 where the server lies, and
the neighbours that stay, S - 1, must reach it.

Sources: Bell et al. 2020, eprint 2020/704, sections 3 and 4 (regular graph); Bonawitz et al. 2017, eprint 2017/281,
section 6 (complete graph).
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cloister.errors import SecureSumError

SMALLEST = 3
"""Of two clients, each would know the other's vector from the sum."""

_REGULAR_FROM = 30
_CORRECT = 2.0**-20


class Server(StrEnum):
    """What the server may do: watch; lie, but not about keys; or lie about anything, keys and cohort included."""

    CURIOUS = "curious"
    SEMI_MALICIOUS = "semi-malicious"
    MALICIOUS = "malicious"

    @property
    def failure(self) -> float:
        """The probability that is left that a regular graph does not protect, in two parts of this size."""
        return 2.0**-81 if self is Server.MALICIOUS else 2.0**-41


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A cohort's graph and threshold, and the rates for which they hold.

    ``clients``: how many; ``adversaries``, ``dropouts``: shares of them, in [0, 1); ``server``: what it may do;
    ``degree``: neighbours of each client; ``threshold``: neighbours whose shares open a mask; ``complete``: everybody
    is everybody's neighbour.

    Guarantee: whoever is the server and at most that share of the clients learns nothing of the others' vectors but
    their sum, over all clients that stayed, except with probability 2^-40 (never, where the graph is complete).
    """

    clients: int
    adversaries: float
    dropouts: float
    server: Server
    degree: int
    threshold: int
    complete: bool

    def __post_init__(self) -> None:
        """Raise :class:`SecureSumError` for a degree or threshold that no graph of these clients has."""
        if self.complete != (self.degree == self.clients - 1) or (self.degree % 2 and not self.complete):
            raise SecureSumError(
                f"secure aggregation: expected an even degree below {self.clients - 1}, or that of the complete graph, "
                f"found {self.degree}; use derive()"
            )
        if not 2 <= self.threshold <= self.degree < self.clients:
            raise SecureSumError(
                f"secure aggregation: expected a threshold from 2 to {self.degree}, found {self.threshold}; use "
                "derive()"
            )


def derive(clients: int, *, adversaries: float, dropouts: float, server: Server) -> Parameters:
    """Return the smallest graph and threshold that hold for these rates.

    ``clients``: of the cohort, at least 3; ``adversaries``: share that colludes with the server and with each other;
    ``dropouts``: share that may be lost between the first message of a session and the last.

    Raises :class:`SecureSumError`, which says why, where no graph holds.
    """
    if type(clients) is not int or clients < SMALLEST:
        raise SecureSumError(f"secure aggregation: expected at least {SMALLEST} clients, found {clients}; ask more")
    for name, share in (("adversaries", adversaries), ("dropouts", dropouts)):
        if not 0 <= share < 1:
            raise SecureSumError(f"secure aggregation: expected a share of {name} in [0, 1), found {share}")
    server = Server(server)
    found = None
    if clients >= _REGULAR_FROM and (adversaries == 0 or _floor(adversaries * clients) > 0):
        found = regular(clients, adversaries=adversaries, dropouts=dropouts, server=server)
    if found is None:
        found = clients - 1, _complete(clients, adversaries, dropouts, server)
    degree, threshold = found
    return Parameters(
        clients=clients,
        adversaries=adversaries,
        dropouts=dropouts,
        server=server,
        degree=degree,
        threshold=threshold,
        complete=degree == clients - 1,
    )


def regular(clients: int, *, adversaries: float, dropouts: float, server: Server) -> tuple[int, int] | None:
    """Return degree and threshold of the smallest regular graph for these rates, or None where there is none.

    :func:`derive` uses it for 30 clients and more; for few clients what it promises may be nothing.
    """
    colluding, dropping = _floor(adversaries * clients), _floor(dropouts * clients)
    staying = math.ceil(round((1 - dropouts) * clients, 9))
    failure = server.failure
    for degree in range(2, clients, 2):
        if not _connected(clients, degree, colluding + dropping, failure):
            continue
        many = _at_least(clients, colluding, degree)  # many[t]: Pr[at least t], so that Pr[H > t] = many[t + 1]
        least = int(np.argmax(np.append(many[1:], 0.0) <= failure / clients))
        # Fewer than t of those that stay are neighbours when more than k - t of those that do not are.
        missing = np.append(_at_least(clients, clients - staying, degree), 0.0)  # missing[m]: Pr[at least m]
        most = degree + 1 - int(np.argmax(missing <= _CORRECT / clients))
        if server is not Server.CURIOUS:
            least = math.ceil((least + degree - 1.25) / 2)
        if least < most:
            return degree, max(least + 1, 2)
    return None


def _complete(clients: int, adversaries: float, dropouts: float, server: Server) -> int:
    """Return the threshold of the complete graph; raise :class:`SecureSumError`, which says why, where none holds."""
    colluding = math.ceil(round(adversaries * clients, 9))
    staying = math.ceil(round((1 - dropouts) * clients, 9))
    above, rule = colluding, "above the number of those that collude"
    if server is not Server.CURIOUS:
        above, rule = (clients + colluding) // 2, "above half of all clients and of those that collude"
    threshold = max(above + 1, 2)
    if threshold > staying - 1:
        raise SecureSumError(
            f"secure aggregation of {clients} clients under a {server} server, {colluding} colluding: expected the "
            f"threshold, {threshold} ({rule}), to be reached by the other clients that stay, found {staying - 1} of "
            f"them (dropouts {dropouts:g}), so that no graph serves; state fewer adversaries or dropouts, ask more "
            "clients, or trust the server more"
        )
    return threshold


def _connected(clients: int, degree: int, bad: int, failure: float) -> bool:
    """Return whether the chance that somebody honest who stays is cut off from another is below ``failure``."""
    pairs = clients * (clients - degree - 1) / 2
    if degree > bad or pairs == 0:
        return True
    log = math.log(pairs) + _log_choose(bad, degree) - _log_choose(clients, degree)
    return log < math.log(failure)


def _at_least(clients: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """Return the probability that at least t of ``drawn`` clients are marked, for t = 0 to ``drawn``: hypergeometric.

    Terms are summed from the rarest, so that small probabilities are precise, relative to their size.
    """
    first, last = max(0, drawn - (clients - marked)), min(drawn, marked)
    steps = np.arange(first, last, dtype=np.float64)
    start = _log_choose(marked, first) + _log_choose(clients - marked, drawn - first) - _log_choose(clients, drawn)
    ratios = np.log((marked - steps) * (drawn - steps)) - np.log((steps + 1) * (clients - marked - drawn + steps + 1))
    terms = np.zeros(drawn + 1)
    terms[first : last + 1] = np.exp(start + np.append(0.0, np.cumsum(ratios)))
    return np.cumsum(terms[::-1])[::-1]


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _floor(value: float) -> int:
    return math.floor(round(value, 9))  # 0.29 * 100 is 28.999999999999996
