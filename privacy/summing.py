"""From a plan with ``[plan.secure]`` to the secure sum of one round: its terms, and how vectors become integers.

Server and clients make these from the same plan, so that neither has to take the other's word.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError
from cloister.privacy.distributed import Distributed
from cloister.privacy.events import EventKind
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.layout import FixedPoint, Layout
from cloister.privacy.secagg.masks import Words
from cloister.privacy.secagg.terms import Terms
from cloister.privacy.settings import ClipKind, Secure, Weighting

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan

Reals = NDArray[np.float64]


def secure_of(plan: "Plan") -> Secure:
    """Return the plan's ``[plan.secure]``; raises :class:`PlanError` where it has none, or no size yet."""
    if plan.secure is None or plan.secure.size == 0:
        raise PlanError(
            "plan.secure: expected a table with the size of the vectors that are summed, found none; run the plan in "
            "an experiment, which knows its model, or set plan.secure.size"
        )
    return plan.secure


def asked(plan: "Plan") -> int:
    """Return how many clients are asked for a sum, so that no more are in it."""
    return secure_of(plan).clients or math.ceil(plan.cohort)


def least(plan: "Plan") -> int:
    """Return the fewest clients that a sum may be over, whoever came: of distributed noise, all shares counted on."""
    secure = secure_of(plan)
    if not plan.distributed:
        return secure.minimum
    return max(secure.minimum, math.ceil(round((1 - secure.dropouts) * asked(plan), 9)))


