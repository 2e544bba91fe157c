"""Buffered linear Toeplitz matrices: nearly the least error of any factorisation, with two to four vectors of memory.

The first column of ``C`` is a sum of geometric sequences: c_0 = 1, c_i = sum_j s_j d_j^(i-1), with 0 <= d_j < 1,
s_j >= 0 and sum_j s_j <= 1, so that it is nowhere negative and never increases. One buffer per sequence holds what
``C^-1`` needs of the past, however long it is. Conventions are those of :mod:`cloister.privacy.matrix`.

Sources: Dvijotham, McMahan, Pillutla, Steinke, Thakurta, Efficient and near-optimal noise generation for streaming
differential privacy, 2024 (arXiv 2404.16706), section 4; McMahan, Xu, Zhang, A hassle-free algorithm for strong
differential privacy in federated learning systems, 2024 (arXiv 2408.08868), for several participations.
"""

from dataclasses import dataclass

import numpy as np

from cloister.errors import PlanError
from cloister.privacy.matrix import (
    Draw,
    Errors,
    Vector,
    check_participation,
    errors,
    loss,
    minimise,
    sensitivity,
)

_MOST_BUFFERS = 8


@dataclass(frozen=True)
class Buffered:
    """A buffered linear Toeplitz matrix of ``rounds`` rows: ``scales`` s_j and ``decays`` d_j, one per buffer."""

    rounds: int
    scales: tuple[float, ...]
    decays: tuple[float, ...]

    @property
    def depth(self) -> int:
        """Vectors that the noise remembers."""
        return len(self.scales)

    def column(self) -> Vector:
        """Return the first column of ``C``, of length ``rounds``."""
        geometric = np.array(self.decays)[:, None] ** np.arange(self.rounds - 1)
        return np.concatenate([[1.0], np.array(self.scales) @ geometric])

    def sensitivity(self, *, separation: int, participations: int) -> float:
        """Return what :func:`cloister.privacy.matrix.sensitivity` returns for this column."""
        return sensitivity(self.column(), rounds=self.rounds, separation=separation, participations=participations)

    def errors(self) -> Errors:
        """Return what :func:`cloister.privacy.matrix.errors` returns for this column."""
        return errors(self.column(), self.rounds)

    def step(self, memory: Vector, round: int, draw: Draw) -> Vector:
        """Return row ``round`` of ``C^-1 Z`` and update ``memory`` (buffers, size), which starts with zeros.

        x = z - sum_j s_j m_j ; m_j = d_j m_j + x. Dvijotham et al. 2024, algorithm 1.
        """
        noise = draw()
        for scale, buffer in zip(self.scales, memory, strict=True):
            noise -= scale * buffer
        for decay, buffer in zip(self.decays, memory, strict=True):
            buffer *= decay
            buffer += noise
        return noise


def buffered(rounds: int, buffers: int, *, separation: int, participations: int) -> Buffered:
    """Return the matrix with ``buffers`` buffers of least sensitivity^2 x largest error under this participation.

    Two to four buffers come within a few per cent of the best Toeplitz matrix. Deterministic.

    Raises :class:`PlanError` for a number of buffers out of range.
    """
    check_participation(rounds=rounds, separation=separation, participations=participations)
    if not 1 <= buffers <= _MOST_BUFFERS:
        raise PlanError(
            f"matrix mechanism: buffers: expected 1 to {_MOST_BUFFERS}, found {buffers}; set plan.matrix.buffers, "
            "2 to 4 are enough"
        )

    powers = np.arange(rounds - 1)

    def positive(point: Vector) -> Vector:
        return np.exp(np.clip(point, -30.0, 30.0))  # a buffer that is of no use goes to an end

    def objective(point: Vector) -> tuple[float, Vector]:
        shares, rates = np.split(positive(point), 2)
        total = 1 + shares.sum()
        scales, geometric = shares / total, np.exp(-rates[:, None] * powers)
        column = np.concatenate([[1.0], scales @ geometric])
        value, slope = loss(column, np.ones(rounds), separation=separation, participations=participations)
        by_scale = geometric @ slope[1:]
        by_rate = -scales * (geometric @ (powers * slope[1:]))
        return value, np.concatenate([scales * (by_scale - by_scale @ scales), rates * by_rate])

    # 1/sqrt(i), the optimal column's shape, is an integral of geometric sequences whose scales go as sqrt(rate).
    rates = np.geomspace(2 / rounds, 1.0, buffers) if buffers > 1 else np.array([1 / np.sqrt(rounds)])
    scales = 0.5 * np.sqrt(rates) / np.sqrt(rates).sum()
    shares, rates = np.split(positive(minimise(objective, np.log(np.concatenate([2 * scales, rates])))), 2)
    scales = shares / (1 + shares.sum())
    return Buffered(rounds, tuple(scales.tolist()), tuple(np.exp(-rates).tolist()))
