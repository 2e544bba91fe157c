"""SCAFFOLD: control variates c (server) and c_i (clients) against client drift (Karimireddy et al., ICML 2020)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from cloister.flower import NDArray, array_record
from cloister.models.spec import Group
from cloister.strategies.averaging import FedAvg
from cloister.strategies.config import StrategyConfig
from cloister.strategies.exchange import Exchange
from cloister.strategies.fold import WeightedSum, trainable
from cloister.strategies.validation import Extra, Reply, check_form, check_keys, sum_of_squares


class ControlExchange(Exchange):
    """The server's control variate c, over the floating-point SHARED entries only (never BatchNorm statistics).

    Clients receive c and return the change of their c_i, both as record ``control``. After a round with accepted
    clients S out of a pool of N: ``c <- c + |S|/N sum_{i in S} p_i dc_i`` with p_i the weights of the model's average
    (equal weights: equation 5 of the paper), so that with full participation c stays ``sum_i p_i c_i`` and the
    corrections cancel in the weighted objective.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        """Control the trainable entries of a model with these groups; c starts at zero."""
        self._groups = groups
        self._control: dict[str, NDArray] = {}
        self._record = ArrayRecord()
        self._sum = WeightedSum({}, ())
        self._weight, self._replies = 0.0, 0

    @property
    def accepts(self) -> Mapping[str, Extra]:
        """Every reply must hold its control change."""
        return {"control": Extra(check=self._check, required=True)}

    def _check(self, values: Mapping[str, NDArray]) -> None:
        check_keys("control", set(values), set(self._control), set(self._control))
        for name, control in self._control.items():
            check_form(f"control[{name!r}]", values[name], control)
            sum_of_squares(f"control[{name!r}]", values[name])

    def outgoing(self, client: str) -> dict[str, ArrayRecord]:
        """Return c."""
        return {"control": self._record}

    def begin(self, arrays: Mapping[str, NDArray]) -> None:
        """Start c at zero in the first round."""
        names = trainable(self._groups, arrays)
        if not self._control:
            self._control = {name: np.zeros_like(arrays[name]) for name in names}
        self._record = array_record(self._control)
        self._sum = WeightedSum(self._control, names)
        self._weight, self._replies = 0.0, 0

    def admit(self, reply: Reply) -> None:
        """Refuse nothing: what was checked on arrival goes with any other reply."""

    def add(self, reply: Reply, weight: float) -> None:
        """Add one control change."""
        self._sum.add(reply.extras["control"], weight)
        self._weight += weight
        self._replies += 1

    def commit(self, pool: int) -> dict[str, float]:
        """Move c."""
        self._control = self._sum.moved(self._weight * pool / self._replies)
        return {}

    def state(self) -> dict[str, NDArray]:
        """Return c."""
        return dict(self._control)

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take up c."""
        self._control = dict(state)


class Scaffold(FedAvg):
    """FedAvg with control variates; local steps are ``w -= eta (g - c_i + c)``, c_i follows option II of the paper."""

    def __init__(
        self,
        config: StrategyConfig,
        *,
        groups: Mapping[str, Group],
        exchanges: tuple[Exchange, ...] = (),
        **keywords: Any,
    ) -> None:
        """Add the control exchange to ``exchanges``."""
        super().__init__(config, groups=groups, exchanges=(*exchanges, ControlExchange(groups)), **keywords)
