"""Class centres: what a client keeps of its features during a round, and how it pulls to the centres it receives."""

import torch
from torch import Tensor
from torch.nn import functional

from cloister.models.l2rw.config import TrainConfig
from cloister.models.l2rw.losses import centre_loss


def class_centres(features: Tensor, labels: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return (centres ``[n, D]``, identities ``[n]`` ascending) of features ``[N, D]`` with labels ``[N]``.

    L2RW, equations 3 and 4: with ``S_k`` the features of identity k and ``c_k`` their mean, the mean of the
    ``top_k`` members of ``S_k`` nearest to ``c_k`` in Euclidean distance, or ``c_k`` where ``S_k`` has fewer. Ties
    go to the earlier feature. Only identities that occur get a row.
    """
    identities, group, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    means = _segment_sum(features, group, len(identities)) / counts[:, None]
    distances = (features - means[group]).square().sum(1)
    order = distances.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]  # by identity, nearest first
    group, start = group[order], counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - start[group]
    kept = rank < top_k  # all of them where the identity has fewer
    sums = _segment_sum(features[order[kept]], group[kept], len(identities))
    return sums / counts.clamp_max(top_k)[:, None], identities


def _segment_sum(values: Tensor, group: Tensor, groups: int) -> Tensor:
    return values.new_zeros(groups, values.shape[1]).index_add_(0, group, values)


class CentreCollector:
    """The features of one round, detached, and the centres they give at its end.

    They come from a model that changes while they are collected, and an image drawn twice counts twice; so it is in the
    released code.
    """

    def __init__(self, capacity: int, embedding: int, settings: TrainConfig) -> None:
        """Make room for ``capacity`` features of length ``embedding``, in main memory."""
        self._features = torch.empty(capacity, embedding)
        self._labels = torch.empty(capacity, dtype=torch.int64)
        self._size = 0
        self._settings = settings

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Keep a batch's features, normalised where the settings say so."""
        end = self._size + len(labels)
        self._features[self._size : end] = comparable(features.detach(), self._settings)
        self._labels[self._size : end] = labels
        self._size = end

    def records(self) -> tuple[Tensor, Tensor]:
        """Return the features ``[n, D]`` and labels ``[n]`` that were added."""
        return self._features[: self._size], self._labels[: self._size]

    def centres(self) -> tuple[Tensor, Tensor]:
        """Return :func:`class_centres` of what was added."""
        return class_centres(self._features[: self._size], self._labels[: self._size], self._settings.mrb_top_k)


def comparable(features: Tensor, settings: TrainConfig) -> Tensor:
    """Return features in single precision as centres are made of them and as they are compared with centres."""
    features = features.float()
    return functional.normalize(features, dim=1) if settings.centre_feature == "normalised" else features


class CentrePull:
    """Modality-robust bias towards received centres: the MRB term of a batch (L2RW, equation 6)."""

    def __init__(self, values: Tensor, labels: Tensor, num_classes: int, settings: TrainConfig) -> None:
        """Take centres ``values`` ``[n, D]`` of identities ``labels`` ``[n]`` in ``range(num_classes)``."""
        self._values = values
        self._row = torch.full((num_classes,), -1, dtype=torch.int64, device=values.device)
        self._row[labels] = torch.arange(len(labels), device=values.device)
        self._settings = settings

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted term; images of identities without a centre are skipped."""
        rows = self._row[labels]
        held = rows >= 0
        pull = centre_loss(
            comparable(features[held], self._settings), self._values[rows[held]], self._settings.mrb_form
        )
        return self._settings.mrb_weight * pull
