"""The rounds of a run, one after the other, over any Flower ``Grid``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from cloister.strategies.gather import gather
from cloister.strategies.rounds import RoundResult, Stopwatch, StrategyResult, Traffic, means
from cloister.strategies.validation import sizes

if TYPE_CHECKING:
    from cloister.strategies.base import BaseStrategy

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


def run(
    strategy: "BaseStrategy",
    grid: Grid,
    arrays: ArrayRecord,
    *,
    rounds: range,
    timeout_s: float,
    train_config: ConfigRecord,
    evaluate_config: ConfigRecord,
    evaluate_fn: Evaluate,
    on_round: Callable[[RoundResult], None],
) -> StrategyResult:
    """Run ``rounds`` from ``arrays``; the arguments are those of :meth:`BaseStrategy.start`."""
    result = StrategyResult(arrays=arrays, client_arrays=strategy.client_arrays())
    if rounds.start == 1:
        _note(result.evaluate_metrics_serverapp, 0, evaluate_fn(0, arrays))
    try:
        for number in rounds:
            watch = Stopwatch(strategy.clock)
            done = strategy.train(grid, number, result.arrays, train_config, timeout_s, watch)
            with watch.stage("evaluate"):
                done = _evaluate(strategy, grid, done, evaluate_config, timeout_s, evaluate_fn)
            done = replace(done, seconds=dict(watch.seconds))
            result.arrays, result.client_arrays = done.arrays, dict(done.client_arrays)
            _note(result.train_metrics_clientapp, number, done.metrics)
            _note(result.evaluate_metrics_clientapp, number, done.evaluation)
            _note(result.evaluate_metrics_serverapp, number, done.server_evaluation)
            on_round(done)
            strategy.end_if_stuck(done)
    finally:
        strategy.leave(grid)
    return result


def train(
    strategy: "BaseStrategy",
    grid: Grid,
    number: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    timeout_s: float,
    watch: Stopwatch,
) -> RoundResult:
    """Return one round in which all are asked together, and waited for until ``timeout_s`` seconds have passed."""
    with watch.stage("configure"):
        messages = strategy.configure_train(number, arrays, config, grid)
    opened = strategy.opened(number)

    def take(place: int, reply: Message) -> None:
        with watch.stage("aggregate"):
            opened.inbox.put(place, reply)

    with watch.stage("wait"):
        missing = _gather(strategy, grid, messages, take, timeout_s)
    with watch.stage("aggregate"):
        return strategy.conclude(number, missing)


def _evaluate(
    strategy: "BaseStrategy",
    grid: Grid,
    done: RoundResult,
    config: ConfigRecord,
    timeout_s: float,
    evaluate_fn: Evaluate,
) -> RoundResult:
    messages = strategy.configure_evaluate(done.number, done.arrays, config, grid)
    opened = strategy.opened_evaluation()
    inbox = opened.inbox
    missing = _gather(strategy, grid, messages, inbox.put, timeout_s) if messages else {}
    inbox.close(missing)
    traffic = dict(done.traffic)
    for client, message in zip(opened.cohort.clients, messages, strict=True):
        traffic[client.name] = traffic.get(client.name, Traffic()).plus(Traffic(down=sizes(message.content)))
    return replace(
        done,
        traffic=traffic,
        evaluation=means(inbox.outcomes),
        client_evaluation=inbox.outcomes,
        server_evaluation=dict((evaluate_fn(done.number, done.arrays) or MetricRecord()).items()),
    )


def _gather(
    strategy: "BaseStrategy",
    grid: Grid,
    messages: Sequence[Message],
    take: Callable[[int, Message], None],
    timeout_s: float,
) -> dict[int, str]:
    deadline = strategy.clock() + timeout_s
    return gather(grid, messages, take, deadline=deadline, clock=strategy.clock, sleep=strategy.sleep)


def _note(history: dict[int, MetricRecord], number: int, metrics: Mapping[str, Any] | None) -> None:
    if metrics:
        history[number] = MetricRecord(dict(metrics))
