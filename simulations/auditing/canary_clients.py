"""One-shot canary clients in a repetition of the run: virtual clients that each send a direction of their own."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cloister.flower import views
from cloister.privacy.audits.canaries import Canaries, CanaryWatch, audit_canaries, flatten
from cloister.privacy.audits.result import AuditResult
from cloister.privacy.events import Unit
from cloister.privacy.noise import NoiseSource
from cloister.server.app import RoundReport, initial_arrays, serve
from cloister.simulations.audit_pictures import canary_histogram
from cloister.simulations.auditing.canary_grid import CanaryGrid
from cloister.simulations.auditing.victim import Victim
from cloister.simulations.engines import open_grid

_CANARIES = 64


def canary_clients(victim: Victim) -> list[AuditResult]:
    """Repeat the run with canary clients among the others, and look for their directions in the final model.

    A canary takes part when the plan's sampler draws it, in every round of the run, which is what the claim is for.
    """
    prepared = victim.prepared
    with TemporaryDirectory(dir=victim.folder) as kept:
        folder = Path(kept)
        watch: list[CanaryWatch] = []

        def look(done: RoundReport) -> None:
            watch[0].see(flatten(views(done.result.arrays), names))

        assignment = prepared.assignment(None, look, run="canaries", books=folder / "server")
        start = initial_arrays(assignment, victim.fresh_model())
        names = list(start)
        seed, size = int(victim.rng("canaries").integers(2**31)), sum(values.size for values in start.values())
        canaries = Canaries(seed=seed, size=size, count=_CANARIES, unused=_CANARIES)
        watch.append(CanaryWatch(canaries, flatten(start, names)))
        with open_grid(prepared.experiment.engine, prepared.nodes(folder / "clients")) as grid:
            serve(CanaryGrid(grid, canaries, NoiseSource.fresh()), assignment)
        scores = watch[0].final()
    used, unused = scores[:_CANARIES], scores[_CANARIES:]
    path = canary_histogram(victim.pictures / "canary-clients.png", used, unused, size)
    result = audit_canaries(canaries, scores, delta=victim.delta, claimed=victim.claimed(Unit.CLIENT))
    return [replace(result, pictures=(str(path.relative_to(victim.folder)),))]
