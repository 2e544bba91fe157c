"""What every strategy is: a rule that turns replies into new arrays, under Flower's ``Strategy`` interface.

A strategy says how replies become new arrays (:meth:`BaseStrategy.open_fold`) and what else travels
(``exchanges``, :meth:`BaseStrategy.scalars`). Everything that can go wrong with a client is dealt with here, once. Any
Flower ``Grid`` can be driven by :meth:`BaseStrategy.start`, and Flower's own loop can drive the other methods.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from cloister.errors import PlanError, QuorumError, RunError, SecureSumError
from cloister.flower import NDArray, array_record, views
from cloister.models.spec import Group
from cloister.privacy.carried import RECORD, request_digest
from cloister.randomness import SeedTree
from cloister.strategies import loop
from cloister.strategies.centres import SummedCentres
from cloister.strategies.cohort import Cohort, assemble, draw
from cloister.strategies.config import LimitsConfig, StrategyConfig
from cloister.strategies.exchange import Exchange
from cloister.strategies.fold import Fold, MeanFold, Pairs, check_model, finite, variances
from cloister.strategies.inbox import Inbox
from cloister.strategies.private import CentralPrivacy
from cloister.strategies.quorum import ending, shortfall
from cloister.strategies.rounds import Outcome, RoundResult, Stopwatch, StrategyResult, Traffic, means
from cloister.strategies.secure import MaskedRules, SecureAggregation, SecureMean, SecureRound
from cloister.strategies.validation import EvaluationRules, Reply, ReplyRules, sizes

_LOG = logging.getLogger("cloister.strategies")
_WEIGHTS: dict[str, Callable[[int], float]] = {"examples": float, "uniform": lambda _: 1.0, "sqrt": lambda n: n**0.5}


@dataclass(frozen=True, kw_only=True)
class StrategyState:
    """What a strategy remembers between rounds, beside the model: arrays, and JSON-able values."""

    arrays: dict[str, NDArray] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """A round whose messages have been made and whose replies are coming in."""

    number: int
    arrays: ArrayRecord
    cohort: Cohort
    fold: Fold
    inbox: Inbox
    down: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class OpenEvaluation:
    """An evaluation whose messages have been made and whose replies are coming in."""

    cohort: Cohort
    inbox: Inbox


class BaseStrategy(Strategy):
    """A strategy without its averaging rule."""

    needs_steps = False
    takes_noise = False
    """Whether everything that the rule makes of replies goes through :meth:`mean`, where central noise is added."""

    def __init__(
        self,
        config: StrategyConfig,
        *,
        groups: Mapping[str, Group],
        pooled: Pairs = (),
        seeds: SeedTree,
        exchanges: tuple[Exchange, ...] = (),
        privacy: CentralPrivacy | None = None,
        secure: SecureAggregation | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Serve a model whose state-dict entries have these ``groups``.

        ``pooled``: (mean, variance) buffer names averaged as moments. ``privacy``: the server's part of a plan in which
        the server adds the noise. ``secure``: its part of one in which it sees sums alone. ``clock`` gives seconds,
        ``sleep`` waits for some; tests inject both.
        """
        if privacy is not None and (exchanges or not self.takes_noise):
            raise PlanError(
                f"strategy {config.name}: expected a rule that takes the noisy mean of a central plan and nothing "
                "else, found one that uses replies in other ways; choose fedavg without centres, or trust local"
            )
        summed = [exchange for exchange in exchanges if isinstance(exchange, SummedCentres)]
        if secure is not None and (len(summed) < len(exchanges) or not self.takes_noise or pooled):
            raise PlanError(
                f"strategy {config.name}: expected a rule that takes the mean of the replies and nothing else under "
                "[plan.secure], found one that uses single replies, or pools statistics; choose fedavg, and a network "
                "without pooled statistics"
            )
        if secure is not None:
            secure.centres = summed[0] if summed else None
        self.config = config
        self.groups = dict(groups)
        self.pooled = pooled
        self.seeds = seeds
        self.exchanges = exchanges
        self.privacy = privacy
        self.secure = secure
        self.void_rounds = 0
        self.commits = False
        """Whether replies are hashed as they are received, for a transcript."""
        self.clock, self.sleep = clock, sleep
        self._open: OpenRound | None = None
        self._summed: SecureRound | None = None
        self._evaluation: OpenEvaluation | None = None

    # What a strategy defines

    @abstractmethod
    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the aggregation of round ``number`` on the current ``arrays``."""

    def scalars(self) -> dict[str, float]:
        """Return what the strategy adds to the round's configuration."""
        return {}

    def payload(self, client: str, arrays: ArrayRecord) -> ArrayRecord:
        """Return the model that this client is sent: the global one, unless overridden."""
        return arrays

    def client_arrays(self) -> dict[str, ArrayRecord]:
        """Return one model per client, where the strategy keeps one per client."""
        return {}

    def least_replies(self) -> int:
        """Return the number of valid replies below which the rule means nothing, whatever the quorum says."""
        return 1

    def memory(self) -> dict[str, NDArray]:
        """Return the averaging rule's own arrays that must outlive a round."""
        return {}

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        """Take up what :meth:`memory` returned."""

    def weigh(self, reply: Reply) -> float:
        """Return a reply's weight in averages, as ``config.weighting`` says."""
        return _WEIGHTS[self.config.weighting](reply.examples)

    def mean(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the mean of round ``number``: the weighted one, or the noisy one of a central privacy plan."""
        noisy = None if self.privacy is None else self.privacy.fold(number, arrays, self.groups)
        if self._summed is not None:
            return SecureMean(self._summed, arrays, noisy)
        return noisy or MeanFold(arrays, self.pooled, self.weigh)

    # Checkpoint and resume

    def state(self) -> StrategyState:
        """Return a copy of everything that a resumed run needs beside the model's arrays."""
        arrays = {f"rule/{name}": values for name, values in self.memory().items()}
        for index, exchange in enumerate(self.exchanges):
            arrays |= {f"{index}/{name}": values for name, values in exchange.state().items()}
        values: dict[str, Any] = {"strategy": self.config.name, "void_rounds": self.void_rounds}
        if self.privacy is not None:
            secret, values["privacy"] = self.privacy.state()
            arrays |= {f"privacy/{name}": array for name, array in secret.items()}
        if self.secure is not None:
            values["secure"] = self.secure.state()
        return StrategyState(arrays={name: array.copy() for name, array in arrays.items()}, values=values)

    def restore(self, state: StrategyState) -> None:
        """Continue from ``state``; raises RunError if another strategy left it."""
        left_by = state.values.get("strategy")
        if left_by != self.config.name:
            raise RunError(
                f"strategy state: expected one of {self.config.name!r}, found one of {left_by!r}; "
                "resume with the configuration that the run was started with"
            )
        parts: dict[str, dict[str, NDArray]] = {}
        for name, values in state.arrays.items():
            owner, _, rest = name.partition("/")
            parts.setdefault(owner, {})[rest] = values.copy()
        self.remember(parts.get("rule", {}))
        for index, exchange in enumerate(self.exchanges):
            exchange.restore(parts.get(str(index), {}))
        if self.privacy is not None:
            self.privacy.restore(parts.get("privacy", {}), state.values["privacy"])
        if self.secure is not None:
            self.secure.restore(state.values["secure"])
        self.void_rounds = int(state.values["void_rounds"])

    # Flower's interface

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw the round's cohort and return one message per client, in canonical order."""
        current = views(arrays)
        check_model(self.groups, current)
        cohort = self._cohort(grid, server_round)
        record = self._train_record(server_round, config)
        if self.secure is not None:
            request = request_digest(self._content("", arrays, record))  # the same for everybody
            self._summed = self.secure.open(grid, server_round, cohort, current, record, request)
            cohort = self._summed.cohort
        fold = self.open_fold(server_round, current)
        inbox = self._open_inbox(cohort, arrays, fold)
        contents: dict[str, RecordDict] = {}
        for client in cohort.clients:
            content = self._content(client.name, arrays, record)
            if self._summed is not None:
                content[RECORD] = self._summed.delivery(client.name)
            contents[client.name] = content
        self._open = OpenRound(
            number=server_round,
            arrays=arrays,
            cohort=cohort,
            fold=fold,
            inbox=inbox,
            down={name: sizes(content) for name, content in contents.items()},
        )
        return self._messages(cohort, contents, MessageType.TRAIN, server_round)

    def _content(self, client: str, arrays: ArrayRecord, record: ConfigRecord) -> RecordDict:
        content = RecordDict({"arrays": self.payload(client, arrays), "config": record})
        for exchange in self.exchanges:
            for kind, extra in exchange.outgoing(client).items():
                content[kind] = extra
        return content

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies to :meth:`configure_train`'s messages; (None, None) if the round is void.

        Raises QuorumError after too many void rounds in a row.
        """
        self.opened(server_round).inbox.put_all(replies)
        result = self.conclude(server_round)
        self.end_if_stuck(result)
        return (None, None) if result.void else (result.arrays, MetricRecord(dict(result.metrics)))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one evaluation message per client drawn; none if ``evaluate_fraction`` is 0."""
        fraction = self.config.evaluate_fraction
        cohort = Cohort(clients=(), pool=0)
        if fraction > 0:
            cohort = self._draw(grid, server_round, "cohort-evaluate", fraction, None)
        inbox = Inbox(cohort, EvaluationRules(limits=self.config.limits).read)
        self._evaluation = OpenEvaluation(cohort=cohort, inbox=inbox)
        record = ConfigRecord({**config, "server-round": server_round})
        contents = {
            client.name: RecordDict({"arrays": self.payload(client.name, arrays), "config": record})
            for client in cohort.clients
        }
        return self._messages(cohort, contents, MessageType.EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean of the clients' metrics, weighted by the records each evaluated; None without any."""
        inbox = self.opened_evaluation().inbox
        inbox.put_all(replies)
        inbox.close()
        metrics = means(inbox.outcomes)
        return MetricRecord(dict(metrics)) if metrics else None

    def summary(self) -> None:
        """Log the configuration in one line."""
        _LOG.info("strategy %s: %s", self.config.name, self.config.model_dump(exclude_defaults=True))

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        first_round: int = 1,
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> StrategyResult:
        """Run rounds ``first_round`` to ``num_rounds`` and return what Flower's ``start`` returns.

        ``timeout``: seconds for a round's replies, beside ``quorum.deadline_s``; the smaller holds. ``evaluate_fn``
        is called with the round and the model after each round, and with round 0 before the first. ``on_round`` is
        called once per finished round, void ones included, when :meth:`state` and ``RoundResult.arrays`` belong
        together: the place for checkpoints and progress. To resume, call :meth:`restore`, then this with the
        checkpoint's arrays and ``first_round`` one after the checkpoint's. Raises QuorumError after
        ``quorum.max_void_rounds`` void rounds in a row.
        """
        self.summary()
        return loop.run(
            self,
            grid,
            initial_arrays,
            rounds=range(first_round, num_rounds + 1),
            timeout_s=min(timeout, self.config.quorum.deadline_s),
            train_config=ConfigRecord({**(train_config or {}), "rounds": num_rounds}),
            evaluate_config=ConfigRecord({**(evaluate_config or {}), "rounds": num_rounds}),
            evaluate_fn=evaluate_fn or (lambda number, arrays: None),
            on_round=on_round or (lambda result: None),
        )

    # The steps of a round, for the loop

    def train(
        self,
        grid: Grid,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout_s: float,
        watch: Stopwatch,
    ) -> RoundResult:
        """Return round ``number`` on ``arrays``, trained over ``grid``: all are asked, and waited for, together."""
        return loop.train(self, grid, number, arrays, config, timeout_s, watch)

    def leave(self, grid: Grid) -> None:
        """Take back what was asked and is no longer wanted: called once when a run ends, however it ends."""

    def opened(self, number: int) -> OpenRound:
        """Return the round that :meth:`configure_train` opened; raises RunError if it is not this one."""
        if self._open is None or self._open.number != number:
            raise RunError(f"round {number} is not open; call configure_train({number}, ...) first")
        return self._open

    def opened_evaluation(self) -> OpenEvaluation:
        """Return what :meth:`configure_evaluate` opened; raises RunError if nothing is open."""
        if self._evaluation is None:
            raise RunError("no evaluation is open; call configure_evaluate() first")
        return self._evaluation

    def conclude(self, number: int, missing: Mapping[int, str] | None = None) -> RoundResult:
        """Close the round. With a quorum it counts; without, model and memory stay as they were.

        ``missing``: why there is no reply, by place in the cohort.
        """
        opened, self._open = self.opened(number), None
        inbox = opened.inbox
        inbox.close(missing)
        traffic = {
            name: Traffic(down=opened.down.get(name, {}), up=inbox.traffic.get(name, {})) for name in inbox.outcomes
        }
        return self.settle(number, opened.arrays, opened.cohort, opened.fold, inbox.outcomes, traffic)

    def settle(
        self,
        number: int,
        arrays: ArrayRecord,
        cohort: Cohort,
        fold: Fold,
        outcomes: Mapping[str, Outcome],
        traffic: Mapping[str, Traffic],
    ) -> RoundResult:
        """Return round ``number`` on ``arrays``; with enough valid ``outcomes``, what ``fold`` makes of them."""
        # Under central noise the mean of what clients report is a release of its own; the bound in force is not.
        metrics = self._bound() or means(outcomes)
        void = self._void_reason(number, cohort, outcomes)
        if not void:
            try:
                finished = finite(fold.finish(), number)
            except SecureSumError as error:  # too few were left to open it: nothing was learned
                void = str(error.args[0])
                _LOG.warning("round %d is void: %s", number, void)
            else:
                arrays = array_record({name: finished[name] for name in arrays})
                for exchange in self.exchanges:
                    metrics |= exchange.commit(cohort.pool)
        self.void_rounds = self.void_rounds + 1 if void else 0
        total, self._summed = self._summed.total if self._summed and not void else None, None
        return RoundResult(
            number=number,
            void=void,
            cohort=tuple(outcomes),
            outcomes=outcomes,
            metrics=metrics,
            traffic=traffic,
            arrays=arrays,
            client_arrays=self.client_arrays(),
            total=total,
        )

    def end_if_stuck(self, result: RoundResult) -> None:
        """Raise QuorumError if this round was void and one too many in a row."""
        limit = self.config.quorum.max_void_rounds
        if result.void and self.void_rounds >= limit:
            raise QuorumError(ending(result.void, self.void_rounds, limit))

    def _train_record(self, number: int, config: ConfigRecord) -> ConfigRecord:
        releases = sorted(kind for exchange in self.exchanges for kind in exchange.asked)
        rows = self.secure.scalars() if self.secure else {}
        scalars = {**self.scalars(), **self._bound()}
        return ConfigRecord({**config, "server-round": number, "releases": releases, **scalars, **rows})

    def _open_inbox(self, cohort: Cohort, arrays: ArrayRecord, fold: Fold) -> Inbox:
        for exchange in self.exchanges:
            exchange.begin(views(arrays))

        def take(reply: Reply) -> None:
            for exchange in self.exchanges:
                exchange.admit(reply)
            fold.add(reply)
            for exchange in self.exchanges:
                exchange.add(reply, self.weigh(reply))

        secure = self.secure
        masked = MaskedRules(commit=self.commits, vault=secure.vault) if secure else None
        return Inbox(cohort, masked.read if masked else self._rules(arrays).read, take)

    def _rules(self, arrays: ArrayRecord) -> ReplyRules:
        current = views(arrays)
        return ReplyRules(
            arrays=current,
            measured=frozenset(name for name in current if self.groups[name] is Group.SHARED),
            variances=variances(self.groups, self.pooled) & set(current),
            sent=lambda client: self.payload(client, arrays),
            limits=self._limits(),
            extras={kind: extra for exchange in self.exchanges for kind, extra in exchange.accepts.items()},
            steps=self.needs_steps,
            commit=self.commits,
        )

    def _bound(self) -> dict[str, float]:
        """Return the clip bound in force, where the noise of a round is relative to it."""
        if self.privacy is not None:
            return {"clip-bound": self.privacy.bound}
        distributed = self.secure is not None and self.secure.plan.distributed
        return {"clip-bound": self.secure.bound} if self.secure is not None and distributed else {}

    def _limits(self) -> LimitsConfig:
        limits = self.config.limits
        return limits if self.privacy is None else limits.model_copy(update={"max_norm": self.privacy.most})

    def _void_reason(self, number: int, cohort: Cohort, outcomes: Mapping[str, Outcome]) -> str:
        asked = self._expected(cohort)
        required = self.config.quorum.required(asked, self.least_replies())
        if self.privacy is not None and self.secure is None:  # whether it counts must not depend on who took part
            required = int(bool(cohort.problem))
        failures = {name: outcome.reason for name, outcome in outcomes.items() if not outcome.accepted}
        for name, reason in failures.items():
            _LOG.info("round %d: client %s is left out: %s", number, name, reason)
        accepted = len(outcomes) - len(failures)
        if accepted >= required:
            return ""
        if cohort.problem:
            failures["cohort"] = cohort.problem
        void = shortfall(round=number, required=required, asked=asked, failures=failures, accepted=accepted)
        _LOG.warning("%s", void)
        return void

    def _expected(self, cohort: Cohort) -> int:
        """Return how many replies a round is to have, of which the quorum is a share."""
        return self.config.cohort_size or cohort.asked

    def _cohort(self, grid: Grid, number: int) -> Cohort:
        privacy, size = self.privacy, self.config.cohort_size
        if privacy is None:
            return self._draw(grid, number, "cohort", self.config.fraction, size)

        def choose(ids: Sequence[int]) -> Cohort:
            return privacy.draw(grid, ids, number, size or round(self.config.fraction * len(ids)))

        return assemble(grid, self.config.quorum, choose, size=None, clock=self.clock, sleep=self.sleep)

    def _draw(self, grid: Grid, number: int, purpose: str, fraction: float, size: int | None) -> Cohort:
        generator = self.seeds.numpy(purpose=purpose, round=number)

        def choose(ids: Sequence[int]) -> Cohort:
            return draw(grid, ids, fraction=fraction, size=size, generator=generator)

        return assemble(grid, self.config.quorum, choose, size=size, clock=self.clock, sleep=self.sleep)

    @staticmethod
    def _messages(cohort: Cohort, contents: Mapping[str, RecordDict], kind: str, number: int) -> list[Message]:
        return [
            Message(contents[client.name], dst_node_id=client.node_id, message_type=kind, group_id=str(number))
            for client in cohort.clients
        ]
