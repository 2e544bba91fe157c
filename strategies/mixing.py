"""What can be done to clients' vectors before a robust rule sees them: clipping, bucketing, nearest-neighbour mixing.

Robust rules take an honest client that differs for a hostile one. Where data differ from client to client, mixing makes
honest vectors alike first; clipping takes from long ones what a rule would have to fend off.
"""

from typing import Literal

import numpy as np

from cloister.flower import NDArray
from cloister.strategies.vectors import Need, admit, combined, distances, norms

Mixing = Literal["none", "bucketing", "nnm"]
BUCKET = 2
"""Vectors per bucket, the number that Karimireddy et al. recommend: f hostile ones spoil at most f buckets."""
Radius = Literal["none", "arc"] | float


def clip(vectors: NDArray, radius: float) -> NDArray:
    """Return every row shortened to an L2 norm of at most ``radius``, float64."""
    lengths = norms(vectors)
    factors = np.minimum(1.0, np.divide(radius, lengths, out=np.ones_like(lengths), where=lengths > 0))
    return np.asarray(vectors * factors[:, np.newaxis])


def arc_radius(vectors: NDArray, malicious: int) -> float:
    """Return the length of the (k+1)-th longest row with ``k = floor(2 (f / n) (n - f))``: adaptive robust clipping.

    Allouah et al., "Adaptive gradient clipping for robust federated learning", ICLR 2025, algorithm 2.
    """
    count = len(vectors)
    clipped = 2 * malicious * (count - malicious) // count
    return float(np.sort(norms(vectors))[::-1][clipped])


def bucketing(vectors: NDArray, generator: np.random.Generator) -> NDArray:
    """Return the means of random pairs of rows, float64 (ceil(n / 2), d); an odd row is a bucket of its own.

    Karimireddy, He and Jaggi, ICLR 2022, algorithm 1. At most f buckets hold a hostile row.
    """
    order = generator.permutation(len(vectors))
    buckets = -(-len(vectors) // BUCKET)
    weights = np.zeros((buckets, len(vectors)))
    weights[np.arange(len(vectors)) // BUCKET, order] = 1.0
    return combined(weights / weights.sum(axis=1, keepdims=True), vectors)


def nearest_neighbour_mixing(vectors: NDArray, malicious: int) -> NDArray:
    """Return every row replaced by the mean of the n - f rows nearest to it, itself among them, float64 (n, d).

    Allouah et al., AISTATS 2023, algorithm 2 (NNM).
    """
    kept = len(vectors) - malicious
    weights = np.zeros((len(vectors), len(vectors)))
    np.put_along_axis(weights, np.argsort(distances(vectors), axis=1, kind="stable")[:, :kept], 1.0 / kept, axis=1)
    return combined(weights, vectors)


def prepared(
    vectors: NDArray,
    malicious: int,
    *,
    radius: Radius,
    mixing: Mixing,
    generator: np.random.Generator,
) -> tuple[NDArray, int]:
    """Return the vectors that a rule is to see and how many of them may be hostile: dropped, clipped, mixed.

    ``radius``: of static clipping, or ``arc`` for :func:`arc_radius`. ``generator`` makes the buckets. Raises
    QuorumError as :func:`~cloister.strategies.vectors.admit` does: ``arc`` and ``nnm`` need an honest majority.
    """
    vectors, malicious = admit("mixing", _need(radius, mixing), vectors, malicious)
    if radius != "none":
        vectors = clip(vectors, arc_radius(vectors, malicious) if radius == "arc" else radius)
    if mixing == "bucketing":
        vectors = bucketing(vectors, generator)
    elif mixing == "nnm":
        vectors = nearest_neighbour_mixing(vectors, malicious)
    return vectors, malicious


def replies_for(vectors: int, malicious: int, *, radius: Radius, mixing: Mixing) -> int:
    """Return how many replies, of which f are hostile, clipping and mixing need to leave a rule ``vectors`` vectors."""
    replies = BUCKET * (vectors - 1) + 1 if mixing == "bucketing" else vectors
    return max(replies, _need(radius, mixing).of(malicious))


def _need(radius: Radius, mixing: Mixing) -> Need:
    return Need(2, 1) if radius == "arc" or mixing == "nnm" else Need(1, 1)
