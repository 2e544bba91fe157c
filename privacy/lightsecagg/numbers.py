"""Real vectors as vectors of the field, by fixed point, so that a weighted sum never leaves the field's range."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cloister.errors import SecureSumError
from cloister.privacy.lightsecagg.field import PRIME, Elements, centred, integers
from cloister.privacy.noise import NoiseSource

_LARGEST = PRIME // 2


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Entries are clipped to ``[-clip, clip]``, multiplied by ``scale`` and rounded to integers.

    ``total_weight``: the largest sum of the public weights of all uploads in a sum (the number of uploads where each
    weighs 1), so that no sum wraps around: ``total_weight * ceil(clip * scale) <= (p - 1) / 2``.

    Raises :class:`SecureSumError` where that does not hold, and names the largest scale that fits.
    """

    clip: float
    scale: float
    total_weight: int

    def __post_init__(self) -> None:
        """Refuse what could wrap around."""
        numbers = self.clip, self.scale
        if not all(math.isfinite(number) and number > 0 for number in numbers) or self.total_weight < 1:
            raise SecureSumError(
                f"fixed point: expected a positive clip, scale and total weight, found {self.clip}, {self.scale} and "
                f"{self.total_weight}"
            )
        if self.total_weight * math.ceil(self.clip * self.scale) > _LARGEST:
            raise SecureSumError(
                f"fixed point: expected total_weight x clip x scale at most {_LARGEST}, found {self.total_weight} x "
                f"{self.clip:g} x {self.scale:g}, which would wrap around; use a scale of at most "
                f"{_LARGEST // self.total_weight / self.clip:g}"
            )

    @classmethod
    def finest(cls, *, clip: float, total_weight: int) -> Self:
        """Return the encoding with the largest scale that fits."""
        levels = _LARGEST // max(total_weight, 1)
        scale = levels / clip if clip > 0 else 0.0
        if math.ceil(clip * scale) > levels:  # the quotient was rounded up
            scale = math.nextafter(scale, 0.0)
        return cls(clip=clip, scale=scale, total_weight=total_weight)

    def encode(self, values: NDArray[Any], source: NoiseSource) -> Elements:
        """Return ``values`` (any shape, flattened) as elements, rounded up or down at random so that the mean is exact.

        ``source`` is the client's secret: a rounding that others can predict would be no use to them, but one that
        everybody shares would not average out. Raises :class:`SecureSumError` if an entry is not finite.
        """
        reals = np.asarray(values, np.float64).reshape(-1)
        if not np.isfinite(reals).all():
            raise SecureSumError(
                "fixed point: expected finite entries, found others; send the zero vector for a training that failed"
            )
        scaled = np.clip(reals, -self.clip, self.clip) * self.scale
        down = np.floor(scaled)
        down += source.uniform(reals.size) < scaled - down
        return integers(down.astype(np.int64))

    def decode(self, total: Elements) -> NDArray[np.float64]:
        """Return the real vector, or weighted sum of real vectors, that ``total`` stands for.

        Each upload of weight w adds an error of mean 0 and at most ``w / scale`` in each entry, beside the clip.
        """
        return centred(total) / self.scale
