"""What a strategy can ask of a re-identification client beside its own loss: FedProx, MOON, FedRCL, SCAFFOLD.

Each is switched on by what the strategy sent: a scalar of the round's configuration, or a record.
"""

import copy
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cloister.clients.task import Release, Round
from cloister.errors import WeightsError
from cloister.flower import tensor
from cloister.models.l2rw.losses import moon_loss, proximal_loss, relaxed_contrastive_loss
from cloister.models.l2rw.network import Output, ReidNetwork


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step: ``images`` ``[B, 3, H, W]`` (augmented), ``infrared`` and ``labels`` ``[B]``, the network's output."""

    images: Tensor
    infrared: Tensor
    labels: Tensor
    output: Output


class Objective:
    """Something a strategy adds to local training. Made after the received weights are in the network."""

    name = ""

    def loss(self, batch: Batch) -> Tensor | None:
        """Return a term to add to the loss, its weight included."""
        return None

    def after_backward(self) -> None:
        """Change the gradients before the optimiser uses them."""

    def after_step(self) -> None:
        """See the optimiser's step."""

    def finish(self) -> tuple[Release, ...]:
        """Keep what the next round needs; return what the strategy is to be sent."""
        return ()


class Proximal(Objective):
    """FedProx: ``mu/2 ||w - w_global||^2`` over the trainable parameters but the head's."""

    name = "proximal-loss"

    def __init__(self, network: ReidNetwork, mu: float) -> None:
        self._mu = mu
        self._parameters = {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and not name.startswith("head.")
        }
        self._reference = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def loss(self, batch: Batch) -> Tensor:
        """Return the proximal term."""
        return proximal_loss(self._parameters, self._reference, self._mu)


class Moon(Objective):
    """MOON: features shall be nearer to the received model's than to those of this client's previous local model.

    The previous model is kept in the client's private memory; a client that has none yet adds no term.
    """

    name = "moon-loss"

    def __init__(self, network: ReidNetwork, round: Round, mu: float, temperature: float) -> None:
        self._network, self._round, self._mu, self._temperature = network, round, mu, temperature
        previous = round.state.load("previous") if round.number > 1 else None
        self._references: tuple[nn.Module, ...] = ()
        if previous is not None:
            self._references = (_reference(network), _reference(network))
            self._references[1].load_state_dict(previous)

    def loss(self, batch: Batch) -> Tensor | None:
        """Return the model-contrastive term on the features behind the neck."""
        if not self._references:
            return None
        with torch.no_grad():
            current, previous = (model(batch.images, batch.infrared).feature for model in self._references)
        return self._mu * moon_loss(batch.output.feature, current, previous, self._temperature)

    def finish(self) -> tuple[Release, ...]:
        """Keep the trained model for the next round."""
        self._round.state.save("previous", self._network.state_dict())
        return ()


def _reference(network: ReidNetwork) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False)


class RelaxedContrastive(Objective):
    """FedRCL: the relaxed contrastive loss on five depths of the network, and a bound on the gradient's norm."""

    name = "fedrcl-loss"

    def __init__(self, network: ReidNetwork, weight: float, temperature: float, threshold: float, clip: float) -> None:
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._weight, self._temperature, self._threshold, self._clip = weight, temperature, threshold, clip

    def loss(self, batch: Batch) -> Tensor:
        """Return the contrastive term."""
        levels = batch.output.stages
        return self._weight * relaxed_contrastive_loss(levels, batch.labels, self._temperature, self._threshold)

    def after_backward(self) -> None:
        """Scale the gradient down to the L2 norm ``clip`` if it is longer."""
        nn.utils.clip_grad_norm_(self._parameters, self._clip)


class ControlVariates(Objective):
    """SCAFFOLD, option II: steps along ``g - c_i + c``, then ``c_i <- c_i - c + (x - w) / A``.

    Karimireddy et al., ICML 2020, equation 4. A is ``tau eta`` in the paper, whose steps have one rate and no
    momentum. Here it is the sum over the steps of the rate times what a constant gradient's step amounts to under
    (Nesterov) momentum, so that c_i remains a mean gradient; with momentum 0 and a constant rate it is ``tau eta``.
    Momentum must start at zero each round. Only trainable SHARED entries are controlled, never BatchNorm statistics.
    """

    def __init__(self, network: ReidNetwork, shared: Set[str], optimiser: torch.optim.SGD, round: Round) -> None:
        self._round, self._optimiser = round, optimiser
        trainable = {name: parameter for name, parameter in network.named_parameters() if name in shared}
        server = {name: tensor(values) for name, values in round.received["control"].items()}
        if {name: p.shape for name, p in trainable.items()} != {name: c.shape for name, c in server.items()}:
            raise WeightsError(
                f"client {round.client}, round {round.number}: control variates: expected the "
                f"{len(trainable)} trainable shared entries of the model, found {len(server)} others; "
                "server and client must use the same settings"
            )
        self._parameters, self._start = trainable, {name: p.detach().clone() for name, p in trainable.items()}
        self._server = {name: values.to(trainable[name].device) for name, values in server.items()}
        kept = round.state.load("control") or {name: torch.zeros_like(c) for name, c in server.items()}
        self._own = {name: kept[name].to(trainable[name].device) for name in trainable}
        self._correction = {name: self._server[name] - self._own[name] for name in trainable}
        self._progress = [0.0] * len(optimiser.param_groups)
        self._momentum_mass = 0.0

    def after_backward(self) -> None:
        """Add ``c - c_i`` to the gradients; a parameter the batch did not use has gradient zero."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                parameter.grad = self._correction[name].clone()
            else:
                parameter.grad.add_(self._correction[name])

    def after_step(self) -> None:
        """Count the step's part of A."""
        momentum = float(self._optimiser.param_groups[0]["momentum"])
        self._momentum_mass = momentum * self._momentum_mass + 1.0
        for index, group in enumerate(self._optimiser.param_groups):
            self._progress[index] += float(group["lr"]) * (1.0 + momentum * self._momentum_mass)

    @torch.no_grad()
    def finish(self) -> tuple[Release, ...]:
        """Keep c_i; return its change."""
        progress = {
            id(parameter): amount
            for group, amount in zip(self._optimiser.param_groups, self._progress, strict=True)
            for parameter in group["params"]
        }
        changes = {}
        for name, parameter in self._parameters.items():
            amount = progress[id(parameter)]
            moved = (self._start[name] - parameter) / amount if amount > 0 else torch.zeros_like(parameter)
            changes[name] = moved - self._server[name] if amount > 0 else moved
        own = {name: (self._own[name] + change).cpu() for name, change in changes.items()}
        self._round.state.save("control", own)
        return (Release(kind="control", arrays={name: change.cpu().numpy() for name, change in changes.items()}),)


def objectives(
    network: ReidNetwork, shared: Set[str], optimiser: torch.optim.SGD, round: Round
) -> tuple[Objective, ...]:
    """Return what the strategy switched on for this round; a weight of 0 switches off."""
    config, found = round.config, list[Objective]()
    if mu := float(config.get("proximal-mu", 0.0)):
        found.append(Proximal(network, mu))
    if mu := float(config.get("moon-mu", 0.0)):
        found.append(Moon(network, round, mu, float(config["moon-temperature"])))
    if weight := float(config.get("fedrcl-weight", 0.0)):
        temperature, threshold = float(config["fedrcl-temperature"]), float(config["fedrcl-threshold"])
        found.append(RelaxedContrastive(network, weight, temperature, threshold, float(config["fedrcl-clip"])))
    if "control" in round.received:
        found.append(ControlVariates(network, shared, optimiser, round))
    return tuple(found)
