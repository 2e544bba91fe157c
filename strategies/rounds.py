"""What is recorded of a round: outcome and traffic per client, seconds per stage, metrics, the model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Result

from cloister.privacy.transcript import LedgerHead, ModularSum

STAGES = ("configure", "wait", "aggregate", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one client of the cohort: its reply counted, or ``reason`` says why not.

    ``digest``, ``signature``, ``head``: of a valid :class:`~cloister.strategies.validation.Reply`, for the transcript.
    """

    accepted: bool
    reason: str = ""
    examples: int = 0
    steps: int = 0
    norm: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    signature: str = ""
    head: LedgerHead | None = None


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of arrays that went to a client and came back, by release kind."""

    down: Mapping[str, int] = field(default_factory=dict)
    up: Mapping[str, int] = field(default_factory=dict)

    def plus(self, more: "Traffic") -> "Traffic":
        """Return the sum of this and ``more``."""
        return Traffic(down=_added(self.down, more.down), up=_added(self.up, more.up))


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """Everything that is known of a finished round.

    ``void``: why the round did not count ("" if it did). ``seconds``: per stage of :data:`STAGES`. ``cohort``: names of
    all clients drawn, in canonical order; ``outcomes`` and ``traffic`` are keyed by them (traffic also by clients that
    an asynchronous strategy asked and that go on training). ``metrics``: means over accepted clients, weighted by
    examples. ``client_evaluation`` and ``evaluation``: from the clients' own held-out data (per client, and the mean);
    ``server_evaluation``: from ``evaluate_fn``. ``total``: what is committed to of a secure sum that was opened.
    ``arrays``: the model after the round; ``client_arrays``: one per client, where the strategy keeps one per client.
    """

    number: int
    void: str
    cohort: tuple[str, ...]
    outcomes: Mapping[str, Outcome]
    metrics: Mapping[str, float]
    traffic: Mapping[str, Traffic]
    arrays: ArrayRecord
    client_arrays: Mapping[str, ArrayRecord]
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    client_evaluation: Mapping[str, Outcome] = field(default_factory=dict)
    server_evaluation: Mapping[str, Any] = field(default_factory=dict)
    total: ModularSum | None = None


@dataclass
class StrategyResult(Result):
    """Flower's result, and the clients' own models where the strategy keeps one per client."""

    client_arrays: dict[str, ArrayRecord] = field(default_factory=dict)


class Stopwatch:
    """Seconds spent per stage. A stage entered inside another is taken out of the outer one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Read time from ``clock`` (seconds)."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._clock = clock
        self._open: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block under ``name``."""
        begin = self._clock()
        self._open.append(0.0)
        try:
            yield
        finally:
            spent = self._clock() - begin
            self.seconds[name] += spent - self._open.pop()
            if self._open:
                self._open[-1] += spent


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in (*one, *other)}


def means(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """Return the mean of every metric over the accepted clients that report it, weighted by their examples."""
    sums: dict[str, list[float]] = {}
    for outcome in outcomes.values():
        if outcome.accepted and outcome.examples:
            for key, value in outcome.metrics.items():
                total = sums.setdefault(key, [0.0, 0.0])
                total[0] += outcome.examples * value
                total[1] += outcome.examples
    return {key: value / weight for key, (value, weight) in sorted(sums.items())}
