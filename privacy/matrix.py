"""Matrix factorisation with Toeplitz matrices: how noise is correlated over rounds, what it costs and how well it does.

A run publishes every prefix sum of its rounds: the rows of ``A G``, with ``A`` the lower triangle of ones and ``G`` one
clipped sum per round. The mechanism factorises ``A = B C`` and publishes ``B (C G + Z)``, ``Z`` independent Gaussian
noise. That is the same as adding row t of ``C^-1 Z`` to the sum of round t: the noise of one round partly cancels
that of earlier ones, so prefix sums are far less noisy than under independent noise, at the same guarantee.

``C`` is a lower triangular Toeplitz matrix given by its first column ``c``; here ``c`` is never negative and never
increases, for which the sensitivity has a closed form.

Convention, used by :mod:`cloister.privacy.blt` and :mod:`cloister.privacy.tree` too: ``Z`` has standard deviation
``noise_multiplier * clip * sensitivity`` per coordinate, ``clip`` bounds the change that one unit makes to the sum of
one round, and ``sensitivity`` is that of ``C`` to all rounds of one unit. The whole run is then one Gaussian mechanism
with that noise multiplier.

Sources: Fichtenberger, Henzinger, Upadhyay, Constant matters, 2022 (arXiv 2202.11205); Choquette-Choo et al.,
(Amplified) banded matrix factorization, 2023 (arXiv 2306.08153); Kalinin and Lampert, Banded square root matrix
factorization, 2024 (arXiv 2405.13763).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloister.errors import PlanError

Vector = npt.NDArray[np.float64]
Draw = Callable[[], Vector]
Objective = Callable[[Vector], tuple[float, Vector]]


class Errors(NamedTuple):
    """Variance of the noise on a prefix sum, per variance of ``Z``: the largest over rounds, and the mean."""

    maximum: float
    mean: float


def optimal(rounds: int) -> Vector:
    """Return the column, of length ``rounds``, that is optimal for the largest error and one participation.

    ``C`` is the square root of ``A``: c_0 = 1, c_k = c_{k-1} (2k - 1) / (2k). Fichtenberger et al. 2022, section 3.
    """
    k = np.arange(1, rounds)
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


def inverse(column: Vector, rounds: int) -> Vector:
    """Return the first column of ``C^-1``, of length ``rounds``, for a column that zeros continue."""
    unit = np.zeros(rounds)
    unit[0] = 1.0
    return _divide(unit, column)


def sensitivity(column: Vector, *, rounds: int, separation: int, participations: int) -> float:
    """Return the L2 sensitivity of ``C`` to all rounds of one unit whose clip is 1.

    A unit takes part in at most ``participations`` of ``rounds`` rounds, with at least ``separation`` rounds from one
    to the next (1: in every round). Zeros continue the column. Exact: no pattern of participation does worse than
    the one that starts first and always returns as soon as it may (Kalinin and Lampert 2024, theorem 2).

    Raises :class:`PlanError` for a column that is negative or increases, for which this would be no bound, and for
    counts below 1.
    """
    check_participation(rounds=rounds, separation=separation, participations=participations)
    if not (np.isfinite(column).all() and (column >= 0).all() and (np.diff(column) <= 0).all() and column[0] > 0):
        raise PlanError(
            "matrix mechanism: expected a column that is nowhere negative and never increases, found another; "
            "its sensitivity has no closed form, so take another column"
        )
    return float(np.linalg.norm(_summed(column, rounds, separation, participations)))


def errors(column: Vector, rounds: int) -> Errors:
    """Return the largest and the mean error of the prefix sums, as variances per variance of ``Z``.

    Row t of ``B = A C^-1`` holds the first t entries of one sequence, so the last prefix sum is the noisiest.
    """
    squares = _divide(np.ones(rounds), column) ** 2
    return Errors(float(squares.sum()), float(squares @ _shares(rounds)))


def check_participation(*, rounds: int, separation: int, participations: int) -> None:
    """Raise :class:`PlanError` for counts that describe no pattern of participation."""
    for name, value in (("rounds", rounds), ("separation", separation), ("participations", participations)):
        if value < 1:
            raise PlanError(
                f"matrix mechanism: {name}: expected at least 1, found {value}; correct plan.rounds and plan.matrix"
            )


@dataclass(frozen=True)
class Banded:
    """A Toeplitz matrix of ``rounds`` rows whose column ends after ``len(column)`` entries.

    Its noise needs the outputs of the last ``len(column) - 1`` rounds. One band is independent noise.
    """

    rounds: int
    column: tuple[float, ...]

    @property
    def depth(self) -> int:
        """Vectors that the noise remembers."""
        return len(self.column) - 1

    def sensitivity(self, *, separation: int, participations: int) -> float:
        """Return what :func:`sensitivity` returns for this column."""
        return sensitivity(
            np.array(self.column), rounds=self.rounds, separation=separation, participations=participations
        )

    def errors(self) -> Errors:
        """Return what :func:`errors` returns for this column."""
        return errors(np.array(self.column), self.rounds)

    def step(self, memory: Vector, round: int, draw: Draw) -> Vector:
        """Return row ``round`` (from 0) of ``C^-1 Z`` and update ``memory`` (depth, size), the last outputs in a ring.

        x_t = (z_t - sum_j c_j x_{t-j}) / c_0, term by term in a fixed order, so that it is bit for bit repeatable.
        """
        noise = draw()
        for lag in range(1, min(self.depth, round) + 1):
            noise -= self.column[lag] * memory[(round - lag) % self.depth]
        noise /= self.column[0]
        if self.depth:
            memory[round % self.depth] = noise
        return noise


def banded(rounds: int, bands: int, *, separation: int, participations: int) -> Banded:
    """Return the column of ``bands`` entries with the least sensitivity^2 x mean error under this participation.

    Raises :class:`PlanError` when ``bands`` is not in 1 .. ``rounds``. Starts from the optimal column, cut off, and
    keeps every entry positive and below the one before it; deterministic. The objective is that of Choquette-Choo et
    al. 2023, section 4; best with as many bands as ``separation``, where the sensitivity does not see the cut.
    """
    check_participation(rounds=rounds, separation=separation, participations=participations)
    if not 1 <= bands <= rounds:
        raise PlanError(
            f"matrix mechanism: bands: expected 1 to {rounds} (the rounds), found {bands}; set plan.matrix.bands, "
            f"best to the separation, {separation}"
        )
    if bands == 1:
        return Banded(rounds, (1.0,))

    def column(logits: Vector) -> Vector:
        return np.concatenate([[1.0], np.cumprod((1 + np.tanh(logits / 2)) / 2)])

    def objective(logits: Vector) -> tuple[float, Vector]:
        c = column(logits)
        value, slope = loss(c, _shares(rounds), separation=separation, participations=participations)
        ahead = np.cumsum((slope * c)[::-1])[::-1][1:]
        return value, ahead * (1 - np.tanh(logits / 2)) / 2

    k = np.arange(1, bands)
    return Banded(rounds, tuple(column(minimise(objective, np.log(2.0 * k - 1))).tolist()))


def loss(column: Vector, weights: Vector, *, separation: int, participations: int) -> tuple[float, Vector]:
    """Return log(sensitivity^2 x error) and its gradient with respect to the column.

    ``weights`` (rounds): how much each squared entry of ``A C^-1`` counts; ones give the largest error.
    """
    rounds, length = len(weights), len(column)
    summed = _summed(column, rounds, separation, participations)
    steep = np.zeros(rounds)
    for index in range(_most(rounds, separation, participations)):
        steep[: rounds - index * separation] += summed[index * separation :]
    entries = _divide(np.ones(rounds), column)
    cost, error = float(summed @ summed), float(weights @ entries**2)
    # d entries / d c_j is minus (entries / c) shifted by j, so the gradient is a correlation of two sequences.
    spread = np.convolve((weights * entries)[::-1], _divide(entries, column))[:rounds][::-1]
    return math.log(cost * error), (2 * steep / cost - 2 * spread / error)[:length]


def minimise(objective: Objective, start: Vector) -> Vector:
    """Return where a smooth function is least, from ``start``, by L-BFGS in float64 on the CPU; deterministic."""
    import torch

    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    method = torch.optim.LBFGS(
        [point],
        max_iter=500,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> float:
        value, slope = objective(point.detach().numpy().copy())
        point.grad = torch.from_numpy(slope)
        return value

    method.step(evaluate)  # type: ignore[no-untyped-call]
    return point.detach().numpy().copy()


def _most(rounds: int, separation: int, participations: int) -> int:
    return min(participations, -(-rounds // separation))


def _summed(column: Vector, rounds: int, separation: int, participations: int) -> Vector:
    """Return the sum of the columns of ``C`` in which a unit takes part at worst."""
    summed = np.zeros(rounds)
    for start in range(0, _most(rounds, separation, participations) * separation, separation):
        length = min(len(column), rounds - start)
        summed[start : start + length] += column[:length]
    return summed


def _shares(rounds: int) -> Vector:
    """Return the share of the prefix sums in which entry i of ``A C^-1``'s column counts."""
    return np.arange(rounds, 0, -1) / rounds


def _divide(numerator: Vector, column: Vector) -> Vector:
    """Return ``x`` with ``C x = numerator``, by forward substitution; zeros continue the column."""
    result = np.zeros(len(numerator))
    backwards = column[1:][::-1].copy()
    for row, value in enumerate(numerator):
        reach = min(row, len(backwards))
        past = result[row - reach : row] @ backwards[len(backwards) - reach :]
        result[row] = (value - past) / column[0]
    return result
