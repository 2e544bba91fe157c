"""Array records that travel beside the weights: one interface for class centres, control variates and head rows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from flwr.app import ArrayRecord

from cloister.flower import NDArray
from cloister.strategies.validation import Extra, Reply


class Exchange(ABC):
    """What a strategy sends and receives beside the weights, and what it remembers of it between rounds.

    Per round: :meth:`begin`, then :meth:`admit` and :meth:`add` for each reply in canonical order, then
    :meth:`commit` if the round counts. Before ``commit`` nothing that lasts may change.
    """

    @property
    @abstractmethod
    def accepts(self) -> Mapping[str, Extra]:
        """The record kinds that replies may hold, with the check that each must pass on arrival."""

    @property
    def asked(self) -> frozenset[str]:
        """The kinds that clients are asked to release: those that replies may hold, or that go into a secure sum."""
        return frozenset(self.accepts)

    @abstractmethod
    def outgoing(self, client: str) -> dict[str, ArrayRecord]:
        """Return the records that this client is sent, by kind."""

    @abstractmethod
    def begin(self, arrays: Mapping[str, NDArray]) -> None:
        """Open a round on these global arrays; forget what an earlier round left uncommitted."""

    @abstractmethod
    def admit(self, reply: Reply) -> None:
        """Raise ReleaseError if the reply does not go with those added before it."""

    @abstractmethod
    def add(self, reply: Reply, weight: float) -> None:
        """Take in one reply of averaging weight ``weight``. Its arrays are views: copy what is kept."""

    @abstractmethod
    def commit(self, pool: int) -> dict[str, float]:
        """Make the round's releases count; ``pool`` is the number of nodes online. Return metrics of it."""

    @abstractmethod
    def state(self) -> dict[str, NDArray]:
        """Return everything remembered between rounds."""

    @abstractmethod
    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take up a remembered state."""
