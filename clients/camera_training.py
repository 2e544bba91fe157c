"""One round of local training of a re-identification client: batches, losses, steps, and what is released of them."""

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloister.clients.camera_private import centre_records, units_among
from cloister.clients.objectives import Batch, Objective, objectives
from cloister.clients.task import NDArray, Release, Round
from cloister.datasets.reid import ClientImages
from cloister.errors import ConfigError, WeightsError
from cloister.flower import tensor
from cloister.models.l2rw import sampler
from cloister.models.l2rw.augment import augment
from cloister.models.l2rw.centres import CentreCollector, CentrePull
from cloister.models.l2rw.config import TrainConfig
from cloister.models.l2rw.losses import training_losses
from cloister.models.l2rw.network import ReidNetwork
from cloister.models.l2rw.optimiser import make_optimiser, momentum_buffers, set_rate
from cloister.models.l2rw.schedule import rate


def check_nova(settings: TrainConfig, config: Mapping[str, Any]) -> None:
    """Raise ConfigError if FedNova's normalisation, as a round's ``config`` says, assumes another local optimiser."""
    assumed, nesterov = config.get("nova-momentum"), bool(config.get("nova-nesterov"))
    if assumed is None or (float(assumed) == settings.momentum and (nesterov or settings.momentum == 0)):
        return
    raise ConfigError(
        f"strategy.momentum: fednova: expected momentum {settings.momentum:g} with nesterov = true, the local "
        f"optimiser's, found momentum {float(assumed):g} and nesterov = {nesterov}; "
        f"set strategy.momentum = {settings.momentum:g}"
    )


