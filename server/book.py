"""The server's books under a plan in which the server adds the noise: its key, its ledger, its releases.

A round's release is its noisy sum. It is spooled, then written into the ledger, and only then used: whatever is made
of it afterwards (the model, its scores) costs nothing more. A round that is run again, after a kill, uses the first
release, whatever the clients replied the second time.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from cloister.flower import NDArray
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.privacy.sealing import KEY_NAME, machine_key
from cloister.privacy.spool import Spool


class Book:
    """What a server keeps of one run under a central plan, in a folder of its own."""

    def __init__(self, folder: Path, *, run: str, plan: Plan, task: str) -> None:
        """Keep books in ``folder``; nothing is opened before the first release."""
        self.folder, self.run, self.plan, self.task = folder, run, plan, task

    @property
    def noise(self) -> NoiseSource:
        """The server's secret noise of this run, from a key that is made once."""
        return NoiseSource(machine_key(self.folder / KEY_NAME)).fork(self.run)

    def settle(self, number: int, make: Callable[[], dict[str, NDArray]]) -> dict[str, NDArray]:
        """Return the release of round ``number``: the one that was made first, or what ``make`` makes now.

        Raises :class:`~cloister.errors.LedgerError` where it cannot be written down; it must not be used then.
        """
        request = hashlib.sha256(f"{self.run}\x1f{number}\x1f{self.plan.digest}".encode()).hexdigest()
        with Ledger.open(self.folder / FILE_NAME) as ledger:
            spool = Spool(self.folder / "spool", ledger)
            known = spool.find(self.run, number, request)
            if known is not None:
                return load(known)
            ledger.admit(self.run, number, (), None)
            last = ledger.last_round(self.run)
            made = {name: np.ascontiguousarray(values).reshape(values.shape) for name, values in make().items()}
            data = save(made)
            entry = Entry(
                kind=EntryKind.RELEASE,
                run=self.run,
                round=number,
                task=self.task,
                plan=self.plan.digest,
                unit=self.plan.unit,
                relation=self.plan.relation,
                kinds={"arrays": len(data)},
                events=self.plan.increment(last, number),
                content=hashlib.sha256(data).hexdigest(),
            )
            return load(spool.release(entry, request, data))
