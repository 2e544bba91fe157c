"""The uCI exchange: class centres and head rows under private numberings, matched by the server (L2RW+).

CGPR sends every member of a matched group the mean of the group's centres under its own label (an unmatched identity
gets its own centre back); CGCF does the same with classifier rows, for matched identities only. The mean is equation 5
of L2RW within the group, so with a perfect match each client receives what one common numbering would have given it.
"""

import logging
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord

from cloister.flower import NDArray
from cloister.strategies.centres import Released, Rows, rows_record
from cloister.strategies.config import MatchedCentres
from cloister.strategies.exchange import Exchange
from cloister.strategies.matching import Matches, Truth, audit, match_identities
from cloister.strategies.validation import Extra, Reply

_LOG = logging.getLogger("cloister.strategies")


class MatchedExchange(Exchange):
    """Centres and head rows between clients that number their identities privately."""

    def __init__(self, config: MatchedCentres, truth: Truth | None = None) -> None:
        """Match as ``config`` says; ``truth`` tells who is who, for logging precision and recall only."""
        self._config, self._truth = config, truth
        self._centres = Released("centres", "values", config.width)
        self._heads = Released("head", "weight", config.width)
        self._kinds = (self._centres, self._heads) if config.match != "cgpr" else (self._centres,)
        self._back: dict[str, dict[str, ArrayRecord]] = {}

    @property
    def accepts(self) -> Mapping[str, Extra]:
        """Replies may hold centres, and head rows where these are matched."""
        return {kind.kind: kind.extra for kind in self._kinds}

    def outgoing(self, client: str) -> dict[str, ArrayRecord]:
        """Return the rows of this client's own identities, under its own labels."""
        return self._back.get(client, {})

    def begin(self, arrays: Mapping[str, NDArray]) -> None:
        """Open a round."""
        for kind in self._kinds:
            kind.begin()

    def admit(self, reply: Reply) -> None:
        """Refuse rows of another width."""
        for kind in self._kinds:
            kind.admit(reply)

    def add(self, reply: Reply, weight: float) -> None:
        """Stage a client's rows."""
        for kind in self._kinds:
            kind.add(reply)

    def commit(self, pool: int) -> dict[str, float]:
        """Match the latest centres of all clients; return the number of grouped pairs, and the audit's shares."""
        for kind in self._kinds:
            kind.commit()
        groups = self._match()
        metrics = {"matching-pairs": float(sum(len(group) * (len(group) - 1) // 2 for group in groups))}
        if self._truth is not None:
            metrics |= audit(groups, self._centres.clients, self._truth)
        _LOG.info("identity matching: %s", metrics)
        return metrics

    def state(self) -> dict[str, NDArray]:
        """Return the clients' rows; what goes back follows from them."""
        return {name: values for kind in self._kinds for name, values in kind.state().items()}

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take up the clients' rows."""
        for kind in self._kinds:
            kind.restore(state)
        self._match()

    def _match(self) -> Matches:
        groups = match_identities(self._centres.clients, self._config.tau)
        back: dict[str, dict[str, ArrayRecord]] = {client: {} for client in self._centres.clients}
        if self._config.match != "cgcf":
            for client, rows in group_means(groups, self._centres.clients, unmatched=True).items():
                back[client] |= rows_record("centres", "values", rows)
        if self._config.match != "cgpr":
            for client, rows in group_means(groups, self._heads.clients, unmatched=False).items():
                back[client] |= rows_record("head", "weight", rows)
        self._back = back
        return groups


def group_means(groups: Matches, released: Mapping[str, Rows], *, unmatched: bool) -> dict[str, Rows]:
    """Return, per client, the mean row of each identity's group under the client's own label.

    Only members with a row of this kind count, and a group needs two. ``unmatched``: identities without a group get
    their own row; otherwise they get none.
    """
    own = {client: dict(zip(rows.labels.tolist(), rows.values, strict=True)) for client, rows in released.items()}
    result = {client: dict(rows) if unmatched else {} for client, rows in own.items()}
    for group in groups:
        members = [member for member in group if member.label in own.get(member.client, {})]
        if len(members) < 2:
            continue
        stacked = np.stack([own[member.client][member.label] for member in members])
        mean = stacked.astype(np.float64).mean(axis=0).astype(np.float32)
        for member in members:
            result[member.client][member.label] = mean
    return {client: _rows(values) for client, values in result.items()}


def _rows(values: Mapping[int, NDArray]) -> Rows:
    labels = sorted(values)
    stacked = np.stack([values[label] for label in labels]) if labels else np.zeros((0, 0), np.float32)
    return Rows(np.array(labels, np.int64), stacked)
