"""What integer noise costs that many clients add together, one share each: Renyi differential privacy of its sum.

In whole steps of the grid that vectors are rounded to: ``l2`` and ``l1`` bound what one unit changes in the sum, each
of ``shares`` clients adds noise of variance v, and the sum has ``shares`` v = (noise_multiplier l2)^2.
"""

import math

import numpy as np
from numpy.typing import NDArray

from cloister.privacy.events import Event, EventKind

Orders = NDArray[np.float64]


def renyi(event: Event, orders: Orders) -> Orders:
    """Return the RDP of one use of an event of discrete Gaussian or Skellam shares, at each order above 1.

    Upper bounds, for every unit and every relation whose change ``l1`` and ``l2`` bound; of a unit with parts in
    several contributions (``group``) they are multiples.
    """
    l2, l1 = event.group * event.l2, event.group * event.l1
    variance = (event.noise_multiplier * event.l2) ** 2
    if event.kind is EventKind.SKELLAM:
        return _skellam(orders, l2, l1, variance)
    return _discrete_gaussian(orders, l2, l1, variance, event.dimension, closeness(event.shares, variance))


def closeness(shares: int, variance: float) -> float:
    """Return tau: how far the logarithm of a probability of the sum of discrete Gaussians can be from that of one.

    ``variance``: of the sum. 10 times the sum of exp(-2 pi^2 v k / (k + 1)) for k from 1 to ``shares - 1``, v of each
    share: 5e-4 for two shares of 1, below 1e-38 for three and more of standard deviation 3. Nothing for one share.
    Source: Kairouz, Liu and Steinke 2021, arXiv 2102.06387, theorem 5.
    """
    k = np.arange(1, shares)
    return 10 * float(np.exp(-2 * math.pi**2 * variance / shares * k / (k + 1)).sum())


def _discrete_gaussian(orders: Orders, l2: float, l1: float, variance: float, dimension: int, tau: float) -> Orders:
    """Return the smallest of three bounds: Kairouz, Liu and Steinke 2021, arXiv 2102.06387, proposition 14."""
    far, wide = l2 / math.sqrt(variance), l1 / math.sqrt(variance)
    squares = min(far**2 + 2 * wide * tau + dimension * tau**2, (far + math.sqrt(dimension) * tau) ** 2)
    bounds: Orders = np.minimum(orders / 2 * squares, orders / 2 * far**2 + dimension * tau)
    return bounds


def _skellam(orders: Orders, l2: float, l1: float, variance: float) -> Orders:
    """Return the bound of Agarwal, Kairouz and Liu 2021, arXiv 2110.04995, theorem 3.5.

    It is for whole orders a. Between two, (a - 1) times the divergence is convex in a (it is the logarithm of a moment)
    and 0 at a = 1, so that the straight line is a bound.
    """
    below = np.floor(orders)
    between = orders - below
    bounds: Orders = (1 - between) * (below - 1) * _whole(below, l2, l1, variance)
    bounds += between * below * _whole(below + 1, l2, l1, variance)
    return bounds / (orders - 1)


def _whole(orders: Orders, l2: float, l1: float, variance: float) -> Orders:
    small = np.minimum(((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    bounds: Orders = orders * l2**2 / (2 * variance) + small
    return bounds
