"""Mechanisms that a client runs on its own small releases: scalars, histograms, embeddings, class centres.

A local mechanism protects one upload from everybody, the server included, so its noise does not average out before it
is seen: a model update of more than some ten thousand numbers needs an epsilon far above 10. Each mechanism is the one
place of its own noise and of the :class:`~cloister.privacy.events.Event` that accounts for it.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError
from cloister.privacy.clipping import clip_flat
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.gaussian import exact_noise_multiplier
from cloister.privacy.integers import discrete_laplace
from cloister.privacy.noise import NoiseSource


def spread(relation: Relation) -> float:
    """Return how far one unit moves a sum of contributions bounded by 1: 2 where it is replaced, else 1."""
    return 2.0 if relation is Relation.REPLACE_ONE else 1.0


@dataclass(frozen=True, kw_only=True)
class LocalGaussian:
    """One real vector, clipped in L2 norm and noised.

    ``bound``: L2 norm that a value is clipped to. ``noise_multiplier``: standard deviation of the noise divided by the
    sensitivity, which is ``bound``, or twice that under replace-one.

    Guarantee: one :meth:`release` is a Gaussian mechanism for ``unit`` under ``relation``, to one unit per value.
    Raises :class:`PlanError` for numbers that are not positive and finite. Source: Balle and Wang, ICML 2018.
    """

    bound: float
    noise_multiplier: float
    unit: Unit
    relation: Relation

    def __post_init__(self) -> None:
        """Refuse numbers that no mechanism has."""
        _require(self.bound > 0 and math.isfinite(self.bound), "bound", "a positive, finite number", self.bound)
        self.event()

    @classmethod
    def calibrated(cls, epsilon: float, delta: float, *, bound: float, unit: Unit, relation: Relation) -> Self:
        """Return the mechanism with the least noise of which one release costs ``epsilon`` at ``delta``, exactly."""
        multiplier = exact_noise_multiplier(epsilon, delta)
        return cls(bound=bound, noise_multiplier=multiplier, unit=unit, relation=relation)

    @property
    def std(self) -> float:
        """Standard deviation of the noise on each entry."""
        return self.noise_multiplier * self.bound * spread(self.relation)

    def release(self, value: NDArray[Any], noise: NoiseSource) -> NDArray[np.float64]:
        """Return the clipped value plus noise, in the value's shape; of a value that is not finite, the noise alone."""
        clipped = clip_flat({"value": np.asarray(value, np.float64)}, self.bound).values["value"]
        released: NDArray[np.float64] = clipped + noise.gaussian(clipped.shape, self.std)
        return released

    def event(self) -> Event:
        """Return what one release costs."""
        return _gaussian_event(self.noise_multiplier, self.unit, self.relation)


