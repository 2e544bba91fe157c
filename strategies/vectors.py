"""Clients' changes as the rows of one matrix: which rows may count, and how far apart they are.

Nothing here trusts a row. One that holds a value which is not finite, or whose length no distance can be computed
from, is dropped and counted as one of the ``malicious`` clients that a rule was told of; more of them than that, or too
few rows that are left, end the aggregation instead of weakening what the rule promises.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from cloister.errors import ConfigError, QuorumError
from cloister.flower import NDArray

_LONGEST = 1e150
"""Beyond this L2 norm, squares of differences could overflow float64."""
_BLOCK = 1 << 20  # values in float64 at a time: rules run over large models without a second copy of all replies


class Need(NamedTuple):
    """The least number of vectors that a rule needs for ``f`` hostile ones among them: ``factor * f + more``."""

    factor: int
    more: int

    def of(self, malicious: int) -> int:
        """Return the number for this many hostile vectors."""
        return self.factor * malicious + self.more

    def __str__(self) -> str:
        return f"{self.factor}f + {self.more}" if self.factor > 1 else f"f + {self.more}"


def admit(rule: str, need: Need, vectors: NDArray, malicious: int) -> tuple[NDArray, int]:
    """Return the rows of ``vectors`` (n, d) that may count, and how many of those may still be hostile.

    Raises ConfigError for what is no matrix of floating-point rows or a negative number, QuorumError if more rows than
    ``malicious`` are not finite, or if fewer remain than ``need`` says.
    """
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or malicious < 0:
        raise ConfigError(
            f"rule {rule}: expected floating-point vectors of shape (n, d) and malicious >= 0, "
            f"found {vectors.dtype} of shape {vectors.shape} and {malicious}; stack one flattened change per client"
        )
    with np.errstate(all="ignore"):
        usable = norms(vectors) <= _LONGEST
    dropped = int((~usable).sum())
    if dropped > malicious:
        raise QuorumError(
            f"rule {rule}: expected at most malicious = {malicious} vectors that are not finite, found {dropped} of "
            f"{len(vectors)}; raise malicious, or find out why clients diverge"
        )
    rest = vectors if usable.all() else vectors[usable]
    check_number(rule, need, len(rest), malicious - dropped)
    return rest, malicious - dropped


def check_number(rule: str, need: Need, count: int, malicious: int) -> None:
    """Raise QuorumError if ``count`` vectors are too few for ``malicious`` hostile ones."""
    if count < need.of(malicious):
        raise QuorumError(
            f"rule {rule}: expected at least {need.of(malicious)} vectors for f = {malicious} ({need}), found {count}; "
            "ask more clients, or set a lower malicious if that is true"
        )


def norms(vectors: NDArray) -> NDArray:
    """Return the L2 norm of every row, float64 (n,)."""
    total = np.zeros(len(vectors))
    for _, block in blocks(vectors):
        total += np.einsum("ij,ij->i", block, block)
    return np.asarray(np.sqrt(total))


def distances(vectors: NDArray) -> NDArray:
    """Return the squared L2 distance of every pair of rows, float64 (n, n), zero on the diagonal.

    From differences, not from ``|x|^2 + |y|^2 - 2xy``, which has no digit left for small differences of long vectors.
    """
    total = np.zeros((len(vectors), len(vectors)))
    for _, block in blocks(vectors):
        rows = torch.from_numpy(block)
        total += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    return total


def distances_from(centre: NDArray, vectors: NDArray) -> NDArray:
    """Return the L2 distance of every row from ``centre`` (d,), float64 (n,)."""
    total = np.zeros(len(vectors))
    for columns, block in blocks(vectors):
        block -= centre[columns]
        total += np.einsum("ij,ij->i", block, block)
    return np.asarray(np.sqrt(total))


def products(vector: NDArray, vectors: NDArray) -> NDArray:
    """Return the inner product of every row with ``vector`` (d,), float64 (n,)."""
    total = np.zeros(len(vectors))
    for columns, block in blocks(vectors):
        total += block @ vector[columns].astype(np.float64)
    return total


def combined(weights: NDArray, vectors: NDArray) -> NDArray:
    """Return ``weights @ vectors``, float64: one vector for weights (n,), m of them for weights (m, n)."""
    result = np.empty((*weights.shape[:-1], vectors.shape[1]))
    for columns, block in blocks(vectors):
        result[..., columns] = weights @ block
    return result


def blocks(vectors: NDArray) -> Iterator[tuple[slice, NDArray]]:
    """Yield ranges of columns, each with a contiguous float64 copy that may be written to."""
    width = max(1, _BLOCK // max(1, len(vectors)))
    for start in range(0, vectors.shape[1], width):
        columns = slice(start, start + width)
        yield columns, np.array(vectors[:, columns], dtype=np.float64, order="C")
