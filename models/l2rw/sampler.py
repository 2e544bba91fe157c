"""Which images make a batch: P people, drawn uniformly, and K images of each, drawn with replacement.

People are drawn whatever their number of images, so that rare people appear more often than in the data. Which light an
image was taken in plays no part, but for :func:`balanced_batches`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cloister.errors import DataError
from cloister.models.l2rw.config import TrainConfig

Indices = NDArray[np.int64]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches in a local epoch: ``images // batch_size + 1``, as in the L2RW code."""
    return images // batch_size + 1


def effective_examples(images: int, batch_size: int) -> int:
    """Return a client's averaging weight in the L2RW code: its images, down to a multiple of ``batch_size``."""
    return batch_size * (images // batch_size)


def check_client(client: str, labels: Indices, infrared: NDArray[np.bool_], settings: TrainConfig) -> None:
    """Raise :class:`DataError` unless the client has at least P people (balanced: in both lights) and P x K images.

    With fewer images its averaging weight would be 0, with fewer people no batch can be drawn.
    """
    people, lights = np.unique(labels), ""
    if settings.sampling == "balanced":
        people, lights = _in_both_lights(labels, infrared), " in visible and infrared light"
    size, count = "settings.train.identities_per_batch", "settings.train.images_per_identity"
    for found, least, what, setting in (
        (len(people), settings.identities_per_batch, f"identities{lights}", size),
        (len(labels), settings.batch_size, "images", f"{size} or {count}"),
    ):
        if found < least:
            raise DataError(
                f"client {client}: expected at least {least} {what} for a batch, found {found}; "
                f"lower {setting}, or complete its images from the archive"
            )


def identity_batches(labels: Indices, settings: TrainConfig, generator: np.random.Generator) -> Iterator[Indices]:
    """Yield one local epoch's batches, each int64 ``[P * K]`` indices into ``labels``, one person's images together."""
    groups = _Groups(labels)
    for _ in range(steps_per_epoch(len(labels), settings.batch_size)):
        people = generator.choice(len(groups.counts), settings.identities_per_batch, replace=False)
        yield groups.draw(people, settings.images_per_identity, generator).reshape(-1)


def balanced_batches(
    labels: Indices, infrared: NDArray[np.bool_], settings: TrainConfig, generator: np.random.Generator
) -> Iterator[Indices]:
    """Yield as :func:`identity_batches`, each person with K/2 visible and then K/2 infrared images (AGW).

    Only people seen in both lights are drawn; :func:`check_client` sees to it that there are enough.
    """
    both = _in_both_lights(labels, infrared)
    halves = [np.flatnonzero(np.isin(labels, both) & mask) for mask in (~infrared, infrared)]
    groups = [_Groups(labels[half]) for half in halves]
    for _ in range(steps_per_epoch(len(labels), settings.batch_size)):
        people = generator.choice(len(both), settings.identities_per_batch, replace=False)
        drawn = [
            half[group.draw(people, settings.images_per_identity // 2, generator)]
            for half, group in zip(halves, groups, strict=True)
        ]
        yield np.concatenate(drawn, axis=1).reshape(-1)


def _in_both_lights(labels: Indices, infrared: NDArray[np.bool_]) -> Indices:
    return np.intersect1d(labels[~infrared], labels[infrared])


class _Groups:
    """Indices grouped by label: person i of the sorted labels has ``order[start[i] : start[i] + counts[i]]``."""

    def __init__(self, labels: Indices) -> None:
        self.order = np.argsort(labels, kind="stable")
        _, self.start, self.counts = np.unique(labels[self.order], return_index=True, return_counts=True)

    def draw(self, people: Indices, images: int, generator: np.random.Generator) -> Indices:
        """Return indices ``[len(people), images]``, uniform with replacement within each person."""
        places = generator.integers(0, self.counts[people][:, None], size=(len(people), images))
        indices: Indices = self.order[self.start[people][:, None] + places]
        return indices
