"""FedAvg, and what differs from it at the clients or in one factor: FedProx, MOON, FedRCL, FedBN, FedNova."""

from collections.abc import Mapping
from typing import Any

from cloister.errors import ConfigError
from cloister.flower import NDArray
from cloister.models.spec import Group
from cloister.strategies.base import BaseStrategy
from cloister.strategies.config import FedNovaConfig, FedProxConfig, FedRCLConfig, MoonConfig, StrategyConfig
from cloister.strategies.fold import Fold, Pairs, Weigh, WeightedSum
from cloister.strategies.validation import Reply


class FedAvg(BaseStrategy):
    """New model = old model + weighted mean of the clients' changes (McMahan et al., AISTATS 2017)."""

    takes_noise = True

    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the weighted mean, or the noisy one of a central privacy plan."""
        return self.mean(number, arrays)


class FedProx(FedAvg):
    """FedAvg; the clients add mu/2 |w - w_global|^2 to their loss (Li et al., MLSys 2020)."""

    config: FedProxConfig

    def scalars(self) -> dict[str, float]:
        """Return mu."""
        return {"proximal-mu": self.config.mu}


class Moon(FedAvg):
    """FedAvg; the clients add a model-contrastive loss (Li, He and Song, CVPR 2021)."""

    config: MoonConfig

    def scalars(self) -> dict[str, float]:
        """Return mu and the temperature."""
        return {"moon-mu": self.config.mu, "moon-temperature": self.config.temperature}


class FedRCL(FedAvg):
    """FedAvg; the clients add a relaxed supervised contrastive loss (Seo et al., CVPR 2024)."""

    config: FedRCLConfig

    def scalars(self) -> dict[str, float]:
        """Return weight, temperature, threshold and gradient clip of the loss."""
        return {
            "fedrcl-weight": self.config.weight,
            "fedrcl-temperature": self.config.temperature,
            "fedrcl-threshold": self.config.threshold,
            "fedrcl-clip": self.config.clip,
        }


class FedBN(FedAvg):
    """FedAvg over a model whose BatchNorm entries are LOCAL (Li et al., ICLR 2021).

    What is local is the model's business (its groups); this refuses a model in which it is not.
    """

    def __init__(self, config: StrategyConfig, *, groups: Mapping[str, Group], **keywords: Any) -> None:
        """Refuse groups with a BatchNorm entry that travels, or without any BatchNorm entry."""
        owners = {name.removesuffix("running_mean") for name in groups if name.endswith("running_mean")}
        own = [name for name in groups if name[: name.rfind(".") + 1] in owners]
        travelling = [name for name in own if groups[name] in (Group.SHARED, Group.BUFFER)]
        if travelling or not own:
            found = f"{len(travelling)} that travel, such as {travelling[0]!r}" if travelling else "no BatchNorm entry"
            raise ConfigError(
                f"strategy fedbn: expected BatchNorm entries whose group is LOCAL, found {found}; "
                "set the model's BatchNorm policy to local"
            )
        super().__init__(config, groups=groups, **keywords)


class FedNova(BaseStrategy):
    """Changes of SHARED entries are normalised by local progress (Wang et al., NeurIPS 2020).

    ``x' = x + (sum_i p_i a_i) sum_i p_i (x_i - x) / a_i`` with p_i = w_i / sum w and a_i = |a_i|_1 of
    :func:`local_progress`. BUFFER entries take no steps and are averaged.
    """

    config: FedNovaConfig
    needs_steps = True

    def open_fold(self, number: int, arrays: Mapping[str, NDArray]) -> Fold:
        """Return the normalised mean."""
        buffers = {name for name in arrays if self.groups[name] is Group.BUFFER}
        return NovaFold(arrays, buffers, self.pooled, self.weigh, self.config)

    def scalars(self) -> dict[str, float]:
        """Return the momentum that the normalisation assumes, which clients compare with their own."""
        return {"nova-momentum": self.config.momentum, "nova-nesterov": float(self.config.nesterov)}


class NovaFold(Fold):
    """One round of FedNova."""

    def __init__(
        self, current: Mapping[str, NDArray], buffers: set[str], pooled: Pairs, weigh: Weigh, config: FedNovaConfig
    ) -> None:
        """Normalise all entries of ``current`` but ``buffers``, which are averaged."""
        self._steps = WeightedSum(current, [name for name in current if name not in buffers])
        self._buffers = WeightedSum(current, [name for name in current if name in buffers], pooled)
        self._weigh, self._config = weigh, config
        self._total = self._progress = 0.0

    def add(self, reply: Reply) -> None:
        """Add one reply, divided by its local progress."""
        weight, progress = self._weigh(reply), local_progress(reply.steps, self._config)
        self._total += weight
        self._progress += weight * progress
        self._steps.add(reply.deltas, weight / progress)
        self._buffers.add(reply.deltas, weight)

    def finish(self) -> dict[str, NDArray]:
        """Return the new arrays, moved no further than ``limits.max_norm`` whatever steps were claimed."""
        effective = self._progress / self._total
        bound, norm = self._config.limits.max_norm, self._steps.norm() / self._total
        if bound is not None and norm * effective > bound:
            effective = bound / norm
        return self._steps.moved(self._total / effective) | self._buffers.moved(self._total)


def local_progress(steps: int, config: FedNovaConfig) -> float:
    """Return ``|a|_1``: how many plain SGD steps ``steps`` steps of the clients' SGD amount to.

    Heavy-ball: ``[tau - rho (1 - rho^tau) / (1 - rho)] / (1 - rho)``; tau for rho = 0 (Wang et al., NeurIPS 2020).
    A Nesterov step looks one step ahead, so that tau steps move as far as heavy-ball's steps 2 to tau + 1.
    The momentum buffer starts at zero each round.
    """
    momentum = config.momentum
    if config.nesterov and momentum > 0:
        return _heavy_ball(steps + 1, momentum) - 1.0
    return _heavy_ball(steps, momentum)


def _heavy_ball(steps: int, momentum: float) -> float:
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
