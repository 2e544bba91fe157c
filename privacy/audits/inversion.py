"""Gradient inversion: pictures found by making a simulated client release what a real one released.

Inverting Gradients (Geiping, Bauermeister, Droege and Moeller, NeurIPS 2020): images x minimise ``1 - cos(u(x), u) + a
TV(x)`` by Adam on the sign of the gradient, its step divided by ten after 3/8, 5/8 and 7/8 of the iterations, pixels
kept in [0, 1]. ``u(x)`` is what a client would release that trains on x: one gradient, or the difference that some
steps of local descent make, through which we differentiate. The cosine is averaged over tensors here: in one over all
parameters the head of a network with many identities counts for nearly everything, and it shows no pixel.

DLG (Zhu, Liu and Han, NeurIPS 2019): ``||u(x) - u||^2`` by L-BFGS, for smooth networks. The statistics that BatchNorm
layers release are matched too where given (Yin et al., CVPR 2021, See through gradients).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from cloister.errors import AuditError

Named = Mapping[str, Tensor]
Loss = Callable[[Any, Tensor], Tensor]
"""Takes what the network returns and the labels ``[B]``, gives a scalar."""


@dataclass(frozen=True, kw_only=True)
class LocalSteps:
    """What the attacker assumes that a client does: descent on ``batches`` of its images, one step each.

    ``batches``: the images of each step by number, the same image as often as it is used. ``rate``, ``momentum``,
    ``weight_decay``: of SGD with a fresh momentum buffer; with one step and neither of the latter, ``rate`` is the
    factor between gradient and update, of which the cosine does not depend.
    """

    batches: tuple[tuple[int, ...], ...]
    rate: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def images(self) -> int:
        """How many different images there are."""
        return 1 + max(index for batch in self.batches for index in batch)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How to search. ``iterations`` per restart; ``step``: Adam's first, in pixels of [0, 1].

    ``total_variation``: a. The default suits deep networks with normalisation, which hardly see the contrast of a
    picture: below it, contrast and fine noise grow until nothing else is left. Small smooth networks want 0.005.
    ``statistics``: weight of BatchNorm statistics, where given. ``dlg`` ignores the last three.

    Deep networks give more away after some training than with their first weights, whose gradients change abruptly
    with every pixel; a search that ends far from the release (``loss`` above 0.1) needs restarts.
    """

    method: Literal["inverting-gradients", "dlg"] = "inverting-gradients"
    iterations: int = 600
    restarts: int = 1
    step: float = 0.1
    total_variation: float = 0.5
    statistics: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The best of the restarts: ``images`` float32 ``[n, C, H, W]`` in [0, 1] with ``labels`` ``[n]``.

    ``loss``: their distance to the target (``1 - cos``, or squared); ``trace``: that distance at each iteration.
    """

    images: Tensor
    labels: Tensor
    loss: float
    trace: tuple[float, ...]


class Simulation:
    """A client as the attacker imagines it: the network, its loss, and the steps it takes.

    ``network`` has the weights that the client received, in the mode in which it trains (in training mode BatchNorm
    uses the batch's own statistics); it is not changed. ``loss`` takes the network's output and labels. ``prepare``
    maps pixels in [0, 1] to the network's input. ``names``: the parameters that are released (empty: all that learn).

    Raises :class:`AuditError` for a name that is no parameter.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        steps: LocalSteps,
        *,
        names: Sequence[str] = (),
        prepare: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        self.network, self.loss, self.steps, self.prepare = network, loss, steps, prepare
        self.start = {name: value.detach().clone() for name, value in network.named_parameters() if value.requires_grad}
        self.names = tuple(names) or tuple(self.start)
        if unknown := [name for name in self.names if name not in self.start]:
            raise AuditError(f"inversion: expected parameters that learn, found {unknown}; name released parameters")

    def update(self, images: Tensor, labels: Tensor, *, create_graph: bool = False) -> dict[str, Tensor]:
        """Return the released parameters' change after all steps, by name; zero where the loss does not reach."""
        values = {name: value.clone().requires_grad_() for name, value in self.start.items()}
        velocity: dict[str, Tensor] = {}
        for batch in self.steps.batches:
            chosen = torch.tensor(batch, device=images.device)
            # BatchNorm writes its running statistics into what it is given
            buffers = {name: value.clone() for name, value in self.network.named_buffers()}
            output = functional_call(self.network, {**values, **buffers}, (self.prepare(images[chosen]),))
            loss = self.loss(output, labels[chosen])
            gradients = torch.autograd.grad(loss, list(values.values()), create_graph=create_graph, allow_unused=True)
            for (name, value), gradient in zip(list(values.items()), gradients, strict=True):
                total = torch.zeros_like(value) if gradient is None else gradient
                total = total + self.steps.weight_decay * value
                velocity[name] = total + self.steps.momentum * velocity[name] if name in velocity else total
                values[name] = value - self.steps.rate * velocity[name]
                if not create_graph:
                    values[name] = values[name].detach().requires_grad_()
        change = {name: values[name] - self.start[name] for name in self.names}
        return change if create_graph else {name: value.detach() for name, value in change.items()}


def reconstruct(
    simulation: Simulation,
    target: Named,
    shape: Sequence[int],
    labels: Tensor,
    attack: Attack,
    generator: torch.Generator,
    *,
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Reconstruction:
    """Return the images whose simulated update is nearest to ``target``.

    ``target``: what the client released, by parameter name: its update (difference of weights) after all its stages;
    for a plain gradient pass its negative. ``shape``: (channels, height, width). ``labels`` ``[n]``: known, guessed, or
    from :func:`recover_labels`. ``generator`` draws the first images. ``statistics``: mean and variance ``[channels]``
    of the inputs of BatchNorm layers by name.

    Raises :class:`AuditError` if the target lacks a released parameter, has another shape or is not finite, or if
    nothing finite was found.
    """
    _check(simulation, target, labels)
    wanted = {name: target[name].detach().float() for name in simulation.names}
    if not any(value.any() for value in wanted.values()):
        raise AuditError("inversion: expected a release that is not zero, found zeros only; nothing was released")
    best: Reconstruction | None = None
    for _ in range(attack.restarts):
        size = (simulation.steps.images, *shape)
        device = next(iter(wanted.values())).device
        images = (0.5 + 0.05 * torch.randn(size, generator=generator)).to(device).requires_grad_()
        distance = partial(_distance, simulation, wanted, labels, attack, statistics or {})
        search = _lbfgs if attack.method == "dlg" else _signed_adam
        trace, nearest, kept = search(images, distance, attack)
        if math.isfinite(nearest) and (best is None or nearest < best.loss):
            best = Reconstruction(images=kept, labels=labels.clone(), loss=nearest, trace=tuple(trace))
    if best is None:
        raise AuditError("inversion: expected a finite distance to the release, found none; lower the attack's step")
    return best


def recover_labels(weight: Tensor, count: int) -> Tensor:
    """Return the labels of ``count`` examples with different labels, ascending, from the head's release ``[C, D]``.

    The head's rows are ``sum_n (p_nc - [y_n = c]) f_n``: while probabilities are small, rows of labels in the batch
    are by far the longest, and for one example the label's is exactly as long as all others together. Needs no bias
    (Zhao, Mopuri and Bilen 2020, iDLG, and Yin et al., CVPR 2021, section 3.1). Raises :class:`AuditError` for a count
    outside 1 to C.
    """
    if weight.ndim != 2 or not 1 <= count <= len(weight):
        raise AuditError(f"inversion: expected a head [C, D] and 1 to C labels, found {tuple(weight.shape)}, {count}")
    labels: Tensor = weight.norm(dim=1).topk(count).indices.sort().values
    return labels


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, downwards plus sideways, of ``[n, C, H, W]``."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def _check(simulation: Simulation, target: Named, labels: Tensor) -> None:
    for name in simulation.names:
        expected = tuple(simulation.start[name].shape)
        if name not in target or tuple(target[name].shape) != expected or not target[name].isfinite().all():
            found = tuple(target[name].shape) if name in target else "nothing"
            raise AuditError(f"inversion: expected a finite {name} of shape {expected} in the release, found {found}")
    if labels.shape != (simulation.steps.images,):
        raise AuditError(f"inversion: expected {simulation.steps.images} labels, found {tuple(labels.shape)}")


def _distance(
    simulation: Simulation,
    wanted: Named,
    labels: Tensor,
    attack: Attack,
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    images: Tensor,
) -> tuple[Tensor, float]:
    """Return what is minimised over images, and the distance to the release alone."""
    with _watched(simulation.network, statistics) as penalties:
        update = simulation.update(images, labels, create_graph=True)
    if attack.method == "dlg":
        total = torch.stack([(update[name] - value).square().sum() for name, value in wanted.items()]).sum()
        return total, total.item()
    # a tensor without a change (of a layer that does not take part) has no direction to compare
    pairs = [(update[name].flatten(), value.flatten()) for name, value in wanted.items() if value.any()]
    match = 1 - torch.stack([functional.cosine_similarity(*pair, dim=0, eps=1e-20) for pair in pairs]).mean()
    total = match + attack.total_variation * total_variation(images)
    for penalty in penalties:
        total = total + attack.statistics * penalty
    return total, match.item()


@contextmanager
def _watched(network: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """Collect, per forward pass and named layer, how far its input's moments are from the given ones."""
    penalties: list[Tensor] = []

    def hook(wanted: tuple[Tensor, Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = wanted
        # relative to the layer's own scale, so that layers of large activations do not outweigh all others
        scale = variance.mean() + 1e-12
        penalties.append((values.mean(1) - mean).square().mean() / scale)
        penalties.append((values.var(1, unbiased=False) - variance).square().mean() / scale**2)

    handles = [
        network.get_submodule(name).register_forward_pre_hook(partial(hook, wanted))
        for name, wanted in statistics.items()
    ]
    try:
        yield penalties
    finally:
        for handle in handles:
            handle.remove()


Distance = Callable[[Tensor], tuple[Tensor, float]]


def _signed_adam(images: Tensor, distance: Distance, attack: Attack) -> tuple[list[float], float, Tensor]:
    """Return the trace, and the nearest pictures that were met (early steps are long and overshoot)."""
    optimiser = torch.optim.Adam([images], lr=attack.step)
    milestones = [round(attack.iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.1)
    trace: list[float] = []
    least, loss, kept = math.inf, math.inf, images.detach().clone()
    for _ in range(attack.iterations):
        total, match = distance(images)
        trace.append(match)
        if not math.isfinite(total.item()):
            break
        if total.item() < least:
            least, loss, kept = total.item(), match, images.detach().clone()
        images.grad = torch.autograd.grad(total, images)[0].sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return trace, loss, kept


def _lbfgs(images: Tensor, distance: Distance, attack: Attack) -> tuple[list[float], float, Tensor]:
    optimiser = torch.optim.LBFGS(
        [images], lr=1.0, max_iter=attack.iterations, tolerance_grad=1e-12, tolerance_change=0
    )
    optimiser.param_groups[0]["line_search_fn"] = "strong_wolfe"  # without, one bad step leaves the basin for good
    trace: list[float] = []

    def closure() -> Tensor:
        total, match = distance(images)
        images.grad = torch.autograd.grad(total, images)[0]
        trace.append(match)
        return total

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    final = images.detach().clamp(0, 1).float()
    return trace, distance(final.requires_grad_())[1], final.detach()
