"""Record steps and unit steps: what they compute, what they leave behind, and how they are accounted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import opacus  # noqa: F401 - takes seconds, which no single test should wait for
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import PlanError
from cloister.privacy.dpsgd import Outcome, PrivateData, PrivateSteps, RecordSteps
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.noise import NoiseSource
from cloister.privacy.per_record import Method, Records
from cloister.privacy.sampling import Everyone, Poisson, Shuffled
from cloister.privacy.steps import Indices
from cloister.privacy.subjects import UnitSteps

SOURCE = NoiseSource(bytes(range(32)))
IMAGES = torch.randn(24, 3, generator=torch.Generator().manual_seed(3))
LABELS = torch.randint(4, (24,), generator=torch.Generator().manual_seed(4))
OWNERS = [f"s{index // 4}" for index in range(24)]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh())
        self.head = nn.Linear(8, 4)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(values))
        return out


def cross_entropy(module: nn.Module, records: Records) -> Tensor:
    return functional.cross_entropy(module(records[0]), records[1], reduction="none")


def fetch(indices: Indices) -> Records:
    return IMAGES[torch.from_numpy(indices)], LABELS[torch.from_numpy(indices)]


def data(owners: Sequence[str] = tuple(OWNERS)) -> PrivateData:
    return PrivateData(owners=owners, fetch=fetch)


def network() -> nn.Module:
    torch.manual_seed(11)
    return Network()


def record_steps(**changes: Any) -> RecordSteps:
    values: dict[str, Any] = {
        "sampler": Poisson(rate=0.3),
        "steps": 3,
        "bounds": {"": 0.7},
        "noise_multiplier": 1.1,
        "denominator": 7.2,
        "unit": Unit.EXAMPLE,
    }
    return RecordSteps(**{**values, **changes})


def unit_steps(**changes: Any) -> UnitSteps:
    values: dict[str, Any] = {
        "sampler": Poisson(rate=0.5),
        "steps": 3,
        "bounds": {"": 0.7},
        "noise_multiplier": 1.1,
        "denominator": 3.0,
        "records": 2,
    }
    return UnitSteps(**{**values, **changes})


def trained(steps: PrivateSteps, owners: Sequence[str] = tuple(OWNERS), **arguments: Any) -> dict[str, Tensor]:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.5)
    outcome = steps.run(module, cross_entropy, data(owners), optimizer, SOURCE.fork("round", 1), **arguments)
    assert outcome == Outcome(steps=steps.steps, events=steps.events)
    return {name: values.detach() for name, values in module.named_parameters()}


def by_hand(steps: PrivateSteps, draws: Sequence[Sequence[Sequence[int]]], share: float) -> dict[str, Tensor]:
    """The same steps written out: autograd per unit, clip, sum, noise, divide, step."""
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.5)
    source = SOURCE.fork("round", 1)
    for number, units in enumerate(draws):
        total = [torch.zeros_like(values) for values in module.parameters()]
        for unit in units:
            module.zero_grad()
            (cross_entropy(module, fetch(np.array(unit))).sum() * share).backward()
            own = [values.grad for values in module.parameters() if values.grad is not None]
            norm = float(sum(values.square().sum() for values in own) ** 0.5)
            for running, values in zip(total, own, strict=True):
                running += values * min(1.0, 0.7 / norm)
        noise = source.fork("noise", number)
        for values, running in zip(module.parameters(), total, strict=True):
            drawn = torch.from_numpy(noise.gaussian(tuple(values.shape), 1.1 * 0.7))
            values.grad = ((running + drawn) / steps.denominator).float()
        optimizer.step()
    return {name: values.detach() for name, values in module.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("physical", [2, 64])
@pytest.mark.parametrize("method", Method)
def test_record_steps_do_what_is_written_out(method: Method, physical: int) -> None:
    steps = record_steps(method=method, physical=physical)
    source = SOURCE.fork("round", 1)
    draws = [[[int(record)] for record in steps.sampler.draw(source, number, 24)] for number in range(3)]
    assert all(draws)
    assert_same(trained(steps), by_hand(steps, draws, 1.0))


@pytest.mark.parametrize("physical", [2, 64])
@pytest.mark.parametrize("method", [Method.HOOKS, Method.LOOP])
def test_unit_steps_do_what_is_written_out(method: Method, physical: int) -> None:
    steps = unit_steps(method=method, physical=physical)
    source = SOURCE.fork("round", 1)
    draws = []
    for number in range(3):
        choice = source.fork("records", number)
        drawn = steps.sampler.draw(source, number, 6)
        draws.append([[4 * int(unit) + int(place) for place in choice.permutation(4)[:2]] for unit in drawn])
    assert all(draws)
    assert_same(trained(steps), by_hand(steps, draws, 0.5))


def test_a_unit_with_few_records_is_still_divided_by_the_public_number() -> None:
    """Or her gradient would say how many records she has."""
    steps = unit_steps(sampler=Everyone(), records=9, steps=1)
    expected = by_hand(steps, [[[4 * unit + place for place in range(4)] for unit in range(6)]], 1 / 9)
    assert_same(trained(steps), expected)


def test_the_subset_of_records_is_drawn_anew_at_each_step() -> None:
    seen = set[tuple[int, ...]]()

    def watching(indices: Indices) -> Records:
        seen.add(tuple(indices.tolist()))
        return fetch(indices)

    steps = unit_steps(sampler=Everyone(), records=2, steps=30)
    module = network()
    one = PrivateData(owners=["s"] * 6, fetch=watching)
    steps.run(module, cross_entropy, one, torch.optim.SGD(module.parameters(), lr=0.1), SOURCE)
    drawn = {subset for subset in seen if len(subset) == 2}
    assert all(len(set(subset)) == 2 for subset in drawn)
    assert {record for subset in drawn for record in subset} == set(range(6))
    assert len(drawn) > 15


@pytest.mark.parametrize("steps", [record_steps(), unit_steps()])
def test_the_same_source_repeats_and_another_does_not(steps: PrivateSteps) -> None:
    assert all(torch.equal(values, trained(steps)[name]) for name, values in trained(steps).items())
    module = network()
    steps.run(module, cross_entropy, data(), torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.5), SOURCE)
    assert not torch.equal(module.get_parameter("head.weight"), trained(steps)["head.weight"])


@pytest.mark.parametrize("steps", [record_steps(), unit_steps()])
def test_a_client_without_records_adds_noise_and_steps(steps: PrivateSteps) -> None:
    found, untrained = trained(steps, owners=()), dict(network().named_parameters())
    assert all((found[name] != values).all() for name, values in untrained.items())
    assert_same(found, by_hand(steps, [[], [], []], 1.0))


def test_only_what_learns_moves_and_all_is_as_before_afterwards() -> None:
    module = network()
    before = {name: values.detach().clone() for name, values in module.named_parameters()}
    module.body[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    learned = ["body.0.weight", "body.0.bias", "head.bias"]
    record_steps().run(
        module, cross_entropy, data(), torch.optim.AdamW(module.parameters(), lr=0.1), SOURCE, learned=learned
    )
    moved = [name for name, values in module.named_parameters() if not torch.equal(values, before[name])]
    assert moved == ["body.0.weight", "head.bias"]
    frozen = [name for name, values in module.named_parameters() if not values.requires_grad]
    assert frozen == ["body.0.bias"]
    assert list(module.state_dict()) == list(network().state_dict())


@pytest.mark.parametrize(
    ("steps", "values"),
    [
        (record_steps(), {"sampler": Sampler.POISSON, "rate": 0.3, "count": 3, "unit": Unit.EXAMPLE}),
        (
            record_steps(unit=Unit.SUBJECT, group=4, relation=Relation.ZERO_OUT),
            {
                "sampler": Sampler.POISSON,
                "rate": 0.3,
                "count": 3,
                "unit": Unit.SUBJECT,
                "group": 4,
                "relation": Relation.ZERO_OUT,
            },
        ),
        (
            record_steps(sampler=Shuffled(size=5, population=24), steps=11),
            {"sampler": Sampler.FIXED, "count": 3, "unit": Unit.EXAMPLE},
        ),
        (unit_steps(), {"sampler": Sampler.POISSON, "rate": 0.5, "count": 3, "unit": Unit.SUBJECT}),
        (unit_steps(unit=Unit.SESSION, sampler=Everyone()), {"count": 3, "unit": Unit.SESSION}),
    ],
)
def test_steps_say_how_they_are_accounted(steps: PrivateSteps, values: dict[str, Any]) -> None:
    expected = {"relation": Relation.ADD_REMOVE, **values}
    assert steps.events == (Event(kind=EventKind.GAUSSIAN, noise_multiplier=1.1, **expected),)


def refused(
    steps: PrivateSteps, module: nn.Module, loss: Any = cross_entropy, owners: Sequence[str] = ("a",) * 24
) -> str:
    before = [values.clone() for values in module.state_dict().values()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(PlanError) as caught:
        steps.run(module, loss, data(owners), optimizer, SOURCE)
    assert all(torch.equal(one, two) for one, two in zip(before, module.state_dict().values(), strict=True))
    assert not any(values.grad is not None or values.__dict__ for values in module.parameters())
    return str(caught.value)


def test_models_and_losses_that_mix_records_are_refused_before_any_step() -> None:
    mixing = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for steps in (record_steps(), unit_steps()):
        assert "normalises each record by the statistics of its batch; use GroupNorm" in refused(steps, mixing)

    def pairs(module: nn.Module, records: Records) -> Tensor:
        features = module(records[0])
        return (features @ features.t()).log_softmax(1).diagonal()

    assert "a record's loss depends on other records" in refused(record_steps(), network(), pairs)


def test_a_model_whose_gradients_opacus_gets_wrong_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, values: Tensor) -> Tensor:
            out: Tensor = self.layer(values) + (values @ self.layer.weight.t()).tanh()
            return out

    for method in (Method.HOOKS, Method.GHOST):
        assert f"method {method} does not get" in refused(record_steps(method=method), Twice())
    assert trained(record_steps(method=Method.LOOP))
    module = Twice()
    record_steps(method=Method.LOOP).run(
        module, cross_entropy, data(), torch.optim.SGD(module.parameters(), lr=0.1), SOURCE
    )


def test_a_unit_with_more_records_than_its_group_is_refused() -> None:
    assert "expected at most 3 records of one subject, found 4" in refused(
        record_steps(unit=Unit.SUBJECT, group=3), network(), owners=OWNERS
    )
    trained(record_steps(unit=Unit.SUBJECT, group=4))


def test_an_optimiser_without_what_learns_is_refused() -> None:
    module = network()
    optimizer = torch.optim.SGD([module.get_parameter("head.weight")], lr=0.1)
    with pytest.raises(PlanError, match="found it without"):
        record_steps().run(module, cross_entropy, data(), optimizer, SOURCE)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (record_steps, {"steps": 0}, "expected steps of at least 1"),
        (record_steps, {"physical": 0}, "expected physical of at least 1"),
        (record_steps, {"noise_multiplier": 0.0}, "expected noise_multiplier to be positive"),
        (record_steps, {"denominator": 0.0}, "expected denominator to be positive"),
        (record_steps, {"bounds": {}}, "expected positive, finite bounds"),
        (record_steps, {"group": 2}, "expected a group of 1 for the unit example"),
        (record_steps, {"group": 0, "unit": Unit.SUBJECT}, "found 0 for subject"),
        (unit_steps, {"records": 0}, "expected at least 1 record per unit"),
    ],
)
def test_numbers_that_make_no_private_step_are_refused(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make(**changes)


def test_private_training_still_learns() -> None:
    """With little noise the loss falls, as without privacy."""
    module = network()
    before = float(cross_entropy(module, (IMAGES, LABELS)).mean().detach())
    steps = unit_steps(steps=60, noise_multiplier=0.05)
    steps.run(module, cross_entropy, data(), torch.optim.SGD(module.parameters(), lr=0.3), SOURCE)
    assert float(cross_entropy(module, (IMAGES, LABELS)).mean().detach()) < 0.9 * before
