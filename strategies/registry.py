"""Every strategy by its name, and :func:`build`, which makes one from its configuration."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from cloister.errors import ConfigError
from cloister.models.spec import Group
from cloister.randomness import SeedTree
from cloister.strategies.adaptive import FedAvgM, FedOpt
from cloister.strategies.averaging import FedAvg, FedBN, FedNova, FedProx, FedRCL, Moon
from cloister.strategies.base import BaseStrategy
from cloister.strategies.buffered import FedBuff
from cloister.strategies.centres import CentreExchange, SummedCentres
from cloister.strategies.config import AlignedCentres, CentredConfig, StrategyConfig
from cloister.strategies.exchange import Exchange
from cloister.strategies.fold import Pairs
from cloister.strategies.local_only import LocalOnly
from cloister.strategies.matching import Truth
from cloister.strategies.private import CentralPrivacy
from cloister.strategies.robust import CentredClipping, FLTrust, Robust
from cloister.strategies.scaffold import Scaffold
from cloister.strategies.secure import SecureAggregation
from cloister.strategies.uci import MatchedExchange

STRATEGIES: Mapping[str, type[BaseStrategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fednova": FedNova,
    "moon": Moon,
    "fedrcl": FedRCL,
    "scaffold": Scaffold,
    "fedbn": FedBN,
    "fedavgm": FedAvgM,
    "fedadam": FedOpt,
    "fedyogi": FedOpt,
    "fedadagrad": FedOpt,
    "fedbuff": FedBuff,
    "fedmedian": Robust,
    "fedtrimmedavg": Robust,
    "meamed": Robust,
    "krum": Robust,
    "multikrum": Robust,
    "bulyan": Robust,
    "geometric-median": Robust,
    "centred-clipping": CentredClipping,
    "fltrust": FLTrust,
    "l2rw": FedAvg,
    "l2rw-uci": FedAvg,
    "local-only": LocalOnly,
}
"""The averaging rule of every name; class centres come on top, from ``config.centres``."""


def build(
    config: StrategyConfig,
    *,
    groups: Mapping[str, Group],
    pooled: Pairs = (),
    seeds: SeedTree,
    rows: tuple[int, int] | None = None,
    truth: Truth | None = None,
    privacy: CentralPrivacy | None = None,
    secure: SecureAggregation | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> BaseStrategy:
    """Return the strategy that ``config`` names, for a model with these parameter ``groups``.

    ``rows``: (classes, width) of the model's class centres and head rows: what the configuration leaves open.
    ``truth(client, label)`` tells which person is behind a private label, where a simulation knows it: only for logging
    how well identities are matched. ``privacy``, ``secure``: the server's part of a plan in which it adds the noise,
    and of one in which it sees sums alone. Raises ConfigError for a model that the strategy cannot serve.
    """
    config = _bounded(config, rows)
    return STRATEGIES[config.name](
        config,
        groups=groups,
        pooled=pooled,
        seeds=seeds,
        exchanges=_centre_exchange(config, groups, truth, secure, rows),
        privacy=privacy,
        secure=secure,
        clock=clock,
        sleep=sleep,
    )


def _bounded(config: StrategyConfig, rows: tuple[int, int] | None) -> StrategyConfig:
    """Fill in what the model knows, so that no client's reply decides it: how many rows there can be, and how long."""
    if rows is None:
        return config
    found: dict[str, Any] = {}
    if config.limits.max_rows is None:
        found["limits"] = config.limits.model_copy(update={"max_rows": rows[0]})
    if isinstance(config, CentredConfig) and config.centres is not None and config.centres.width is None:
        found["centres"] = config.centres.model_copy(update={"width": rows[1]})
    return config.model_copy(update=found)


def _centre_exchange(
    config: StrategyConfig,
    groups: Mapping[str, Group],
    truth: Truth | None,
    secure: SecureAggregation | None,
    rows: tuple[int, int] | None,
) -> tuple[Exchange, ...]:
    centres = config.centres if isinstance(config, CentredConfig) else None
    if centres is None:
        return ()
    if isinstance(centres, AlignedCentres) and secure is not None and rows is not None:
        return (SummedCentres(centres, rows),)
    if isinstance(centres, AlignedCentres):
        return (CentreExchange(centres),)
    if Group.LOCAL not in groups.values():
        raise ConfigError(
            f"strategy {config.name}: expected the classifier head to be LOCAL (identities are numbered privately), "
            "found no LOCAL entry; use the model's private-head setting"
        )
    return (MatchedExchange(centres, truth),)
