"""Strategies that survive hostile clients: the rules of :mod:`cloister.strategies.rules` on the replies of a round.

They need all replies of a round at once, so memory holds the cohort. A rule sees the clients' changes rather than their
models: differences of small changes do not lose their digits as differences of large models do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cloister.errors import ConfigError
from cloister.flower import NDArray
from cloister.strategies.base import BaseStrategy
from cloister.strategies.cohort import Cohort
from cloister.strategies.config import CentredClippingConfig, FLTrustConfig, RobustConfig
from cloister.strategies.fold import Fold, Pairs, trainable
from cloister.strategies.mixing import prepared, replies_for
from cloister.strategies.rounds import Outcome
from cloister.strategies.rules import NEEDS, RULES
from cloister.strategies.validation import Reply

Combine = Callable[[dict[str, NDArray]], NDArray]


class Robust(BaseStrategy):
    """One rule over the floating-point SHARED entries, taken together as one vector per client.

    All other entries (BatchNorm statistics and counters) are the coordinate-wise medians of the clients', whatever the
    rule: a client whose weights look honest could otherwise send any statistics along. Integers are rounded.
    """

    config: RobustConfig

    def __init__(self, config: RobustConfig, *, pooled: Pairs = (), **keywords: Any) -> None:
        """Refuse pooled statistics, which one client can move anywhere, and cohorts that the rule cannot serve."""
        if pooled:
            raise ConfigError(
                f"strategy {config.name}: cannot pool BatchNorm moments, found {len(pooled)} pairs; "
                "set the model's BatchNorm policy to averaged, local or frozen"
            )
        super().__init__(config, pooled=pooled, **keywords)
        if config.cohort_size is not None and config.cohort_size < self.least_replies():
            raise ConfigError(
                f"strategy {config.name}: malicious = {config.malicious} needs cohorts of at least "
                f"{self.least_replies()}, found cohort_size = {config.cohort_size}; ask more clients"
            )

    def least_replies(self) -> int:
        """Return how many replies the rule needs, after mixing, for ``malicious`` hostile ones among them."""
        config = self.config
        least = NEEDS[config.name].of(config.malicious)
        if "selected" in config.options:
            least = max(least, config.malicious + config.options["selected"])
        return replies_for(least, config.malicious, radius=config.clip, mixing=config.mixing)

    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the rule over all replies."""
        names = sorted(trainable(self.groups, arrays))  # a resumed run's arrays come in another order
        return _RobustFold(arrays, names, lambda rows: self.combine(number, rows))

    def combine(self, number: int, rows: Mapping[str, NDArray], **given: Any) -> NDArray:
        """Return the rule's vector for one row per client; ``given`` are arguments that the configuration leaves."""
        vectors, malicious = prepared(
            np.stack(list(rows.values())),
            self.config.malicious,
            radius=self.config.clip,
            mixing=self.config.mixing,
            generator=self.seeds.numpy(purpose="bucketing", round=number),
        )
        return RULES[self.config.name](vectors, malicious, **{**self.config.options, **given})


class CentredClipping(Robust):
    """Clipping around the change of the round before, which a checkpoint keeps; the first one starts from zero."""

    config: CentredClippingConfig

    def __init__(self, config: CentredClippingConfig, **keywords: Any) -> None:
        """Start from no change."""
        super().__init__(config, **keywords)
        self._centre = np.zeros(0)

    def combine(self, number: int, rows: Mapping[str, NDArray], **given: Any) -> NDArray:
        """Return the next centre."""
        size = next(iter(rows.values())).size
        centre = self._centre if self._centre.size else np.zeros(size)
        self._centre = super().combine(number, rows, centre=centre, **given)
        return self._centre

    def memory(self) -> dict[str, NDArray]:
        """Return the last change."""
        return {"centre": self._centre} if self._centre.size else {}

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        """Take up the last change."""
        self._centre = memory.get("centre", np.zeros(0))


class FLTrust(Robust):
    """Trust from the root client's change. A round without its valid reply is void: there is nothing to trust by."""

    config: FLTrustConfig

    def least_replies(self) -> int:
        """Return one more than the rule needs: the root client's reply is not averaged."""
        return super().least_replies() + 1

    def combine(self, number: int, rows: Mapping[str, NDArray], **given: Any) -> NDArray:
        """Return the mean of the others, as the root client trusts them."""
        root = self.config.root
        others = {client: row for client, row in rows.items() if client != root}
        return super().combine(number, others, root=rows[root], **given)

    def _void_reason(self, number: int, cohort: Cohort, outcomes: Mapping[str, Outcome]) -> str:
        root, void = self.config.root, super()._void_reason(number, cohort, outcomes)
        outcome = outcomes.get(root)
        if void or (outcome is not None and outcome.accepted):
            return void
        reason = outcome.reason if outcome else f"no client of that name was asked, but {', '.join(outcomes)}"
        return f"round {number} is void: expected a valid reply of the root client {root!r}: {reason}"


class _RobustFold(Fold):
    def __init__(self, current: Mapping[str, NDArray], names: list[str], combine: Combine) -> None:
        self._current, self._names, self._combine = current, names, combine
        self._precision = np.result_type(np.float32, *(current[name].dtype for name in names))
        self._rows: dict[str, NDArray] = {}
        self._others: dict[str, list[NDArray]] = {name: [] for name in current if name not in set(names)}

    def add(self, reply: Reply) -> None:
        parts = [reply.deltas[name].reshape(-1) for name in self._names]
        self._rows[reply.client] = np.concatenate([np.zeros(0, self._precision), *parts], dtype=self._precision)
        for name, values in self._others.items():
            values.append(reply.deltas[name].copy())

    def finish(self) -> dict[str, NDArray]:
        vector, start = self._combine(self._rows), 0
        self._rows.clear()
        changes = {name: np.median(np.stack(values), axis=0) for name, values in self._others.items()}
        for name in self._names:
            shape, size = self._current[name].shape, self._current[name].size
            changes[name] = vector[start : start + size].reshape(shape)
            start += size
        return {name: _moved(values, changes[name]) for name, values in self._current.items()}


def _moved(values: NDArray, change: NDArray) -> NDArray:
    if values.dtype.kind == "i":
        change = np.rint(change)
    return np.asarray(values + change.astype(values.dtype))
