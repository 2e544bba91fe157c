"""DP-SGD with people as units: a step draws people, and each gives one clipped gradient from a few of her records.

Sources: user-level sampling (ULS) as in Charles et al., arXiv 2407.07737, algorithm 2; for people on several clients
Marathe et al., arXiv 2206.03617.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cloister.errors import PlanError
from cloister.privacy.dpsgd import PrivateData, PrivateSteps
from cloister.privacy.events import Unit
from cloister.privacy.noise import NoiseSource
from cloister.privacy.per_record import Method
from cloister.privacy.steps import Indices


@dataclass(frozen=True, kw_only=True)
class UnitSteps(PrivateSteps):
    """Steps that draw units (subjects or sessions): user-level DP-SGD.

    ``records``: the most records of one unit in one step, m. Of a drawn unit with more, a secret random subset is taken
    anew. Her gradient is the sum over those records divided by m, which is public, not by how many there are; then it
    is clipped. ``denominator``: of units, such as rate times a public number of units.

    Guarantee: as the base says, for one unit with any number of records: they are all behind one clip, so nobody has to
    be a group. For somebody on several clients, what she loses at each adds up.
    """

    records: int = 1
    unit: Unit = Unit.SUBJECT
    method: Method = Method.LOOP

    def __post_init__(self) -> None:
        """Refuse a number of records that is none."""
        super().__post_init__()
        if self.records < 1:
            raise PlanError(f"private steps: expected at least 1 record per unit, found {self.records}")

    def _draw(self, population: Sequence[Indices], source: NoiseSource, number: int) -> list[Indices]:
        choice = source.fork("records", number)
        return [
            unit if len(unit) <= self.records else unit[choice.permutation(len(unit))[: self.records]]
            for unit in super()._draw(population, source, number)
        ]

    @property
    def _group(self) -> int:
        return 1

    @property
    def _share(self) -> float:
        return 1.0 / self.records

    def _population(self, data: PrivateData) -> list[Indices]:
        return data.units()
