"""Two mixtures of Gaussians between which the outputs of a sampled event are hardest to tell: its dominating pair.

For Poisson-sampled records of which a unit has several, and for units that are replaced under Poisson draws. From the
pair follow privacy-loss distributions and Renyi divergences, of which dp-accounting has those of groups (slowly) and
not the others.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloister.privacy.events import Event

Vector = NDArray[np.float64]

_LEAST_SHARE = 1e-30  # of a mixture; what is less counts as revealed
_TAIL = 9.0  # standard deviations, beyond which 1e-19 of a Gaussian is; what is there counts as revealed
_ORDERS = (*np.arange(1.1, 3.0, 0.1), 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 63)
_REACH, _STEP = 14.0, 1 / 16  # of the quadrature, in standard deviations
_START = 1 << 14  # places from which losses are inverted


class Pair(NamedTuple):
    """``upper`` and ``lower``: (mean, share) of the Gaussians of each mixture, which all have one ``deviation``."""

    upper: tuple[tuple[float, float], ...]
    lower: tuple[tuple[float, float], ...]
    deviation: float


def of_group(event: Event) -> Pair:
    """Return the pair of Poisson-sampled records of which one unit has up to ``event.group``.

    How many of them a step draws is binomial, and each moves the sum by 1. Mixture of Gaussians mechanism: Choquette-
    Choo et al. 2024 (arXiv 2310.15526), section 4; groups: Charles et al. 2024 (arXiv 2407.07737), section 4.
    """
    shares = [(float(hits), _binomial(event.group, event.rate, hits)) for hits in range(event.group + 1)]
    possible = tuple((hits, share) for hits, share in shares if share > 0)  # others are below the smallest double
    return Pair(possible, ((0.0, 1.0),), event.noise_multiplier)


def of_replaced(event: Event) -> Pair:
    """Return the pair of a unit that is replaced under Poisson draws.

    When it is drawn, it moves the sum by half a sensitivity to one side in one data set and to the other side in the
    other.
    """
    rest = (0.0, 1 - event.rate)
    return Pair((rest, (0.5, event.rate)), (rest, (-0.5, event.rate)), event.noise_multiplier)


def removed(pair: Pair, interval: float) -> tuple[int, Vector]:
    """Return (first, deltas): the deltas at epsilons ``interval * (first, first + 1, ...)`` when a unit is removed.

    ``pair`` as of :func:`of_group`. The last delta is the chance of anything worse.
    """
    means, shares, lost = _split(pair)
    edge = float(means.max()) + _TAIL * pair.deviation
    places = np.linspace(-edge, edge, _START)
    losses = _loss(places, means, shares, pair.deviation)
    epsilons, first = _grid(losses[0], losses[-1], interval)
    cuts = _inverse(epsilons, places, losses, means, shares, pair.deviation)
    above = (shares * _tail((cuts[:, None] - means) / pair.deviation)).sum(axis=1)
    deltas = above - np.exp(epsilons + _log_tail(cuts / pair.deviation))
    with np.errstate(over="ignore"):  # of what is not chosen
        deltas = np.where(epsilons <= math.log(shares[0]) if means[0] == 0 else False, -np.expm1(epsilons), deltas)
    return first, _falling(deltas + lost)


def added(pair: Pair, interval: float) -> tuple[int, Vector]:
    """Return what :func:`removed` does, when a unit is added."""
    means, shares, lost = _split(pair)
    places = np.linspace(-_TAIL * pair.deviation, _TAIL * pair.deviation, _START)
    losses = _loss(places, means, shares, pair.deviation)
    epsilons, first = _grid(-losses[-1], -losses[0], interval)
    cuts = _inverse(-epsilons, places, losses, means, shares, pair.deviation)
    below = (shares * np.exp(epsilons[:, None] + _log_tail((means - cuts[:, None]) / pair.deviation))).sum(axis=1)
    deltas = _tail(-cuts / pair.deviation) - below
    return first, _falling(deltas + lost)


def renyi(pair: Pair, orders: Vector) -> Vector:
    """Return the larger of both directions' Renyi divergences, at some of the orders, and infinity at the others.

    log integral p^a q^(1-a) / (a - 1), by the trapezoid rule, which is exact to rounding for such densities.
    """
    width = max(abs(mean) for mean, _ in (*pair.upper, *pair.lower))
    step = _STEP * pair.deviation
    result = np.full_like(orders, np.inf)
    for index, order in enumerate(orders):
        if np.isclose(order, _ORDERS).any():
            edge = order * width + _REACH * pair.deviation
            places = np.arange(-edge, edge + step, step)
            upper, lower = (_log_density(places, mixture, pair.deviation) for mixture in (pair.upper, pair.lower))
            both = (order * upper + (1 - order) * lower, order * lower + (1 - order) * upper)
            result[index] = max(0.0, *(_log_sum(values) + math.log(step) for values in both)) / (order - 1)
    return result


def _binomial(trials: int, rate: float, hits: int) -> float:
    log_ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return math.exp(log_ways + hits * math.log(rate) + (trials - hits) * math.log1p(-rate))


def _split(pair: Pair) -> tuple[Vector, Vector, float]:
    """Return the means and shares of the upper mixture, and the share that is too small to be among them."""
    kept = [(mean, share) for mean, share in pair.upper if share >= _LEAST_SHARE]
    means, shares = (np.array(values) for values in zip(*kept, strict=True))
    return means, shares, math.fsum(share for _, share in pair.upper if share < _LEAST_SHARE)


def _loss(places: Vector, means: Vector, shares: Vector, deviation: float) -> Vector:
    """Return the logarithm of the upper density over that of the Gaussian at 0; it rises with the place."""
    return _log_sums(np.log(shares) + (places[:, None] - means / 2) * (means / deviation**2))


def _inverse(losses: Vector, places: Vector, known: Vector, means: Vector, shares: Vector, deviation: float) -> Vector:
    """Return the places of these losses: interpolated between known ones, then by a step of Newton's method.

    A place that is off by e makes a delta smaller by about e^2: where a loss is, its delta is largest.
    """
    found: Vector = np.interp(losses, known, places)
    terms = np.log(shares) + (found[:, None] - means / 2) * (means / deviation**2)
    value = _log_sums(terms)
    slope = (np.exp(terms - value[:, None]) * means).sum(axis=1) / deviation**2
    step = np.divide(losses - value, slope, out=np.zeros_like(found), where=slope > 0)
    refined: Vector = np.clip(found + step, places[0], places[-1])
    return refined


def _grid(low: float, high: float, interval: float) -> tuple[Vector, int]:
    first, last = math.floor(low / interval), math.ceil(high / interval)
    epsilons = np.arange(first, last + 1, dtype=np.float64) * interval
    return epsilons, first


def _falling(deltas: Vector) -> Vector:
    """Return deltas that are probabilities and do not rise, errors of rounding counted as revealed."""
    return np.maximum.accumulate(np.clip(deltas, 0.0, 1.0)[::-1])[::-1]


def _log_density(places: Vector, mixture: tuple[tuple[float, float], ...], deviation: float) -> Vector:
    means, shares = (np.array(values) for values in zip(*mixture, strict=True))
    terms = np.log(shares) - (places[:, None] - means) ** 2 / (2 * deviation**2)
    return _log_sums(terms) - math.log(deviation * math.sqrt(2 * math.pi))


def _log_sums(terms: Vector) -> Vector:
    most = terms.max(axis=1)
    result: Vector = most + np.log(np.exp(terms - most[:, None]).sum(axis=1))
    return result


def _log_sum(values: Vector) -> float:
    return float(_log_sums(values[None, :])[0])


def _tail(places: Vector) -> Vector:
    """Return the chance that a standard Gaussian is above each place."""
    return np.asarray(_special().ndtr(-places))


def _log_tail(places: Vector) -> Vector:
    return np.asarray(_special().log_ndtr(-places))


def _special() -> Any:
    from scipy import special  # comes with dp-accounting, without which nothing here is called

    return special
