"""Gallery draws: which images of a test set form the gallery of one repetition.

SYSU-MM01's and LLCM's PyTorch lineage (github.com/mangye16/Cross-Modal-Re-ID-baseline, github.com/ZYK100/LLCM) seeds
Python's generator with the number of the draw, 0 to 9, and goes through identities in ascending order, cameras in
ascending order, choosing among file names in ascending order. The same draws come out here.
"""

import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from cloister.datasets.records import Record

NDArray = np.ndarray[Any, np.dtype[Any]]


def draw_gallery(records: Sequence[Record], draw: int, shots: int) -> NDArray:
    """Return the places of the gallery images among ``records``, ascending, int64.

    ``records`` are sorted by (identity, camera, file name), as a test split has them. Of each identity at each camera
    ``shots`` images are chosen without replacement, or all where there are fewer.
    """
    generator = random.Random(draw)  # Python's own, because the published draws are its
    chosen: list[int] = []
    for _, group in groupby(range(len(records)), key=lambda place: (records[place].identity, records[place].camera)):
        places = list(group)
        chosen += sorted(generator.sample(places, min(shots, len(places))))
    return np.array(chosen, dtype=np.int64)
