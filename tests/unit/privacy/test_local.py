"""Local mechanisms: what they add, what they claim, and what they refuse."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloister.errors import PlanError
from cloister.privacy.events import EventKind, Relation, Sampler, Unit
from cloister.privacy.gaussian import exact_delta
from cloister.privacy.local import DiscreteLaplace, LocalGaussian, RandomisedResponse, noised_centres
from cloister.privacy.noise import NoiseSource

LIMIT = 1e-6  # keys are fixed: a p-value below this is a defect, not chance


@pytest.fixture
def noise() -> NoiseSource:
    return NoiseSource(bytes(range(32)))


@pytest.mark.parametrize(("relation", "std"), [(Relation.ADD_REMOVE, 3.0), (Relation.REPLACE_ONE, 6.0)])
def test_a_gaussian_is_clipped_and_noised_for_its_relation(noise: NoiseSource, relation: Relation, std: float) -> None:
    mechanism = LocalGaussian(bound=1.5, noise_multiplier=2.0, unit=Unit.CLIENT, relation=relation)
    value = np.zeros(50_000, np.float32)
    value[0] = 1e6
    released = mechanism.release(value, noise)
    assert mechanism.std == std
    assert stats.kstest(released[1:] / std, "norm").pvalue > LIMIT
    assert abs(released[0] - 1.5) < 6 * std


@pytest.mark.parametrize(("relation", "shift"), [(Relation.ADD_REMOVE, 1), (Relation.REPLACE_ONE, 2)])
def test_the_calibrated_gaussian_costs_its_epsilon_exactly(relation: Relation, shift: int) -> None:
    mechanism = LocalGaussian.calibrated(20.0, 1e-5, bound=3.0, unit=Unit.SUBJECT, relation=relation)
    # Neighbouring values are ``shift`` bounds apart; the hockey-stick divergence of the two Gaussians, integrated.
    z = np.linspace(-40, 40, 400_001)
    far, near = (stats.norm.pdf(z, shift * 3.0 * place, mechanism.std) for place in (1, 0))
    delta = np.trapezoid(np.maximum(far - math.exp(20.0) * near, 0), z)
    assert delta == pytest.approx(1e-5, rel=1e-3)
    event = mechanism.event()
    assert exact_delta(event.noise_multiplier, 20.0) == pytest.approx(1e-5)
    assert (event.kind, event.sampler, event.count) == (EventKind.GAUSSIAN, Sampler.ALL, 1)
    assert (event.unit, event.relation) == (Unit.SUBJECT, relation)


def test_a_value_that_is_not_finite_is_released_as_noise_alone(noise: NoiseSource) -> None:
    mechanism = LocalGaussian(bound=1e6, noise_multiplier=1e-6, unit=Unit.CLIENT, relation=Relation.ADD_REMOVE)
    for bad in (math.nan, math.inf):
        released = mechanism.release(np.array([1e5, bad]), noise)
        assert (np.abs(released) < 10).all()


@pytest.mark.parametrize("wrong", [{"bound": 0.0}, {"bound": math.inf}, {"noise_multiplier": 0.0}])
def test_a_gaussian_without_bound_or_noise_is_refused(wrong: dict[str, float]) -> None:
    values: dict[str, Any] = {"bound": 1.0, "noise_multiplier": 1.0, **wrong}
    with pytest.raises(PlanError, match=next(iter(wrong))):
        LocalGaussian(unit=Unit.CLIENT, relation=Relation.ADD_REMOVE, **values)


@pytest.mark.parametrize(("epsilon", "categories"), [(0.5, 2), (1.0, 4), (3.0, 10)])
def test_randomised_response_tells_each_answer_as_often_as_its_epsilon_allows(
    noise: NoiseSource, epsilon: float, categories: int
) -> None:
    mechanism = RandomisedResponse(epsilon=epsilon, categories=categories, unit=Unit.SUBJECT)
    weight = math.exp(epsilon)
    for answer in {0, categories // 2, categories - 1}:
        reports = mechanism.release(np.full(50_000, answer), noise)
        expected = np.full(categories, 1 / (weight + categories - 1))
        expected[answer] *= weight
        counts = np.bincount(reports, minlength=categories)
        assert counts.size == categories
        assert stats.chisquare(counts, 50_000 * expected).pvalue > LIMIT
    event = mechanism.event()
    assert (event.kind, event.epsilon, event.categories) == (EventKind.RANDOMISED_RESPONSE, epsilon, categories)
    assert event.relation is Relation.REPLACE_ONE


def test_the_histogram_of_reports_is_unbiased(noise: NoiseSource) -> None:
    mechanism = RandomisedResponse(epsilon=1.0, categories=5, unit=Unit.SUBJECT)
    truth = np.array([60_000, 25_000, 10_000, 5_000, 0])
    estimate = mechanism.histogram(mechanism.release(np.repeat(np.arange(5), truth), noise))
    false = (1 - mechanism.truth) / 4
    deviation = math.sqrt(100_000 * 0.25) / (mechanism.truth - false)  # at most, for each entry
    assert np.abs(estimate - truth).max() < 5 * deviation
    assert estimate.sum() == pytest.approx(100_000)
    # Exactly unbiased: fed with its own expectation, the estimate is the truth.
    expected = (100_000 - truth) * false + truth * mechanism.truth
    assert (expected - 100_000 * false) / (mechanism.truth - false) == pytest.approx(truth)


@given(epsilon=st.floats(1e-3, 30), categories=st.integers(2, 1000))
def test_the_ratio_of_probabilities_is_e_to_the_epsilon(epsilon: float, categories: int) -> None:
    truth = RandomisedResponse(epsilon=epsilon, categories=categories, unit=Unit.SUBJECT).truth
    assert math.log(truth * (categories - 1) / (1 - truth)) == pytest.approx(epsilon, rel=1e-2, abs=1e-9)


def test_answers_that_are_no_category_are_refused(noise: NoiseSource) -> None:
    mechanism = RandomisedResponse(epsilon=1.0, categories=3, unit=Unit.SUBJECT)
    assert mechanism.release(np.zeros(0, np.int64), noise).shape == (0,)
    for answers, problem in ((np.array([0, 3]), "from 0 to 2"), (np.array([-1]), "from 0"), (np.ones(2), "integers")):
        with pytest.raises(PlanError, match=f"expected answers to be {problem}"):
            mechanism.release(answers, noise)
    for epsilon, categories in ((0.0, 2), (math.inf, 2), (math.nan, 2), (1.0, 1)):
        with pytest.raises(PlanError, match="epsilon"):
            RandomisedResponse(epsilon=epsilon, categories=categories, unit=Unit.SUBJECT)


def test_discrete_laplace_adds_integers_of_the_promised_scale(noise: NoiseSource) -> None:
    mechanism = DiscreteLaplace(epsilon=0.5, sensitivity=3, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)
    assert mechanism.rate == (1, 6)
    values = np.arange(40_000).reshape(100, 400)
    released = mechanism.release(values, noise)
    assert released.shape == values.shape
    assert released.dtype == np.int64
    rate = math.exp(-1 / 6)
    assert (released - values).var() == pytest.approx(2 * rate / (1 - rate) ** 2, rel=5 * math.sqrt(5 / values.size))


@given(epsilon=st.floats(2.0**-20, 2.0**20), sensitivity=st.integers(1, 2**30))
def test_epsilon_is_never_rounded_up(epsilon: float, sensitivity: int) -> None:
    mechanism = DiscreteLaplace(epsilon=epsilon, sensitivity=sensitivity, unit=Unit.SUBJECT, relation=Relation.ZERO_OUT)
    numerator, denominator = mechanism.rate
    kept = mechanism.event().epsilon
    assert epsilon - 2.0**-20 < kept <= epsilon
    assert numerator * sensitivity == pytest.approx(kept * denominator)
    assert denominator <= 2**52


def test_one_integer_attains_the_epsilon_that_it_is_accounted_for(noise: NoiseSource) -> None:
    # Continuous Laplace noise attains it with probability 1/2 only, so accounting as that would be too cheap.
    mechanism = DiscreteLaplace(epsilon=1.0, sensitivity=1, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)
    above = int((mechanism.release(np.ones(100_000, np.int64), noise) >= 1).sum())
    truth = RandomisedResponse(epsilon=1.0, categories=2, unit=Unit.SUBJECT).truth
    assert stats.binomtest(above, 100_000, truth).pvalue > LIMIT
    event = mechanism.event()
    assert (event.kind, event.epsilon, event.categories) == (EventKind.RANDOMISED_RESPONSE, 1.0, 2)


def test_what_is_no_discrete_laplace_is_refused(noise: NoiseSource) -> None:
    values: dict[str, Any] = {"epsilon": 1.0, "sensitivity": 1, "unit": Unit.SUBJECT, "relation": Relation.ADD_REMOVE}
    for wrong in ({"epsilon": 0.0}, {"epsilon": math.nan}, {"sensitivity": 0}, {"sensitivity": 1.5}):
        with pytest.raises(PlanError, match=f"expected {next(iter(wrong))} to be"):
            DiscreteLaplace(**{**values, **wrong})
    with pytest.raises(PlanError, match="expected values to be integers, found float64"):
        DiscreteLaplace(**values).release(np.ones(2), noise)


# Noised class centres.

FEATURES = np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0], [0.0, 4.0], [1.0, 1.0]])
LABELS = np.array([0, 0, 2, 2, 2])
UNITS = np.array(["ann", "ann", "bob", "cat", "bob"])
SETTINGS: dict[str, Any] = {
    "classes": 4,
    "bound": 100.0,
    "contributions": 5,
    "noise_multiplier": 1.0,
    "count_multiplier": 1.0,
    "least": 1,
    "unit": Unit.SUBJECT,
    "relation": Relation.ADD_REMOVE,
}


class Silent:
    """In place of the noise: no noise, records in their order, and a note of the standard deviations asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, float]] = []

    def gaussian(self, shape: Any, std: float) -> np.ndarray:
        self.asked.append((shape, std))
        return np.zeros(shape)

    def permutation(self, n: int) -> np.ndarray:
        return np.arange(n)


