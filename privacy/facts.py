"""What an experiment and its task declare about themselves, for a plan to be checked against, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from cloister.privacy.events import Sampler

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything outside the plan on which the soundness of the plan depends.

    ``strategy``: its name. ``weighting``: a client's weight in averages ("examples", "sqrt", "uniform").
    ``clients``: in the federation. ``rounds``: of the run. ``fraction`` or ``cohort_size`` (0: not given) of the
    clients are drawn each round, in the way ``drawn`` says. ``local_steps``: optimiser steps of a client in one round
    (0: not known). ``parameters``: names of the entries that are released and clipped; ``buffers``: those released
    beside them that are no parameters, such as BatchNorm statistics. ``normalisation``: of the network ("batch" where
    batch statistics are computed in training, "group", ...). ``coupling``: losses whose value for one record depends
    on other records of the batch. ``objectives``: terms that a strategy adds to local training. ``releases``: kinds
    that leave a client beside the weights ("centres", "control", "head", ...). ``metrics``: what is measured on private
    records in training and leaves. ``evaluation``: clients evaluate on private records and report. ``selection``: a
    round or a setting is chosen by results on private records. ``searches``: each client tunes its learning rate or
    stops early by its private records. ``robust``: the rule that replaces the mean. ``compression``: of updates ("",
    "top-k", "random-k" by public draws, "quantised", ...); ``clip_after``: the clip sees the decompressed update.
    ``aggregation``: "plain" or "secure". ``asynchronous``: updates are buffered and may be stale, at most one of each
    client in one buffer; a round is one buffer. ``unit_ids``: every
    record names its session and subject. ``subjects_per_record``: most people in one record; ``public_graph``: who is
    in which record is public. ``failures``: what leaves a client that fails on its own data ("zero": the zero update,
    "error"). ``root_data``: the server trains on data of its own that are neither public nor consented to.
    ``disjoint``: it is declared that no session or subject is on two clients.
    """

    strategy: str
    weighting: str
    clients: int
    rounds: int
    fraction: float = 1.0
    cohort_size: int = 0
    drawn: Sampler = Sampler.WITHOUT_REPLACEMENT
    local_steps: int = 0
    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    normalisation: str = ""
    coupling: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    evaluation: bool = False
    selection: bool = False
    searches: bool = False
    robust: str = ""
    compression: str = ""
    clip_after: bool = True
    aggregation: Literal["plain", "secure"] = "plain"
    asynchronous: bool = False
    unit_ids: bool = True
    subjects_per_record: int = 1
    public_graph: bool = False
    failures: Literal["zero", "error"] = "zero"
    root_data: bool = False
    disjoint: bool = False


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a plan cannot hold for an experiment, and the nearest thing that can."""

    reason: str
    alternative: str

    def __str__(self) -> str:
        """Return both, as they are printed."""
        return f"{self.reason}; instead: {self.alternative}"


class Rule(NamedTuple):
    """A combination that does not hold, as :mod:`cloister.privacy.rules` goes through them.

    ``broken(plan, facts)``: whether it is there, or its details as text. ``reason`` and ``alternative`` may name
    ``{plan...}``, ``{facts...}`` and ``{details}``.
    """

    broken: "Callable[[Plan, Facts], bool | str]"
    reason: str
    alternative: str

    def refusal(self, plan: "Plan", facts: Facts) -> Refusal | None:
        """Return the refusal, if the rule is broken."""
        details = self.broken(plan, facts)
        if not details:
            return None
        reason, alternative = (
            text.format(plan=plan, facts=facts, details=details) for text in (self.reason, self.alternative)
        )
        return Refusal(reason=reason, alternative=alternative)
