"""Who takes part in a round: drawn from the seed tree by name, without an object per node of a large pool."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from flwr.serverapp import Grid

from cloister.strategies.quorum import QuorumConfig

_ONLINE_POLL_S = 0.5  # between two looks at which nodes are online
_NAMED_POOL = 10_000  # up to this size a pool is put in order by name, beyond it by node id


class Client(NamedTuple):
    """A client of the cohort. Canonical order is that of (name, node_id)."""

    name: str
    node_id: int


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The clients of one round in canonical order.

    ``pool`` is the number of nodes it was drawn from. ``excluded`` maps the name of a client that was drawn but is
    not asked to the reason. ``problem`` says why nobody was drawn.
    """

    clients: tuple[Client, ...]
    pool: int
    excluded: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def asked(self) -> int:
        """The number of clients that were drawn."""
        return len(self.clients) + len(self.excluded)


def assemble(
    grid: Grid,
    quorum: QuorumConfig,
    choose: Callable[[Sequence[int]], Cohort],
    *,
    size: int | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Cohort:
    """Let ``choose`` draw a cohort from the ids of the nodes online, as soon as there are enough of them.

    After ``quorum.online_s`` seconds it draws from those that there are; with fewer than ``quorum.nodes`` online by
    then, the cohort is empty and says so.
    """
    deadline = clock() + quorum.online_s
    ids = _online(grid)
    while len(ids) < max(quorum.nodes, size or 1) and (left := deadline - clock()) > 0:
        sleep(min(left, _ONLINE_POLL_S))
        ids = _online(grid)
    if len(ids) < quorum.nodes:
        problem = f"expected at least {quorum.nodes} nodes online within {quorum.online_s:g} s, found {len(ids)}"
        return Cohort(clients=(), pool=len(ids), problem=problem)
    return choose(ids)


def pool_of(grid: Grid, ids: Sequence[int]) -> list[Client]:
    """Return all nodes as clients, in canonical order."""
    name_of = _names(grid)
    return sorted(Client(name_of(node_id), node_id) for node_id in ids)


def draw(
    grid: Grid, ids: Sequence[int], *, fraction: float, size: int | None, generator: np.random.Generator
) -> Cohort:
    """Return ``size`` of the nodes (or a ``fraction`` of them, at least one), drawn without replacement.

    The draw is over names, so it is the same on every engine whatever node ids the engine hands out; a pool of more
    than 10,000 nodes is taken in the order of ids instead, and only the names of those drawn are asked for. Clients
    that share a name are excluded: what belongs to one of them would be sent to the other.
    """
    wanted = min(len(ids), size if size is not None else max(1, int(fraction * len(ids) + 1e-9)))
    name_of = _names(grid)
    if wanted == len(ids) or len(ids) <= _NAMED_POOL:
        pool = sorted((name_of(node_id), node_id) for node_id in ids)
        places = range(len(pool)) if wanted == len(pool) else _draw(len(pool), wanted, generator)
        chosen = [Client(*pool[index]) for index in places]
    else:
        ordered = ids if isinstance(ids, range) else sorted(ids)
        chosen = [Client(name_of(ordered[index]), ordered[index]) for index in _draw(len(ordered), wanted, generator)]
    uses = Counter(client.name for client in chosen)
    excluded = {name: f"not asked: {count} nodes carry this name" for name, count in uses.items() if count > 1}
    clients = tuple(sorted(client for client in chosen if client.name not in excluded))
    return Cohort(clients=clients, pool=len(ids), excluded=excluded)


def _online(grid: Grid) -> Sequence[int]:
    ids = grid.get_node_ids()
    return ids if isinstance(ids, Sequence) else sorted(ids)


def _draw(pool: int, wanted: int, generator: np.random.Generator) -> list[int]:
    return [int(index) for index in generator.choice(pool, size=wanted, replace=False)]


def _names(grid: Grid) -> Callable[[int], str]:
    name_of: Callable[[int], str] | None = getattr(grid, "name_of", None)
    if name_of is not None:
        return name_of
    names = {node.node_id: node.name for node in grid.get_nodes()}
    return lambda node_id: names.get(node_id) or f"node-{node_id}"
