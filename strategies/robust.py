"""Rules that survive hostile clients, with Flower's arithmetic: median, trimmed mean, Krum and Multi-Krum.

They need all replies of a round at once, so memory holds the cohort. Flower's functions are given the clients' changes
rather than their models: median, trimmed mean and distances move along with a common shift, and differences of small
changes do not lose their digits as differences of large models do.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import select_multikrum

from cloister.errors import ConfigError
from cloister.flower import NDArray, array_record, views
from cloister.models.spec import Group
from cloister.strategies.base import BaseStrategy
from cloister.strategies.config import FedTrimmedAvgConfig, KrumConfig, MultiKrumConfig, StrategyConfig
from cloister.strategies.fold import Fold, MeanFold, Pairs
from cloister.strategies.quiet import quiet_flower
from cloister.strategies.validation import Reply


class CoordinateRule(BaseStrategy):
    """Coordinate-wise median or trimmed mean of every entry, BUFFER entries included (Yin et al., ICML 2018).

    All clients weigh the same. Integer entries are rounded to the nearest integer.
    """

    def __init__(self, config: StrategyConfig, *, pooled: Pairs = (), **keywords: Any) -> None:
        """Refuse pooled statistics: moments of pooled data are means, which one client can move anywhere."""
        if pooled:
            raise ConfigError(
                f"strategy {config.name}: cannot pool BatchNorm moments, found {len(pooled)} pairs; "
                "set the model's BatchNorm policy to averaged, local or frozen"
            )
        super().__init__(config, pooled=pooled, **keywords)
        beta = config.beta if isinstance(config, FedTrimmedAvgConfig) else None
        with quiet_flower():
            self._inner = flower.FedMedian() if beta is None else flower.FedTrimmedAvg(beta=beta)

    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the rule over all replies."""
        return _CoordinateFold(self._inner, number, arrays)


class _CoordinateFold(Fold):
    def __init__(self, inner: flower.FedAvg, number: int, current: Mapping[str, NDArray]) -> None:
        self._inner, self._number, self._current = inner, number, current
        self._messages: list[Message] = []

    def add(self, reply: Reply) -> None:
        self._messages.append(Message(_content(reply.deltas, reply), dst_node_id=0, message_type=MessageType.TRAIN))

    def finish(self) -> dict[str, NDArray]:
        with quiet_flower():
            record, _ = self._inner.aggregate_train(self._number, self._messages)
        self._messages.clear()
        changes = views(cast(ArrayRecord, record))
        return {name: _moved(values, changes[name]) for name, values in self._current.items()}


class Krum(BaseStrategy):
    """The mean of the replies nearest to their neighbours (Blanchard et al., NeurIPS 2017): one, or several.

    Distances are those of SHARED entries; BUFFER entries come from the same clients.
    """

    config: KrumConfig | MultiKrumConfig

    def least_replies(self) -> int:
        """Return 2f + 3, below which f hostile clients can win (proposition 4.2 of the paper)."""
        return 2 * self.config.malicious + 3

    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the selection, followed by the weighted mean of those selected."""
        selected = self.config.selected if isinstance(self.config, MultiKrumConfig) else 1
        shared = [name for name in arrays if self.groups[name] is Group.SHARED]
        return _KrumFold(MeanFold(arrays, self.pooled, self.weigh), shared, self.config.malicious, selected)


class _KrumFold(Fold):
    def __init__(self, mean: MeanFold, shared: list[str], malicious: int, selected: int) -> None:
        self._mean, self._shared, self._malicious, self._selected = mean, shared, malicious, selected
        self._replies: list[Reply] = []

    def add(self, reply: Reply) -> None:
        self._replies.append(reply)

    def finish(self) -> dict[str, NDArray]:
        contents = [_content({name: reply.deltas[name] for name in self._shared}, reply) for reply in self._replies]
        chosen = select_multikrum(contents, self._malicious, self._selected)
        for content, reply in zip(contents, self._replies, strict=True):
            if any(content is other for other in chosen):
                self._mean.add(reply)
        self._replies.clear()
        return self._mean.finish()


def _content(arrays: Mapping[str, NDArray], reply: Reply) -> RecordDict:
    return RecordDict({"arrays": array_record(arrays), "metrics": MetricRecord({"num-examples": reply.examples})})


def _moved(values: NDArray, change: NDArray) -> NDArray:
    if values.dtype.kind == "i":
        change = np.rint(change)
    return np.asarray(values + change.astype(values.dtype))
