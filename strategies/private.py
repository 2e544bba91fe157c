"""The server's part of a privacy plan in which the server adds the noise: secret cohorts, noisy sums, fixed divisors.

The order is that of :meth:`cloister.privacy.plan.Plan.server_stages`: sum the clipped changes, add noise for the clip
bound in force, divide by a public number, adapt the bound. How many clients took part, and which, is part of what the
noise hides: the divisor is the cohort's expected size, an empty cohort still adds its noise, and no quorum applies.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from cloister.errors import ConfigError, ReleaseError
from cloister.flower import NDArray, tensor
from cloister.models.spec import Group
from cloister.privacy.clipping import BIT, ClipBound, layer_of
from cloister.privacy.events import Sampler
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.privacy.stages import Stage
from cloister.strategies.cohort import Cohort, pool_of
from cloister.strategies.fold import Fold, WeightedSum
from cloister.strategies.streams import SumNoise
from cloister.strategies.validation import Reply

Settle = Callable[[int, Callable[[], dict[str, NDArray]]], dict[str, NDArray]]
_SUM, _BITS = "sum/", "bits"
_ROUNDING = 1e-5  # a norm clipped in float32 may exceed its bound by this share


def unsettled(number: int, make: Callable[[], dict[str, NDArray]]) -> dict[str, NDArray]:
    """Return what ``make`` makes: for tests and for a server that keeps no ledger."""
    return make()


def adapted(bound: float, stage: Stage, bits: float) -> float:
    """Return the clip bound after a round with this noisy sum of bits; ``stage``: the plan's ``adapt-clip``."""
    values = {key: stage[key] for key in ("quantile", "learning_rate", "cohort")}
    return ClipBound(bound=bound, **values).after(bits).bound


