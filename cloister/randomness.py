"""One tree of seeds, keyed by (experiment, round, client, purpose).

Every random draw of an experiment comes from a generator made here, so the same experiment and seed give the
same draws on every engine, whatever the order in which clients run. Nothing here is a secret: keys and noise
that protect people come from the operating system and have another type.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True)
class SeedTree:
    """Deterministic generators for one experiment.

    ``experiment`` and ``seed`` name the tree. ``round``, ``client`` and ``purpose`` name a leaf; two different
    leaves give independent streams (SHA-256 of the key).
    """

    experiment: str
    seed: int

    def key(self, *, purpose: str, round: int = 0, client: str = "") -> int:
        """Return the leaf's seed, an integer in [0, 2**64)."""
        text = "\x1f".join((self.experiment, str(self.seed), str(round), client, purpose))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def numpy(self, *, purpose: str, round: int = 0, client: str = "") -> "np.random.Generator":
        """Return a fresh NumPy generator for this leaf."""
        import numpy as np

        return np.random.default_rng(self.key(purpose=purpose, round=round, client=client))

    def torch(self, *, purpose: str, round: int = 0, client: str = "") -> "torch.Generator":
        """Return a fresh CPU torch generator for this leaf."""
        import torch

        generator = torch.Generator()
        generator.manual_seed(self.key(purpose=purpose, round=round, client=client) % 2**63)
        return generator
