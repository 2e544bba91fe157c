"""What one message asks of a client: read once, before anything is done."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flwr.app import ConfigRecord, Message

from cloister.clients.policy import code_digest
from cloister.errors import ConfigError, PlanError
from cloister.privacy.carried import QUERY, ROWS
from cloister.privacy.events import Relation, Unit
from cloister.privacy.plan import Plan
from cloister.privacy.settings import ClipKind
from cloister.privacy.soundness import unsound
from cloister.privacy.summing import RoundSum


@dataclass(frozen=True, kw_only=True)
class Request:
    """One message as the site policy and the ledger see it.

    ``kind``: "train", "evaluate", or "query" for a message of a secure sum. ``run`` names the run, ``round`` counts
    from 1 to ``rounds``. ``kinds``: what the client is asked to release. ``norm``: the clip bound in force (infinite
    where nothing is clipped). ``server``: who the client is connected to, as the client itself knows it. ``rows``:
    (classes, width) of class centres that go into the secure sum, if any do. ``head``: whether the head of the client's
    ledger is welcome, should its owner consent.
    """

    kind: str
    task: str
    run: str
    round: int
    rounds: int
    plan: Plan
    kinds: frozenset[str]
    norm: float
    server: str
    rows: tuple[int, int] | None = None
    head: bool = False

    @property
    def unit(self) -> Unit:
        """Who the plan protects."""
        return self.plan.unit

    @property
    def relation(self) -> Relation:
        """In what neighbouring data sets differ."""
        return self.plan.relation

    @property
    def noise_multiplier(self) -> float:
        """The least noise that the plan promises on anything that was asked for; 0 where it promises none."""
        plan = self.plan
        if not plan.noisy:
            return 0.0
        centres = plan.centres if "centres" in self.kinds else None
        promised = [plan.noise_multiplier]
        if centres:
            promised += [centres.noise_multiplier, centres.count_multiplier]
        return min(promised)

    @property
    def noisy(self) -> bool:
        """Whether the plan promises any noise."""
        return self.plan.noisy

    @property
    def central(self) -> bool:
        """Whether the server adds the noise, to updates that leave the client clipped and bare."""
        return self.plan.central

    def round_sum(self, shapes: Mapping[str, tuple[int, ...]], asked: bytes = b"") -> RoundSum:
        """Return this round's secure sum over arrays of these shapes; ``asked``: see :class:`RoundSum`."""
        return RoundSum(
            plan=self.plan,
            run=self.run,
            number=self.round,
            shapes=shapes,
            clip=self.norm,
            request=asked,
            rows=self.rows,
        )

    @property
    def run_digest(self) -> str:
        """SHA-256 (hex) of the run's name: one for a file."""
        return hashlib.sha256(self.run.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def code(self) -> str:
        """SHA-256 of the code that would run."""
        return code_digest()

    def check(self) -> None:
        """Raise :class:`PlanError` for a plan that holds for no experiment: a server's word does not make it sound."""
        if refusals := unsound(self.plan):
            raise PlanError(f"plan in the message: {'; '.join(map(str, refusals))}")

    @classmethod
    def of(cls, message: Message, server: str) -> "Request":
        """Return what ``message`` asks for; raises :class:`ConfigError` or :class:`PlanError` where that is unclear."""
        config = config_of(message)
        plan = plan_of(config)
        found = str(message.metadata.message_type)
        kind = "query" if found == QUERY and plan.secure else found.partition(".")[0]
        if kind not in ("train", "evaluate") and found != QUERY:
            raise ConfigError(f"message: expected one of type train or evaluate, found {found!r}")
        if found == QUERY and plan.secure is None:
            raise ConfigError("message of a secure sum: expected a plan with [plan.secure] beside it, found none")
        asked = frozenset(map(str, config.get("releases", ())))
        number = int(config["server-round"])
        return cls(
            kind=kind,
            task=str(config.get("task", "")),
            run=str(config.get("run", "")),
            round=number,
            rounds=max(int(config.get("rounds", number)), number),
            plan=plan,
            kinds=_released(kind, plan) | (asked if kind == "train" else frozenset()),
            norm=_bound(plan, config),
            server=server,
            rows=_rows(config),
            head=kind == "train" and bool(config.get("ledger-heads", False)),
        )


def _released(kind: str, plan: Plan) -> frozenset[str]:
    """Return the kinds of what leaves whatever was asked for."""
    if kind == "evaluate":
        return frozenset({"metrics"})
    weights = "arrays" if plan.secure is None else "masked"
    return frozenset({weights, "metrics"}) if kind == "train" else frozenset({weights})


_MOST_ROWS = 1 << 26  # numbers of class centres that a client makes room for


def _rows(config: Mapping[str, Any]) -> tuple[int, int] | None:
    found = config.get(ROWS)
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2 or not all(type(n) is int and 0 < n < 1 << 24 for n in found):
        raise ConfigError(f"{ROWS} in the message: expected two positive integers, found {str(found)[:60]}")
    if found[0] * found[1] > _MOST_ROWS:
        raise ConfigError(f"{ROWS} in the message: expected at most {_MOST_ROWS} numbers in all, found {found}")
    return found[0], found[1]


def config_of(message: Message) -> dict[str, Any]:
    """Return the message's ``config`` record; raises :class:`ConfigError` where there is none."""
    record = message.content.get("config")
    if not isinstance(record, ConfigRecord):
        raise ConfigError("message: expected a ConfigRecord 'config', found none; the server must be Cloister's")
    return dict(record)


def plan_of(config: Mapping[str, Any]) -> Plan:
    """Return the plan that a server sent; no plan is a plan that noises nothing."""
    return _plan(str(config.get("plan", "{}")))


@lru_cache(maxsize=8)
def _plan(text: str) -> Plan:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"plan in the message: expected JSON, found something else ({error})") from None
    if not isinstance(values, dict):
        raise PlanError(f"plan in the message: expected a table, found {type(values).__name__}")
    return Plan.of(values, "plan in the message")


def _bound(plan: Plan, config: Mapping[str, Any]) -> float:
    if plan.clip is None or plan.clip.kind is not ClipKind.ADAPTIVE:
        return plan.clip_norm  # else a message could state one bound and have another carried out
    bound = float(config.get("clip-bound", plan.clip.bound))
    if not (math.isfinite(bound) and bound > 0):
        raise PlanError(f"clip-bound in the message: expected a positive number, found {bound}")
    return bound