class LocalTraining:
    """One client's training in one round, on labels as this client numbers them.

    ``present``: bool ``[num_classes]``, the classes that take part in the softmax (None: all). ``shared``: names of the
    parameters that are averaged.
    """

    def __init__(
        self,
        network: ReidNetwork,
        settings: TrainConfig,
        round: Round,
        labels: NDArray,
        present: Tensor | None,
        shared: set[str],
    ) -> None:
        self.network, self.settings, self.round, self.labels = network, settings, round, labels
        self.device = network.head.weight.device
        self._receive_head()
        self.present = None if present is None else present.to(self.device)
        self.steps = settings.local_epochs * sampler.steps_per_epoch(len(labels), settings.batch_size)
        # SCAFFOLD's control variates are gradients of this round alone, and FedNova counts this round's steps alone.
        self.keep_momentum = "control" not in round.received and "nova-momentum" not in round.config
        check_nova(settings, round.config)
        momenta = round.state.load("optimiser") if self.keep_momentum else None
        self.optimiser = make_optimiser(network, settings, momenta)
        self.added: tuple[Objective, ...] = objectives(network, shared, self.optimiser, round)
        self.wanted: Iterable[str] = round.config.get("releases", ())
        self.pull = self._centre_pull()
        self.collector: CentreCollector | None = None
        if "centres" in self.wanted:
            self.collector = CentreCollector(self.steps * settings.batch_size, network.config.embedding, settings)
        self.totals: dict[str, Tensor] = {}

    def run(self, data: ClientImages) -> None:
        """Take all steps of the round."""
        seeds, number, client = self.round.seeds, self.round.number, self.round.client
        generator = seeds.torch(purpose="augmentation", round=number, client=client)
        draws = seeds.numpy(purpose="sampler", round=number, client=client)
        self.network.train()
        for step, indices in enumerate(self._batches(data, draws)):
            images = torch.from_numpy(np.asarray(data.images[indices]))
            infrared = torch.from_numpy(data.infrared[indices]).to(self.device)
            labels = torch.from_numpy(self.labels[indices]).to(self.device)
            self._step(step, augment(images, self.settings, generator, self.device), infrared, labels)
        if self.keep_momentum:
            self.round.state.save("optimiser", momentum_buffers(self.network, self.optimiser))

    def _batches(self, data: ClientImages, generator: np.random.Generator) -> Iterable[NDArray]:
        epochs = range(self.settings.local_epochs)
        if self.settings.sampling == "balanced":
            return chain.from_iterable(
                sampler.balanced_batches(self.labels, data.infrared, self.settings, generator) for _ in epochs
            )
        return chain.from_iterable(sampler.identity_batches(self.labels, self.settings, generator) for _ in epochs)

    def _step(self, step: int, images: Tensor, infrared: Tensor, labels: Tensor) -> None:
        set_rate(self.optimiser, rate(self.settings, self.round.number, self.round.total, step, self.steps))
        mixed = self.settings.mixed_precision and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            output = self.network(images, infrared)
        terms = training_losses(self.settings, output.logits, output.feature, output.pooled, labels, self.present)
        if self.pull is not None:
            terms["mrb-loss"] = self.pull.loss(output.feature, labels)
        batch = Batch(images=images, infrared=infrared, labels=labels, output=output)
        for objective in self.added:
            if (term := objective.loss(batch)) is not None:
                terms[objective.name] = term
        loss = torch.stack(list(terms.values())).sum()
        if not math.isfinite(loss.item()):
            raise WeightsError(
                f"client {self.round.client}, round {self.round.number}, step {step}: expected a finite loss, found "
                f"{ {name: term.item() for name, term in terms.items()} }; "
                "lower settings.train.learning_rate, or look at the weights received"
            )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for objective in self.added:
            objective.after_backward()
        self.optimiser.step()
        for objective in self.added:
            objective.after_step()
        if self.collector is not None:
            self.collector.add(output.feature, labels)
        for name, term in {"loss": loss, **terms}.items():
            self.totals[name] = self.totals.get(name, torch.zeros((), device=self.device)) + term.detach()

    def metrics(self) -> dict[str, float]:
        """Return the mean loss and its terms over the steps, the head's last learning rate, and the client's images."""
        means = {name: total.item() / self.steps for name, total in self.totals.items()}
        rates = {"learning-rate": float(self.optimiser.param_groups[-1]["lr"])}
        return {**means, **rates, "images": float(len(self.labels))}

    def releases(self) -> tuple[Release, ...]:
        """Return what the strategy asked for beside the weights, as rows of the identities that this client holds."""
        found = [release for objective in self.added for release in objective.finish()]
        if self.collector is not None:
            found.append(self._centres(self.collector))
        if "head" in self.wanted:
            own = np.unique(self.labels)
            weight = self.network.head.weight.detach()[torch.from_numpy(own).to(self.device)]
            found.append(Release(kind="head", arrays={"weight": weight.cpu().numpy(), "labels": own}))
        return tuple(found)

    def _centres(self, collector: CentreCollector) -> Release:
        """Return class centres; under a plan that noises them, what they are made of."""
        plan = self.round.plan
        if plan.centres is None:
            values, labels = collector.centres()
            return Release(kind="centres", arrays={"values": values.numpy(), "labels": labels.numpy()})
        features, people = (part.numpy() for part in collector.records())
        units = units_among(people, plan.unit)
        return centre_records(features, people, units, self.network.config.num_classes)

    def _receive_head(self) -> None:
        """Write the rows of the head that came back over this client's own."""
        rows = self._rows("head", "weight")
        if rows is not None:
            with torch.no_grad():
                self.network.head.weight[rows[1]] = rows[0]

    def _centre_pull(self) -> CentrePull | None:
        rows = self._rows("centres", "values") if self.settings.mrb_weight > 0 else None
        return None if rows is None else CentrePull(*rows, self.network.config.num_classes, self.settings)

    def _rows(self, kind: str, values_key: str) -> tuple[Tensor, Tensor] | None:
        """Return (values ``[n, D]``, labels ``[n]``) of a record that was received, if it was."""
        record = self.round.received.get(kind)
        if record is None:
            return None
        values, labels = record[values_key], record["labels"]
        width, classes = self.network.config.embedding, self.network.config.num_classes
        if values.shape != (len(labels), width) or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
            raise WeightsError(
                f"client {self.round.client}, round {self.round.number}: {kind}: expected rows of width "
                f"{width} for labels below {classes}, found shape {values.shape} and {len(labels)} labels; "
                "server and client must use the same settings"
            )
        return tensor(values).to(self.device), tensor(labels).to(self.device)