def centres(
    noise: Any = None, features: Any = FEATURES, labels: Any = LABELS, units: Any = UNITS, **settings: Any
) -> Any:
    return noised_centres(features, labels, units, noise=noise or Silent(), **{**SETTINGS, **settings})


def test_without_noise_centres_are_the_means_of_the_classes_that_occur() -> None:
    found = centres()
    assert found.kept.tolist() == [0, 2]
    np.testing.assert_allclose(found.values, [[4.0, 0.0], [1 / 3, 7 / 3]], rtol=1e-6)
    assert (found.values.dtype, found.kept.dtype) == (np.float32, np.int64)


def test_a_unit_that_is_clipped_keeps_its_mean_and_loses_weight() -> None:
    # Ann's sum is (8, 0): clipped to norm 4 she counts half of her two records, and her class's mean is the same.
    found = centres(bound=4.0)
    np.testing.assert_allclose(found.values[0], [4.0, 0.0], rtol=1e-6)
    public = centres(bound=4.0, denominators=np.array([1.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(public.values[0], [4.0, 0.0], rtol=1e-6)  # the sum itself
    np.testing.assert_allclose(public.values[2], [1.0, 7.0], rtol=1e-6)  # bob and cat are within the bound


def test_a_unit_counts_with_so_many_records_of_a_class_and_no_more() -> None:
    found = centres(contributions=1, denominators=np.ones(4))
    np.testing.assert_allclose(found.values, [[3.0, 0.0], [0, 0], [0.0, 6.0], [0, 0]], rtol=1e-6)


def test_which_records_count_is_drawn_at_random() -> None:
    features = np.arange(10.0)[:, None]
    drawn = {
        round(float(centres(Quiet(key), features, np.zeros(10, int), np.zeros(10), contributions=1).values[0, 0]))
        for key in range(100)
    }
    assert drawn == set(range(10))


class Quiet(Silent):
    """No noise, but records in a random order."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self.source = NoiseSource(bytes([key]) * 32)

    def permutation(self, n: int) -> np.ndarray:
        return self.source.permutation(n)


@pytest.mark.parametrize(("relation", "spread"), [(Relation.ADD_REMOVE, 1.0), (Relation.REPLACE_ONE, 2.0)])
def test_every_class_gets_noise_scaled_to_its_sensitivity(relation: Relation, spread: float) -> None:
    silent = Silent()
    settings = {"bound": 3.0, "contributions": 2, "noise_multiplier": 0.7, "count_multiplier": 0.9}
    found = centres(silent, relation=relation, **settings)
    assert silent.asked == [((4, 2), pytest.approx(0.7 * 3.0 * spread)), (4, pytest.approx(0.9 * 2 * spread))]
    assert [event.noise_multiplier for event in found.events] == [0.7, 0.9]
    assert {(event.kind, event.count, event.unit, event.relation) for event in found.events} == {
        (EventKind.GAUSSIAN, 1, Unit.SUBJECT, relation)
    }


def test_public_denominators_save_the_second_event() -> None:
    silent = Silent()
    found = centres(silent, denominators=np.array([2.0, 2.0, 3.0, 1.0]), least=2, count_multiplier=0.0)
    assert len(silent.asked) == len(found.events) == 1
    assert found.kept.tolist() == [0, 1, 2]  # by public numbers, whoever is there


def test_a_client_without_records_releases_noise_of_the_same_kind() -> None:
    silent = Silent()
    found = centres(silent, np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int))
    assert [shape for shape, _ in silent.asked] == [(4, 2), 4]
    assert found.values.shape == (0, 2)
    assert len(found.events) == 2


def test_with_noise_empty_classes_can_be_kept_and_full_ones_dropped(noise: NoiseSource) -> None:
    kept = {tuple(centres(noise, count_multiplier=2.0, contributions=1).kept) for _ in range(50)}
    assert any(1 in each for each in kept)
    assert any(0 not in each for each in kept)


def test_noised_centres_are_normal_around_the_means(noise: NoiseSource) -> None:
    sums = np.stack([centres(noise, denominators=np.ones(4), bound=10.0).values for _ in range(5000)])
    expected = [[8, 0], [0, 0], [1, 7], [0, 0]]
    standard = (sums - expected) / 10.0
    assert stats.kstest(standard.ravel(), "norm").pvalue > LIMIT
    correlations = np.corrcoef(standard.reshape(5000, 8).T)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 6 / math.sqrt(5000)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_a_unit_with_a_value_that_is_not_finite_counts_as_absent(bad: float) -> None:
    features = FEATURES.copy()
    features[4, 0] = bad  # bob's second record
    without = UNITS != "bob"
    found, expected = centres(features=features), centres(None, FEATURES[without], LABELS[without], UNITS[without])
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.kept, expected.kept)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"features": FEATURES[0]}, "of shapes"),
        ({"units": UNITS[:2]}, "of shapes"),
        ({"labels": LABELS + 2}, "labels to be from 0 to 3"),
        ({"labels": LABELS - 1}, "labels to be from 0 to 3"),
        ({"labels": LABELS + 0.5}, "labels to be integers"),
        ({"bound": 0.0}, "bound to be a positive"),
        ({"bound": math.nan}, "bound to be a positive"),
        ({"contributions": 0}, "contributions, least to be"),
        ({"least": 0}, "contributions, least to be"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"count_multiplier": 0.0}, "noise_multiplier"),
        ({"denominators": np.ones(3)}, "denominators to be 4 finite numbers"),
        ({"denominators": np.array([1, 1, 1, np.nan])}, "denominators to be 4 finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(noise: NoiseSource, wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        centres(noise, **wrong)
