"""What server and clients agree on about a re-identification network: how to build it, what becomes of each entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cloister.errors import ConfigError
from cloister.models.l2rw import pretrained
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.network import OneStreamNetwork, ReidNetwork
from cloister.models.l2rw.normalisation import BatchNorm
from cloister.models.l2rw.two_stream import TwoStreamNetwork
from cloister.models.spec import Group, ModelSpec

_STATISTICS = {"averaged": Group.BUFFER, "pooled": Group.BUFFER, "local": Group.LOCAL, "frozen": Group.FROZEN}


@dataclass(frozen=True)
class ReidSpec(ModelSpec):
    """The network of ``config``, whose ``num_classes`` must be known."""

    config: ModelConfig

    def build(self, generator: torch.Generator) -> ReidNetwork:
        """Return the network, freshly initialised and, where the settings name a file, pretrained up to the neck.

        Draws from ``generator`` alone. Raises :class:`ConfigError` if ``num_classes`` is 0 and
        :class:`~cloister.errors.WeightsError` if the file does not fit.
        """
        if self.config.num_classes < 1:
            raise ConfigError(
                "settings.model.num_classes: expected the number of identities, found 0; take it from the data"
            )
        kind = TwoStreamNetwork if self.config.architecture == "two-stream" else OneStreamNetwork
        with torch.device("meta"):  # PyTorch's own initialisation would draw from the global generator
            network: ReidNetwork = kind(self.config)
        network = network.to_empty(device="cpu")
        network.initialise(generator)
        if self.config.pretrained:
            pretrained.load(network, self.config.pretrained)
        return network

    def groups(self, model: nn.Module) -> dict[str, Group]:
        """Return the group of every entry.

        Parameters that do not learn are FROZEN. BatchNorm statistics follow ``normalisation``: BUFFER (averaged,
        pooled), LOCAL with their weight and bias (FedBN, Li et al., ICLR 2021), FROZEN. The head is LOCAL where the
        settings keep it. All else is SHARED.
        """
        norms = {name for name, module in model.named_modules() if isinstance(module, BatchNorm)}
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        buffers = {name for name, _ in model.named_buffers()}
        groups = {}
        for name in model.state_dict():
            owner = name.rpartition(".")[0]
            if name in buffers:
                groups[name] = _STATISTICS[self.config.normalisation]
            elif name not in learning:
                groups[name] = Group.FROZEN
            elif owner == "head" and self.config.head == "local":
                groups[name] = Group.LOCAL
            else:
                local = self.config.normalisation == "local" and owner in norms
                groups[name] = Group.LOCAL if local else Group.SHARED
        return groups

    def values(self) -> dict[str, Any]:
        """Return the configuration, without the file that initial weights came from."""
        return {**self.config.model_dump(mode="json"), "pretrained": ""}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "ReidSpec":
        """Return the specification of a configuration; raises :class:`ConfigError` for an invalid one."""
        return cls(ModelConfig.parse(dict(values), "config.json"))

    def rows(self) -> tuple[int, int]:
        """Return (identities, length of an embedding)."""
        return self.config.num_classes, self.config.embedding

    def pooled_statistics(self, model: nn.Module) -> tuple[tuple[str, str], ...]:
        """Return the (mean, variance) names of every BatchNorm layer under ``normalisation = "pooled"``."""
        if self.config.normalisation != "pooled":
            return ()
        norms = [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]
        return tuple((f"{name}.running_mean", f"{name}.running_var") for name in norms)
