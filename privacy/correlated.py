"""Noise that is correlated over rounds, as a stream: one interface for bands, buffers, trees and independent noise.

:func:`factorise` chooses the matrices of a run and knows their sensitivity; a :class:`NoiseStream` then makes the noise
of one round after another, remembering a few vectors of the model's size and no more.

Source: see :mod:`cloister.privacy.matrix`, which also states the convention of noise multiplier and sensitivity.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cloister.errors import PlanError, PrivacyError
from cloister.privacy.blt import buffered
from cloister.privacy.matrix import Banded, Draw, Errors, Vector, banded, check_participation
from cloister.privacy.noise import NoiseSource
from cloister.privacy.tree import Tree

Layout = Mapping[str, tuple[int, ...]]
State = dict[str, npt.NDArray[Any]]


class Factor(Protocol):
    """What a stream needs of ``C``: :class:`Banded`, :class:`Buffered` and :class:`Tree` have it."""

    @property
    def rounds(self) -> int:
        """Rounds for which the sensitivity holds."""

    @property
    def depth(self) -> int:
        """Vectors that the noise remembers."""

    def sensitivity(self, *, separation: int, participations: int) -> float:
        """Return the L2 sensitivity to all rounds of one unit whose clip is 1."""

    def errors(self) -> Errors:
        """Return the largest and the mean variance of the prefix sums, per variance of ``Z``."""

    def step(self, memory: Vector, round: int, draw: Draw) -> Vector:
        """Return the noise of ``round`` (from 0), made of fresh draws and ``memory``, which is updated in place."""


@dataclass(frozen=True, kw_only=True)
class Factorisation:
    """The factor ``C`` of one run, and its sensitivity to a unit whose participation is that of ``request``.

    ``request``: rounds, separation, participations, and bands or buffers, as they are after :func:`factorise`.
    """

    kind: str
    request: Mapping[str, int]
    factor: Factor
    sensitivity: float


def factorise(
    kind: str, *, rounds: int, separation: int, participations: int = 0, bands: int = 0, buffers: int = 0
) -> Factorisation:
    """Return the factorisation that a plan asks for.

    ``kind``: ``independent`` (no correlation: one band), ``banded`` (``bands``; more than ``rounds`` are ``rounds``),
    ``blt`` (``buffers``), ``tree`` (Honaker's estimate; a new tree every ``separation`` rounds if units come back).
    ``participations`` 0: as many as the separation allows.

    Raises :class:`PlanError` for another kind and for numbers that no matrix has.
    """
    check_participation(rounds=rounds, separation=separation, participations=participations or 1)
    most = -(-rounds // separation)
    pattern = {"separation": separation, "participations": min(participations, most) or most}
    return _factorise(kind, rounds, bands, buffers, **pattern)


@lru_cache(maxsize=64)  # a calibration asks for the same one again and again
def _factorise(
    kind: str, rounds: int, bands: int, buffers: int, *, separation: int, participations: int
) -> Factorisation:
    pattern = {"separation": separation, "participations": participations}
    request = {"rounds": rounds, **pattern}
    factor: Factor
    if kind == "independent":
        factor = Banded(rounds, (1.0,))
    elif kind == "banded":
        factor = banded(rounds, min(bands, rounds), **pattern)
        request["bands"] = min(bands, rounds)
    elif kind == "blt":
        factor = buffered(rounds, buffers, **pattern)
        request["buffers"] = buffers
    elif kind == "tree":
        factor = Tree(rounds, min(separation, rounds) if participations > 1 else rounds)
    else:
        raise PlanError(
            f"matrix mechanism: kind: expected banded, blt, tree or independent, found {kind!r}; correct "
            "plan.matrix.kind"
        )
    return Factorisation(kind=str(kind), request=request, factor=factor, sensitivity=factor.sensitivity(**pattern))


class NoiseStream:
    """The noise of a run, one round after another.

    Guarantee: a run that adds this noise, at :meth:`std` of ``noise_multiplier`` and ``clip``, to its sums, each of
    which one unit changes by at most ``clip`` in L2 norm, is one Gaussian mechanism with that noise multiplier, also
    where a sum depends on what was published before (Denisov et al. 2022, arXiv 2202.08312, theorem 2.1); provided that
    no unit takes part more often, or comes back sooner, than the factorisation was made for.

    All draws come from ``source.fork("round", t)``, ``t`` the number of rounds before: a stream that is restored to an
    earlier state repeats the very same noise. That is safe only if what it is added to is the same too, or was never
    published: noise added to two different sums cancels in their difference. So save the state before anybody sees
    the noisy sum, and give no other stream the same source.

    A round is a call of :meth:`next`, and ``separation`` counts these: a void round, which publishes nothing, is none.
    """

    def __init__(self, factorisation: Factorisation, source: NoiseSource) -> None:
        """Begin before the first round. ``source``: of this stream alone, and the same again after a restart."""
        self._kind, self._request = factorisation.kind, dict(factorisation.request)
        self._factor = factorisation.factor
        self._source = source
        self._round = 0
        self._std = 0.0
        self._layout: dict[str, tuple[int, ...]] = {}
        self._memory: Vector = np.zeros((self._factor.depth, 0))

    @property
    def round(self) -> int:
        """Rounds whose noise was made."""
        return self._round

    def std(self, noise_multiplier: float, clip: float) -> float:
        """Return the standard deviation of ``Z``; where units are replaced, ``clip`` is twice the norm's bound."""
        pattern = {key: self._request[key] for key in ("separation", "participations")}
        return noise_multiplier * clip * self._factor.sensitivity(**pattern)

    def next(self, layout: Layout, std: float) -> dict[str, Vector]:
        """Return the noise of the next round, one float64 array per name and shape of ``layout``.

        ``std``: of ``Z``, per coordinate, from :meth:`std`. It and the layout stay the same for the whole run.

        Raises :class:`PrivacyError` after the last round, and where ``std`` or ``layout`` is not that of before.
        """
        shapes = {name: tuple(layout[name]) for name in sorted(layout)}
        if self._round == 0:
            self._layout, self._std = shapes, std
            self._memory = np.zeros((self._factor.depth, _size(shapes)))
        self._check(shapes, std)
        source, size = self._source.fork("round", self._round), _size(shapes)
        noise = self._factor.step(self._memory, self._round, lambda: source.gaussian(size, self._std))
        self._round += 1
        found, start = {}, 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            found[name] = noise[start:end].reshape(shape)
            start = end
        return found

    def state(self) -> State:
        """Return a copy of all that :meth:`restore` needs beside the source. It is as secret as the data: seal it."""
        about = {
            "kind": self._kind,
            "request": self._request,
            "factor": vars(self._factor),
            "round": self._round,
            "std": self._std,
            "layout": self._layout,
        }
        return {"memory": self._memory.copy(), "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where :meth:`state` was called, bit for bit, with the factor of that time.

        An optimiser found the factor, and its last digits can differ between machines: a run keeps the one it began
        with. Raises :class:`PrivacyError` for the state of another factorisation, and for what is no state.
        """
        try:
            about = json.loads(np.asarray(state["about"], np.uint8).tobytes())
            if (found := (about["kind"], about["request"])) != (self._kind, self._request):
                raise ValueError(f"expected one of {self._kind} {self._request}, found {found[0]} {found[1]}")
            factor = type(self._factor)(
                **{key: tuple(value) if isinstance(value, list) else value for key, value in about["factor"].items()}
            )
            layout = {str(name): tuple(map(int, shape)) for name, shape in about["layout"].items()}
            round, std, memory = int(about["round"]), float(about["std"]), np.array(state["memory"], np.float64)
            if memory.shape != (factor.depth, _size(layout)):
                raise ValueError(f"expected a memory of {(factor.depth, _size(layout))}, found {memory.shape}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PrivacyError(
                f"noise stream: its saved state cannot be used: {error!r}; take the checkpoint of this very plan"
            ) from error
        self._factor, self._layout, self._round, self._std, self._memory = factor, layout, round, std, memory

    def _check(self, shapes: Mapping[str, tuple[int, ...]], std: float) -> None:
        if self._round >= self._factor.rounds:
            raise PrivacyError(
                f"noise stream: expected at most {self._factor.rounds} rounds, for which the noise was made, found one "
                "more; plan more rounds before the start, or begin a new run, which the ledger counts in addition"
            )
        if std != self._std:
            raise PrivacyError(
                f"noise stream: round {self._round}: expected the standard deviation of the first round, {self._std}, "
                f"found {std}; the clip of a matrix mechanism is fixed, so use clip.kind flat or per-layer"
            )
        if shapes != self._layout:
            names = sorted(name for name in {*shapes, *self._layout} if shapes.get(name) != self._layout.get(name))
            raise PrivacyError(
                f"noise stream: round {self._round}: expected the entries of the first round, found others: {names}; "
                "share the same entries in every round"
            )


def _size(layout: Layout) -> int:
    return sum(math.prod(shape) for shape in layout.values())
