"""One-shot canary clients: random directions added to a run, and looked for in what the run releases.

Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar, ICLR 2024 (One-shot empirical privacy estimation for federated
learning). A canary client sends a random unit vector times the clip bound, the most that one client can contribute.
In d dimensions random directions are almost orthogonal, so hundreds fit into one run, and the cosine of an unused
direction with any release is N(0, 1/d): two Gaussians, told apart as well as the mechanism's noise allows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import AuditError
from cloister.privacy.audits.bounds import (
    Scores,
    auc,
    gaussian_epsilon,
    gaussian_epsilon_lower_bound,
    tpr_at_fpr,
)
from cloister.privacy.audits.result import AuditResult, judge
from cloister.privacy.events import Unit

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """``count`` canary directions and ``unused`` others to compare them with, in a model of ``size`` parameters.

    Directions are made from ``seed`` when needed and never held: memory is that of one model, whatever the count.
    Raises :class:`AuditError` for fewer than 8 of either, too few to fit a Gaussian to.
    """

    seed: int
    size: int
    count: int
    unused: int

    def __post_init__(self) -> None:
        """Refuse numbers from which no deviation can be estimated."""
        if min(self.count, self.unused) < 8 or self.size < 2:
            raise AuditError(
                f"canaries: expected at least 8 used and 8 unused directions in 2 dimensions or more, found "
                f"{self.count}, {self.unused} and {self.size}"
            )

    def direction(self, index: int) -> Vector:
        """Return unit vector ``index``, float32 ``[size]``: below ``count`` a canary's, from there on unused ones."""
        draws = np.random.default_rng([self.seed, index]).standard_normal(self.size, dtype=np.float32)
        unit: Vector = draws / np.float32(np.linalg.norm(draws))
        return unit

    def update(self, index: int, bound: float) -> Vector:
        """Return what canary client ``index`` sends: its direction times the clip bound."""
        if not 0 <= index < self.count:
            raise AuditError(f"canaries: expected a canary below {self.count}, found {index}; it is not one in use")
        return self.direction(index) * np.float32(bound)

    def updates(self, bound: float) -> Iterator[Vector]:
        """Yield every canary's update in turn."""
        return (self.update(index, bound) for index in range(self.count))

    def cosines(self, change: NDArray[np.floating[Any]]) -> Scores:
        """Return the cosine of every direction with ``change`` ``[size]``, float64 ``[count + unused]``.

        ``change``: what was released, the difference of two models. Raises :class:`AuditError` if it has another
        size, is zero, or is not finite.
        """
        norm = float(np.linalg.norm(change.astype(np.float64)))
        if change.shape != (self.size,) or not math.isfinite(norm) or norm == 0:
            raise AuditError(
                f"canaries: expected a finite change of {self.size} parameters that is not zero, found shape "
                f"{change.shape} and norm {norm}; audit a run that released something"
            )
        unit = (change / norm).astype(np.float32)
        return np.array([float(self.direction(index) @ unit) for index in range(self.count + self.unused)])


class CanaryWatch:
    """Cosines over the rounds of one run: the final model's, and each direction's maximum over the rounds.

    Memory: one model and two numbers per direction.
    """

    def __init__(self, canaries: Canaries, start: NDArray[np.floating[Any]]) -> None:
        self.canaries = canaries
        self._start = self._last = start
        self.rounds = 0
        self.most: Scores = np.full(canaries.count + canaries.unused, -np.inf)

    def see(self, model: NDArray[np.floating[Any]]) -> None:
        """Take in the global model after one more round, parameters flat ``[size]``."""
        if (model != self._last).any():  # a void round releases nothing
            self.most = np.maximum(self.most, self.canaries.cosines(model - self._last))
        self._last = model
        self.rounds += 1

    def final(self) -> Scores:
        """Return the cosines with the whole run's change, what somebody sees who gets the last model only."""
        return self.canaries.cosines(self._last - self._start)


def flatten(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Vector:
    """Return the named arrays as one float32 vector, in the order of ``names``."""
    return np.concatenate([np.asarray(arrays[name], dtype=np.float32).ravel() for name in names])


def unflatten(vector: Vector, like: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return ``vector`` cut into arrays of the shapes and types of ``like``, the inverse of :func:`flatten`."""
    ends = np.cumsum([like[name].size for name in names])
    parts = np.split(vector, ends[:-1])
    return {
        name: part.reshape(like[name].shape).astype(like[name].dtype) for name, part in zip(names, parts, strict=True)
    }


def audit_canaries(
    canaries: Canaries,
    scores: Scores,
    *,
    delta: float,
    claimed: float | None,
    statistic: str = "cosine of a canary's update with the final model change",
    confidence: float = 0.95,
) -> AuditResult:
    """Judge the scores of all directions, ``[count + unused]`` as :meth:`Canaries.cosines` orders them.

    ``epsilon`` is the lower confidence limit. ``numbers["estimate"]`` is the point estimate, as often above as below
    the truth and therefore never judged by; it takes one deviation for both worlds, as additive noise has, because at
    small deltas the difference of two estimated ones would count for more than the means. Without a claim the audit
    passes.
    """
    used, unused = scores[: canaries.count], scores[canaries.count :]
    centred = used - unused.mean()
    epsilon = gaussian_epsilon_lower_bound(used, unused, delta=delta, confidence=confidence)
    passed, text = judge(epsilon, claimed)
    std_in, std_out = float(used.std(ddof=1)), float(unused.std(ddof=1))
    freedom = (canaries.count - 1, canaries.unused - 1)
    pooled = math.sqrt((freedom[0] * std_in**2 + freedom[1] * std_out**2) / sum(freedom))
    return AuditResult(
        name="canary-clients",
        unit=Unit.CLIENT,
        statistic=statistic,
        epsilon=epsilon,
        delta=delta,
        confidence=confidence,
        claimed=claimed,
        passed=passed,
        tpr_at_fpr={str(rate): tpr_at_fpr(used, unused, rate) for rate in (0.001, 0.01)},
        numbers={
            "estimate": gaussian_epsilon(float(centred.mean()), pooled, pooled, delta),
            "mean": float(centred.mean()),
            "std-used": std_in,
            "std-unused": std_out,
            "std-expected": 1 / math.sqrt(canaries.size),
            "auc": auc(used, unused),
            "canaries": float(canaries.count),
        },
        text=f"{canaries.count} canary clients against {canaries.unused} unused directions. {text}",
    )
