"""Class centres that travel beside the weights: L2RW's equation 5, and the rules that every centre record must keep.

A class centre is the mean feature of one person at one client. A client is only ever sent rows of identities that it
released itself. An honest client thus never receives a centre of a person it has not seen. A hostile one can make up a
row for any label and is sent that label's centre in the next round: under a common numbering this protects nobody from
members of the federation. A noised centre (the plan's ``centre_noise``) does.

Source: "From Laboratory to Real World: A New Benchmark Towards Privacy-Preserved Visible-Infrared Person
Re-Identification", CVPR 2025, arXiv 2503.12232, section 3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord

from cloister.errors import ReleaseError
from cloister.flower import NDArray, array_record
from cloister.strategies.config import AlignedCentres
from cloister.strategies.exchange import Exchange
from cloister.strategies.validation import Extra, Reply, check_keys, sum_of_squares


@dataclass(frozen=True, slots=True)
class Rows:
    """One row per identity: ``labels`` int64 [n], ascending and distinct; ``values`` float32 [n, d]."""

    labels: NDArray
    values: NDArray

    @classmethod
    def of(cls, labels: NDArray, values: NDArray) -> "Rows":
        """Return copies of the rows that are not all zero (a zero row stands for no centre), by label."""
        kept = np.flatnonzero(np.any(values != 0, axis=1))
        kept = kept[np.argsort(labels[kept])]
        return cls(labels[kept], values[kept])

    def select(self, labels: NDArray) -> "Rows":
        """Return the rows of these labels, all of which must be here."""
        return Rows(labels, self.values[np.searchsorted(self.labels, labels)])


def check_rows(kind: str, values_key: str, arrays: Mapping[str, NDArray]) -> None:
    """Raise ReleaseError unless ``arrays`` are float32 rows [n, d] under ``values_key`` and int64 labels [n]."""
    check_keys(kind, set(arrays), {values_key, "labels"}, {values_key, "labels"})
    values, labels = arrays[values_key], arrays["labels"]
    if values.ndim != 2 or values.dtype != np.float32:
        raise ReleaseError(
            f"{kind}[{values_key!r}]: expected float32 of shape (n, d), found {values.dtype} of shape {values.shape}"
        )
    if labels.shape != values.shape[:1] or labels.dtype != np.int64:
        raise ReleaseError(
            f"{kind}['labels']: expected int64 of shape {values.shape[:1]}, found {labels.dtype} of {labels.shape}"
        )
    if labels.size and (labels.min() < 0 or np.unique(labels).size != labels.size):
        raise ReleaseError(f"{kind}['labels']: expected distinct labels from 0, found negative or repeated ones")
    sum_of_squares(f"{kind}[{values_key!r}]", values)


class Released:
    """The latest rows of one kind that each client has released, and their common width.

    A client that takes part in a later round without releasing rows is held to have none; one that does not take part
    keeps its latest. The width is ``width``, or else that of the first rows taken in.
    """

    def __init__(self, kind: str, values_key: str, width: int | None) -> None:
        """Keep rows of record ``kind``, whose values lie under ``values_key``."""
        self.kind, self.values_key = kind, values_key
        self.clients: dict[str, Rows] = {}
        self._width, self._staged = width, dict[str, Rows]()

    @property
    def extra(self) -> Extra:
        """What a reply may hold: such rows, or none."""
        return Extra(check=lambda arrays: check_rows(self.kind, self.values_key, arrays), required=False)

    def begin(self) -> None:
        """Open a round."""
        self._staged = {}

    def admit(self, reply: Reply) -> None:
        """Raise ReleaseError if the reply's rows have another width."""
        found, expected = self._found(reply), self._expected()
        if found is not None and expected is not None and found.shape[1] != expected:
            raise ReleaseError(
                f"{self.kind}[{self.values_key!r}]: expected rows of width {expected}, found {found.shape[1]}"
            )

    def add(self, reply: Reply) -> None:
        """Stage the reply's rows."""
        values = self._found(reply)
        if values is None:
            values, labels = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        else:
            labels = reply.extras[self.kind]["labels"]
        self._staged[reply.client] = Rows.of(labels, values)

    def commit(self) -> None:
        """Make the staged rows the latest."""
        self.clients.update(self._staged)
        self._staged = {}

    def state(self) -> dict[str, NDArray]:
        """Return all rows."""
        state = {}
        for client, rows in self.clients.items():
            state[f"{self.kind}/{client}/labels"] = rows.labels
            state[f"{self.kind}/{client}/values"] = rows.values
        return state

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take up all rows of this kind."""
        prefix, suffix = f"{self.kind}/", "/labels"
        names = [
            key.removeprefix(prefix).removesuffix(suffix)
            for key in state
            if key.startswith(prefix) and key.endswith(suffix)
        ]
        self.clients = {name: Rows(state[f"{prefix}{name}/labels"], state[f"{prefix}{name}/values"]) for name in names}

    def _found(self, reply: Reply) -> NDArray | None:
        record = reply.extras.get(self.kind)
        return record[self.values_key] if record is not None and len(record["labels"]) else None

    def _expected(self) -> int | None:
        known: Iterable[Rows] = (*self.clients.values(), *self._staged.values())
        return self._width or next((rows.values.shape[1] for rows in known if len(rows.labels)), None)


def class_means(released: Mapping[str, Rows], *, diluted: bool = False) -> Rows:
    """Return every identity's global centre: the sum of its client centres over the number of clients that have one.

    Equation 5 of the paper. ``diluted`` divides by the number of all clients instead, as the released code does.
    """
    present = [rows for _, rows in sorted(released.items()) if len(rows.labels)]
    if not present:
        return Rows(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
    labels, places = np.unique(np.concatenate([rows.labels for rows in present]), return_inverse=True)
    sums = np.zeros((len(labels), present[0].values.shape[1]))
    np.add.at(sums, places, np.concatenate([rows.values for rows in present]))
    counts = np.full(len(labels), len(released)) if diluted else np.bincount(places)
    return Rows(labels, (sums / counts[:, None]).astype(np.float32))


class CentreExchange(Exchange):
    """Class centres under one numbering for all clients: each gets the global centres of its own identities."""

    def __init__(self, config: AlignedCentres) -> None:
        """Average as ``config`` says."""
        self._diluted = config.average == "diluted"
        self._released = Released("centres", "values", config.width)
        self._means = class_means({})

    @property
    def accepts(self) -> Mapping[str, Extra]:
        """Replies may hold centres."""
        return {"centres": self._released.extra}

    def outgoing(self, client: str) -> dict[str, ArrayRecord]:
        """Return the global centres of the identities that this client released."""
        rows = self._released.clients.get(client)
        return rows_record("centres", "values", self._means.select(rows.labels)) if rows and len(rows.labels) else {}

    def begin(self, arrays: Mapping[str, NDArray]) -> None:
        """Open a round."""
        self._released.begin()

    def admit(self, reply: Reply) -> None:
        """Refuse centres of another width."""
        self._released.admit(reply)

    def add(self, reply: Reply, weight: float) -> None:
        """Stage a client's centres; they count the same whatever its weight (equation 5)."""
        self._released.add(reply)

    def commit(self, pool: int) -> dict[str, float]:
        """Average the latest centres of all clients."""
        self._released.commit()
        self._means = class_means(self._released.clients, diluted=self._diluted)
        return {"centres": float(len(self._means.labels))}

    def state(self) -> dict[str, NDArray]:
        """Return the clients' centres; the global ones follow from them."""
        return self._released.state()

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take up the clients' centres."""
        self._released.restore(state)
        self._means = class_means(self._released.clients, diluted=self._diluted)


