import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.noise import NoiseSource
from cloister.privacy.sampling import Everyone, Poisson, Shuffled, UnitSampler, WithoutReplacement

SOURCE = NoiseSource(bytes(range(32)))
SAMPLERS: list[UnitSampler] = [
    Poisson(rate=0.3),
    WithoutReplacement(size=7, population=40),
    Shuffled(size=7, population=40),
    Everyone(),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.kind)
def test_draws_are_ascending_units_and_the_same_for_the_same_step_alone(sampler: UnitSampler) -> None:
    draws = [sampler.draw(SOURCE, step, 35) for step in range(12)]
    for draw in draws:
        assert draw.dtype == np.int64
        assert list(draw) == sorted(set(map(int, draw)))
        assert all(0 <= unit < 35 for unit in draw)
    again = [sampler.draw(SOURCE, step, 35) for step in reversed(range(12))][::-1]
    assert all(np.array_equal(one, two) for one, two in zip(draws, again, strict=True))
    if not isinstance(sampler, Everyone):
        other = [sampler.draw(SOURCE.fork("other"), step, 35) for step in range(12)]
        assert not all(np.array_equal(one, two) for one, two in zip(draws, other, strict=True))
        assert len({tuple(draw) for draw in draws}) > 6


def test_poisson_units_are_independent_with_the_rate() -> None:
    """4000 draws of 10 units at 0.3; 5.5 standard deviations of counts and of pairs."""
    drawn = np.zeros((4000, 10))
    for step in range(4000):
        drawn[step, Poisson(rate=0.3).draw(SOURCE, step, 10)] = 1
    assert abs(drawn.mean(0) - 0.3).max() < 5.5 * (0.21 / 4000) ** 0.5
    pairs = drawn.T @ drawn / 4000
    off = pairs[~np.eye(10, dtype=bool)]
    assert abs(off - 0.09).max() < 5.5 * (0.09 * 0.91 / 4000) ** 0.5
    assert drawn.sum(1).min() == 0  # an empty step: probability 0.028 each


def test_poisson_at_rate_one_is_everyone() -> None:
    assert np.array_equal(Poisson(rate=1.0).draw(SOURCE, 0, 9), Everyone().draw(SOURCE, 0, 9))


def test_a_subset_has_its_size_and_each_unit_comes_equally_often() -> None:
    counts = np.zeros(12)
    for step in range(2000):
        draw = WithoutReplacement(size=3, population=12).draw(SOURCE, step, 12)
        assert len(draw) == 3
        counts[draw] += 1
    assert abs(counts / 2000 - 0.25).max() < 5.5 * (0.1875 / 2000) ** 0.5


@given(size=st.integers(1, 9), population=st.integers(9, 30), missing=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_unit_once(size: int, population: int, missing: int, epoch: int) -> None:
    sampler = Shuffled(size=size, population=population)
    units = population - missing
    steps = range(epoch * sampler.batches, (epoch + 1) * sampler.batches)
    drawn = [int(unit) for step in steps for unit in sampler.draw(SOURCE, step, units)]
    assert sorted(drawn) == list(range(units))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.kind)
def test_a_unit_that_arrives_moves_nobody(sampler: UnitSampler) -> None:
    """The last unit comes or goes: every step draws the same others."""
    for step in range(30):
        with_it = sampler.draw(SOURCE, step, 30)
        assert np.array_equal(with_it[with_it < 29], sampler.draw(SOURCE, step, 29))


def test_empty_places_stay_empty() -> None:
    sizes = {len(WithoutReplacement(size=10, population=20).draw(SOURCE, step, 5)) for step in range(50)}
    assert max(sizes) <= 5
    assert len(sizes) > 2


@pytest.mark.parametrize(
    ("sampler", "steps", "values"),
    [
        (Poisson(rate=0.25), 10, {"sampler": Sampler.POISSON, "rate": 0.25, "count": 10}),
        (
            WithoutReplacement(size=5, population=20),
            10,
            {"sampler": Sampler.WITHOUT_REPLACEMENT, "sample_size": 5, "population": 20, "count": 10},
        ),
        (Shuffled(size=6, population=20), 8, {"sampler": Sampler.FIXED, "count": 2}),
        (Shuffled(size=6, population=20), 9, {"sampler": Sampler.FIXED, "count": 3}),
        (Everyone(), 10, {"sampler": Sampler.ALL, "count": 10}),
    ],
)
def test_each_sampler_says_how_it_is_accounted(sampler: UnitSampler, steps: int, values: dict[str, object]) -> None:
    found = sampler.event_values(steps)
    assert found == values
    assert found["sampler"] is sampler.kind
    Event(
        kind=EventKind.GAUSSIAN, noise_multiplier=1.0, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE, **found
    )  # accepted


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(PlanError, match="expected a rate"):
        Poisson(rate=rate)


@pytest.mark.parametrize("kind", [WithoutReplacement, Shuffled])
def test_sizes_beyond_the_population_are_refused(kind: type[WithoutReplacement] | type[Shuffled]) -> None:
    for size in (0, 6):
        with pytest.raises(PlanError, match=f"found {size} of 5"):
            kind(size=size, population=5)
    with pytest.raises(PlanError, match="expected at most 5 units, the plan's population, found 6"):
        kind(size=2, population=5).draw(SOURCE, 0, 6)
