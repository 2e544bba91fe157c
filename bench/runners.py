"""One process per measurement: ``python -m cloister.bench.runners KIND PARAMETERS COHORT ROUNDS WORKERS POOL``.

Prints one JSON line: seconds of each round after the first (the first warms up; a single round is timed from when the
process was ready for it), when the first round was done (seconds since the epoch), and the resident memory of the
driver after the second and the last round, in MiB.
"""

import itertools
import json
import logging
import multiprocessing
import random
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

Result = dict[str, Any]


def _memory() -> float:
    """Return this process's resident memory in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


class _Rounds:
    """Times rounds and watches memory as they end."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.memory: list[float] = []
        self.begun = 0.0

    def begin(self) -> None:
        """Note that only the first round is left to do."""
        self.begun = time.time()

    def end(self) -> None:
        self.ends.append(time.time())
        self.memory.append(_memory())

    def result(self) -> Result:
        times = self.ends if len(self.ends) > 1 else [self.begun, *self.ends]
        seconds = [after - before for before, after in itertools.pairwise(times)]
        return {
            "first_round_at": self.ends[0],
            "seconds": seconds,
            "memory_mib": [round(value, 1) for value in (self.memory[min(1, len(self.memory) - 1)], self.memory[-1])],
        }


def bare(parameters: int, cohort: int, rounds: int, workers: int, pool: int) -> Result:
    """A loop per process: copy the weights in, train, add the change to a sum; nothing else.

    Several of them share a cohort and wait for one another after each round, but exchange nothing: what this machine
    can do at most.
    """
    context = multiprocessing.get_context("fork")
    together = context.Barrier(workers)
    shares = [cohort // workers + (number < cohort % workers) for number in range(workers)]
    others = [context.Process(target=_loop, args=(parameters, share, rounds, pool, together)) for share in shares[1:]]
    for process in others:
        process.start()
    watch = _loop(parameters, shares[0], rounds, pool, together)
    for process in others:
        process.join()
    return watch.result()


def _loop(parameters: int, cohort: int, rounds: int, pool: int, together: Any) -> _Rounds:
    import torch

    from cloister.bench.workload import build, data_of, fit

    torch.set_num_threads(1)
    model, watch = build(parameters), _Rounds()
    live = list(model.parameters())
    weights = [parameter.detach().clone() for parameter in live]
    sums = [torch.zeros_like(weight) for weight in weights]
    fit(model, data_of(0))  # as in every worker, what torch imports for its first step is there
    together.wait()
    watch.begin()
    for number in range(rounds):
        for client in random.Random(number).sample(range(pool), cohort):
            with torch.no_grad():
                for parameter, weight in zip(live, weights, strict=True):
                    parameter.copy_(weight)
            fit(model, data_of(client))
            with torch.no_grad():
                for total, parameter, weight in zip(sums, live, weights, strict=True):
                    total.add_(parameter - weight, alpha=50)
        with torch.no_grad():
            for weight, total in zip(weights, sums, strict=True):
                weight.add_(total, alpha=1 / (50 * cohort))
                total.zero_()
        together.wait()
        watch.end()
    return watch


def cloister(engine: str) -> Callable[[int, int, int, int, int], Result]:
    """Return the runner of one of our engines: the same ServerApp, ClientApp, gate and strategy as in any run."""

    def runner(parameters: int, cohort: int, rounds: int, workers: int, pool: int) -> Result:
        if engine == "local":
            from cloister.simulations.engines.nursery import nursery

            nursery()
        from cloister.bench.workload import Workload, WorkloadSpec, settings
        from cloister.clients.policy import SIMULATION
        from cloister.randomness import SeedTree
        from cloister.server.app import Assignment, serve
        from cloister.simulations.engines import open_grid
        from cloister.simulations.engines.grid import Nodes, NumberedNames
        from cloister.simulations.experiment import EngineConfig
        from cloister.strategies.config import StrategyConfig
        from cloister.strategies.registry import build

        spec, watch = WorkloadSpec(parameters), _Rounds()
        seeds = SeedTree(experiment="bench", seed=0)
        config = StrategyConfig.parse({"name": "fedavg", "cohort_size": cohort}, "bench")
        nodes = Nodes(names=NumberedNames(pool), config={"policy": SIMULATION})
        with open_grid(EngineConfig.parse({"name": engine, "workers": workers}, "bench"), nodes) as grid:
            model = spec.build(seeds.torch(purpose="model"))
            assignment = Assignment(
                experiment="bench",
                seed=0,
                rounds=rounds,
                task=f"{Workload.__module__}:{Workload.__name__}",
                settings=settings(parameters, pool),
                spec=spec,
                strategy=build(config, groups=spec.groups(model), seeds=seeds),
                on_round=lambda done: watch.end(),
            )
            watch.begin()
            serve(grid, assignment)
        return watch.result()

    return runner


def flower(parameters: int, cohort: int, rounds: int, workers: int, pool: int) -> Result:
    """Flower's own simulator: FedAvg and a plain ClientApp, written as its tutorials do."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import cloister.flower  # noqa: F401  # isort: skip  # turns telemetry off, so before flwr
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from cloister.bench.workload import build, data_of, fit

    watch, client_app, server_app = _Rounds(), ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        import torch

        torch.set_num_threads(1)
        model = build(parameters)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        _, loss = fit(model, data_of(int(context.node_config["partition-id"])))
        metrics = MetricRecord({"num-examples": 50, "loss": loss})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        def after_round(number: int, arrays: ArrayRecord) -> None:
            if number:
                watch.end()

        strategy = FedAvg(fraction_train=cohort / pool, fraction_evaluate=0.0, min_available_nodes=pool)
        strategy.start(grid, ArrayRecord(build(parameters).state_dict()), num_rounds=rounds, evaluate_fn=after_round)

    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": workers}}
    run_simulation(server_app, client_app, num_supernodes=pool, backend_config=resources)
    return watch.result()


def pfl(parameters: int, cohort: int, rounds: int, workers: int, pool: int) -> Result:
    """Apple's pfl: FederatedAveraging on its simulated backend, one process."""
    from cloister.bench.peer_pfl import run

    watch = _Rounds()
    run(parameters, cohort, rounds, pool, watch.begin, watch.end)
    return watch.result()


RUNNERS = {"bare": bare, "local": cloister("local"), "ray": cloister("ray"), "flwr": flower, "pfl": pfl}


if __name__ == "__main__":
    print(json.dumps(RUNNERS[sys.argv[1]](*(int(word) for word in sys.argv[2:]))), flush=True)