class SummedCentres(Exchange):
    """Class centres of which only sums over clients are seen: everybody gets the global centres of all identities.

    The server cannot tell who has whom, and so cannot send each client its own identities alone. An identity that one
    client alone has is in the sum by itself: her centre is hidden from nobody.
    """

    def __init__(self, config: AlignedCentres, rows: tuple[int, int]) -> None:
        """Average as ``config`` says; ``rows``: (classes, width) of the model's centres."""
        self._diluted, self.rows = config.average == "diluted", rows
        self._means, self._staged = class_means({}), class_means({})

    @property
    def asked(self) -> frozenset[str]:
        """Clients are asked for centres, and put them into the sum."""
        return frozenset({"centres"})

    @property
    def accepts(self) -> Mapping[str, Extra]:
        """Replies hold none."""
        return {}

    def outgoing(self, client: str) -> dict[str, ArrayRecord]:
        """Return all global centres."""
        return rows_record("centres", "values", self._means)

    def begin(self, arrays: Mapping[str, NDArray]) -> None:
        """Open a round."""
        self._staged = class_means({})

    def admit(self, reply: Reply) -> None:
        """Replies say nothing of centres."""

    def add(self, reply: Reply, weight: float) -> None:
        """Replies say nothing of centres."""

    def take(self, sums: NDArray, counts: NDArray, clients: int) -> None:
        """Take in the sum over so many clients: centres ``[C, D]`` and how many clients have one ``[C]``."""
        labels = np.flatnonzero(counts > 0)
        divisors = np.full(len(labels), float(clients)) if self._diluted else counts[labels]
        self._staged = Rows(labels.astype(np.int64), (sums[labels] / divisors[:, None]).astype(np.float32))

    def commit(self, pool: int) -> dict[str, float]:
        """Make the sum the latest."""
        self._means = self._staged
        return {"centres": float(len(self._means.labels))}

    def state(self) -> dict[str, NDArray]:
        """Return the global centres."""
        return {"labels": self._means.labels, "values": self._means.values}

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take up the global centres."""
        if state:
            self._means = Rows(state["labels"], state["values"])


def rows_record(kind: str, values_key: str, rows: Rows) -> dict[str, ArrayRecord]:
    """Return the record that carries ``rows`` to a client, by kind; none for no rows."""
    if not len(rows.labels):
        return {}
    return {kind: array_record({values_key: rows.values, "labels": rows.labels})}
