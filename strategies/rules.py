"""Rules that make one vector of n clients' vectors, of which f are hostile, as pure functions.

``vectors`` is a matrix (n, d) of floating-point rows, ``malicious`` is f; what comes back is float64 (d,). No rule
takes a weight from a client: what a hostile client claims about itself moves nothing. The order of rows matters only
between rows with equal scores. Rows that are not finite are dropped, see :func:`cloister.strategies.vectors.admit`,
which also says what all rules raise. ``NEEDS`` holds the least n of every rule, as the papers ask for it.

Coordinate arithmetic is Flower's or NumPy's. Flower's Krum, Multi-Krum and Bulyan are not used: they compute distances
by ``|x|^2 + |y|^2 - 2xy`` in the model's precision, take the first of the sorted distances for that to oneself, run on
fewer replies than the papers ask for, and weigh whom they selected by the examples which those claim to have.
"""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

from cloister.errors import ConfigError
from cloister.flower import NDArray
from cloister.strategies.vectors import (
    Need,
    admit,
    blocks,
    check_number,
    combined,
    distances,
    distances_from,
    norms,
    products,
)

NEEDS: Mapping[str, Need] = {
    "mean": Need(1, 1),
    "fedmedian": Need(2, 1),
    "fedtrimmedavg": Need(2, 1),
    "meamed": Need(2, 1),
    "krum": Need(2, 3),
    "multikrum": Need(2, 3),
    "bulyan": Need(4, 3),
    "geometric-median": Need(2, 1),
    "centred-clipping": Need(2, 1),
    "fltrust": Need(1, 1),
}
"""By the name of the strategy. One hostile vector moves a mean anywhere; it is here to be compared with."""


def mean(vectors: NDArray, malicious: int = 0) -> NDArray:
    """Return the mean of all finite rows."""
    vectors, _ = admit("mean", NEEDS["mean"], vectors, malicious)
    return _average(vectors)


def median(vectors: NDArray, malicious: int) -> NDArray:
    """Return the coordinate-wise median (Yin et al., ICML 2018)."""
    vectors, _ = admit("fedmedian", NEEDS["fedmedian"], vectors, malicious)
    return _by_block(lambda block: np.median(block, axis=0), vectors)


def trimmed_mean(vectors: NDArray, malicious: int) -> NDArray:
    """Return the coordinate-wise mean without the f lowest and the f highest values (Yin et al., ICML 2018)."""
    vectors, malicious = admit("fedtrimmedavg", NEEDS["fedtrimmedavg"], vectors, malicious)
    # Flower cuts int(share * n) values: a quarter more than f leaves rounding no way to cut f - 1.
    share = (malicious + 0.25) / len(vectors) if malicious else 0.0
    return _by_block(lambda block: trim_mean(block, share), vectors)


def mean_around_median(vectors: NDArray, malicious: int) -> NDArray:
    """Return, for each coordinate, the mean of the n - f values nearest to the median: MeaMed (Xie et al., 2018)."""
    vectors, malicious = admit("meamed", NEEDS["meamed"], vectors, malicious)
    return _around_median(vectors, len(vectors) - malicious)


def krum_scores(vectors: NDArray, malicious: int) -> NDArray:
    """Return, for each row, the sum of squared distances to its n - f - 2 nearest others, float64 (n,).

    Blanchard et al., NeurIPS 2017, section 4. All rows must be finite.
    """
    return _scores(distances(vectors), len(vectors) - malicious - 2)


def krum(vectors: NDArray, malicious: int) -> NDArray:
    """Return the row with the lowest Krum score, the first of several (Blanchard et al., NeurIPS 2017)."""
    vectors, malicious = admit("krum", NEEDS["krum"], vectors, malicious)
    return np.array(vectors[np.argmin(krum_scores(vectors, malicious))], dtype=np.float64)


def multi_krum(vectors: NDArray, malicious: int, *, selected: int) -> NDArray:
    """Return the mean of the ``selected`` rows with the lowest Krum scores, at most n - f (Blanchard et al., 2017)."""
    vectors, malicious = admit("multikrum", NEEDS["multikrum"], vectors, malicious)
    check_number("multikrum", Need(1, selected), len(vectors), malicious)
    order = np.argsort(krum_scores(vectors, malicious), kind="stable")
    return _average(vectors[np.sort(order[:selected])])


def bulyan(vectors: NDArray, malicious: int) -> NDArray:
    """Return, for each coordinate, the mean of the n - 4f values nearest to the median of n - 2f that Krum selects.

    Krum selects one row at a time and is run again on those that are left (El Mhamdi, Guerraoui and Rouault, ICML 2018,
    section 4; Flower's takes all from the scores of the first run). The last runs have fewer rows than Krum's own bound
    asks for, which the paper accounts for, and look at one neighbour at least.
    """
    vectors, malicious = admit("bulyan", NEEDS["bulyan"], vectors, malicious)
    between = distances(vectors)
    left, chosen = list(range(len(vectors))), list[int]()
    while len(chosen) < len(vectors) - 2 * malicious:
        scores = _scores(between[np.ix_(left, left)], max(1, len(left) - malicious - 2))
        chosen.append(left.pop(int(np.argmin(scores))))
    return _around_median(vectors[np.sort(chosen)], len(vectors) - 4 * malicious)


