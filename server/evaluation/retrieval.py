"""Which queries a report shows, and what was found for them."""

from typing import Any

import numpy as np

from cloister.server.evaluation.ranking import Ranking

NDArray = np.ndarray[Any, np.dtype[Any]]
_TOP = 10


def choose_queries(ranking: Ranking, identities: NDArray, count: int) -> list[int]:
    """Return the places of ``count`` valid queries: half of the best by average precision, then half of the worst.

    Each shows another identity as long as there are enough; equal precisions go by place.
    """
    places = np.flatnonzero(ranking.valid)
    order = places[np.argsort(-ranking.average_precision[places], kind="stable")].tolist()
    taken: dict[int, int] = {}
    for part, many in ((order, (count + 1) // 2), (order[::-1], count // 2)):
        goal = len(taken) + many
        for place in part:
            if len(taken) < goal:
                taken.setdefault(int(identities[place]), int(place))
    return sorted(taken.values(), key=lambda place: (-ranking.average_precision[place], place))


def top(ranking: Ranking, query: int) -> NDArray:
    """Return the gallery places of a query's best ten, or of all that the rules keep if those are fewer."""
    best: NDArray = ranking.order[query, : min(_TOP, int(ranking.kept[query]))]
    return best