@dataclass(frozen=True, kw_only=True)
class RandomisedResponse:
    """One of ``categories`` answers, told truly with probability e^epsilon / (e^epsilon + categories - 1).

    Otherwise each of the others is told with the same probability.

    Guarantee: each report is epsilon-private for ``unit`` under replace-one, whatever the answer was.
    Raises :class:`PlanError` unless epsilon is positive and finite and there are at least 2 categories.
    Source: Kairouz, Bonawitz and Ramage 2016, "Discrete Distribution Estimation under Local Privacy", arXiv 1602.07387.
    """

    epsilon: float
    categories: int
    unit: Unit

    def __post_init__(self) -> None:
        """Refuse numbers that no mechanism has."""
        _require(math.isfinite(self.epsilon), "epsilon", "a finite number", self.epsilon)
        self.event()

    @property
    def truth(self) -> float:
        """Probability that the true answer is told."""
        return 1 / (1 + (self.categories - 1) * math.exp(-self.epsilon))

    def release(self, answers: NDArray[np.integer[Any]], noise: NoiseSource) -> NDArray[np.int64]:
        """Return a report for each answer (integers 0 to ``categories - 1``); :class:`PlanError` for other answers."""
        answers = _integers("answers", answers)
        inside = not answers.size or (answers.min() >= 0 and answers.max() < self.categories)
        _require(inside, "answers", f"from 0 to {self.categories - 1}", "others")
        true = noise.bernoulli(max(self.truth - 2.0**-52, 0.0), answers.size)  # never more often than promised
        other = noise.integers(self.categories - 1, answers.size)
        return np.where(true, answers, other + (other >= answers))

    def histogram(self, reports: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Return how many people had each answer, estimated without bias; entries can be negative."""
        false = (1 - self.truth) / (self.categories - 1)
        counts = np.bincount(_integers("reports", reports), minlength=self.categories)
        return (counts - len(reports) * false) / np.float64(self.truth - false)

    def event(self) -> Event:
        """Return what one report costs."""
        return _response_event(self.epsilon, self.categories, self.unit, Relation.REPLACE_ONE)


@dataclass(frozen=True, kw_only=True)
class DiscreteLaplace:
    """Integers plus integer noise of probability proportional to exp(-|y| epsilon / sensitivity).

    ``sensitivity``: the most that one unit changes the integers in L1 norm, which the caller has seen to.
    ``epsilon`` is rounded down to a multiple of 2^-20; from there on nothing is rounded, so no floating-point value
    tells anything.

    Guarantee: each release is epsilon-private for ``unit`` under ``relation``. It is accounted for as binary randomised
    response, the worst mechanism of that epsilon: unlike continuous Laplace noise, integer noise attains it.
    Raises :class:`PlanError` for an epsilon below 2^-20 or a sensitivity that is not from 1 to 2^30.
    Source: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy", arXiv 2004.00010,
    algorithms 1 and 2.
    """

    epsilon: float
    sensitivity: int
    unit: Unit
    relation: Relation

    def __post_init__(self) -> None:
        """Refuse numbers that no mechanism has."""
        _require(2.0**-20 <= self.epsilon <= 2.0**20, "epsilon", "from 2^-20 to 2^20", self.epsilon)
        fits = isinstance(self.sensitivity, int) and 1 <= self.sensitivity <= 1 << 30
        _require(fits, "sensitivity", "an integer from 1 to 2^30", self.sensitivity)

    @property
    def rate(self) -> tuple[int, int]:
        """Numerator and denominator of epsilon / sensitivity, in lowest terms."""
        steps, scale = int(self.epsilon * (1 << 20)), self.sensitivity << 20
        common = math.gcd(steps, scale)
        return steps // common, scale // common

    def release(self, values: NDArray[np.integer[Any]], noise: NoiseSource) -> NDArray[np.int64]:
        """Return the integers plus noise, in their shape; raises :class:`PlanError` for values of another type."""
        values = _integers("values", values)
        return values + discrete_laplace(*self.rate, values.size, noise).reshape(values.shape)

    def event(self) -> Event:
        """Return what one release costs."""
        return _response_event(int(self.epsilon * (1 << 20)) / (1 << 20), 2, self.unit, self.relation)


@dataclass(frozen=True)
class NoisedCentres:
    """Noised class centres: row i of ``values`` (float32, [k, d]) belongs to class ``kept[i]`` (int64, ascending).

    ``events``: what the release costs, whichever classes were kept.
    """

    values: NDArray[np.float32]
    kept: NDArray[np.int64]
    events: tuple[Event, ...]


def noised_centres(
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    units: NDArray[Any],
    *,
    classes: int,
    bound: float,
    contributions: int,
    noise_multiplier: float,
    count_multiplier: float,
    denominators: NDArray[np.floating[Any]] | None = None,
    least: float,
    unit: Unit,
    relation: Relation,
    noise: NoiseSource,
) -> NoisedCentres:
    """Return the mean feature of each class, in which no unit can be recognised.

    ``features`` [n, d], ``labels`` [n] in 0 to ``classes - 1``, ``units`` [n]: whose records they are.
    A unit counts with at most ``contributions`` of its records in a class, drawn at random. One weight from 0 to 1
    for all of these makes the norm of its sums (over all classes and entries) at most ``bound`` and that of its counts
    (over all classes) at most ``contributions``: it scales both, so that a centre stays a weighted mean of features.
    Every class gets noise, also one without records, since which classes a client holds is itself private:
    N(0, (noise_multiplier bound)^2) on each entry of the sums, N(0, (count_multiplier contributions)^2) on each count,
    both doubled in standard deviation under replace-one. Classes whose noised count is below ``least`` are dropped.
    ``denominators`` [classes]: public numbers in place of the counts, which are then not released, and
    ``count_multiplier`` is not used.

    Guarantee: the sums move by at most ``bound`` in L2 norm and the counts by at most ``contributions`` when all
    records of one unit are added or removed, and by twice that when they are replaced; ``events`` holds one Gaussian
    event for each. Dropping and dividing cost nothing more. A unit with a feature that is not finite counts as absent.
    Raises :class:`PlanError` for shapes, types, labels and numbers that do not fit.
    """
    features, labels = _checked(features, labels, units, classes, denominators)
    _require(bound > 0 and math.isfinite(bound), "bound", "a positive, finite number", bound)
    _require(contributions >= 1 and least > 0, "contributions, least", "at least 1, above 0", (contributions, least))
    events = [_gaussian_event(noise_multiplier, unit, relation)]
    order = noise.permutation(len(labels))
    parts = (features[order], labels[order], np.asarray(units)[order])
    sums, counts = bounded_sums(*parts, classes=classes, bound=bound, contributions=contributions)
    sums += noise.gaussian(sums.shape, noise_multiplier * bound * spread(relation))
    if denominators is None:
        events.append(_gaussian_event(count_multiplier, unit, relation))
        counts += noise.gaussian(classes, count_multiplier * contributions * spread(relation))
    else:
        counts = np.asarray(denominators, np.float64)
    kept = np.flatnonzero(counts >= least)
    return NoisedCentres((sums[kept] / counts[kept, None]).astype(np.float32), kept, tuple(events))


def bounded_sums(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    units: NDArray[Any],
    *,
    classes: int,
    bound: float,
    contributions: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum [classes, d] and the count [classes] of the records, each unit's part weighted into its bounds.

    As :func:`noised_centres` describes it, without noise: never release them. Of a unit's records in one class, the
    first ``contributions`` count.

    Guarantee: all records of one unit together add at most ``bound`` to the sums and at most ``contributions`` to the
    counts, each in L2 norm, and change nothing about the parts of others.
    """
    names, unit = np.unique(units, return_inverse=True)
    order = np.argsort(unit * classes + labels, kind="stable")  # a part: one unit's records of one class
    part, start, size = np.unique((unit * classes + labels)[order], return_index=True, return_counts=True)
    chosen = np.arange(len(order)) - np.repeat(start, size) < contributions
    sums = np.zeros((len(part), features.shape[1]))
    with np.errstate(all="ignore"):
        np.add.at(sums, np.repeat(np.arange(len(part)), size)[chosen], features[order[chosen]])
        counts = np.minimum(size, contributions).astype(np.float64)
        owner, label = part // classes, part % classes
        length = np.sqrt(np.bincount(owner, (sums**2).sum(1), len(names)))
        many = np.sqrt(np.bincount(owner, counts**2, len(names)))
        weight = np.minimum(1.0, np.minimum(bound / length, contributions / many))
    weight[~np.isfinite(length)] = 0.0
    sums[weight[owner] == 0] = 0.0  # what is not finite, times 0, is not 0
    total, number = np.zeros((classes, features.shape[1])), np.zeros(classes)
    np.add.at(total, label, sums * weight[owner, None])
    np.add.at(number, label, counts * weight[owner])
    return total, number


def _checked(
    features: NDArray[Any],
    labels: NDArray[Any],
    units: NDArray[Any],
    classes: int,
    denominators: NDArray[Any] | None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    features, labels = np.asarray(features), _integers("labels", labels)
    fits = features.ndim == 2 and labels.shape == np.shape(units) == features.shape[:1]
    shapes = (features.shape, labels.shape, np.shape(units))
    _require(fits, "features, labels, units", "of shapes (n, d), (n,), (n,)", shapes)
    inside = not labels.size or (labels.min() >= 0 and labels.max() < classes)
    _require(inside, "labels", f"from 0 to {classes - 1}", "others")
    public = denominators is None or (np.shape(denominators) == (classes,) and np.isfinite(denominators).all())
    _require(public, "denominators", f"{classes} finite numbers, one for each class", denominators)
    return features.astype(np.float64), labels


def _integers(name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    values = np.asarray(values)
    _require(values.dtype.kind in "iu", name, "integers", values.dtype)
    return values.astype(np.int64)


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise PlanError(f"local mechanism: expected {name} to be {expected}, found {found}")


def _gaussian_event(noise_multiplier: float, unit: Unit, relation: Relation) -> Event:
    return Event(kind=EventKind.GAUSSIAN, noise_multiplier=noise_multiplier, unit=unit, relation=relation)


def _response_event(epsilon: float, categories: int, unit: Unit, relation: Relation) -> Event:
    return Event(
        kind=EventKind.RANDOMISED_RESPONSE, epsilon=epsilon, categories=categories, unit=unit, relation=relation
    )
