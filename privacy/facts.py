"""What an experiment and its task declare about themselves, for a plan to be checked against, and what it answers."""

from dataclasses import dataclass

from cloister.privacy.events import Sampler


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything outside the plan on which the soundness of the plan depends.

    ``strategy``: its name. ``weighting``: a client's weight in averages ("examples", "sqrt", "uniform").
    ``clients``: in the federation. ``rounds``: of the run. ``fraction`` or ``cohort_size`` (0: not given) of the
    clients are drawn each round, in the way ``drawn`` says. ``local_steps``: optimiser steps of a client in one round.
    ``parameters``: names of the entries that are released and clipped; ``buffers``: those released beside them that are
    no parameters, such as BatchNorm statistics. ``normalisation``: of the network ("batch", "group", "layer", ...;
    "batch" where batch statistics are computed in training). ``coupling``: losses whose value for one record depends on
    other records of the batch. ``objectives``: terms that keep a local model of earlier rounds or use another record
    from the server. ``releases``: kinds that leave a client beside the weights ("metrics", "centres", "control",
    "head", "counts", ...). ``metrics``: names of what is measured on private records and leaves. ``evaluation``:
    clients evaluate on private records and report. ``selection``: a round or a setting is chosen by results on private
    records. ``searches``: each client tunes its own learning rate or stops early on its private records. ``robust``:
    the rule that replaces the mean. ``compression``: of updates ("", "top-k", "quantised", ...); ``clip_after``: the
    clip sees the decompressed update. ``aggregation``: "plain" or "secure". ``asynchronous``: updates are buffered and
    may be stale. ``unit_ids``: every record names its session and subject. ``subjects_per_record``: most people in
    one record. ``public_graph``: which people are in which record is public. ``failures``: what leaves a client that
    fails on its own data ("zero": the zero update, "error"). ``root_data``: the server has data of its own in
    training. ``disjoint``: no unit is on more than one client, declared. ``momentum_kept``: clients keep optimiser
    state from round to round.
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
    aggregation: str = "plain"
    asynchronous: bool = False
    unit_ids: bool = True
    subjects_per_record: int = 1
    public_graph: bool = False
    failures: str = "zero"
    root_data: bool = False
    disjoint: bool = False
    momentum_kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a plan cannot hold for an experiment, and the nearest thing that can."""

    reason: str
    alternative: str

    def __str__(self) -> str:
        """Return both, as they are printed."""
        return f"{self.reason}; instead: {self.alternative}"
