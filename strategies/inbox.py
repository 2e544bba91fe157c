"""A round's replies: in any order as they arrive, in canonical order as they count."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message

from cloister.errors import ReleaseError
from cloister.strategies.cohort import Cohort
from cloister.strategies.gather import LATE
from cloister.strategies.rounds import Outcome
from cloister.strategies.validation import Reply, sizes


class Inbox:
    """Replies of a cohort, checked when they arrive and folded in canonical order.

    A valid reply whose turn has not come waits; it is let go of as soon as it is folded. The result therefore does
    not depend on the order of arrival, and with replies arriving roughly in order the memory held is that of a few.
    """

    def __init__(
        self, cohort: Cohort, read: Callable[[str, Message], Reply], fold: Callable[[Reply], None] | None = None
    ) -> None:
        """Expect one reply per client of ``cohort``.

        ``read(client, message)`` returns a valid reply, ``fold`` takes it in its turn; both raise ReleaseError for a
        reply that must not count.
        """
        self.outcomes: dict[str, Outcome] = {}
        self.traffic: dict[str, dict[str, int]] = {}
        self._clients = cohort.clients
        self._excluded = cohort.excluded
        self._read, self._fold = read, fold
        self._buffer: dict[str, Reply | str] = {}
        self._turn = 0

    @property
    def accepted(self) -> int:
        """The number of replies folded so far."""
        return sum(outcome.accepted for outcome in self.outcomes.values())

    def put_all(self, messages: Iterable[Message]) -> None:
        """Take replies known only by the node that sent them; those of no node of the cohort are ignored."""
        places = {client.node_id: place for place, client in enumerate(self._clients)}
        for message in messages:
            place = places.get(message.metadata.src_node_id)
            if place is not None:
                self.put(place, message)

    def put(self, place: int, message: Message) -> None:
        """Take the reply of the client at ``place`` in the cohort. A second one from the same client is ignored."""
        client = self._clients[place]
        if client.name in self.outcomes or client.name in self._buffer:
            return
        self.traffic[client.name] = sizes(message.content) if message.has_content() else {}
        try:
            if message.has_content() and message.metadata.src_node_id != client.node_id:
                raise ReleaseError(f"expected node {client.node_id}, found node {message.metadata.src_node_id}")
            self._buffer[client.name] = self._read(client.name, message)
        except ReleaseError as error:
            self._buffer[client.name] = str(error.args[0])
        self._advance()

    def close(self, missing: Mapping[int, str] | None = None) -> None:
        """Fold what waits and note every client without a reply; ``missing`` gives reasons by place in the cohort."""
        reasons = missing or {}
        for place in range(self._turn, len(self._clients)):
            self._buffer.setdefault(self._clients[place].name, reasons.get(place, LATE))
        self._advance()
        left_out = {name: Outcome(accepted=False, reason=reason) for name, reason in self._excluded.items()}
        self.outcomes = dict(sorted((self.outcomes | left_out).items()))

    def _advance(self) -> None:
        while self._turn < len(self._clients) and (name := self._clients[self._turn].name) in self._buffer:
            self._turn += 1
            self.outcomes[name] = settled(self._buffer.pop(name), self._fold)


def settled(reply: Reply | str, fold: Callable[[Reply], None] | None) -> Outcome:
    """Return what becomes of a client once ``fold`` has taken its reply, or of one whose reason is all there is."""
    if isinstance(reply, str):
        return Outcome(accepted=False, reason=reply)
    said: dict[str, Any] = {"digest": reply.digest, "signature": reply.signature, "head": reply.head}
    try:
        if fold is not None:
            fold(reply)
    except ReleaseError as error:
        return Outcome(accepted=False, reason=str(error.args[0]), **said)
    return Outcome(
        accepted=True,
        examples=reply.examples,
        steps=reply.steps,
        norm=reply.norm,
        metrics=reply.metrics,
        **said,
    )
