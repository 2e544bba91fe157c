"""Server optimisers: Flower's FedAvgM, FedAdam, FedYogi and FedAdagrad, fed one reply that holds our mean.

Flower's classes do the optimiser's arithmetic and keep its moments; validation, quorum, weighting and determinism are
ours. They act on the floating-point SHARED entries; BUFFER entries and counters are averaged.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from cloister.flower import NDArray, array_record, views
from cloister.strategies.base import BaseStrategy
from cloister.strategies.config import (
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgMConfig,
    FedYogiConfig,
    StrategyConfig,
)
from cloister.strategies.fold import Fold, trainable
from cloister.strategies.quiet import quiet_flower
from cloister.strategies.validation import Reply

Step = Callable[[int, Mapping[str, NDArray], Mapping[str, NDArray]], dict[str, NDArray]]


class ServerOptimiser(BaseStrategy):
    """A strategy that takes an optimiser step towards the weighted mean."""

    takes_noise = True

    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the weighted mean, followed by the optimiser's step."""
        return _StepFold(arrays, trainable(self.groups, arrays), self.mean(number, arrays), self._step, number)

    @abstractmethod
    def _step(self, number: int, current: Mapping[str, NDArray], mean: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Return the new values of the stepped entries from their current values and the mean of the replies."""


class _StepFold(Fold):
    def __init__(self, current: Mapping[str, NDArray], stepped: list[str], mean: Fold, step: Step, number: int) -> None:
        self._current, self._stepped, self._mean, self._step, self._number = current, stepped, mean, step, number

    def add(self, reply: Reply) -> None:
        self._mean.add(reply)

    def finish(self) -> dict[str, NDArray]:
        mean = self._mean.finish()
        current = {name: self._current[name] for name in self._stepped}
        stepped = self._step(self._number, current, {name: mean[name] for name in self._stepped})
        return mean | {name: values.astype(mean[name].dtype) for name, values in stepped.items()}


def _aggregate(inner: flower.FedAvg, number: int, mean: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return what Flower's strategy makes of a single reply with the arrays ``mean``."""
    content = RecordDict({"arrays": array_record(mean), "metrics": MetricRecord({"num-examples": 1})})
    with quiet_flower():
        arrays, _ = inner.aggregate_train(number, [Message(content, dst_node_id=0, message_type=MessageType.TRAIN)])
    return views(cast(ArrayRecord, arrays))


class FedOpt(ServerOptimiser):
    """FedAdam, FedYogi and FedAdagrad (Reddi et al., ICLR 2021)."""

    def __init__(self, config: StrategyConfig, **keywords: Any) -> None:
        """Make Flower's strategy of the configured kind."""
        super().__init__(config, **keywords)
        with quiet_flower():
            self._inner = _flower_optimiser(config)

    def _step(self, number: int, current: Mapping[str, NDArray], mean: Mapping[str, NDArray]) -> dict[str, NDArray]:
        self._inner.current_arrays = dict(current)
        return _aggregate(self._inner, number, mean)

    def memory(self) -> dict[str, NDArray]:
        """Return the first and second moments."""
        first = {f"first/{name}": values for name, values in (self._inner.m_t or {}).items()}
        return first | {f"second/{name}": values for name, values in (self._inner.v_t or {}).items()}

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        """Take up the moments."""
        self._inner.m_t = _part(memory, "first/") or None
        self._inner.v_t = _part(memory, "second/") or None


class FedAvgM(ServerOptimiser):
    """Server momentum (Hsu, Qi and Brown, 2019)."""

    config: FedAvgMConfig

    def __init__(self, config: StrategyConfig, **keywords: Any) -> None:
        """Make Flower's strategy."""
        super().__init__(config, **keywords)
        self._momentum: dict[str, NDArray] = {}
        self._inner = flower.FedAvgM(
            server_learning_rate=self.config.learning_rate, server_momentum=self.config.momentum
        )

    def _step(self, number: int, current: Mapping[str, NDArray], mean: Mapping[str, NDArray]) -> dict[str, NDArray]:
        self._inner.current_arrays = array_record(current)
        self._inner.momentum_vector = [self._momentum[name] for name in current] if self._momentum else None
        stepped = _aggregate(self._inner, number, mean)
        self._momentum = dict(zip(current, self._inner.momentum_vector or [], strict=False))
        return stepped

    def memory(self) -> dict[str, NDArray]:
        """Return the momentum."""
        return self._momentum

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        """Take up the momentum."""
        self._momentum = dict(memory)


def _flower_optimiser(config: StrategyConfig) -> Any:
    match config:
        case FedAdamConfig() | FedYogiConfig():
            kind = flower.FedAdam if isinstance(config, FedAdamConfig) else flower.FedYogi
            return kind(eta=config.learning_rate, beta_1=config.beta_1, beta_2=config.beta_2, tau=config.tau)
        case FedAdagradConfig():
            return flower.FedAdagrad(eta=config.learning_rate, tau=config.tau)
    raise TypeError(f"no server optimiser for {type(config).__name__}")


def _part(memory: Mapping[str, NDArray], prefix: str) -> dict[str, NDArray]:
    return {name.removeprefix(prefix): np.asarray(values) for name, values in memory.items() if name.startswith(prefix)}
