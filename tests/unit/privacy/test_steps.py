import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from cloister.errors import PlanError
from cloister.privacy.events import Relation
from cloister.privacy.noise import NoiseSource
from cloister.privacy.per_record import Loop, Records
from cloister.privacy.steps import Indices, NoisyMean, clipped_sum, step

SOURCE = NoiseSource(bytes(range(32)))
FEATURES = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) * 3
TARGETS = torch.randn(40, generator=torch.Generator().manual_seed(2))


def squared(module: nn.Module, records: Records) -> Tensor:
    features, targets = records
    out: Tensor = (module(features)[:, 0] - targets).square()
    return out


def fetch(indices: Indices) -> Records:
    return FEATURES[torch.from_numpy(indices)], TARGETS[torch.from_numpy(indices)]


def mean(noise_multiplier: float = 1.0, sensitivity: float = 2.0, denominator: float = 10.0) -> NoisyMean:
    return NoisyMean(noise_multiplier=noise_multiplier, sensitivity=sensitivity, denominator=denominator)


def test_the_noise_is_that_of_the_claim() -> None:
    """Kolmogorov and Smirnov: false alarm below 1e-6. The mean of nothing is noise alone, also on an empty draw."""
    total = [torch.zeros(300, 200), torch.zeros(5000)]
    found = mean(1.5, 2.0, 10.0).of(total, SOURCE.fork("a"))
    assert [values.shape for values in found] == [values.shape for values in total]
    assert all(values.dtype == torch.float32 for values in found)
    flat = np.concatenate([values.double().numpy().ravel() for values in found])
    assert stats.kstest(flat, stats.norm(scale=1.5 * 2.0 / 10.0).cdf).pvalue > 1e-6
    assert stats.kstest(flat, stats.norm(scale=1.1 * 1.5 * 2.0 / 10.0).cdf).pvalue < 1e-6  # it could have noticed
    assert abs(flat.var() / 0.3**2 - 1) < 5.5 * (2 / len(flat)) ** 0.5


def test_replacing_a_unit_takes_twice_the_noise() -> None:
    twice = NoisyMean(noise_multiplier=1.0, sensitivity=2.0, denominator=1.0, relation=Relation.REPLACE_ONE)
    zeroed = NoisyMean(noise_multiplier=1.0, sensitivity=2.0, denominator=1.0, relation=Relation.ZERO_OUT)
    assert (mean().std, zeroed.std, twice.std) == (2.0, 2.0, 4.0)


def test_the_sum_is_divided_by_the_public_number() -> None:
    total = [torch.full((50_000,), 30.0)]
    (found,) = mean(0.5, 1.0, 8.0).of(total, SOURCE)
    assert abs(float(found.mean()) - 30 / 8) < 5.5 * 0.5 / 8 / 50_000**0.5
    assert torch.equal(total[0], torch.full((50_000,), 30.0))


@pytest.mark.parametrize("name", ["noise_multiplier", "sensitivity", "denominator"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_numbers_that_do_not_protect_are_refused(name: str, value: float) -> None:
    with pytest.raises(PlanError, match=f"expected {name} to be positive"):
        mean(**{name: value})


def of(units: list[Indices], physical: int = 64, share: float = 1.0, bound: float = 0.5) -> Tensor:
    torch.manual_seed(0)
    with Loop(nn.Linear(6, 1), squared, {"": bound}) as gradients:
        return torch.cat(
            [values.flatten() for values in clipped_sum(gradients, fetch, units, physical=physical, share=share)]
        )


UNITS = st.lists(st.lists(st.integers(0, 39), max_size=5).map(lambda own: np.array(own, dtype=np.int64)), max_size=8)


@settings(max_examples=40)
@given(units=UNITS, physical=st.integers(1, 20))
def test_the_size_of_micro_batches_changes_nothing(units: list[Indices], physical: int) -> None:
    torch.testing.assert_close(of(units, physical, 0.25), of(units, 1000, 0.25), rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(units=UNITS, data=st.data(), bound=st.sampled_from([1e-3, 0.5, 100.0]))
def test_one_unit_moves_the_sum_by_its_bound_at_most(units: list[Indices], data: st.DataObject, bound: float) -> None:
    """Added, or removed: the bound. Replaced by anything: twice that."""
    other = np.array(data.draw(st.lists(st.integers(0, 39), max_size=5)), dtype=np.int64)
    place = data.draw(st.integers(0, len(units)))
    before, share = of(units, share=0.2, bound=bound), 0.2
    with_it = of([*units[:place], other, *units[place:]], share=share, bound=bound)
    rounding = 1e-5 * bound * (len(units) + 1)
    assert float((with_it - before).norm()) <= bound + rounding
    if units:
        replaced = of([other, *units[1:]], share=share, bound=bound)
        assert float((replaced - before).norm()) <= 2 * bound + rounding


def test_the_bound_is_reached() -> None:
    alone = [np.array([3, 4], dtype=np.int64)]
    assert float(of(alone, bound=0.01).norm()) == pytest.approx(0.01, rel=1e-5)


def test_micro_batches_hold_whole_units_and_no_more_records_than_allowed() -> None:
    fetched = list[list[int]]()

    def watching(indices: Indices) -> Records:
        fetched.append(indices.tolist())
        return fetch(indices)

    units = [np.array(own, dtype=np.int64) for own in ([1, 2], [3], [], [4, 5, 6], [7, 8, 9, 10, 11], [12])]
    with Loop(nn.Linear(6, 1), squared, {"": 1.0}) as gradients:
        clipped_sum(gradients, watching, units, physical=4)
        assert fetched == [[1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11], [12]]
        assert not any(values.any() for values in clipped_sum(gradients, watching, [], physical=4))
    assert len(fetched) == 4


def test_a_step_uses_these_gradients_only() -> None:
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    before = [values.detach().clone() for values in module.parameters()]
    module(torch.ones(1, 2)).sum().backward()
    step(optimizer, [module.weight], [torch.tensor([[1.0, -2.0]])])
    torch.testing.assert_close(module.weight, before[0] - torch.tensor([[0.5, -1.0]]))
    assert torch.equal(module.bias, before[1])
    assert all(values.grad is None for values in module.parameters())
