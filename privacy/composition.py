"""Events composed by privacy-loss distributions (PLD) and by Renyi differential privacy (RDP).

The work is dp-accounting's, of the extra ``privacy``, but for the pairs of :mod:`cloister.privacy.mixtures` and the
noise of :mod:`cloister.privacy.shared_noise`. Only :mod:`cloister.privacy.accounting` calls this, with events that it
found to be covered.
"""

import contextlib
import importlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError
from cloister.privacy import mixtures, shared_noise
from cloister.privacy.events import SHARED, Event, EventKind, Relation, Sampler

Orders = NDArray[np.float64]

_COARSEST, _FINEST = 1e-1, 1e-4  # between the losses of a PLD; dp-accounting's default is the finest
_REFINE = 10  # from one grid to the next
_EXCESS = 1e-5  # that a grid may add to an answer, relative
_CELLS = 5e5  # of a grid up to epsilon: what has more is answered on a coarser grid, and is no plan anybody wants


def pld_epsilon(events: Sequence[Event], delta: float) -> float:
    """Return the epsilon of all events together by PLD."""
    return _refined(events, lambda losses: losses.get_epsilon_for_delta(delta), lambda found: found)


def pld_delta(events: Sequence[Event], epsilon: float) -> float:
    """Return the delta of all events together by PLD."""
    reach = max(epsilon, _mean_loss(events))
    return _refined(events, lambda losses: losses.get_delta_for_epsilon(epsilon), lambda found: reach)


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Return the epsilon of all events together by RDP.

    Converted as in Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), proposition 12.
    """
    orders, total = _rdp_of_all(events)
    return float(_library("rdp.rdp_privacy_accountant").compute_epsilon(orders, total, delta)[0])


def rdp_delta(events: Sequence[Event], epsilon: float) -> float:
    """Return the delta of all events together by RDP."""
    orders, total = _rdp_of_all(events)
    return float(_library("rdp.rdp_privacy_accountant").compute_delta(orders, total, epsilon)[0])


def _library(module: str) -> Any:
    try:
        return importlib.import_module(f"dp_accounting.{module}")
    except ImportError as error:
        raise PlanError(
            f"accounting: expected dp-accounting to be installed, found {error}; pip install 'cloister[privacy]'"
        ) from error


def _refined(events: Sequence[Event], ask: Callable[[Any], float], reach: Callable[[float], float]) -> float:
    """Return the answer on the coarsest grid that is fine enough; every grid gives an upper bound.

    What a grid adds falls with the square of its interval, so the difference between two tells what is left.
    ``reach(answer)``: up to which loss a grid matters.
    """
    interval, before = _coarsest(events), math.inf
    while True:
        found = float(ask(_composed(tuple(events), interval)))
        exact = before - found <= _EXCESS * (_REFINE**2 - 1) * found
        if exact or interval <= _FINEST or reach(found) / interval > _CELLS:
            return found
        interval, before = max(interval / _REFINE, _FINEST), found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep absl from printing that a fractional order did not converge: the order is left out, which is sound."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _coarsest(events: Sequence[Event]) -> float:
    """Return a first grid, on which the losses of any number of events fit into memory."""
    return max(_COARSEST, _mean_loss(events) / _CELLS / _REFINE)


def _mean_loss(events: Sequence[Event]) -> float:
    """Return at most the mean privacy loss of all events: of a Gaussian, half the mean square of the shift."""
    total = 0.0
    for event in events:
        if event.kind is EventKind.RANDOMISED_RESPONSE:
            total += event.count * event.epsilon
            continue
        expected = event.group * event.rate
        square = expected * (1 - event.rate) + expected**2
        gaussian = event.kind is EventKind.GAUSSIAN
        loss = square / event.noise_multiplier**2 / 2 if gaussian else expected / event.noise_multiplier
        total += event.count * loss
    return total


@lru_cache(maxsize=64)
def _composed(events: tuple[Event, ...], interval: float) -> Any:
    first, *others = (_distribution(event, interval) for event in events)
    for other in others:
        first = first.compose(other)
    return first


def _distribution(event: Event, interval: float) -> Any:
    """Return the PLD of one event, all its uses together."""
    if event.kind is EventKind.GAUSSIAN and event.rate == 1:  # noise is relative to what one unit changes under any
        deviation = event.noise_multiplier / event.group / math.sqrt(event.count)  # relation; squares add
        losses: Any = _library("pld.privacy_loss_distribution")
        return losses.from_gaussian_mechanism(deviation, value_discretization_interval=interval)
    single = _single(replace(event, count=1), interval)
    return single if event.count == 1 else single.self_compose(event.count)


@lru_cache(maxsize=64)
def _single(event: Event, interval: float) -> Any:
    """Return the PLD of one use of a sampled event, or of one whose noise is not Gaussian."""
    losses: Any = _library("pld.privacy_loss_distribution")
    relations = _library("privacy_accountant").NeighboringRelation
    grid = {"value_discretization_interval": interval}
    if event.kind is EventKind.RANDOMISED_RESPONSE:
        relation = relations.REPLACE_SPECIAL if event.relation is Relation.ZERO_OUT else relations.REPLACE_ONE
        parameter = _noise_parameter(event)
        return losses.from_randomized_response(parameter, event.categories, neighboring_relation=relation, **grid)
    if event.kind is EventKind.LAPLACE:
        scale = event.noise_multiplier / event.group
        return losses.from_laplace_mechanism(scale, sampling_prob=event.rate, **grid)
    if event.relation is Relation.REPLACE_ONE:  # dp-accounting counts from nothing to one unit, half of what changes
        deviation, relation = 2 * event.noise_multiplier, relations.REPLACE_ONE
        return losses.from_gaussian_mechanism(
            deviation, sampling_prob=event.rate, neighboring_relation=relation, **grid
        )
    pair = mixtures.of_group(event)
    return losses.PrivacyLossDistribution(
        *(_connected(interval, *direction(pair, interval)) for direction in (mixtures.removed, mixtures.added))
    )


def _connected(interval: float, first: int, deltas: Orders) -> Any:
    """Return the losses that have these deltas at these epsilons and no smaller ones between (connect the dots)."""
    pmf: Any = _library("pld.pld_pmf")
    return pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, first, first + len(deltas) - 1, deltas)


def _rdp_of_all(events: Sequence[Event]) -> tuple[Orders, Orders]:
    total = np.zeros_like(_orders())
    for event in events:
        total = total + event.count * _rdp(replace(event, count=1))
    return _orders(), total


def _orders() -> Orders:
    return np.asarray(_library("rdp.rdp_privacy_accountant").RdpAccountant().orders, dtype=np.float64)


@lru_cache(maxsize=1024)
def _rdp(event: Event) -> Orders:
    """Return the RDP of one use of an event at the accountant's orders."""
    if event.kind in SHARED:
        return shared_noise.renyi(event, _orders())
    lib: Any = _library("dp_event")
    relations = _library("privacy_accountant").NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE
    noise = event.noise_multiplier / event.group
    if event.sampler is Sampler.WITHOUT_REPLACEMENT:
        relation = relations.REPLACE_ONE
        inner = lib.GaussianDpEvent(noise)
        found = lib.SampledWithoutReplacementDpEvent(event.population, event.sample_size, inner)
    elif event.kind is EventKind.RANDOMISED_RESPONSE:
        relation = relations.REPLACE_SPECIAL if event.relation is Relation.ZERO_OUT else relations.REPLACE_ONE
        found = lib.RandomizedResponseDpEvent(_noise_parameter(event), event.categories)
    elif event.kind is EventKind.LAPLACE:  # of samples too, as if they were everybody: an upper bound
        found = lib.LaplaceDpEvent(noise)
    elif event.rate == 1:
        found = lib.GaussianDpEvent(noise)
    elif event.group > 1:
        return mixtures.renyi(mixtures.of_group(event), _orders())
    elif event.relation is Relation.REPLACE_ONE:
        return mixtures.renyi(mixtures.of_replaced(event), _orders())
    else:
        found = lib.PoissonSampledDpEvent(event.rate, lib.GaussianDpEvent(noise))
    accountant = _library("rdp.rdp_privacy_accountant").RdpAccountant(neighboring_relation=relation)
    with _quiet():
        accountant.compose(found)
    return np.asarray(accountant.rdp, dtype=np.float64)


def _noise_parameter(event: Event) -> float:
    """Return the probability with which the answer of a randomised response is drawn from all categories."""
    return event.categories / (math.exp(event.epsilon) + event.categories - 1)