@dataclass(kw_only=True)
class CentralPrivacy:
    """What a strategy under a central plan draws, adds and remembers.

    ``noise`` is the server's secret. ``settle(round, make)`` puts a release into the server's ledger before anybody
    sees it, and returns the first release of a round where the round is run again. ``bound`` is the clip bound in
    force. ``took_part`` says when each client last took part, and how often (min-separation alone).
    """

    plan: Plan
    noise: NoiseSource
    settle: Settle = unsettled
    bound: float = 0.0
    took_part: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the first bound and the noise stream from the plan."""
        clip = self.plan.clip
        if clip is None or not self.plan.central:
            raise ConfigError(
                "strategy: expected a central plan with [plan.clip], found another; build it from the plan"
            )
        self.bound = self.bound or self.plan.clip_norm
        self.stages = {stage.name: stage for stage in self.plan.server_stages()}
        if "divide" not in self.stages:
            raise ConfigError(
                f"strategy: expected a central plan whose sum is noised and divided, found {list(self.stages)}; a "
                "robust rule needs each reply by itself"
            )
        self.stream = SumNoise(self.plan, self.noise)

    @property
    def adaptive(self) -> bool:
        """Whether the bound follows a quantile of the clients' norms."""
        return "adapt-clip" in self.stages

    @property
    def most(self) -> float:
        """The largest norm of a change that was clipped to the bound in force."""
        return self.bound * (1 + _ROUNDING)

    def draw(self, grid: Grid, ids: Sequence[int], number: int, size: int) -> Cohort:
        """Return the cohort of round ``number``, drawn as the plan says with the server's secret randomness.

        ``size``: clients of a round where the plan's sampler is min-separation.
        """
        source, pool = self.noise.fork("cohort", number), pool_of(grid, ids)
        match self.plan.sampler:
            case Sampler.POISSON:
                chosen = [pool[place] for place in np.flatnonzero(source.bernoulli(self.plan.rate, len(pool)))]
            case Sampler.MIN_SEPARATION:
                free = [client for client in pool if self._may_take_part(client.name)]
                chosen = [free[place] for place in source.permutation(len(free))[:size]]
                for client in chosen:  # counted in rounds that were noised, as the mechanism's separation is
                    times = self.took_part.get(client.name, (0, 0))[1]
                    self.took_part[client.name] = (self.stream.done, times + 1)
            case Sampler.ALL:
                chosen = pool
            case _:  # of all places, those of absent clients too: fewer online would be drawn more often than counted
                places = source.permutation(max(self.plan.population, len(pool)))[: self.plan.sample_size]
                chosen = [pool[place] for place in places if place < len(pool)]
        return Cohort(clients=tuple(sorted(chosen)), pool=len(pool))

    def fold(self, number: int, arrays: Mapping[str, NDArray], groups: Mapping[str, Group]) -> "NoisyMean":
        """Return the aggregation of round ``number``; refuses entries that no clip covers."""
        uncovered = sorted(
            name for name in arrays if groups[name] is not Group.SHARED or arrays[name].dtype.kind != "f"
        )
        if uncovered:
            raise ConfigError(
                f"strategy under a privacy plan: expected SHARED floating-point entries alone, found {uncovered[:3]}, "
                "which no clip bounds; use a model without statistics that travel (GroupNorm)"
            )
        return NoisyMean(self, number, arrays)

    def state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Return (arrays, JSON values) from which :meth:`restore` continues; the arrays are sealed."""
        return self.stream.state(), {"bound": self.bound, "took-part": {k: list(v) for k, v in self.took_part.items()}}

    def restore(self, arrays: Mapping[str, NDArray], values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.stream.restore(arrays)
        self.bound = float(values["bound"])
        self.took_part = {name: (int(last), int(times)) for name, (last, times) in values["took-part"].items()}

    def adapt(self, bits: float) -> None:
        """Move the bound by the noisy sum of the un-clipped bits (Andrew et al. 2021, section 2)."""
        self.bound = adapted(self.bound, self.stages["adapt-clip"], bits)

    def _may_take_part(self, name: str) -> bool:
        matrix, (last, times) = self.plan.matrix, self.took_part.get(name, (0, 0))
        if matrix is None or not times:
            return True
        return self.stream.done - last >= matrix.separation and (
            not matrix.participations or times < matrix.participations
        )


class NoisyMean(Fold):
    """(sum of clipped changes + noise) / public number, added to the current arrays."""

    def __init__(self, privacy: CentralPrivacy, number: int, current: Mapping[str, NDArray]) -> None:
        """Sum changes of ``current`` in round ``number``."""
        self._privacy, self._number, self._current = privacy, number, current
        self._sum = WeightedSum(current, current)
        self._bits, self._slack = 0.0, 0.0

    def add(self, reply: Reply) -> None:
        """Add one clipped change; raises ReleaseError for one beyond its bounds, which then counts as zero."""
        self._check(reply)
        self._sum.add(reply.deltas, 1.0)
        self._bits += reply.metrics.get(BIT, 0.0)

    def add_sum(self, values: Mapping[str, NDArray], slack: float, bits: float = 0.0) -> None:
        """Add the sum of everybody's clipped changes, of which no single one was seen.

        ``slack``: by which share of the bound rounding to integers can have lengthened each. ``bits``: the sum of bits.
        """
        self._sum.add(values, 1.0)
        self._slack, self._bits = slack, bits

    def finish(self) -> dict[str, NDArray]:
        """Return the new arrays, and let the bound adapt."""
        made = self._release()  # always, so that correlated noise goes on as it would have
        released = self._privacy.settle(self._number, lambda: made)
        divisor = self._privacy.stages["divide"]["by"]
        if _BITS in released:
            self._privacy.adapt(float(released[_BITS]))
        return {
            name: (values + released[_SUM + name] / divisor).astype(values.dtype)
            for name, values in self._current.items()
        }

    def _release(self) -> dict[str, NDArray]:
        privacy = self._privacy
        shapes = {name: it.shape for name, it in self._current.items()}
        most = privacy.most * (1 + self._slack)  # what is accepted is what is covered
        noise = privacy.stream.draw(self._number, shapes, most)
        released = {_SUM + name: total + noise[name] for name, total in self._sum.totals().items()}
        if privacy.adaptive:
            source = privacy.noise.fork("bits", self._number)
            std = privacy.stages["adapt-clip"]["bits_noise"]
            released[_BITS] = np.asarray(self._bits + source.gaussian((), std))
        return released

    def _check(self, reply: Reply) -> None:
        clip = self._privacy.plan.clip
        bounds = clip.per_layer if clip else {}
        layers = {name: layer_of(name, bounds) for name in reply.deltas} if bounds else {}  # as the client clips
        for prefix, bound in bounds.items():
            layer = [reply.deltas[name] for name, found in layers.items() if found == prefix]
            norm = math.sqrt(sum(float(tensor(values).double().square().sum()) for values in layer))
            if norm > bound * (1 + _ROUNDING):
                raise ReleaseError(f"arrays: {prefix}: expected a change of L2 norm at most {bound:g}, found {norm:g}")
        bit = reply.metrics.get(BIT)
        if self._privacy.adaptive and bit not in (-0.5, 0.0, 0.5):
            raise ReleaseError(f"metrics[{BIT!r}]: expected 0.5, 0 or -0.5, found {bit}")
