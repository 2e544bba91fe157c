"""The Gaussian mechanism, exactly: what one release costs, and how much noise a price asks for.

``noise_multiplier`` is always the standard deviation of the noise divided by the L2 sensitivity. The classic
``sqrt(2 ln(1.25 / delta)) / epsilon`` is nowhere used: it holds below epsilon 1 only, where it wastes noise, and above
it promises more than it keeps.

Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal
Denoising", ICML 2018, arXiv 1805.06530, theorem 8.
"""

import math
from collections.abc import Callable

from cloister.errors import PlanError

_FAR = 25.0  # math.erfc runs out of range soon after this argument
_NARROW = 0.02


def exact_delta(noise_multiplier: float, epsilon: float) -> float:
    """Return the smallest delta for which one Gaussian release is (``epsilon``, delta)-private.

    ``noise_multiplier`` positive, ``epsilon`` not negative; the result is in [0, 1]. It is 0 where it is smaller than
    the smallest double. Raises :class:`PlanError` for values out of range.

    With mu = 1 / noise_multiplier: Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu).
    """
    _check(noise_multiplier=noise_multiplier, epsilon=epsilon)
    return math.exp(_log_delta(noise_multiplier, epsilon))


def exact_epsilon(noise_multiplier: float, delta: float) -> float:
    """Return the smallest epsilon for which one Gaussian release is (epsilon, ``delta``)-private.

    ``noise_multiplier`` positive, ``delta`` above 0 and below 1; the result is 0 or more, accurate to nine digits or
    more. Raises :class:`PlanError` for values out of range.
    """
    _check(noise_multiplier=noise_multiplier, delta=delta)
    target = math.log(delta)
    if _log_delta(noise_multiplier, 0.0) <= target:
        return 0.0
    return _smallest(lambda epsilon: _log_delta(noise_multiplier, epsilon) <= target)


def exact_noise_multiplier(epsilon: float, delta: float) -> float:
    """Return the smallest noise multiplier for which one Gaussian release is (``epsilon``, ``delta``)-private.

    ``epsilon`` not negative, ``delta`` above 0 and below 1; the result is positive, accurate to nine digits
    or more. Raises :class:`PlanError` for values out of range.
    """
    _check(epsilon=epsilon, delta=delta)
    target = math.log(delta)
    return _smallest(lambda noise_multiplier: _log_delta(noise_multiplier, epsilon) <= target)


def _log_delta(noise_multiplier: float, epsilon: float) -> float:
    """Return the logarithm of delta, -inf where delta is no double, without ever taking e^epsilon.

    With a and b the two arguments of Phi, b^2 - a^2 = 2 epsilon, so that e^epsilon phi(b) = phi(a) and
    delta = exp(-a^2 / 2) / 2 * (erfcx(-a / sqrt 2) - erfcx(-b / sqrt 2)), erfcx(x) = e^(x^2) erfc(x).
    """
    width = 1 / (noise_multiplier * math.sqrt(2))
    near = epsilon * noise_multiplier / math.sqrt(2) - width / 2
    if near * near > 800:  # e^-800 is no double
        return 0.0 if near < 0 else -math.inf
    if width < _NARROW * max(1.0, near):
        return -near * near + math.log(_fall(near, width) / 2)
    far = near + width
    if near < 0:  # delta is not small; erfcx(near) could overflow instead
        return math.log((math.erfc(near) - math.exp(-near * near) * _erfcx(far)) / 2)
    return -near * near + math.log((_erfcx(near) - _erfcx(far)) / 2)


def _erfcx(x: float) -> float:
    """Return e^(x^2) erfc(x), by its asymptotic series where erfc is too small for a double."""
    return math.exp(x * x) * math.erfc(x) if x < _FAR else (1 + _series(x)) / (x * math.sqrt(math.pi))


def _series(x: float) -> float:
    """Return sqrt(pi) x erfcx(x) - 1 for a large x."""
    term, total = 1.0, 0.0
    for order in range(1, 8):
        term *= -(2 * order - 1) / (2 * x * x)
        total += term
    return total


def _fall(x: float, width: float) -> float:
    """Return erfcx(x) - erfcx(x + width) for a small width without taking the difference of two near numbers.

    The derivative of erfcx is 2 x erfcx(x) - 2 / sqrt(pi), integrated here by Gauss and Legendre's rule of 3 points.
    """
    fall = 0.0
    for place, weight in ((-math.sqrt(0.6), 5), (0.0, 8), (math.sqrt(0.6), 5)):
        point = x + width / 2 * (1 + place)
        lack = -_series(point) if point >= _FAR else 1 - math.sqrt(math.pi) * point * _erfcx(point)
        fall += weight / 18 * lack
    return width * fall * 2 / math.sqrt(math.pi)


def _smallest(enough: Callable[[float], bool]) -> float:
    """Return the smallest positive double, to about its last bits, that is enough; what is larger is enough too."""
    high = 1.0
    while not enough(high):
        high *= 2
    low = high / 2
    while enough(low):
        low, high = low / 2, low
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(*, noise_multiplier: float = 1.0, epsilon: float = 0.0, delta: float = 0.5) -> None:
    for name, value, expected, holds in (
        ("noise_multiplier", noise_multiplier, "a positive, finite number", 0 < noise_multiplier < math.inf),
        ("epsilon", epsilon, "a finite number of at least 0", 0 <= epsilon < math.inf),
        ("delta", delta, "a number above 0 and below 1", 0 < delta < 1),
    ):
        if not holds:
            raise PlanError(f"Gaussian mechanism: expected {name} to be {expected}, found {value}")
