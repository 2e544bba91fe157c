"""What an attack needs to know of a task: its records as pictures, whose they are, its loss, and how it embeds them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.clients.camera import CameraTask
from cloister.clients.task import Task
from cloister.errors import AuditError
from cloister.flower import NDArray
from cloister.models.l2rw.augment import IMAGENET_MEAN, IMAGENET_STD
from cloister.server.evaluation.features import extract


@dataclass(frozen=True, kw_only=True)
class Records:
    """Records of one client: ``images`` uint8 ``[n, H, W, 3]``, ``labels`` int64 ``[n]``, the ``subject`` of each.

    ``rest``: what else the network is given, ``[n, ...]``.
    """

    client: str
    images: NDArray
    labels: NDArray
    subjects: tuple[str, ...]
    rest: NDArray


class Probe(ABC):
    """An auditor's view of one task. A simulation's auditor owns all clients and reads the data of each."""

    head: str
    """Name of the weight ``[C, D]``, without a bias, that makes logits of features."""

    def __init__(self, task: Task[Any]) -> None:
        self.task = task

    @abstractmethod
    def records(self, client: str) -> Records:
        """Return a client's records."""

    @abstractmethod
    def loss(self) -> Callable[[Any, Tensor], Tensor]:
        """Return the loss that a private step takes the gradient of, from what the network returns and labels."""

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """Return pixels in [0, 1], ``[n, 3, H, W]``, as the network takes them."""

    @abstractmethod
    def embed_pixels(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return one feature per picture in [0, 1], ``[n, 3, H, W]``."""

    @abstractmethod
    def embed(self, model: nn.Module, records: Records) -> NDArray:
        """Return one feature per record, float32 ``[n, D]``, of length 1."""


class ReidProbe(Probe):
    """The camera task."""

    head = "head.weight"

    def records(self, client: str) -> Records:
        """Return a camera's training images."""
        data = self.task.load(client)
        return Records(
            client=client,
            images=np.asarray(data.images),
            labels=data.labels,
            subjects=tuple(map(str, data.labels)),
            rest=data.infrared,
        )

    def loss(self) -> Callable[[Any, Tensor], Tensor]:
        """Return softmax cross-entropy over all people, which every setting of the task has."""
        return lambda output, labels: functional.cross_entropy(output.logits.float(), labels)

    def prepare(self, images: Tensor) -> Tensor:
        """Return ImageNet's normalisation."""
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return (images - mean) / std

    def embed_pixels(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the features behind the neck, as of visible images."""
        feature: Tensor = model(self.prepare(images), torch.zeros(len(images), dtype=torch.bool)).feature
        return feature

    def embed(self, model: nn.Module, records: Records) -> NDArray:
        """Return the features behind the neck."""
        return extract(model, records.images, records.rest, batch_size=64, feature="post-bn")


def shows_people(task: Task[Any]) -> bool:
    """Return whether a task's records are pictures of people, so that it has a probe."""
    return isinstance(task, CameraTask)


def probe_of(task: Task[Any]) -> Probe:
    """Return the probe of a task; raises :class:`AuditError` for one that has none."""
    if isinstance(task, CameraTask):
        return ReidProbe(task)
    raise AuditError(f"audit: expected a task whose records are pictures, found {type(task).__name__}; leave it out")
