"""What a client holds during a session: secrets of its own, and shares of its peers'. All of it is forgotten."""

from collections.abc import Mapping
from typing import NoReturn, Self

from cloister.errors import SecureSumError
from cloister.privacy.secagg.keys import KeyPair, Secret
from cloister.privacy.secagg.shares import KeyShare, SeedShare


class Own:
    """A client's own secrets: two key pairs, and the seed of its self-mask. Made for one session, and wiped in it."""

    def __init__(self) -> None:
        self.sealing = KeyPair.generate()
        self.masking = KeyPair.generate()
        self.seed = Secret.fresh()

    @classmethod
    def of(cls, sealing: Secret, masking: Secret, seed: Secret) -> Self:
        """Take over secrets that were kept (:mod:`.kept`)."""
        own = cls.__new__(cls)
        own.sealing, own.masking, own.seed = KeyPair(sealing), KeyPair(masking), seed
        return own

    def wipe(self) -> None:
        """Overwrite all three; a second time does nothing."""
        for secret in (self.sealing, self.masking, self.seed):
            secret.wipe()


class Held:
    """The shares that peers entrusted to this client: of each peer a pair, of which one is shown and one forgotten."""

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[SeedShare, KeyShare]] = {}

    @property
    def peers(self) -> frozenset[int]:
        """Whose pairs are here."""
        return frozenset(self._pairs)

    def put(self, peer: int, seed: SeedShare, key: KeyShare) -> None:
        """Keep a pair."""
        self._pairs[peer] = (seed, key)

    def show(self, peer: int, *, survived: bool) -> SeedShare | KeyShare:
        """Return one share of ``peer`` and forget the other; there is no second time."""
        seed, key = self._pairs.pop(peer)
        return seed if survived else key

    @classmethod
    def of(cls, pairs: Mapping[int, tuple[SeedShare, KeyShare]]) -> Self:
        """Take over pairs that were kept (:mod:`.kept`)."""
        held = cls()
        held._pairs = dict(pairs)
        return held

    def take(self) -> dict[int, tuple[SeedShare, KeyShare]]:
        """Return all pairs, to be kept elsewhere, and forget them here."""
        pairs, self._pairs = self._pairs, {}
        return pairs

    def clear(self) -> None:
        """Forget all pairs. Shares are ``bytes``, which Python lets nobody overwrite."""
        self._pairs.clear()

    def __repr__(self) -> str:
        """Return how many there are; never a share."""
        return f"Held({len(self._pairs)} pairs)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled."""
        raise SecureSumError("shares that are held cannot be copied or pickled; a session lives in one process")
