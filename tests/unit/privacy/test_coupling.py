import re
from collections.abc import Callable
from typing import Any

import opacus  # noqa: F401 - takes seconds, which no single test should wait for
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cloister.privacy.coupling import coupled, misattributed, mixing_layers, single_gradients
from cloister.privacy.per_record import Loss, Method, Records, unit_gradients


def cross_entropy(module: nn.Module, records: Records) -> Tensor:
    return functional.cross_entropy(module(records[0]), records[1], reduction="none")


def some_records(count: int = 4, seed: int = 0) -> Records:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=draw), torch.randint(3, (count,), generator=draw)


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def frozen(layer: nn.Module) -> nn.Module:
    return layer.eval().requires_grad_(False)


class Frozen(nn.BatchNorm2d):
    """As a network's own policy does it: stored statistics in training mode too."""

    frozen = True

    def forward(self, values: Tensor) -> Tensor:
        return functional.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, False)


class Writing(nn.Module):
    """Writes down a statistic of its batch, as a codebook that follows its inputs does, but does not use it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        self.get_buffer("mean").copy_(values.detach().mean())
        return values


class Noisy(nn.Module):
    """Draws random numbers of its own in training."""

    def forward(self, values: Tensor) -> Tensor:
        return values + 0.1 * torch.randn_like(values)


class Backwards(torch.autograd.Function):
    """Nothing forward; centres the gradients of a batch backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient + values_of_batch[0]


values_of_batch: list[Tensor] = []


class CentredBackwards(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        values_of_batch[:] = [values.detach().mean(0, keepdim=True)]
        return Backwards.apply(values)  # type: ignore[no-any-return, no-untyped-call]


SOUND: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: network(),
    "group norm": lambda: network(nn.GroupNorm(2, 4)),
    "instance norm": lambda: network(nn.InstanceNorm2d(4)),
    "layer norm": lambda: network(nn.LayerNorm([4, 4, 4])),
    "frozen batch norm": lambda: network(frozen(nn.BatchNorm2d(4))),
    "batch norm with a policy": lambda: network(Frozen(4)),
    "dropout": lambda: network(nn.Dropout(0.5)),
    "random numbers": lambda: network(Noisy()),
}


@pytest.mark.parametrize("name", SOUND)
def test_models_of_single_records_pass(name: str) -> None:
    module = SOUND[name]()
    for seed in range(3):
        assert coupled(module, cross_entropy, some_records(seed=seed)) == []


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (
            nn.BatchNorm2d(4),
            r"layer 1 \(BatchNorm2d\) normalises each record by the statistics of its batch; use Group",
        ),
        (nn.BatchNorm2d(4, track_running_stats=False).eval(), r"layer 1 \(BatchNorm2d\) normalises"),
        (nn.SyncBatchNorm(4), r"layer 1 \(SyncBatchNorm\) normalises"),
        (nn.InstanceNorm2d(4, track_running_stats=True), r"layer 1 \(InstanceNorm2d\) writes the records' statistics"),
    ],
)
def test_layers_that_mix_are_known_by_type(layer: nn.Module, reason: str) -> None:
    found = mixing_layers(network(layer))
    assert len(found) == 1
    assert re.match(reason, found[0])


def test_batch_norm_is_found_by_trial_too() -> None:
    module = network(nn.BatchNorm2d(4))
    mean = module[1].running_mean.clone()  # type: ignore[operator, union-attr]
    reasons = coupled(module, cross_entropy, some_records())
    assert len(reasons) == 2
    assert reasons[1].startswith("a record's loss depends on other records; use")
    assert torch.equal(module[1].running_mean, mean)  # type: ignore[arg-type, union-attr]


def test_a_statistic_that_is_written_down_is_found() -> None:
    assert coupled(network(Writing()), cross_entropy, some_records()) == [
        "the forward pass writes into ('1.mean',) without noise; freeze what writes there"
    ]


def test_a_gradient_that_mixes_where_the_loss_does_not_is_found() -> None:
    (reason,) = coupled(network(CentredBackwards()), cross_entropy, some_records())
    assert reason.startswith("a record's gradient depends on other records")


def pairs(module: nn.Module, records: Records) -> Tensor:
    """InfoNCE: every other record is a negative."""
    features = functional.normalize(module(records[0]), dim=1)
    return -(features @ features.t()).log_softmax(1).diagonal()


def hardest(module: nn.Module, records: Records) -> Tensor:
    """Batch-hard triplets: the farthest record counts."""
    features = module(records[0])
    return (features[:, None] - features[None, :]).square().sum(2).amax(1)


