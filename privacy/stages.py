"""What a plan has a client and a server do to a release, as a list of names and numbers.

Made from the same plan on both sides and carried out elsewhere, so that clip, weights and noise cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloister.privacy.settings import ClipKind, MatrixKind, Mechanism, Sampled, Trust, Weighting

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step on the way of a release: ``stage["bound"]`` is one of its ``numbers``.

    Client: ``private-steps`` (steps, rate, bound, noise, records, divisor), ``clip-flat`` or ``clip-adaptive``
    (bound), ``clip-per-layer`` (a bound per name prefix), ``weight`` (cap), ``bit`` (the un-clipped bit, beside the
    update), ``noise`` (noise), ``centres`` (bound, noise, count_noise, least, every).
    Server: ``robust-RULE``, ``noise`` (noise), ``noise-banded``, ``noise-blt``, ``noise-tree`` (noise, and the numbers
    of :class:`~cloister.privacy.settings.Matrix`), ``divide`` (by), ``adapt-clip`` (quantile, learning_rate,
    bits_noise, cohort).
    ``noise`` is a standard deviation in units of the clip bound in force (per-layer: of the root of the sum of squares;
    matrix: also of the sensitivity of its factor to all rounds of one client; counts: of one), doubled where units are
    replaced.
    """

    name: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, key: str) -> float:
        """Return one of the numbers."""
        return self.numbers[key]


def client_stages(plan: "Plan") -> tuple[Stage, ...]:
    """Return what a client does under ``plan``, in this order: private steps or clip, weight, noise; then centres."""
    stages = [_private_steps(plan)] if plan.private_steps else _clipped(plan)
    if plan.centres:
        centres = plan.centres
        numbers = {
            "bound": centres.bound,
            "noise": centres.noise_multiplier * plan.spread,
            "count_noise": centres.count_multiplier * plan.spread,
            "least": centres.least,
            "every": centres.every,
        }
        stages.append(Stage(name="centres", numbers=numbers))
    return tuple(stages)


def server_stages(plan: "Plan") -> tuple[Stage, ...]:
    """Return what the server does under ``plan``: a robust rule or the noisy sum over a fixed number, and the clip."""
    if plan.robust:
        return (Stage(name=f"robust-{plan.robust}"),)
    if not plan.central:
        return ()
    stages = [_central_noise(plan), Stage(name="divide", numbers={"by": plan.cohort})]
    if plan.clip and plan.clip.kind is ClipKind.ADAPTIVE:
        numbers = {
            "quantile": plan.clip.quantile,
            "learning_rate": plan.clip.learning_rate,
            "bits_noise": plan.bits_noise,
            "cohort": plan.cohort,
        }
        stages.append(Stage(name="adapt-clip", numbers=numbers))
    return tuple(stages)


def _private_steps(plan: "Plan") -> Stage:
    clip = plan.clip
    numbers = {
        "steps": plan.steps,
        "rate": plan.rate,
        "bound": clip.bound if clip else 0.0,
        "noise": plan.noise_multiplier * plan.spread,
        "records": plan.records,
        "by_units": float(plan.sampled is Sampled.UNITS),
        "divisor": plan.sample_size,
    }
    return Stage(name="private-steps", numbers=numbers)


def _clipped(plan: "Plan") -> list[Stage]:
    clip = plan.clip
    if clip is None:
        return []
    bounds = dict(clip.per_layer) if clip.kind is ClipKind.PER_LAYER else {"bound": clip.bound}
    stages = [Stage(name=f"clip-{clip.kind}", numbers=bounds)]
    if clip.kind is ClipKind.ADAPTIVE:
        stages.append(Stage(name="bit"))
    if plan.weighting is Weighting.CAPPED:
        stages.append(Stage(name="weight", numbers={"cap": plan.weight_cap}))
    if plan.mechanism is Mechanism.GAUSSIAN and plan.trust is Trust.LOCAL:
        stages.append(Stage(name="noise", numbers={"noise": plan.noise_multiplier * plan.spread}))
    return stages


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
