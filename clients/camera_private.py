"""Private training of a re-identification client: each image's own loss, whose image it is, and its class centres.

Under a plan with noise on every optimiser step, only terms that belong to one image can be kept: softmax
cross-entropy over the whole label space, and the pull towards received centres. The paper's circle loss compares
images with one another, so that nobody's contribution could be clipped on its own.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.clients.task import NDArray, PrivateTraining, Protection, Release, Round
from cloister.datasets.reid import ClientImages
from cloister.flower import tensor
from cloister.models.l2rw.augment import augment, prepare
from cloister.models.l2rw.centres import comparable
from cloister.models.l2rw.config import CameraConfig, TrainConfig
from cloister.models.l2rw.network import ReidNetwork
from cloister.models.l2rw.optimiser import make_optimiser, momentum_buffers, set_rate
from cloister.models.l2rw.schedule import rate
from cloister.privacy.events import Unit

_UNITS = frozenset({Unit.EXAMPLE, Unit.SUBJECT, Unit.CLIENT})
_FEATURES_AT_ONCE = 64


def protection(config: CameraConfig) -> Protection:
    """Return what the camera task's settings promise to a privacy plan."""
    train = config.train
    weights = {"circle": train.circle_weight, "triplet": train.triplet_weight}
    coupling = [name for name, weight in weights.items() if weight > 0]
    if train.restricted_softmax:
        coupling.append("restricted softmax (who is absent shapes everybody's loss)")
    if train.mrb_weight > 0 and train.mrb_form != "cosine":
        coupling.append(f"mrb in the form {train.mrb_form}")
    normalisation = {"group": "group", "frozen": "frozen"}.get(config.model.normalisation, "batch")
    return Protection(
        units=_UNITS, normalisation=normalisation, coupling=tuple(coupling), releases=("centres", "head", "control")
    )


def units_of(data: ClientImages, unit: Unit) -> NDArray:
    """Return, per image, the unit it belongs to: itself, its person, or the one client."""
    return units_among(data.labels, unit)


def units_among(people: NDArray, unit: Unit) -> NDArray:
    """Return the unit of each record of these people: itself, its person, or the one client that holds them all."""
    if unit is Unit.EXAMPLE:
        return np.arange(len(people))
    return np.zeros_like(people) if unit is Unit.CLIENT else people


def centre_records(features: NDArray, labels: NDArray, units: NDArray, classes: int) -> Release:
    """Return what noised class centres are made of: features ``[n, D]``, labels and units ``[n]``."""
    arrays = {"features": features, "labels": labels, "units": units, "classes": np.asarray(classes)}
    return Release(kind="centres", arrays=arrays)


class CameraPrivacy:
    """One client's private training in one round; ``data`` is None where it cannot be used."""

    def __init__(self, network: ReidNetwork, settings: TrainConfig, round: Round, data: ClientImages | None) -> None:
        self.network, self.settings, self.round, self.data = network, settings, round, data
        self.device = network.head.weight.device
        self.optimiser = make_optimiser(network, settings, round.state.load("optimiser"))
        self.centres = self._received()

    def training(self) -> PrivateTraining:
        """Return what private steps need."""
        units = np.zeros(0, np.int64) if self.data is None else units_of(self.data, self.round.plan.unit)
        return PrivateTraining(
            units=units,
            fetch=self._fetch,
            losses=self._losses,
            optimiser=self.optimiser,
            before_step=self._set_rate,
            finish=self._finish,
        )

    def _set_rate(self, step: int) -> None:
        number, total, steps = self.round.number, self.round.total, self.round.plan.steps
        set_rate(self.optimiser, rate(self.settings, number, total, step, steps))

    def _fetch(self, indices: NDArray) -> tuple[Tensor, ...]:
        data = self._data()
        found = (np.asarray(data.images[indices]), data.infrared[indices], data.labels[indices])
        return tuple(torch.from_numpy(values) for values in found)

    def _losses(self, model: nn.Module, records: tuple[Tensor, ...]) -> Tensor:
        """Return each image's cross-entropy, and its pull towards the centre of its person, if one was received."""
        raw, infrared, labels = records
        images = augment(raw, self.settings, torch.default_generator, self.device)
        labels = labels.to(self.device)
        output = model(images, infrared.to(self.device))
        losses = functional.cross_entropy(output.logits.float(), labels, reduction="none")
        if self.centres is None:
            return losses
        centres = self.centres[labels]
        pull = 1 - functional.cosine_similarity(comparable(output.feature, self.settings), centres, dim=1)
        return losses + self.settings.mrb_weight * pull * (centres.abs().amax(1) > 0)

    def _received(self) -> Tensor | None:
        """Return the received centres by label, zero where there is none."""
        record: Mapping[str, NDArray] | None = self.round.received.get("centres")
        if record is None or self.settings.mrb_weight == 0:
            return None
        table = torch.zeros(self.network.config.num_classes, self.network.config.embedding)
        table[tensor(record["labels"])] = tensor(record["values"])
        return table.to(self.device)

    def _finish(self, model: nn.Module) -> tuple[Release, ...]:
        """Keep the momentum; return what class centres are made of, where the plan releases them in this round."""
        self.round.state.save("optimiser", momentum_buffers(self.network, self.optimiser))
        centres = self.round.plan.centres
        if centres is None or (self.round.number - 1) % centres.every:
            return ()
        config, unit = self.network.config, self.round.plan.unit
        if self.data is None:
            return (centre_records(np.zeros((0, config.embedding), np.float32), _NOBODY, _NOBODY, config.num_classes),)
        units = units_of(self.data, unit)
        return (centre_records(self._features(model), self.data.labels, units, config.num_classes),)

    @torch.no_grad()
    def _features(self, model: nn.Module) -> NDArray:
        data, found = self._data(), []
        model.eval()
        for start in range(0, len(data.labels), _FEATURES_AT_ONCE):
            part = slice(start, start + _FEATURES_AT_ONCE)
            images = prepare(torch.from_numpy(np.asarray(data.images[part]))).to(self.device)
            output = model(images, torch.from_numpy(data.infrared[part]).to(self.device))
            found.append(comparable(output.feature, self.settings).cpu())
        model.train()
        return torch.cat(found).numpy()

    def _data(self) -> ClientImages:
        assert self.data is not None  # nobody asks for the losses of no records
        return self.data


_NOBODY = np.zeros(0, np.int64)
