"""From an experiment's ``[plan]`` to the plan that server and clients carry out, or to the reasons against it."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloister.clients.secure import identity_of
from cloister.clients.task import Task
from cloister.errors import PlanError, PrivacyError
from cloister.models.spec import Group, released
from cloister.privacy.events import Sampler, Unit
from cloister.privacy.facts import Facts
from cloister.privacy.plan import Plan
from cloister.privacy.roster import Roster
from cloister.privacy.secagg.parameters import derive
from cloister.privacy.summing import asked, shares_of
from cloister.randomness import SeedTree
from cloister.server.book import Book
from cloister.simulations.experiment import Experiment
from cloister.simulations.record import write_whole
from cloister.strategies.base import BaseStrategy
from cloister.strategies.config import FedBuffConfig
from cloister.strategies.private import CentralPrivacy
from cloister.strategies.robust import Robust
from cloister.strategies.secure import SecureAggregation

_OBJECTIVES = {"moon": ("moon",), "fedrcl": ("fedrcl",), "fedprox": (), "scaffold": ("scaffold",)}


def plan_of(experiment: Experiment, task: Task[Any]) -> Plan:
    """Return the experiment's plan with what it leaves open filled in, and its noise calibrated to its budget.

    Left open, ``rounds`` are the experiment's, ``population`` the number of clients where clients are drawn,
    ``sample_size`` that of a buffer where the server noises buffers, and
    ``clients`` (on how many clients one unit can be) the worst case: all of them. Raises
    :class:`~cloister.errors.PlanError` for a plan without noise enough to say what it costs.
    """
    if not experiment.plan:
        return Plan.none()
    count = len(task.clients())
    given = Plan.of(experiment.plan, "plan")
    open_values: dict[str, Any] = {"rounds": experiment.rounds}
    if not given.private_steps and not given.population:
        open_values["population"] = count
    buffer = experiment.strategy.buffer if isinstance(experiment.strategy, FedBuffConfig) else 0
    if given.central and given.sampler is Sampler.ALL and not given.sample_size:
        open_values["sample_size"] = buffer  # the sum of a buffer is divided by its size, which is public
    if given.unit in (Unit.SESSION, Unit.SUBJECT) and "clients" not in experiment.plan:
        open_values["clients"] = count
    plan = Plan.of({**open_values, **{key: value for key, value in given.values().items() if key in experiment.plan}})
    if plan.secure is not None:
        clients = plan.secure.clients or (count if plan.private_steps else 0)
        sizes = {"size": plan.secure.size or _size(task), "clients": clients}
        plan = Plan.of({**plan.values(), "secure": {**plan.values()["secure"], **sizes}})
    if plan.noisy and plan.noise_multiplier == 0:
        if plan.budget is None:
            raise PlanError("plan: expected noise_multiplier, or a [plan.budget] to find it from, found neither")
        plan = plan.calibrate(plan.budget.epsilon, plan.budget.delta, rounds=plan.rounds)
    return plan


def _size(task: Task[Any]) -> int:
    """Return how many numbers a client of this task sends: what its model shares."""
    model = task.spec.build(SeedTree(experiment="size", seed=0).torch(purpose="model"))
    entries = model.state_dict()
    names = released(task.spec.groups(model))
    if whole := sorted(name for name in names if not entries[name].dtype.is_floating_point):
        raise PlanError(
            f"plan.secure: expected floating-point entries, found the counters {whole[:3]}, which have no mean; take a "
            "network without them (GroupNorm), or keep them at the clients"
        )
    return sum(entries[name].numel() for name in names)


def check(plan: Plan, experiment: Experiment, task: Task[Any], strategy: BaseStrategy) -> None:
    """Raise :class:`PlanError` with every reason why the plan does not hold for this experiment."""
    if not experiment.plan:
        return
    refusals = [str(refusal) for refusal in plan.check(facts(plan, experiment, task, strategy))]
    protected = task.protection().units
    if plan.private_steps and plan.unit not in protected:
        refusals.append(
            f"task {experiment.task} cannot bound what one {plan.unit} contributes; instead: choose a unit of "
            f"{', '.join(sorted(protected))}"
        )
    if plan.central and not strategy.takes_noise:
        refusals.append(
            f"strategy {experiment.strategy.name} uses replies in other ways than by their noisy mean; instead: "
            "strategy fedavg, or a plan with trust local"
        )
    refusals += _unsummable(plan)
    if refusals:
        lines = "".join(f"\n  {number}. {text}" for number, text in enumerate(refusals, 1))
        raise PlanError(f"the plan does not hold for experiment {experiment.name}:{lines}")


def _unsummable(plan: Plan) -> list[str]:
    """Return why no graph and threshold protect this plan's cohort."""
    if plan.secure is None:
        return []
    secure = plan.secure
    rates: dict[str, Any] = {"adversaries": secure.adversaries, "dropouts": secure.dropouts, "server": secure.server}
    try:
        derive(asked(plan), **rates)
        if plan.distributed:
            shares_of(plan)
    except PrivacyError as error:
        return [str(error.args[0])]
    return []


