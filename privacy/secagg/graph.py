"""Who masks against whom: clients on a ring in an order that nobody chose, each joined to the nearest ones.

The order comes from a public beacon, the hash of everything that was advertised: it is fixed by keys that exist
already, everybody can compute it, and the server has no say in it but by which keys it lets in (:mod:`.parameters`
counts that).

Sources: Harary 1962, "The maximum connectivity of a graph" (k/2 neighbours on each side of a ring is k-connected);
Bell et al. 2020, eprint 2020/704, section 3.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256

from cloister.errors import SecureSumError
from cloister.privacy.secagg.keys import message


def neighbours(order_seed: bytes, clients: Sequence[int], degree: int) -> Mapping[int, tuple[int, ...]]:
    """Return each client's neighbours, smallest first: ``degree`` of them, and everybody's neighbour is theirs too.

    ``order_seed``: the beacon, 32 bytes; ``clients``: their numbers, whose order does not matter; ``degree``: even, or
    that of the complete graph. The ring is the order of the SHA-256 digests of beacon and number.

    Raises :class:`SecureSumError` for another seed, numbers that repeat or are negative, and degrees no ring has.
    """
    if len(order_seed) != 32:
        raise SecureSumError(f"graph: expected a beacon of 32 bytes, found {len(order_seed)}; give a SHA-256 digest")
    count = len(clients)
    if len(set(clients)) != count or min(clients, default=0) < 0:
        raise SecureSumError(f"graph: expected {count} different numbers of clients from 0, found some twice or below")
    if not 1 <= degree < count or (degree % 2 and degree != count - 1):
        raise SecureSumError(
            f"graph of {count} clients: expected an even degree, or {count - 1}, found {degree}; use parameters.derive"
        )
    if degree == count - 1:
        everybody = sorted(clients)
        return {client: tuple(other for other in everybody if other != client) for client in everybody}
    ring = sorted(clients, key=lambda client: sha256(message("cloister ring", order_seed, client.to_bytes(8))).digest())
    sides = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
    return {client: tuple(sorted(ring[(index + step) % count] for step in sides)) for index, client in enumerate(ring)}
