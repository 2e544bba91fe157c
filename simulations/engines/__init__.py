"""What carries Flower messages in a simulation: ``local`` (worker processes) and ``ray`` (Ray actors)."""

import os
from collections.abc import Mapping
from typing import Any

from cloister.simulations.engines.grid import EngineGrid, Nodes
from cloister.simulations.experiment import EngineConfig

APP = "cloister.clients.app:app"


def open_grid(
    config: EngineConfig, nodes: Nodes, *, app: str = APP, run_config: Mapping[str, Any] | None = None
) -> EngineGrid:
    """Return a grid over the engine that ``config`` names, serving the ClientApp at ``app``. Close it after use."""
    workers = config.workers or min(len(nodes.names), len(os.sched_getaffinity(0)))
    common: dict[str, Any] = {"app": app, "run_config": dict(run_config or {}), "threads": config.threads}
    common["workers"] = workers
    if config.name == "local":
        from cloister.simulations.engines.local import local_grid

        return local_grid(nodes, **common)
    from cloister.simulations.engines.ray import ray_grid

    return ray_grid(nodes, **common, address=config.address, gpus_per_actor=config.gpus_per_worker, sites=config.sites)
