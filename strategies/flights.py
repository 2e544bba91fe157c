"""Messages that are on their way to clients and back, longer than a round: what an asynchronous strategy waits for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from cloister.errors import ReleaseError
from cloister.flower import NDArray
from cloister.strategies.cohort import Client
from cloister.strategies.gather import LATE, UNSENT, cancel, pause, push
from cloister.strategies.validation import Reply, ReplyRules, sizes


@dataclass(frozen=True, kw_only=True)
class Flight:
    """One message to a client, and what its reply must be.

    ``round``: whose model was sent. ``sent_at``: seconds of the clock. ``rules``: of replies to that model. ``bound``:
    the clip bound that was sent along (0: none).
    """

    client: Client
    round: int
    sent_at: float
    rules: ReplyRules
    bound: float

    @property
    def sent(self) -> Mapping[str, NDArray]:
        """The model that was sent."""
        return self.rules.arrays


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """How a flight ended: with a valid reply, or with the reason why there is none. ``up``: bytes received."""

    flight: Flight
    reply: Reply | str
    up: Mapping[str, int]


class Flights:
    """All messages that are on their way. The reply to each is taken once, wherever and whenever it comes."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        """Start with none."""
        self._clock, self._sleep = clock, sleep
        self._open: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def clients(self) -> frozenset[str]:
        """The names of the clients that were asked and have not answered."""
        return frozenset(flight.client.name for flight in self._open.values())

    def send(self, grid: Grid, messages: Sequence[Message], flights: Sequence[Flight]) -> list[Arrival]:
        """Send one message per flight, and return those flights that could not begin."""
        sent = push(grid, messages)
        self._open |= {identifier: flights[place] for identifier, place in sent.items()}
        begun = set(sent.values())
        return [_ended(flight, UNSENT) for place, flight in enumerate(flights) if place not in begun]

    def land(self, grid: Grid) -> list[Arrival]:
        """Return what has arrived since the last time, in the order of the grid, each reply checked."""
        arrivals = []
        for message in grid.pull_messages(list(self._open)):
            flight = self._open.pop(message.metadata.reply_to_message_id, None)
            if flight is not None:
                arrivals.append(_read(flight, message))
        return arrivals

    def overdue(self, grid: Grid, timeout_s: float) -> list[Arrival]:
        """Give up the flights that have taken ``timeout_s`` seconds, and return them."""
        now = self._clock()
        late = {key: flight for key, flight in self._open.items() if now >= flight.sent_at + timeout_s}
        cancel(grid, late)
        for key in late:
            del self._open[key]
        return [_ended(flight, LATE) for flight in late.values()]

    def wait(self, grid: Grid, deadline: float, timeout_s: float) -> None:
        """Wait until something may have arrived, until ``deadline``, or until a flight is overdue."""
        first = min((flight.sent_at for flight in self._open.values()), default=deadline)
        pause(grid, min(deadline, first + timeout_s) - self._clock(), self._sleep)

    def clear(self, grid: Grid) -> None:
        """Give up all flights."""
        cancel(grid, self._open)
        self._open.clear()


def _ended(flight: Flight, reason: str) -> Arrival:
    return Arrival(flight=flight, reply=reason, up={})


def _read(flight: Flight, message: Message) -> Arrival:
    up = sizes(message.content) if message.has_content() else {}
    node_id = message.metadata.src_node_id
    try:
        if message.has_content() and node_id != flight.client.node_id:
            raise ReleaseError(f"expected node {flight.client.node_id}, found node {node_id}")
        return Arrival(flight=flight, reply=flight.rules.read(flight.client.name, message), up=up)
    except ReleaseError as error:
        return Arrival(flight=flight, reply=str(error.args[0]), up=up)
