"""How the server takes the masks off the sum, with one kind of share for each client.

Of a client in the sum it learns the seed of its own mask, of one that shared and then fell silent the key of the masks
that it had in common with others. Whoever had both for one client could read its vector, so the two sets are disjoint.

Source: Bonawitz et al. 2017, figure 4, round 4.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from cloister.privacy.secagg.group import VECTOR, Group
from cloister.privacy.secagg.keys import KeyPair, Secret
from cloister.privacy.secagg.masks import Words
from cloister.privacy.secagg.messages import Unmask
from cloister.privacy.secagg.reasons import Reason, because, refusal
from cloister.privacy.secagg.shares import KeyShare, SeedShare, join_key, join_seed

Share = TypeVar("Share", SeedShare, KeyShare)

_AT_ONCE = 64  # masks in one pass over the vector: the state of each cipher takes memory too


def remove_masks(
    total: Words, group: Group, *, shared: frozenset[int], summed: frozenset[int], shown: Mapping[int, Unmask]
) -> None:
    """Take from ``total``, in place, the masks that do not cancel.

    ``shared``: whose shares were delivered; ``summed``: whose vectors are in the total; ``shown``: what clients showed.

    Raises :class:`~cloister.errors.SecureSumError` if a client's secret is needed and too few shares of it were shown,
    or if they do not fit together; ``total`` is then worthless.
    """
    seeds: dict[int, list[SeedShare]] = {client: [] for client in summed}
    keys: dict[int, list[KeyShare]] = {
        client: [] for client in shared - summed if not summed.isdisjoint(group.graph[client])
    }
    for _, answer in sorted(shown.items()):
        for peer, share in answer.shown:
            if isinstance(share, SeedShare):
                seeds[peer].append(share)
            elif peer in keys:
                keys[peer].append(share)
    threshold = group.parameters.threshold
    few = [client for held in (seeds, keys) for client, shares in held.items() if len(shares) < threshold]
    if few:
        raise refusal(
            Reason.TOO_FEW,
            f"round {group.terms.round}, unmask: expected {threshold} shares of each client's secret, found fewer of "
            f"{some(sorted(few))}, after answers of {len(shown)} clients. There is no sum; ask again in the next round",
        )
    _remove_own(total, group, seeds)
    for client, shares in sorted(keys.items()):
        _remove_pairwise(total, group, client, shares, summed)


def _remove_own(total: Words, group: Group, seeds: Mapping[int, list[SeedShare]]) -> None:
    clients = sorted(seeds)
    for start in range(0, len(clients), _AT_ONCE):
        with because(Reason.WRONG_SHARES):
            part = [join_seed(_first(group, seeds[client])) for client in clients[start : start + _AT_ONCE]]
        _apply(total, group, subtract=part)


def _remove_pairwise(total: Words, group: Group, gone: int, shares: list[KeyShare], summed: frozenset[int]) -> None:
    """Take off what the peers of a client that is gone added or subtracted for it."""
    with because(Reason.WRONG_SHARES):
        secret = join_key(_first(group, shares))
        pair = KeyPair.of(secret)
        secret.wipe()
    try:
        if pair.public != group.keys[gone].masking:
            raise refusal(Reason.WRONG_SHARES, f"client {gone}: expected shares of its masking key, found of another")
        peers = [peer for peer in group.graph[gone] if peer in summed]
        for start in range(0, len(peers), _AT_ONCE):
            part = {peer: group.mask_seed(pair, gone, peer) for peer in peers[start : start + _AT_ONCE]}
            added = [seed for peer, seed in part.items() if gone < peer]
            _apply(total, group, add=[seed for peer, seed in part.items() if gone > peer], subtract=added)
    finally:
        pair.wipe()


def _apply(total: Words, group: Group, *, add: Iterable[Secret] = (), subtract: Iterable[Secret] = ()) -> None:
    add, subtract = list(add), list(subtract)
    group.stream.apply(total, VECTOR, add=add, subtract=subtract)
    for seed in (*add, *subtract):
        seed.wipe()


def _first(group: Group, shares: list[Share]) -> list[Share]:
    """Return as many shares as are needed: those of the lowest places, which neighbours have in common."""
    return sorted(shares, key=lambda share: share.place)[: group.parameters.threshold]


def some(clients: Iterable[int]) -> str:
    """Return the first twenty clients in words, and how many more there are."""
    known = list(clients)
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return ", ".join(map(str, known[:20])) + more if known else "none"