def divided(module: nn.Module, records: Records) -> Tensor:
    return cross_entropy(module, records) / len(records[0])


def averaged(module: nn.Module, records: Records) -> Tensor:
    return cross_entropy(module, records).mean()


def centred(module: nn.Module, records: Records) -> Tensor:
    losses = cross_entropy(module, records)
    return losses - 0.5 * losses.mean()


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (pairs, "a record's loss depends on other records"),
        (hardest, "a record's loss depends on other records"),
        (centred, "a record's loss depends on other records"),
        (divided, "a record's loss depends on how many others there are"),
        (averaged, r"the loss has the shape \(\) for 4 records, so records cannot be told apart"),
    ],
)
def test_losses_that_mix_are_found(loss: Loss, reason: str) -> None:
    (found,) = coupled(network(), loss, some_records())
    assert re.match(reason, found)


def test_one_record_twice_is_enough() -> None:
    records = tuple(values[[0, 0]] for values in some_records())
    assert coupled(network(), cross_entropy, records) == []
    assert coupled(network(), pairs, records)
    assert coupled(network(nn.BatchNorm2d(4)), cross_entropy, tuple(values[:1] for values in records))


@settings(max_examples=15)
@given(scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6, float("nan"), float("inf")]), seed=st.integers(0, 99))
def test_no_record_makes_a_sound_model_fail(scale: float, seed: int) -> None:
    """Or else the refusal would itself tell something about the records."""
    images, labels = some_records(seed=seed)
    assert coupled(network(nn.GroupNorm(2, 4)), cross_entropy, (images * scale, labels)) == []


def half_precision(module: nn.Module, records: Records) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return cross_entropy(module, records).float()


@pytest.mark.parametrize("seed", range(4))
def test_rounding_in_half_precision_is_no_coupling(seed: int) -> None:
    assert coupled(network(nn.GroupNorm(2, 4)), half_precision, some_records(seed=seed)) == []


def wrong(method: Method, module: nn.Module, seed: int = 0, scale: float = 1.0) -> bool:
    images, labels = some_records(3, seed)
    records = (images * scale, labels)
    single = single_gradients(module, cross_entropy, records)
    with unit_gradients(method, module, cross_entropy, {"": 0.3}) as gradients:
        groups = gradients.groups
        found = misattributed(gradients, records, single)
        assert gradients.groups is groups
    return found


def test_the_trial_leaves_no_trace() -> None:
    module = network(nn.BatchNorm2d(4), nn.Dropout(0.5))
    state = {name: values.clone() for name, values in module.state_dict().items()}
    generator = torch.get_rng_state()
    modes = [layer.training for layer in module.modules()]
    coupled(module, cross_entropy, some_records())
    wrong(Method.LOOP, module)  # true: one record alone has other batch statistics
    assert all(torch.equal(values, state[name]) for name, values in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [layer.training for layer in module.modules()] == modes
    assert all(values.grad is None for values in module.parameters())


class CentralDifference(nn.Module):
    """Uses a convolution's weight outside the convolution too, as networks for pulses do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, padding=1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        centre = self.convolution.weight.sum((2, 3), keepdim=True)
        out: Tensor = (self.convolution(values) - 0.7 * functional.conv2d(values, centre)).mean((2, 3))
        return out


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("name", [name for name in SOUND if name != "batch norm with a policy"])
def test_every_method_attributes_the_gradients_of_sound_models(method: Method, name: str) -> None:
    assert not any(wrong(method, SOUND[name](), seed) for seed in range(3))


class TimeFirst(nn.Module):
    """A linear layer whose batch is the second dimension: sums over records come out right, single records do not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 3)

    def forward(self, values: Tensor) -> Tensor:
        series = values.reshape(len(values), 3, 24).transpose(0, 1)
        out: Tensor = self.layer(series).sum(0)
        return out


@pytest.mark.parametrize("method", [Method.HOOKS, Method.GHOST])
@pytest.mark.parametrize("network", [CentralDifference, TimeFirst])
def test_gradients_that_opacus_gets_wrong_without_an_error_are_found(
    method: Method, network: Callable[[], nn.Module]
) -> None:
    assert wrong(method, network())
    assert not wrong(Method.LOOP, network())


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_records_without_a_finite_gradient_are_no_reason_to_refuse(scale: float) -> None:
    assert not wrong(Method.HOOKS, network(), scale=scale)
