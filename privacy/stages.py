"""What a plan has a client and a server do to a release, as a list of names and numbers.

Made from the same plan on both sides, so that clip, weights and noise cannot disagree, and carried out in this order:
a client's in :mod:`cloister.clients.stages` and :mod:`cloister.clients.private_steps`, the server's in
:mod:`cloister.strategies.private`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloister.privacy.events import Unit
from cloister.privacy.settings import Clip, ClipKind, MatrixKind, Sampled, Weighting

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step on the way of a release: ``stage["bound"]`` is one of its ``numbers``.

    Client: ``unit-steps`` or ``record-steps`` (steps, noise_multiplier, records, divisor), ``clip-flat``,
    ``clip-adaptive``, ``clip-per-layer``, ``bit`` (the un-clipped bit, beside the update), ``weight`` (cap), ``noise``
    (noise), ``centres`` (bound, noise_multiplier, count_multiplier, contributions, least), and for a secure sum
    ``encode``, ``encode-skellam`` or ``encode-discrete-gaussian`` (cap: of weights that are summed too, 0 without),
    then ``mask`` (bits).
    Server: ``unmask``, ``decode``, ``robust-RULE``, ``noise`` (noise), ``noise-banded``, ``noise-blt``, ``noise-tree``
    (noise, and the numbers of :class:`~cloister.privacy.settings.Matrix`), ``divide`` (by), ``adapt-clip`` (quantile,
    learning_rate, bits_noise, cohort).
    ``bounds``, of steps and clips: L2 bound by name prefix, ``{"": C}`` for a flat one (adaptive: the first).
    ``noise`` is a standard deviation in units of the clip bound in force (per-layer: of the root of the sum of squares;
    matrix: also of the sensitivity of its factor to all rounds of one client), doubled where units are replaced; a
    ``noise_multiplier`` is not.
    """

    name: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, key: str) -> float:
        """Return one of the numbers."""
        return self.numbers[key]


def client_stages(plan: "Plan") -> tuple[Stage, ...]:
    """Return what a client does under ``plan``, in this order: private steps or clip, weight, noise; then centres."""
    stages = [*(_clipped(plan, _bounds(plan.clip)) if plan.clip else ()), *_summed(plan)]
    if plan.centres:
        centres = plan.centres
        numbers = {
            "bound": centres.bound,
            "noise_multiplier": centres.noise_multiplier,
            "count_multiplier": centres.count_multiplier,
            "contributions": 1 if plan.unit is Unit.EXAMPLE else plan.records,
            "least": centres.least,
        }
        stages.append(Stage(name="centres", numbers=numbers))
    return tuple(stages)


def server_stages(plan: "Plan") -> tuple[Stage, ...]:
    """Return what the server does under ``plan``: a robust rule or the noisy sum over a fixed number, and the clip."""
    if plan.robust:
        return (Stage(name=f"robust-{plan.robust}"),)
    stages = [Stage(name="unmask"), Stage(name="decode")] if plan.secure else []
    if plan.central:
        stages += [_central_noise(plan), Stage(name="divide", numbers={"by": plan.cohort})]
    if plan.noisy and plan.clip and plan.clip.kind is ClipKind.ADAPTIVE:
        numbers = {
            "quantile": plan.clip.quantile,
            "learning_rate": plan.clip.learning_rate,
            "bits_noise": plan.bits_noise,
            "cohort": plan.cohort,
        }
        stages.append(Stage(name="adapt-clip", numbers=numbers))
    return tuple(stages)


def _bounds(clip: Clip) -> Mapping[str, float]:
    return clip.per_layer if clip.kind is ClipKind.PER_LAYER else {"": clip.bound}


def _clipped(plan: "Plan", bounds: Mapping[str, float]) -> list[Stage]:
    if plan.private_steps:
        numbers = {
            "steps": plan.steps,
            "noise_multiplier": plan.noise_multiplier,
            "records": plan.records,
            "divisor": plan.sample_size,
        }
        by_units = plan.sampled is Sampled.UNITS and plan.unit is not Unit.EXAMPLE
        return [Stage(name="unit-steps" if by_units else "record-steps", numbers=numbers, bounds=bounds)]
    kind = plan.clip.kind if plan.clip else ClipKind.FLAT
    stages = [Stage(name=f"clip-{kind}", bounds=bounds)]
    if kind is ClipKind.ADAPTIVE and not plan.local:  # noised with the sum; by itself nobody would
        stages.append(Stage(name="bit"))
    if plan.weighting is Weighting.CAPPED and (plan.noisy or plan.secure is None):
        stages.append(Stage(name="weight", numbers={"cap": plan.weight_cap}))
    if plan.local:  # whatever the mechanism
        stages.append(Stage(name="noise", numbers={"noise": plan.noise_multiplier * plan.spread}))
    return stages


def _summed(plan: "Plan") -> tuple[Stage, ...]:
    """Return how what was clipped and noised goes into a secure sum."""
    if plan.secure is None:
        return ()
    cap = plan.weight_cap if plan.weighting is Weighting.CAPPED and not plan.noisy else 0.0
    encode = Stage(name=f"encode-{plan.secure.noise}" if plan.distributed else "encode", numbers={"cap": cap})
    return (encode, Stage(name="mask", numbers={"bits": plan.secure.bits}))


def _central_noise(plan: "Plan") -> Stage:
    numbers = {"noise": plan.update_multiplier * plan.spread}
    if plan.matrix is None:
        return Stage(name="noise", numbers=numbers)
    matrix = plan.matrix
    size = {MatrixKind.BANDED: {"bands": matrix.bands}, MatrixKind.BLT: {"buffers": matrix.buffers}}.get(
        matrix.kind, {}
    )
    numbers |= {**size, "separation": matrix.separation, "participations": matrix.participations}
    return Stage(name=f"noise-{matrix.kind}", numbers=numbers)
