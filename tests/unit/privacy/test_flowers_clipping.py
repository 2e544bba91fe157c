"""Flower's own adaptive clipping, run as it is, beside ours: its bound runs away from the quantile, ours finds it.

It sends whether an update *was* clipped and applies the rule written for whether it was *not* (Andrew et al. 2021,
algorithm 1), so that a bound which clips too much is made smaller.
"""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod
from flwr.serverapp import strategy as flower
from scipy import stats

from cloister.flower import array_record, set_identity
from cloister.privacy.clipping import ClipBound, clip_flat

ROUNDS = 60
NORMS = np.exp(0.3 * stats.norm.ppf((np.arange(20) + 0.5) / 20))  # lognormal, median 1
MODEL = array_record({"weight": np.zeros(2)})


class Silent(flower.FedAvg):
    """What Flower's wrapper wraps: aggregates nothing, so that only the bound moves."""

    def aggregate_train(self, server_round: int, replies: Any) -> tuple[None, None]:
        return None, None


def received(bound: float) -> Message:
    content = RecordDict({"arrays": MODEL, "config": ConfigRecord({"clipping_norm": bound})})
    return Message(content, dst_node_id=1, message_type="train")


def reply(message: Message, norm: float) -> Message:
    arrays = array_record({"weight": np.array([0.0, norm])})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"loss": 0.0})}), reply_to=message)


def server_side(bound: float) -> list[Message]:
    return [reply(received(bound), norm) for norm in NORMS]


def client_side(bound: float) -> list[Message]:
    context = Context(1, 1, {}, RecordDict(), {})
    return [adaptiveclipping_mod(received(bound), context, lambda m, c, n=norm: reply(m, n)) for norm in NORMS]


KINDS = {
    "server": (flower.DifferentialPrivacyServerSideAdaptiveClipping, server_side),
    "client": (flower.DifferentialPrivacyClientSideAdaptiveClipping, client_side),
}


def flowers_bound(kind: str, start: float) -> float:
    """The bound of Flower's own strategy after so many rounds, without noise."""
    set_identity(run_id=1, node_id=1)
    make, answers = KINDS[kind]
    strategy = make(Silent(), noise_multiplier=0.0, num_sampled_clients=len(NORMS), initial_clipping_norm=start)
    strategy.current_arrays = MODEL
    for number in range(ROUNDS):
        strategy.aggregate_train(number, answers(strategy.clipping_norm))
    return float(strategy.clipping_norm)


def our_bound(start: float) -> float:
    bound = ClipBound(bound=start, cohort=len(NORMS))
    for _ in range(ROUNDS):
        bound = bound.after(sum(clip_flat({"weight": np.array([0.0, norm])}, bound.bound).bit for norm in NORMS))
    return bound.bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("start", "runaway"), [(0.1, 0.000248), (10.0, 4034.0)])
def test_flowers_bound_runs_away_where_ours_converges(kind: str, start: float, runaway: float) -> None:
    assert our_bound(start) == pytest.approx(1.0, rel=0.05)
    assert flowers_bound(kind, start) == pytest.approx(runaway, rel=0.01)


def test_an_update_of_norm_zero_ends_flowers_round_and_not_ours() -> None:
    set_identity(run_id=1, node_id=1)
    with pytest.raises(ZeroDivisionError):
        adaptiveclipping_mod(received(1.0), Context(1, 1, {}, RecordDict(), {}), lambda m, c: reply(m, 0.0))
    assert not clip_flat({"weight": np.zeros(2)}, 1.0).values["weight"].any()
