"""Clipped sums of gradients, one gradient per unit: what a private step adds its noise to.

Three ways to the same numbers. ``hooks``: Opacus keeps every record's gradient (the quickest for units of one record).
``ghost``: Opacus computes the gradients' norms first and a re-weighted loss second, so that memory stays near plain
training; units of one record and one bound only. ``loop``: one backward pass per unit, for any network and any number
of records per unit.

Sources: Abadi et al., CCS 2016, algorithm 1; Goodfellow, arXiv 1510.01799, and Li et al., arXiv 2110.05679 (ghost).
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from cloister.errors import PlanError
from cloister.privacy.clipping import layer_of, sensitivity

Records = tuple[Tensor, ...]
"""Tensors whose first dimension is the record: images and labels, say."""

Loss = Callable[[nn.Module, Records], Tensor]
"""Maps a module and B records to B losses, each of which depends on its own record only."""

_SLACK = 2.0**-20  # more than rounding in single precision adds to the norm of a clipped gradient


class Method(StrEnum):
    """How gradients per unit are computed; see the head of this module."""

    HOOKS = "hooks"
    GHOST = "ghost"
    LOOP = "loop"


@dataclass(frozen=True)
class ClipGroups:
    """Which parameters share a bound on the norm of one unit's gradient.

    ``bounds``: L2 bound of each group. ``members``: for each parameter, its group.
    """

    bounds: tuple[float, ...]
    members: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str], bounds: Mapping[str, float]) -> Self:
        """Return the groups of ``names`` under ``bounds``, from name prefix to bound; the longest prefix decides.

        ``{"": C}`` is flat clipping at C. Raises :class:`PlanError` for a name without a bound and for a bound that is
        not positive.
        """
        sensitivity(bounds)
        prefixes = list(bounds)
        return cls(tuple(bounds.values()), tuple(prefixes.index(layer_of(name, prefixes)) for name in names))

    def factors(self, squares: Tensor) -> Tensor:
        """Return the factors ``[parameters, units]`` that clip, from squared norms of the same shape.

        A unit with a norm that is not finite, in any group, gets 0 everywhere.
        """
        member = torch.tensor(self.members, device=squares.device)
        norms = squares.new_zeros(len(self.bounds), squares.shape[1]).index_add_(0, member, squares).sqrt()
        bounds = squares.new_tensor(self.bounds)[:, None]
        factors = torch.where(norms <= bounds, 1.0, bounds / norms * (1 - _SLACK))
        return torch.where(norms.isfinite().all(0), factors, 0.0)[member]


class UnitGradients(ABC):
    """Adds up clipped gradients of units, with whatever that needs attached to the module until :meth:`close`.

    ``names``, ``parameters``: what learns, in the order of all lists of tensors here.
    """

    def __init__(self, module: nn.Module, loss: Loss, bounds: Mapping[str, float]) -> None:
        learning = [(name, values) for name, values in module.named_parameters() if values.requires_grad]
        if not learning:
            raise PlanError("private step: expected at least one parameter that learns, found none")
        self.module, self.loss = module, loss
        self.names = tuple(name for name, _ in learning)
        self.parameters = [values for _, values in learning]
        self.groups = ClipGroups.of(self.names, bounds)

    def zeros(self) -> list[Tensor]:
        """Return a sum of nothing."""
        return [torch.zeros_like(values, requires_grad=False) for values in self.parameters]

    @abstractmethod
    def add(self, total: Sequence[Tensor], records: Records, sizes: Sequence[int], share: float = 1.0) -> None:
        """Add to ``total`` each unit's gradient, clipped.

        ``sizes``: how many of the ``records`` belong to each unit, in a row. A unit's gradient is the sum over its
        records times ``share``, a public constant. One that is not finite counts as zero.
        Raises :class:`PlanError` for a loss that is not one value per record.
        """

    @abstractmethod
    def close(self) -> None:
        """Remove everything that was attached to the module."""

    def __enter__(self) -> Self:
        """Return this object, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def losses(self, records: Records) -> Tensor:
        """Return the losses of records, checked: ``[B]``, and a function of what learns."""
        values = self.loss(self.module, records)
        if values.shape != (len(records[0]),) or not values.requires_grad:
            raise PlanError(
                f"loss: expected {len(records[0])} values, one per record, that depend on parameters, found the shape "
                f'{tuple(values.shape)}{"" if values.requires_grad else " without a gradient"}; use reduction="none"'
            )
        return values


