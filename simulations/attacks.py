"""The attacks that robust rules are tested against, as pure functions.

An attack makes what the attackers send of what the honest clients of a round send and of what the attackers would have
sent had they been honest. That is the strongest adversary of the literature: attackers see everybody's changes before
they send, and agree with one another. Label flipping and backdoors are made by training on other data; here they are
only scaled.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np

from cloister.errors import ConfigError
from cloister.flower import NDArray

Attack = Callable[[NDArray, NDArray, float | None, np.random.Generator], NDArray]
"""From honest (h, d) and own (f, d) changes, a strength and a generator to what the f attackers send (f, d)."""


def sign_flip(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send ``-strength`` (1) times one's own change."""
    return -(1.0 if strength is None else strength) * own


def inner_product(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send ``-strength`` (0.5) times the mean of the honest: IPM (Xie, Koyejo and Gupta, UAI 2019)."""
    return np.repeat(-(0.5 if strength is None else strength) * _mean(honest), len(own), axis=0)


def little_is_enough(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send ``mean - z std`` of the honest, coordinate by coordinate: ALIE (Baruch, Baruch and Goldberg, NeurIPS 2019).

    z is ``strength``, or what :func:`alie_z` says hides among this many honest clients.
    """
    z = alie_z(len(honest) + len(own), len(own)) if strength is None else strength
    return np.repeat(_mean(honest) - z * honest.std(axis=0, keepdims=True), len(own), axis=0)


def alie_z(clients: int, attackers: int) -> float:
    """Return ``zmax = Phi^-1((n - f - s) / (n - f))`` with ``s = floor(n / 2 + 1) - f``, and zero where it is negative.

    s is the number of honest clients that the attackers need on their side for a majority (Baruch et al., algorithm 3,
    line 3). Few attackers among many clients hide no deviation at all. Raises ConfigError where they are the majority.
    """
    honest = clients - attackers
    needed = clients // 2 + 1 - attackers
    if needed < 1 or honest - needed < 1:
        raise ConfigError(
            f"attack alie: expected at most half of three clients or more, found {attackers} of {clients} attackers; "
            "give byzantine.strength, or fewer attackers"
        )
    return max(0.0, NormalDist().inv_cdf((honest - needed) / honest))


def mimic(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send what the first honest client sends, so that it counts too much (Karimireddy, He and Jaggi, ICLR 2022)."""
    return np.repeat(honest[:1], len(own), axis=0)


def noise(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send Gaussian noise with standard deviation ``strength`` (1)."""
    return np.asarray(generator.normal(scale=1.0 if strength is None else strength, size=own.shape))


def scaled(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send one's own change ``strength`` times as long: a backdoor that outweighs everybody (Bagdasaryan et al., 2020).

    The default, n / f, makes the mean of all changes what the attackers alone would have made it, about.
    """
    return own * ((len(honest) + len(own)) / len(own) if strength is None else strength)


def not_a_number(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send NaN."""
    return np.full_like(own, np.nan)


def infinite(honest: NDArray, own: NDArray, strength: float | None, generator: np.random.Generator) -> NDArray:
    """Send infinities of both signs."""
    return np.where(np.arange(own.size).reshape(own.shape) % 2, np.inf, -np.inf)


ATTACKS: Mapping[str, Attack] = {
    "sign-flip": sign_flip,
    "ipm": inner_product,
    "alie": little_is_enough,
    "mimic": mimic,
    "noise": noise,
    "scaled": scaled,
    "nan": not_a_number,
    "inf": infinite,
}
"""By the name that an experiment's ``byzantine.attack`` gives."""


def _mean(vectors: NDArray) -> NDArray:
    return np.asarray(vectors.mean(axis=0, keepdims=True))