def geometric_median(vectors: NDArray, malicious: int, *, steps: int = 8, smoothing: float = 1e-6) -> NDArray:
    """Return the geometric median by smoothed Weiszfeld steps: RFA (Pillutla, Kakade and Harchaoui, 2022).

    Each step is ``z <- sum_i w_i x_i / sum_i w_i`` with ``w_i = 1 / max(smoothing, |z - x_i|)``. It starts from the
    coordinate-wise median: from the mean, which one long vector moves anywhere, no fixed number of steps comes back.
    """
    vectors, malicious = admit("geometric-median", NEEDS["geometric-median"], vectors, malicious)
    centre = median(vectors, malicious)
    for _ in range(steps):
        weights = 1.0 / np.maximum(smoothing, distances_from(centre, vectors))
        centre = combined(weights / weights.sum(), vectors)
    return centre


def centred_clipping(vectors: NDArray, malicious: int, *, centre: NDArray, radius: float, steps: int = 1) -> NDArray:
    """Return ``centre`` (d,) after ``v <- v + mean_i (x_i - v) min(1, radius / |x_i - v|)``, ``steps`` times.

    ``centre`` is the previous aggregate (Karimireddy, He and Jaggi, ICML 2021, equation 3). One step moves it by
    ``radius`` at most, whatever clients send.
    """
    vectors, _ = admit("centred-clipping", NEEDS["centred-clipping"], vectors, malicious)
    centre = centre.astype(np.float64)
    for _ in range(steps):
        shares = _shrink(distances_from(centre, vectors), radius) / len(vectors)
        centre = centre * (1.0 - shares.sum()) + combined(shares, vectors)
    return centre


def fltrust(vectors: NDArray, malicious: int, *, root: NDArray) -> NDArray:
    """Return ``sum_i t_i (|g| / |x_i|) x_i / sum_i t_i`` with trust ``t_i = max(0, cos(x_i, g))``, g = ``root`` (d,).

    ``root`` is the change that training on a small clean set of data makes (Cao et al., NDSS 2021, section IV). The
    result is never longer than it, and zero where nobody is trusted.
    """
    if root.shape != vectors.shape[1:] or not np.isfinite(norms(root[np.newaxis].astype(np.float64)))[0]:
        raise ConfigError(
            f"rule fltrust: expected a finite root update of shape {vectors.shape[1:]}, found shape {root.shape}; "
            "train the root client on clean data of the same model"
        )
    vectors, _ = admit("fltrust", NEEDS["fltrust"], vectors, malicious)
    length, lengths = norms(root[np.newaxis])[0], norms(vectors)
    with np.errstate(divide="ignore", invalid="ignore"):
        trust = np.maximum(0.0, np.nan_to_num(products(root, vectors) / (lengths * length), posinf=0.0, neginf=0.0))
        weights = np.nan_to_num(trust * length / lengths, posinf=0.0)
    total = trust.sum()
    return combined(weights / total, vectors) if total > 0 else np.zeros(vectors.shape[1])


RULES: Mapping[str, Callable[..., NDArray]] = {
    "mean": mean,
    "fedmedian": median,
    "fedtrimmedavg": trimmed_mean,
    "meamed": mean_around_median,
    "krum": krum,
    "multikrum": multi_krum,
    "bulyan": bulyan,
    "geometric-median": geometric_median,
    "centred-clipping": centred_clipping,
    "fltrust": fltrust,
}
"""By the name of the strategy (``mean`` is FedAvg's, which has a strategy of its own)."""


def _average(vectors: NDArray) -> NDArray:
    return combined(np.full(len(vectors), 1.0 / len(vectors)), vectors)


def _by_block(function: Callable[[NDArray], NDArray], vectors: NDArray) -> NDArray:
    return np.concatenate([np.zeros(0), *(function(block) for _, block in blocks(vectors))])


def _around_median(vectors: NDArray, count: int) -> NDArray:
    def nearest(block: NDArray) -> NDArray:
        block.sort(axis=0)  # so that it is values that decide between two equally far away, and not who came first
        return np.asarray(aggregate_n_closest_weights([np.median(block, axis=0)], [[row] for row in block], count)[0])

    return _by_block(nearest, vectors)


def _scores(between: NDArray, nearest: int) -> NDArray:
    others = between + np.diag(np.full(len(between), np.inf))
    return np.asarray(np.sort(others, axis=1)[:, :nearest].sum(axis=1))


def _shrink(lengths: NDArray, radius: float) -> NDArray:
    return np.minimum(1.0, np.divide(radius, lengths, out=np.ones_like(lengths), where=lengths > 0))
