"""The noise on a round's sum: independent in each round, or correlated over the rounds of a run."""

from collections.abc import Mapping

from cloister.flower import NDArray
from cloister.privacy.correlated import NoiseStream, factorise
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.privacy.sealing import seal, unseal

Shapes = Mapping[str, tuple[int, ...]]


class SumNoise:
    """The noise of a central plan, one round after another, with a memory that only the server can read."""

    def __init__(self, plan: Plan, noise: NoiseSource) -> None:
        """Serve a central plan; a matrix mechanism's factor is chosen here, for all its rounds."""
        stage = next(stage for stage in plan.server_stages() if stage.name.startswith("noise"))
        self._source = noise.fork("sum")
        self._multiplier = stage["noise"]
        self._key = noise.fork("seal").integers(256, 32).astype("uint8").tobytes()
        self._context = plan.digest
        self._stream: NoiseStream | None = None
        if kind := stage.name.removeprefix("noise").removeprefix("-"):
            pattern = {key: int(number) for key, number in stage.numbers.items() if key != "noise"}
            self._stream = NoiseStream(factorise(kind, rounds=plan.rounds, **pattern), self._source)

    @property
    def done(self) -> int:
        """Rounds for which correlated noise was made."""
        return self._stream.round if self._stream else 0

    def draw(self, number: int, shapes: Shapes, bound: float) -> dict[str, NDArray]:
        """Return the noise of round ``number`` for a sum in which one unit moves by ``bound`` at most, float64."""
        if self._stream is not None:
            return dict(self._stream.next(shapes, self._stream.std(self._multiplier, bound)))
        source = self._source.fork(number)
        return {name: source.fork(name).gaussian(shape, self._multiplier * bound) for name, shape in shapes.items()}

    def state(self) -> dict[str, NDArray]:
        """Return the sealed memory of correlated noise; empty where noise is independent."""
        return dict(seal(self._stream.state(), key=self._key, context=self._context)) if self._stream else {}

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take up a memory; raises :class:`~cloister.errors.PrivacyError` if it is another server's or was changed."""
        if self._stream is not None:
            self._stream.restore(unseal(state, key=self._key, context=self._context))