class Loop(UnitGradients):
    """One backward pass per unit."""

    def add(self, total: Sequence[Tensor], records: Records, sizes: Sequence[int], share: float = 1.0) -> None:
        """Add the clipped gradients, unit by unit."""
        for part in zip(*(torch.split(values, list(sizes)) for values in records), strict=True):
            loss = self.losses(part).sum() * share
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            clip_into(total, [None if values is None else values.reshape(1, -1) for values in found], 1, self.groups)

    def close(self) -> None:
        """Nothing was attached."""


class _Opacus(UnitGradients):
    """Opacus's hooks on a module; nothing of them is left after :meth:`close`."""

    hooks_class: ClassVar[str]

    def __init__(self, module: nn.Module, loss: Loss, bounds: Mapping[str, float]) -> None:
        super().__init__(module, loss, bounds)
        from opacus import grad_sample

        for name, layer in module.named_modules():
            if not layer.training and any(values.requires_grad for values in layer.parameters(recurse=False)):
                raise PlanError(
                    f"layer {name}: expected training mode, found evaluation mode, in which Opacus does not see "
                    "gradients; freeze its parameters, put it in training mode, or use method loop"
                )
        try:
            self._hooks = getattr(grad_sample, self.hooks_class)(module, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            _clean(module)
            raise PlanError(f"per-record gradients: {error}; freeze that layer, or use method loop") from error
        # Opacus unfolds a convolution's input by its strides as if channels came first in memory.
        self._ordered = [
            layer.register_forward_pre_hook(_channels_first)
            for layer in module.modules()
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        ]
        # A layer's output that is overwritten is not what its hook sees. The values are the same either way.
        self._in_place = [layer for layer in module.modules() if getattr(layer, "inplace", False) is True]
        self._set_in_place(False)

    def close(self) -> None:
        """Remove Opacus's hooks and everything it left on layers and parameters."""
        self._hooks.cleanup()
        for handle in self._ordered:
            handle.remove()
        self._set_in_place(True)
        _clean(self.module)

    def _set_in_place(self, value: bool) -> None:
        for layer in self._in_place:
            layer.inplace = value  # type: ignore[assignment]


class Hooks(_Opacus):
    """Every record's gradient from Opacus, summed within units."""

    hooks_class = "GradSampleHooks"

    def add(self, total: Sequence[Tensor], records: Records, sizes: Sequence[int], share: float = 1.0) -> None:
        """Add the clipped gradients of all units at once; memory is one gradient per record."""
        _backward(self.losses(records).sum() * share)
        rows = list[Tensor | None]()
        for name, parameter in zip(self.names, self.parameters, strict=True):
            samples: Tensor | None = parameter.grad_sample  # type: ignore[attr-defined]
            if samples is None and parameter.grad is not None:
                raise _missed(name)
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
            rows.append(None if samples is None else _by_unit(samples.flatten(1), sizes))
        clip_into(total, rows, len(sizes), self.groups)


class Ghost(_Opacus):
    """Opacus's norms, then the gradient of the loss re-weighted by the clipping factors."""

    hooks_class = "GradSampleHooksFastGradientClipping"

    def __init__(self, module: nn.Module, loss: Loss, bounds: Mapping[str, float]) -> None:
        if len(bounds) > 1:
            raise PlanError("ghost clipping: expected one bound for all, found one per layer; use method hooks")
        super().__init__(module, loss, bounds)

    def add(self, total: Sequence[Tensor], records: Records, sizes: Sequence[int], share: float = 1.0) -> None:
        """Add the clipped gradients of units of one record each."""
        if any(size != 1 for size in sizes):
            raise PlanError("ghost clipping: expected one record per unit, found several; use method loop or hooks")
        losses = self.losses(records) * share
        _backward(losses.sum(), retain_graph=True)
        learning = zip(self.names, self.parameters, strict=True)
        factors = self.groups.factors(torch.stack([self._squares(*item, len(sizes)) for item in learning]))[0]
        if not factors.all():  # not finite: zero times infinity would not be zero, so they are left out
            kept = factors.nonzero()[:, 0]
            losses, factors = self.losses(tuple(values[kept] for values in records)) * share, factors[kept]
        self._hooks.disable_hooks()
        try:
            if len(factors):
                _backward(losses @ factors)
        finally:
            self._hooks.enable_hooks()
        for running, parameter in zip(total, self.parameters, strict=True):
            if parameter.grad is not None:
                running.add_(parameter.grad)
            parameter.grad = None

    def _squares(self, name: str, values: nn.Parameter, count: int) -> Tensor:
        """Return the squared norms of this parameter's gradients, and clear what was left for the next batch."""
        norms: Tensor | None = values.__dict__.pop("_norm_sample", None)
        if norms is None and values.grad is not None:
            raise _missed(name)
        values.grad = None
        return values.new_zeros(count) if norms is None else norms.square()


_METHODS: Mapping[Method, type[UnitGradients]] = {Method.HOOKS: Hooks, Method.GHOST: Ghost, Method.LOOP: Loop}


def unit_gradients(method: Method, module: nn.Module, loss: Loss, bounds: Mapping[str, float]) -> UnitGradients:
    """Return the sums of ``module`` under ``method``, to be closed after use.

    ``bounds``: see :meth:`ClipGroups.of`. What does not learn must not require a gradient; see :func:`learning`.
    Raises :class:`PlanError` for a module that the method cannot be used on.
    """
    return _METHODS[method](module, loss, bounds)


@contextmanager
def learning(module: nn.Module, names: Collection[str] | None) -> Iterator[None]:
    """Let only the parameters ``names`` require gradients inside the block (None: those that do already).

    Parameters that are kept at the client must be frozen too: if they learned without noise, they would carry one
    unit's records into the gradients of all others. Raises :class:`PlanError` for a name that is no parameter.
    """
    before = {name: values.requires_grad for name, values in module.named_parameters()}
    if unknown := sorted(set(names or ()) - set(before)):
        raise PlanError(f"parameters that learn: expected names of the module's parameters, found {unknown[:5]}")
    try:
        for name, values in module.named_parameters():
            values.requires_grad_(before[name] and (names is None or name in names))
        yield
    finally:
        for name, values in module.named_parameters():
            values.requires_grad_(before[name])


def clip_into(total: Sequence[Tensor], rows: Sequence[Tensor | None], units: int, groups: ClipGroups) -> None:
    """Add to ``total`` the clipped sum of units' gradients, given as ``[units, n]`` for each parameter (None: zero)."""
    nothing = total[0].new_zeros(units)
    norms = [nothing if values is None else torch.linalg.vector_norm(values, dim=1) for values in rows]
    factors = groups.factors(torch.stack(norms).square())
    lost = (factors == 0).all(0)
    for running, values, factor in zip(total, rows, factors, strict=True):
        if values is not None:
            if lost.any():
                values[lost] = 0.0  # not finite: zero times infinity would not be zero
            running.add_((factor @ values).view_as(running))


def _channels_first(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(values.contiguous() for values in inputs)


def _by_unit(samples: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the sums ``[units, n]`` of rows ``[records, n]`` over units that hold ``sizes`` rows each."""
    if all(size == 1 for size in sizes):
        return samples
    owners = torch.repeat_interleave(torch.tensor(sizes, device=samples.device))
    return samples.new_zeros(len(sizes), samples.shape[1]).index_add_(0, owners, samples)


def _backward(loss: Tensor, *, retain_graph: bool = False) -> None:
    with warnings.catch_warnings():  # of the first layer, whose input needs no gradient
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        torch.autograd.backward(loss, retain_graph=retain_graph)


def _clean(module: nn.Module) -> None:
    for layer in module.modules():
        for left in ("activations", "max_batch_len", "ft_compute_sample_grad", "autograd_grad_sample_hooks"):
            layer.__dict__.pop(left, None)
    for values in module.parameters():
        for left in ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample"):
            values.__dict__.pop(left, None)


def _missed(name: str) -> PlanError:
    return PlanError(
        f"parameter {name}: expected its per-record gradient, found only the sum: it is used outside its layer's "
        "forward, or in a shape that this method does not know; use method loop"
    )