def facts(plan: Plan, experiment: Experiment, task: Task[Any], strategy: BaseStrategy) -> Facts:
    """Return what experiment and task declare about themselves."""
    config, promise = experiment.strategy, task.protection()
    drawn = Sampler.ALL if config.fraction == 1 and config.cohort_size is None else Sampler.WITHOUT_REPLACEMENT
    asynchronous = isinstance(config, FedBuffConfig)
    if plan.central and not asynchronous:  # the strategy draws the cohort by the plan, with the server's secret
        drawn = plan.sampler
    return Facts(
        strategy=config.name,
        weighting=config.weighting,
        clients=len(task.clients()),
        rounds=experiment.rounds,
        fraction=config.fraction,
        cohort_size=config.cohort_size or 0,
        drawn=drawn,
        local_steps=promise.steps,
        parameters=tuple(name for name, group in strategy.groups.items() if group is Group.SHARED),
        buffers=tuple(name for name, group in strategy.groups.items() if group is Group.BUFFER),
        normalisation=promise.normalisation,
        coupling=promise.coupling,
        objectives=_OBJECTIVES.get(config.name, ()),
        releases=tuple(sorted(kind for exchange in strategy.exchanges for kind in exchange.asked)),
        evaluation=config.evaluate_fraction > 0,
        selection=bool(experiment.selection),
        robust=config.name if isinstance(strategy, Robust) else "",
        aggregation="plain" if plan.secure is None else "secure",
        asynchronous=asynchronous,
    )


def central_privacy(plan: Plan, folder: Path | None, run: str, task: str) -> CentralPrivacy | None:
    """Return the server's part of a plan in which it adds the noise; its secrets and books lie in ``folder``."""
    if not plan.central:
        return None
    if folder is None:
        raise PrivacyError(
            "plan: expected a run folder for the server's ledger and key, found none; use `cloister run`"
        )
    book = Book(folder, run=run, plan=plan, task=task)
    return CentralPrivacy(plan=plan, noise=book.noise, settle=book.settle)


def secure_aggregation(
    plan: Plan, folder: Path | None, run: str, clients: Sequence[str], deadline_s: float
) -> SecureAggregation | None:
    """Return the server's part of a plan in which it sees sums alone; clients keep their memory beside ``folder``."""
    if plan.secure is None:
        return None

    def roster() -> Roster:
        if folder is None:
            raise PrivacyError("plan: expected a run folder with the clients' roster, found none; use `cloister run`")
        return Roster.load(simulated_roster(folder.parent / "clients", clients))

    return SecureAggregation(
        plan=plan, run=run, roster=roster, deadline_s=deadline_s, clock=time.monotonic, sleep=time.sleep
    )


def simulated_roster(state: Path, clients: Sequence[str]) -> Path:
    """Return the roster of a simulation's clients, whose memory lies under ``state``: made once, identities included.

    Whoever runs a simulation owns all clients. Sites of a real federation get their roster from whom they trust.
    """
    path = state / "roster.json"
    if not path.is_file():
        keys = {name: identity_of(state / name).public for name in clients}
        write_whole(path, Roster(keys).text().encode())
    return path


def as_text(plan: Plan, given: Mapping[str, Any]) -> str:
    """Return the plan as it is sent to clients: JSON; empty where the experiment has none."""
    return json.dumps(plan.values(), sort_keys=True) if given else ""
