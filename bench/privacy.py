"""``cloister bench privacy``: what privacy costs, each against training without it or against a library, in one run.

One core. Example-level steps are compared with bare Opacus on the same batches; subject-level and client-level training
with plain training on as many records; the ledger is timed in memory, so that no disk is waited for. Subject-level
steps take one backward pass per person, so that their cost depends on how well a network fills a core with one
person's records: its target is that of the network that people are recognised with; the other row is there as well.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from cloister.bench import target
from cloister.bench.process import NotMeasured, measured
from cloister.bench.timing import ONE_THREAD, Seconds, row, timed
from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.spec import ReidSpec
from cloister.privacy.accounting import epsilon
from cloister.privacy.dpsgd import PrivateData, RecordSteps
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Sampler, Unit
from cloister.privacy.ledger import Ledger
from cloister.privacy.noise import NoiseSource
from cloister.privacy.per_record import Method
from cloister.privacy.sampling import Everyone
from cloister.privacy.subjects import UnitSteps

RECORDS, PER_SUBJECT, STEPS = 64, 4, 16
PLAIN, OPACUS = "plain training", "bare Opacus, hooks"
EXAMPLE, GHOST, SUBJECT = "example level, hooks", "example level, ghost clipping", "subject level"
REID, REID_SUBJECT = "plain training, re-identification", "subject level, re-identification"
UNPLANNED, CLIENT = "a client's round without a plan", "a client's round, client level"
LEDGER = "ledger append, fsync excluded"
ACCOUNT, ACCOUNT_MANY = "accountant, 10,000 events of three plans", "accountant, 10,000 events of ten plans"

_TIMEOUT_S = 600.0


def measure(console: Console) -> dict[str, Any]:
    """Return ``rows`` (``kind``, ``seconds``: median, ``spread``, ``repetitions``, ``why``) and ``targets``."""
    why, found = "", Seconds()
    try:
        found = measured(["-m", "cloister.bench.privacy"], timeout_s=_TIMEOUT_S, environment=ONE_THREAD)
    except NotMeasured as reason:
        why = str(reason)
    kinds: list[str] = [PLAIN, OPACUS, EXAMPLE, GHOST, SUBJECT, REID, REID_SUBJECT, UNPLANNED, CLIENT, LEDGER]
    kinds += [ACCOUNT, ACCOUNT_MANY]
    rows = [row(kind, found.get(kind, []), why) for kind in kinds]
    seconds = {line["kind"]: line["seconds"] for line in rows}

    def ratio(one: str, other: str) -> float | None:
        return seconds[one] / seconds[other] if seconds[one] and seconds[other] else None

    return {
        "rows": rows,
        "targets": [
            target(f"{EXAMPLE} / {OPACUS}", ratio(EXAMPLE, OPACUS), "<= 1.1"),
            target(f"{REID_SUBJECT} / {REID}", ratio(REID_SUBJECT, REID), "<= 2.5"),
            target(f"{CLIENT} / {UNPLANNED}", ratio(CLIENT, UNPLANNED), "<= 1.05"),
            target(f"{LEDGER}: s", seconds[LEDGER], "<= 0.002"),
            target(f"{ACCOUNT}: s", seconds[ACCOUNT], "<= 1"),
        ],
    }


def network() -> nn.Module:
    """Return a small convolutional network with GroupNorm: 279,786 parameters, 32 x 32 pixels, ten classes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inside, outside in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(8, outside), nn.ReLU()]
    layers += [nn.Conv2d(128, 160, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(160, 10))


def losses(model: nn.Module, records: tuple[Tensor, ...]) -> Tensor:
    """Return the loss of each record."""
    return functional.cross_entropy(model(records[0]), records[1], reduction="none")


def records() -> tuple[Tensor, Tensor]:
    """Return pictures and labels."""
    draws = torch.Generator().manual_seed(1)
    return torch.rand(RECORDS, 3, 32, 32, generator=draws), torch.randint(0, 10, (RECORDS,), generator=draws)


class Reid(nn.Module):
    """The re-identification network of preset ``tiny`` with GroupNorm, 64 x 32 pixels: logits of 28 people."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"blocks": (1, 1, 1, 1), "width": 16, "image_height": 64, "image_width": 32, "num_classes": 28}
        spec = ReidSpec(ModelConfig.parse({**sizes, "normalisation": "group"}))
        self.network = spec.build(torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network(nn.functional.interpolate(images, (64, 32))).logits
        return logits


def _plain(kind: str = PLAIN) -> Callable[[], None]:
    model, (images, labels) = Reid() if kind == REID else network(), records()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    def steps() -> None:
        for _ in range(STEPS):
            optimiser.zero_grad()
            losses(model, (images, labels)).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    return steps


def _opacus() -> Callable[[], None]:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model, (images, labels) = GradSampleModule(network()), records()
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    optimiser = DPOptimizer(inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=RECORDS)

    def steps() -> None:
        for _ in range(STEPS):
            optimiser.zero_grad()
            losses(model, (images, labels)).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    return steps


def _private(kind: str) -> Callable[[], None]:
    model, (images, labels) = Reid() if kind == REID_SUBJECT else network(), records()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    common: dict[str, Any] = {
        "sampler": Everyone(),
        "steps": STEPS,
        "bounds": {"": 1.0},
        "noise_multiplier": 1.0,
        "physical": RECORDS,
    }
    owners = [str(index // PER_SUBJECT) for index in range(RECORDS)]
    if kind in (SUBJECT, REID_SUBJECT):
        runs: Any = UnitSteps(**common, records=PER_SUBJECT, denominator=RECORDS / PER_SUBJECT)
    else:
        method = Method.GHOST if kind == GHOST else Method.HOOKS
        runs = RecordSteps(**common, unit=Unit.EXAMPLE, denominator=RECORDS, method=method)
        owners = [str(index) for index in range(RECORDS)]

    def fetch(indices: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Tensor, ...]:
        chosen = torch.from_numpy(indices)
        return images[chosen], labels[chosen]

    data, source = PrivateData(owners=owners, fetch=fetch), NoiseSource(bytes(32))
    return lambda: runs.run(model, losses, data, optimiser, source)


def _ledger(folder: Path) -> Callable[[], None]:
    ledger, number = Ledger.open(folder / "ledger.sqlite"), [0]
    event = Event(kind=EventKind.GAUSSIAN, noise_multiplier=1.0, unit=Unit.SUBJECT, relation=Relation.ADD_REMOVE)

    def append() -> None:
        number[0] += 1
        ledger.append(
            Entry(
                kind=EntryKind.RELEASE,
                run="bench",
                round=number[0],
                task="camera",
                unit=Unit.SUBJECT,
                relation=Relation.ADD_REMOVE,
                kinds={"arrays": 1_000_000},
                events=(event,),
                content="0" * 64,
            )
        )

    return append


def events(plans: int) -> list[Event]:
    """Return 10,000 events of a site with runs of so many plans, each with its rate and noise multiplier, in turn."""
    return [
        Event(
            kind=EventKind.GAUSSIAN,
            noise_multiplier=1.0 + 0.1 * (number % plans),
            sampler=Sampler.POISSON,
            rate=0.01 + 0.001 * (number % plans),
            unit=Unit.SUBJECT,
            relation=Relation.ADD_REMOVE,
        )
        for number in range(10_000)
    ]


def main() -> None:
    """Print the seconds of every kind as JSON."""
    from cloister.bench.privacy_round import rounds

    torch.set_num_threads(1)
    private = {kind: _private(kind) for kind in (EXAMPLE, GHOST, SUBJECT, REID_SUBJECT)}
    found = timed({PLAIN: _plain(), OPACUS: _opacus(), REID: _plain(REID), **private})
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as kept:
        found |= timed(rounds(Path(kept), UNPLANNED, CLIENT))
        found |= timed({LEDGER: _ledger(Path(kept))}, repetitions=200)
    epsilon(events(1)[:2], 1e-5)  # imports the accountant
    found |= {ACCOUNT: _query(3), ACCOUNT_MANY: _query(10)}
    print(json.dumps(found))


def _query(plans: int) -> list[float]:
    """Time the first query of these events: the answer is remembered."""
    queried = events(plans)
    begin = time.perf_counter()
    epsilon(queried, 1e-6)
    return [time.perf_counter() - begin]


if __name__ == "__main__":
    main()