def shares_of(plan: "Plan", clip: float = 0.0) -> Distributed:
    """Return how clients add the noise under distributed trust; ``clip`` is the bound in force (0: the plan's).

    Colluding clients know their own shares, so those of the plan's adversaries do not count. Raises :class:`PlanError`
    for numbers that do not go together.
    """
    secure = secure_of(plan)
    if plan.clip is None:
        raise PlanError("plan.clip: expected a bound on each client's update, found none; noise is relative to it")
    adaptive = plan.clip.kind is ClipKind.ADAPTIVE
    return Distributed(
        mechanism=EventKind(secure.noise),
        size=secure.size,
        clip=clip or plan.clip_norm,
        bits=secure.bits,
        clients=asked(plan),
        least=least(plan),
        dishonest=math.ceil(round(secure.adversaries * asked(plan), 9)),
        noise_multiplier=plan.noise_multiplier,
        unit=plan.unit,
        relation=plan.relation,
        bits_noise=plan.bits_noise if adaptive else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Total:
    """What a secure sum says: ``values`` by name, float64; the sum of ``weights``; of un-clipped ``bits``.

    ``centres``: sums of class centres ``[C, D]`` and how many clients have one ``[C]``, where they are summed too.
    """

    values: dict[str, Reals]
    weights: float
    bits: float = 0.0
    centres: tuple[Reals, Reals] | None = None


@dataclass(frozen=True, kw_only=True)
class RoundSum:
    """The secure sum of round ``number`` of ``run``, over arrays of these ``shapes``; the same at everybody's.

    ``clip``: the bound in force. ``request``: digest of everything else that each client is asked, model and settings
    included (:func:`~cloister.privacy.carried.request_digest`): whoever is asked for something else gets other terms,
    and so is in another sum. ``rows``: (classes, width) of class centres that are summed beside, each client's
    counting as one. Raises :class:`PlanError` for shapes that do not have the plan's size.
    """

    plan: "Plan"
    run: str
    number: int
    shapes: Mapping[str, tuple[int, ...]]
    clip: float
    request: bytes = b""
    rows: tuple[int, int] | None = None
    layout: Layout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Lay the vector out."""
        beside: dict[str, tuple[int, ...]] = {"centres": self.rows, "counts": self.rows[:1]} if self.rows else {}
        if self._bits:
            beside["bit"] = ()
        object.__setattr__(self, "layout", Layout.of(self.shapes, beside))
        if (size := self.layout.weighted) != secure_of(self.plan).size:
            raise PlanError(
                f"plan.secure.size: expected {size}, the numbers in this model, found {secure_of(self.plan).size}; "
                "server and client must use the same settings"
            )

    @property
    def terms(self) -> Terms:
        """The terms of this sum: the plan's rates, for this vector."""
        secure = secure_of(self.plan)
        return Terms(
            run=self._digest("sum"),
            round=self.number,
            layout=self.layout.digest,
            size=self.shares.dimension if self.plan.distributed else self.layout.size,
            bits=secure.bits,
            minimum=least(self.plan),
            adversaries=secure.adversaries,
            dropouts=secure.dropouts,
            server=secure.server,
        )

    def encode(
        self,
        arrays: Mapping[str, Any],
        source: NoiseSource,
        *,
        weight: float,
        bit: float,
        centres: Mapping[str, Any] | None = None,
    ) -> Words:
        """Return the integers that a client masks, of arrays that its stages made; ``source``: its own, secret.

        ``centres``: ``values`` ``[n, D]`` and ``labels`` ``[n]``, below the classes, as a client releases them.
        """
        vector = self.layout.flatten(arrays, self._beside(centres or {}, bit))
        if self.plan.distributed:
            return self.shares.encode(vector, source, self._digest("rotation"), bit=bit)
        return self._fixed.encode(vector, weight, source)

    def decode(self, total: Words, clients: int) -> Total:
        """Return the sum over so many clients; raises ``PrivacyError`` for what is none."""
        if not self.plan.distributed:
            vector, weights = self._fixed.decode(total, clients)
            values, beside = self.layout.unflatten(vector)
            centres = (beside["centres"], np.round(beside["counts"])) if self.rows else None
            bits = float(beside["bit"]) if self._bits else 0.0
            return Total(values=values, weights=weights, bits=bits, centres=centres)
        said = self.shares.decode(total, self._digest("rotation"))
        return Total(values=self.layout.unflatten(said.vector)[0], weights=clients, bits=said.bits)

    @property
    def slack(self) -> float:
        """By which share of the clip a client's part of the sum can be longer than it: rounding of every coordinate.

        Distributed noise has its own bound on rounding, and counts with it.
        """
        if self.plan.distributed or not math.isfinite(self.clip):
            return 0.0
        return math.sqrt(self.layout.weighted) * self._fixed.step / self.clip

    @property
    def shares(self) -> Distributed:
        """How the noise of distributed trust is shared in this round."""
        return shares_of(self.plan, self.clip)

    @property
    def _fixed(self) -> FixedPoint:
        secure, capped = secure_of(self.plan), self.plan.weighting is Weighting.CAPPED and not self.plan.noisy
        return FixedPoint(
            bits=secure.bits,
            clip=secure.largest or self.clip,
            clients=asked(self.plan),
            weight_cap=self.plan.weight_cap if capped else 1.0,
            unweighted=self.layout.unweighted,
            unweighted_clip=max(secure.centre_bound, 1.0),
        )

    @property
    def _bits(self) -> bool:
        """Whether un-clipped bits are in the vector by themselves, for the server's noise."""
        clip = self.plan.clip
        return self.plan.central and clip is not None and clip.kind is ClipKind.ADAPTIVE

    def _beside(self, centres: Mapping[str, Any], bit: float) -> dict[str, Reals]:
        """Return the entries without weight: the bit, and a row and a one for each identity that this client has."""
        alone = {"bit": np.array(bit)} if self._bits else {}
        if self.rows is None:
            return alone
        values, counts = np.zeros(self.rows), np.zeros(self.rows[0])
        if centres:
            labels, found = np.asarray(centres["labels"]), np.asarray(centres["values"])
            inside = labels.ndim == 1 and found.shape == (len(labels), self.rows[1])
            if not inside or (labels.size and not 0 <= labels.min() <= labels.max() < self.rows[0]):
                raise PlanError(
                    f"class centres: expected labels below {self.rows[0]} and rows of {self.rows[1]}, found shape "
                    f"{found.shape}; server and client must use the same settings"
                )
            values[labels], counts[labels] = found, 1.0
        return {"centres": values, "counts": counts, **alone}

    def _digest(self, purpose: str) -> bytes:
        own = str(self.number) if purpose == "rotation" else self.request.hex()
        text = f"{purpose}\x1f{self.run}\x1f{self.plan.digest}\x1f{own}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
