"""Every method's clipped sum against a loop that is written out here, with autograd alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import opacus  # noqa: F401 - takes seconds, which no single test should wait for
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import PlanError
from cloister.privacy.per_record import ClipGroups, Method, Records, learning, unit_gradients

ONE_EACH = (Method.HOOKS, Method.GHOST, Method.LOOP)
SEVERAL = (Method.HOOKS, Method.LOOP)


class Convolutional(nn.Module):
    """Convolution, GroupNorm, in-place activation, a parameter of its own, a tied head, a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.activation = nn.ReLU(inplace=True)
        self.scale = Scale(4)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        values = self.activation(self.norm(self.convolution(values)))
        out: Tensor = self.head(self.scale(values.mean((2, 3))))
        return out


class Scale(nn.Module):
    """A layer that Opacus has no rule for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class CentralDifference(nn.Module):
    """Uses a convolution's weight outside the convolution too, as networks for pulses do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, padding=1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        centre = self.convolution.weight.sum((2, 3), keepdim=True)
        out: Tensor = (self.convolution(values) - 0.7 * functional.conv2d(values, centre)).mean((2, 3))
        return out


def cross_entropy(module: nn.Module, records: Records) -> Tensor:
    images, labels = records
    return functional.cross_entropy(module(images), labels, reduction="none")


def some_records(count: int, seed: int = 0) -> Records:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 5, 5, generator=draw), torch.randint(3, (count,), generator=draw)


def naive(
    module: nn.Module, records: Records, sizes: Sequence[int], share: float, bounds: Mapping[str, float]
) -> dict[str, Tensor]:
    """Sum the clipped gradients of units one by one; ``bounds`` by first name segment, or "" for one bound."""
    total = {name: torch.zeros_like(values) for name, values in module.named_parameters() if values.requires_grad}
    start = 0
    for size in sizes:
        mine = tuple(values[start : start + size] for values in records)
        start += size
        module.zero_grad()
        (cross_entropy(module, mine).sum() * share).backward()
        own = {name: values.grad for name, values in module.named_parameters() if values.grad is not None}
        for prefix, bound in bounds.items():
            members = [name for name in own if name.startswith(prefix)]
            norm = float(sum(own[name].square().sum() for name in members) ** 0.5)
            for name in members:
                total[name] += own[name] * min(1.0, bound / norm)
    module.zero_grad()
    return total


