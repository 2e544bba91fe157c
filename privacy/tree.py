"""Tree aggregation: each node of a binary tree over the rounds has its own noise; a prefix sum needs few nodes.

A prefix sum of t rounds is the sum of the complete subtrees into which t splits as a binary number. A complete subtree
is estimated from all nodes inside it (Honaker), which costs nothing more and nearly halves the variance of large ones.

Convention, that of :mod:`cloister.privacy.matrix`: each *node* has noise of standard deviation
``noise_multiplier * clip * sensitivity``, where ``sensitivity`` already counts the nodes that a unit's rounds are in:
sqrt(h) for one participation in a tree of h = ceil(lg(rounds + 1)) levels. Kairouz et al. write z for a node's standard
deviation divided by the clip alone: their z is ``noise_multiplier * sensitivity``, and their rho = h / (2 z^2) is
1 / (2 noise_multiplier^2). A unit that comes back after a restart is in h more nodes: their rho per epoch.

Sources: Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, Practical and private (deep) learning without sampling or
shuffling, 2021 (arXiv 2103.00039), sections 2 and 5 and appendix B; Honaker, Efficient use of differentially private
binary trees, 2015. Kairouz et al. complete a tree by virtual rounds before a restart; here it counts as it stands.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister.errors import PlanError
from cloister.privacy.matrix import Draw, Errors, Vector, check_participation


@dataclass(frozen=True)
class Tree:
    """Binary trees over ``rounds`` rounds, a new one every ``restart`` rounds (``rounds``: only one).

    ``honaker``: estimate a subtree from all of its nodes, and not from its top alone.
    """

    rounds: int
    restart: int
    honaker: bool = True

    def __post_init__(self) -> None:
        """Refuse trees without a round, with :class:`PlanError`."""
        if not 1 <= self.restart <= self.rounds:
            raise PlanError(
                f"tree aggregation: restart: expected 1 to {self.rounds} (the rounds), found {self.restart}; restart "
                "after as many rounds as the separation, or never"
            )

    @property
    def depth(self) -> int:
        """Vectors that the noise remembers: one per level."""
        return self.restart.bit_length()

    def sensitivity(self, *, separation: int, participations: int) -> float:
        """Return an upper bound of the L2 sensitivity of all nodes to all rounds of one unit whose clip is 1.

        Counts as in :func:`cloister.privacy.matrix.sensitivity`. On a level whose nodes span 2^l rounds, a unit with k
        participations is in one node at most m = min(k, ceil(2^l / separation)) times, and k times in all: no more
        than k m. Exact for one participation, and for trees that restart after ``separation`` rounds.
        """
        check_participation(rounds=self.rounds, separation=separation, participations=participations)
        most = min(participations, -(-self.rounds // separation))
        return math.sqrt(sum(most * min(most, -(-(1 << level) // separation)) for level in range(self.depth)))

    def errors(self) -> Errors:
        """Return the largest and the mean variance of the prefix sums, per variance of a node."""
        trees, inside = np.divmod(np.arange(1, self.rounds + 1), self.restart)
        variances = trees * self._variance(np.array([self.restart])) + self._variance(inside)
        return Errors(float(variances.max()), float(variances.mean()))

    def step(self, memory: Vector, round: int, draw: Draw) -> Vector:
        """Return what the noise of the prefix sum grows by in ``round`` (from 0), and update ``memory`` (levels, size).

        ``memory`` holds, by level, the estimated noise of the complete subtrees of the prefix so far; draws one vector
        per node that this round completes.
        """
        inside = round % self.restart
        estimate = draw()
        before = np.zeros_like(estimate)
        level = 0
        while inside >> level & 1:
            before += memory[level]
            below = memory[level] + estimate
            level += 1
            share = self._share(level)
            estimate = share * draw() + (1 - share) * below
        memory[level] = estimate
        return estimate - before

    def _share(self, level: int) -> float:
        """Return how much a node counts in its subtree's estimate, which is also that estimate's variance.

        The inverse variances of the node, 1, and of what its two children say, (2^l - 1) / 2^l, divide the weight.
        """
        return (1 << level) / ((2 << level) - 1) if self.honaker else 1.0

    def _variance(self, inside: npt.NDArray[np.int64]) -> Vector:
        """Return the variance of the sum of the first ``inside`` rounds of one tree."""
        present = inside[:, None] >> np.arange(self.depth) & 1
        variances: Vector = present @ np.array([self._share(level) for level in range(self.depth)])
        return variances
