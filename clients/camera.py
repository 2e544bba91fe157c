"""Task ``camera``: visible-infrared person re-identification where the images were taken (L2RW, CVPR 2025).

A client is a camera or a whole data set, as the protocol says; see :mod:`cloister.datasets.reid`. Beside its weights it
releases, where the strategy takes them, one class centre and one row of the head per person it has seen.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cloister.clients.camera_private import CameraPrivacy, protection
from cloister.clients.camera_training import LocalTraining, check_nova
from cloister.clients.task import (
    ClientRow,
    Deviation,
    NDArray,
    PrivateTraining,
    Protection,
    Round,
    Task,
    Update,
)
from cloister.datasets.reid import ClientImages, Federation, Modality, federation
from cloister.errors import ConfigError, DataError, WeightsError
from cloister.models.l2rw import sampler, schedule
from cloister.models.l2rw.config import CameraConfig
from cloister.models.l2rw.network import ReidNetwork
from cloister.models.l2rw.spec import ReidSpec
from cloister.models.spec import Group
from cloister.randomness import SeedTree

_NOT_IN_THE_PAPER = {"num_classes", "pretrained", "head"}
_ALWAYS = (
    Deviation(
        topic="learning-rate schedule",
        paper="OneCycleLR",
        run="triangular, or AGW's steps",
        why="the released code has this one, and its logs show it",
    ),
    Deviation(
        topic="arithmetic",
        paper="16-bit floats with loss scaling (released code)",
        run="32-bit floats; bfloat16 in the forward pass where settings.train.mixed_precision is set",
        why="needs no loss scale, which the released code shares between clients",
    ),
)

_EI_CENTRES = Deviation(
    topic="class centres under EI",
    paper="in the method; the released code that gave the EI numbers neither collects nor averages them",
    run="collected and averaged, as the method says",
    why="the published EI numbers may therefore not reproduce",
)


def private_numbering(identities: NDArray, seeds: SeedTree, client: str) -> NDArray:
    """Return the identities (distinct, ascending) in the order of this client's private labels 0, 1, ...

    The order is drawn once per experiment and client. Only the client, and a simulation that measures how well a server
    matches identities, can know it.
    """
    return seeds.numpy(purpose="private-labels", client=client).permutation(identities)


class CameraTask(Task[ClientImages]):
    """Settings: :class:`~cloister.models.l2rw.config.CameraConfig`. Raises :class:`ConfigError` for any other."""

    def __init__(self, settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(settings, root)
        self.config = CameraConfig.parse(dict(settings), at="settings")
        self._opening = False
        self._caches = _written_and_resolved(self.config.data.cache) if self.config.data.cache else frozenset()

    @cached_property
    def federation(self) -> Federation:
        """The clients on the data at ``root``; opens index files unless the settings give the label space."""
        data = self.config.data
        self._opening = True
        try:
            found = federation(
                self.root,
                data.layout,
                data.protocol,
                split=data.split,
                sources=data.sources,
                target=data.target,
                label_space=data.label_space or None,
                hold_out=data.hold_out,
            )
        finally:
            self._opening = False
        if self.config.model.num_classes not in (0, found.num_classes):
            raise ConfigError(
                f"settings.model.num_classes: expected {found.num_classes}, the identities of the data, "
                f"found {self.config.model.num_classes}; set it to 0 to take it from the data"
            )
        return found

    @property
    def spec(self) -> ReidSpec:
        """The network; the width of its head is taken from the data where the settings do not give it."""
        width = self.config.model.num_classes or self.federation.num_classes
        return ReidSpec(self.config.model.model_copy(update={"num_classes": width}))

    def clients(self) -> Sequence[str]:
        """Return the names of the protocol's clients."""
        return self.federation.clients

    def load(self, client: str) -> ClientImages:
        """Return one client's images at the network's size."""
        model, cache = self.config.model, self.config.data.cache
        folder = Path(cache) / client if cache else None
        return self.federation.load(client, model.image_height, model.image_width, folder)

    def may_open(self, client: str, path: Path) -> bool:
        """Return whether a path belongs to this client, or to all (index files; see ``Federation.may_open``).

        Of the cache folder only ``CACHE/<client>`` and what lies in it belongs to this client.
        """
        text = os.path.abspath(path)
        if any(_inside(text, cache) and not _inside(text, os.path.join(cache, client)) for cache in self._caches):
            return False
        return self._opening or self.federation.may_open(client, path)

    def resolved(self) -> Mapping[str, Any]:
        """Return the settings with the label space and the width of the head filled in."""
        values = self.config.model_dump()
        values["model"]["num_classes"] = self.federation.num_classes
        values["data"]["label_space"] = self.federation.label_space
        return values

    def table(self) -> Sequence[ClientRow]:
        """Return people, images and modality of every client, from the index files of all of them."""
        return [
            ClientRow(name=row.client, records=row.images, subjects=row.identities, modality=row.modality)
            for row in self.federation.table()
        ]

    def deviations(self) -> Sequence[Deviation]:
        """Return every setting that is not the paper's, and what is done differently whatever the settings."""
        paper, changed = CameraConfig(), list[Deviation]()
        for section in ("model", "train"):
            for key, value in getattr(self.config, section):
                expected = getattr(getattr(paper, section), key)
                if value != expected and key not in _NOT_IN_THE_PAPER:
                    changed.append(Deviation(topic=f"{section}.{key}", paper=str(expected), run=str(value)))
        if not self.config.model.pretrained:
            changed.append(Deviation(topic="model.pretrained", paper="ImageNet weights", run="random initial weights"))
        return [*changed, *([_EI_CENTRES] if self.config.data.protocol == "ei" else []), *_ALWAYS]

    def check(self, rounds: int) -> None:
        """Raise :class:`ConfigError` unless the learning rate's peak lies before the last round."""
        schedule.rate(self.config.train, 1, rounds, 0, 1)

    def check_data(self) -> None:
        """Raise :class:`DataError` that names every client too small for a batch, from the index files of all.

        Raises :class:`ConfigError` where the cache folder lies in a data set or around one, so that clients could not
        open their own files.
        """
        self._check_cache()
        problems: dict[str, None] = {}  # in order, each once: a damaged index file is every client's problem
        for client in self.clients():
            try:
                records = self.federation.records(client)
                labels = np.array([source.offset + record.identity for source, record in records])
                infrared = np.array([record.modality is Modality.INFRARED for _, record in records])
                sampler.check_client(client, labels, infrared, self.config.train)
            except DataError as error:
                problems[error.args[0]] = None
        if problems:
            raise DataError("\n".join(problems))

    def check_strategy(self, config: Mapping[str, Any]) -> None:
        """Raise :class:`ConfigError` if FedNova assumes another optimiser than this task's."""
        check_nova(self.config.train, config)

    def _check_cache(self) -> None:
        for cache in self._caches:
            for data, _ in self.federation.guarded:
                if _inside(cache, data) or _inside(data, cache):
                    raise ConfigError(
                        f"settings.data.cache: expected a folder of its own, found {self.config.data.cache!r}, which "
                        f"lies in {data} or around it; choose another folder"
                    )

    def truth(self, seeds: SeedTree) -> Callable[[str, int], int] | None:
        """Return the map from (client, private label) to identity under ``uci``, from the index files of all clients.

        For a simulation that measures how well a server matches identities; nobody else may know it. A label that the
        client does not have stands for nobody: a negative number.
        """
        if self.config.data.protocol != "uci":
            return None
        people = {
            client: private_numbering(
                np.unique([source.offset + record.identity for source, record in self.federation.records(client)]),
                seeds,
                client,
            )
            for client in self.clients()
        }
        return lambda client, label: int(people[client][label]) if label < len(people[client]) else -1 - label

    def train(self, model: nn.Module, data: ClientImages, round: Round) -> Update:
        """Train one round; ``examples`` is the number of images down to a multiple of the batch size.

        Raises :class:`~cloister.errors.DataError` for a client too small to fill a batch and :class:`WeightsError` if
        the loss is not finite.
        """
        if not isinstance(model, ReidNetwork):
            raise WeightsError(f"client {round.client}: expected a ReidNetwork, found {type(model).__name__}")
        settings = self.config.train
        sampler.check_client(round.client, data.labels, data.infrared, settings)
        labels, present = self._labels(data, round, model.config.num_classes)
        shared = {name for name, group in self.spec.groups(model).items() if group is Group.SHARED}
        training = LocalTraining(model, settings, round, labels, present, shared)
        training.run(data)
        return Update(
            examples=sampler.effective_examples(len(labels), settings.batch_size),
            steps=training.steps,
            metrics=training.metrics(),
            releases=training.releases(),
        )

    def private(self, model: nn.Module, data: ClientImages | None, round: Round) -> PrivateTraining:
        """Return cross-entropy per image, its units being people or images; see :mod:`.camera_private`."""
        if not isinstance(model, ReidNetwork):
            raise WeightsError(f"client {round.client}: expected a ReidNetwork, found {type(model).__name__}")
        return CameraPrivacy(model, self.config.train, round, data).training()

    def protection(self) -> Protection:
        """Return what these settings promise to a privacy plan."""
        return protection(self.config)

    def without(self, data: ClientImages, subjects: frozenset[str]) -> ClientImages:
        """Return the images of all other people."""
        kept = np.flatnonzero([str(label) not in subjects for label in data.labels])
        return ClientImages(
            client=data.client,
            images=np.asarray(data.images[kept]),
            labels=data.labels[kept],
            cameras=data.cameras[kept],
            infrared=data.infrared[kept],
        )

    def subjects(self) -> Mapping[str, Sequence[str]]:
        """Return the clients of every identity, from the index files of all clients."""
        found: dict[str, list[str]] = {}
        for client in self.clients():
            people = {source.offset + record.identity for source, record in self.federation.records(client)}
            for identity in sorted(people):
                found.setdefault(str(identity), []).append(client)
        return found

    def _labels(self, data: ClientImages, round: Round, classes: int) -> tuple[NDArray, Tensor | None]:
        """Return labels as this client numbers them, and the classes that take part in its softmax (None: all)."""
        identities, labels = np.unique(data.labels, return_inverse=True)
        if self.config.data.protocol == "uci":
            order = private_numbering(np.arange(len(identities)), round.seeds, round.client)
            private = np.empty_like(order)
            private[order] = np.arange(len(order))
            return private[labels], torch.arange(classes) < len(identities)
        if not self.config.train.restricted_softmax:
            return data.labels, None
        present = torch.zeros(classes, dtype=torch.bool)
        present[torch.from_numpy(identities)] = True
        return data.labels, present


def _written_and_resolved(path: str | Path) -> frozenset[str]:
    return frozenset((os.path.abspath(path), os.path.realpath(path)))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