def clipped(
    method: Method,
    module: nn.Module,
    records: Records,
    sizes: Sequence[int],
    share: float = 1.0,
    bounds: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    with unit_gradients(method, module, cross_entropy, bounds or {"": 0.4}) as gradients:
        total = gradients.zeros()
        gradients.add(total, records, sizes, share)
    return dict(zip(gradients.names, total, strict=True))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bound", [0.05, 0.4, 1e6])
@pytest.mark.parametrize("method", ONE_EACH)
def test_units_of_one_record_are_summed_as_a_loop_would(method: Method, bound: float) -> None:
    module, records = Convolutional(), some_records(7)
    expected = naive(module, records, [1] * 7, 1.0, {"": bound})
    assert_same(clipped(method, module, records, [1] * 7, bounds={"": bound}), expected)


@pytest.mark.parametrize("method", SEVERAL)
def test_units_of_several_records_are_summed_as_a_loop_would(method: Method) -> None:
    module, records, sizes = Convolutional(), some_records(8), [3, 1, 4]
    expected = naive(module, records, sizes, 0.25, {"": 0.1})
    assert_same(clipped(method, module, records, sizes, 0.25, {"": 0.1}), expected)


@pytest.mark.parametrize("method", SEVERAL)
def test_each_layer_has_its_own_bound(method: Method) -> None:
    module, records, sizes = Convolutional(), some_records(6), [2, 2, 2]
    bounds = {"convolution": 0.05, "norm": 0.02, "scale": 0.01, "head": 0.3, "unused": 1.0}
    expected = naive(module, records, sizes, 0.5, bounds)
    assert_same(clipped(method, module, records, sizes, 0.5, bounds), expected)


@pytest.mark.parametrize("method", ONE_EACH)
def test_micro_batches_add_up_to_the_whole_batch(method: Method) -> None:
    module, records = Convolutional(), some_records(7)
    with unit_gradients(method, module, cross_entropy, {"": 0.2}) as gradients:
        total = gradients.zeros()
        for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
            gradients.add(total, tuple(values[part] for values in records), [1] * (part.stop - part.start))
    assert_same(dict(zip(gradients.names, total, strict=True)), naive(module, records, [1] * 7, 1.0, {"": 0.2}))


@pytest.mark.parametrize("method", ONE_EACH)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_unit_that_is_not_finite_counts_as_zero(method: Method, poison: float) -> None:
    module, records = Convolutional(), some_records(5)
    records[0][2, 0, 1, 1] = poison
    kept = torch.tensor([0, 1, 3, 4])
    expected = naive(module, tuple(values[kept] for values in records), [1] * 4, 1.0, {"": 0.2})
    assert_same(clipped(method, module, records, [1] * 5, bounds={"": 0.2}), expected)
    for values in records[0]:
        values[:] = poison
    found = clipped(method, module, records, [1] * 5)
    assert all(not values.any() for values in found.values())


@pytest.mark.parametrize("method", SEVERAL)
def test_one_bad_record_drops_its_unit_only(method: Method) -> None:
    module, records = Convolutional(), some_records(6)
    records[0][2, 0, 1, 1] = float("nan")
    kept = torch.tensor([0, 1, 4, 5])
    expected = naive(module, tuple(values[kept] for values in records), [2, 2], 0.5, {"": 0.2})
    assert_same(clipped(method, module, records, [2, 2, 2], 0.5, {"": 0.2}), expected)


def left_on(module: nn.Module) -> list[Any]:
    """Everything that is on a module or its parameters and is not on a fresh one."""
    fresh = dict(Convolutional().named_modules())
    found: list[Any] = []
    for name, layer in module.named_modules():
        found += [(name, key) for key in layer.__dict__ if key not in fresh[name].__dict__]
        found += [(name, hook) for hook in (*layer._forward_hooks.values(), *layer._backward_hooks.values())]
        found += [(name, "in place")] * (getattr(layer, "inplace", None) != getattr(fresh[name], "inplace", None))
    for name, values in module.named_parameters():
        found += [(name, key) for key in values.__dict__]
        found += [(name, "gradient")] * (values.grad is not None)
    return found


@pytest.mark.parametrize("method", ONE_EACH)
def test_nothing_is_left_on_the_module(method: Method) -> None:
    module, records = Convolutional(), some_records(3)
    before = clipped(method, module, records, [1, 1, 1])
    assert left_on(module) == []
    plain = torch.autograd.grad(cross_entropy(module, records).sum(), module.head.weight)
    assert plain[0].isfinite().all()
    assert_same(clipped(method, module, records, [1, 1, 1]), before)  # again, on the same module


@pytest.mark.parametrize("method", ONE_EACH)
def test_nothing_is_left_after_an_error_in_the_loss(method: Method) -> None:
    module = Convolutional()

    def failing(module: nn.Module, records: Records) -> Tensor:
        cross_entropy(module, records)
        raise ValueError("from the loss")

    with (
        pytest.raises(ValueError, match="from the loss"),
        unit_gradients(method, module, failing, {"": 1.0}) as gradients,
    ):
        gradients.add(gradients.zeros(), some_records(2), [1, 1])
    assert left_on(module) == []


@pytest.mark.parametrize("method", ONE_EACH)
def test_frozen_parameters_take_no_part(method: Method) -> None:
    module, records = Convolutional(), some_records(4)
    with learning(module, ["head.weight", "head.bias"]):
        expected = naive(module, records, [1] * 4, 1.0, {"": 0.2})
        found = clipped(method, module, records, [1] * 4, bounds={"": 0.2})
    assert list(found) == ["head.weight", "head.bias"]
    assert_same(found, expected)
    assert all(values.requires_grad for values in module.parameters())


def test_learning_thaws_nothing_and_refuses_unknown_names() -> None:
    module = Convolutional()
    module.head.bias.requires_grad_(False)
    with learning(module, ["head.weight", "head.bias"]):
        assert [name for name, values in module.named_parameters() if values.requires_grad] == ["head.weight"]
    assert not module.head.bias.requires_grad
    with pytest.raises(PlanError, match=r"found \['hat.weight'\]"), learning(module, ["hat.weight"]):
        pass


def with_batch_norm(affine: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize("method", ONE_EACH)
def test_batch_norm_with_stored_statistics_is_a_fixed_layer(method: Method) -> None:
    module, records = with_batch_norm(affine=False), some_records(4)
    module[1].running_mean.uniform_(-1, 1)  # type: ignore[operator, union-attr]
    module[1].eval()
    expected = naive(module, records, [1] * 4, 1.0, {"": 0.2})
    assert_same(clipped(method, module, records, [1] * 4, bounds={"": 0.2}), expected)


def test_opacus_is_not_asked_for_layers_that_it_does_not_see() -> None:
    module = with_batch_norm(affine=True)
    for method in (Method.HOOKS, Method.GHOST):
        with pytest.raises(PlanError, match=r"buffers.*use method loop"):
            unit_gradients(method, module, cross_entropy, {"": 1.0})
    module[1].eval()
    for method in (Method.HOOKS, Method.GHOST):
        with pytest.raises(PlanError, match="layer 1: expected training mode"):
            unit_gradients(method, module, cross_entropy, {"": 1.0})
    expected = naive(module, some_records(4), [1] * 4, 1.0, {"": 0.2})
    assert_same(clipped(Method.LOOP, module, some_records(4), [1] * 4, bounds={"": 0.2}), expected)


@pytest.mark.parametrize("method", [Method.HOOKS, Method.GHOST])
def test_a_weight_used_only_outside_its_layer_is_noticed(method: Method) -> None:
    module = nn.Linear(3, 2)

    def outside(module: nn.Module, records: Records) -> Tensor:
        return (records[0] @ module.get_parameter("weight").t()).sum(1)

    with (
        unit_gradients(method, module, outside, {"": 1.0}) as gradients,
        pytest.raises(PlanError, match=r"parameter weight.*use method loop"),
    ):
        gradients.add(gradients.zeros(), (torch.randn(2, 3),), [1, 1])


def test_the_loop_is_right_where_a_weight_is_used_twice() -> None:
    module, records = CentralDifference(), some_records(4)
    expected = naive(module, records, [1] * 4, 1.0, {"": 0.05})
    assert_same(clipped(Method.LOOP, module, records, [1] * 4, bounds={"": 0.05}), expected)


def test_a_loss_that_cannot_tell_records_apart_is_refused() -> None:
    module, records = Convolutional(), some_records(3)

    def mean(module: nn.Module, records: Records) -> Tensor:
        return cross_entropy(module, records).mean()

    def constant(module: nn.Module, records: Records) -> Tensor:
        return torch.zeros(len(records[0]))

    with unit_gradients(Method.LOOP, module, mean, {"": 1.0}) as gradients:
        with pytest.raises(PlanError, match="expected 3 values, one per record"):
            gradients.add(gradients.zeros(), records, [3])
        gradients.loss = constant
        with pytest.raises(PlanError, match="without a gradient"):
            gradients.add(gradients.zeros(), records, [3])


def test_ghost_clipping_is_refused_where_it_cannot_be_right() -> None:
    module, records = Convolutional(), some_records(4)
    with pytest.raises(PlanError, match="expected one record per unit"):
        clipped(Method.GHOST, module, records, [2, 2])
    with pytest.raises(PlanError, match="one per layer; use method hooks"):
        clipped(Method.GHOST, module, records, [1] * 4, bounds={"": 1.0, "head": 2.0})
    assert left_on(module) == []


def test_the_longest_prefix_decides_and_all_must_be_covered() -> None:
    names = ["stem.weight", "head.weight", "head.bias"]
    groups = ClipGroups.of(names, {"": 1.0, "head": 2.0, "head.bias": 3.0, "nobody": 9.0})
    assert [groups.bounds[member] for member in groups.members] == [1.0, 2.0, 3.0]
    with pytest.raises(PlanError, match=r"found none for .stem\.weight."):
        ClipGroups.of(names, {"head": 1.0})
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(PlanError, match="expected positive, finite bounds"):
            ClipGroups.of(names, {"": bad})
    with pytest.raises(PlanError, match="at least one parameter"):
        unit_gradients(Method.LOOP, nn.ReLU(), cross_entropy, {"": 1.0})


@settings(max_examples=40)
@given(
    values=st.lists(
        st.lists(
            st.floats(0, 1e30, allow_subnormal=False) | st.just(float("nan")) | st.just(float("inf")),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    ),
    bounds=st.tuples(st.floats(1e-3, 1e3, allow_subnormal=False), st.floats(1e-3, 1e3, allow_subnormal=False)),
)
def test_factors_never_leave_a_unit_above_its_bound(values: list[list[float]], bounds: tuple[float, float]) -> None:
    groups = ClipGroups.of(["a", "b.x", "b.y"], {"a": bounds[0], "b": bounds[1]})
    norms = torch.tensor(values, dtype=torch.float64).t()
    factors = groups.factors(norms.square())
    assert factors.shape == norms.shape
    assert bool(((factors >= 0) & (factors <= 1)).all())
    left = (torch.nan_to_num(norms, posinf=0.0) * factors).square()
    after = torch.stack([left[0], left[1] + left[2]]).sqrt()
    assert bool((after <= torch.tensor(bounds, dtype=torch.float64)[:, None] * (1 + 1e-12)).all())
    small = (norms[0] <= bounds[0] / 2) & (norms[1:].square().sum(0).sqrt() <= bounds[1] / 2)
    assert bool((factors[:, small] == 1).all())


@pytest.mark.parametrize("method", [Method.HOOKS, Method.GHOST])
@pytest.mark.parametrize("bound", [1e-3, 1e9])
def test_pictures_whose_channels_come_last_in_memory(method: Method, bound: float) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1)]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4))
    pictures = torch.randn(5, 3, 9, 7).contiguous(memory_format=torch.channels_last)
    records = (pictures, torch.tensor([0, 1, 2, 3, 0]))

    def losses(model: nn.Module, found: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(found[0]), found[1], reduction="none")

    sums = []
    for chosen in (method, Method.LOOP):
        with unit_gradients(chosen, module, losses, {"": bound}) as gradients:
            total = gradients.zeros()
            gradients.add(total, records, [1] * 5)
        sums.append(torch.cat([values.flatten() for values in total]))
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-5 * float(sums[1].abs().max()))
    assert not any(layer._forward_pre_hooks for layer in module.modules())
