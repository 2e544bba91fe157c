"""From an experiment's ``[plan]`` to the plan that server and clients carry out, or to the reasons against it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.clients.task import Task
from cloister.errors import PlanError, PrivacyError
from cloister.models.spec import Group
from cloister.privacy.events import Sampler, Unit
from cloister.privacy.facts import Facts
from cloister.privacy.plan import Plan
from cloister.server.book import Book
from cloister.simulations.experiment import Experiment
from cloister.strategies.base import BaseStrategy
from cloister.strategies.private import CentralPrivacy
from cloister.strategies.robust import Robust

_OBJECTIVES = {"moon": ("moon",), "fedrcl": ("fedrcl",), "fedprox": (), "scaffold": ("scaffold",)}


def plan_of(experiment: Experiment, task: Task[Any]) -> Plan:
    """Return the experiment's plan with what it leaves open filled in, and its noise calibrated to its budget.

    Left open, ``rounds`` are the experiment's, ``population`` the number of clients where clients are drawn, and
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
    if given.unit in (Unit.SESSION, Unit.SUBJECT) and "clients" not in experiment.plan:
        open_values["clients"] = count
    plan = Plan.of({**open_values, **{key: value for key, value in given.values().items() if key in experiment.plan}})
    if plan.noisy and plan.noise_multiplier == 0:
        if plan.budget is None:
            raise PlanError("plan: expected noise_multiplier, or a [plan.budget] to find it from, found neither")
        plan = plan.calibrate(plan.budget.epsilon, plan.budget.delta, rounds=plan.rounds)
    return plan


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
    if refusals:
        lines = "".join(f"\n  {number}. {text}" for number, text in enumerate(refusals, 1))
        raise PlanError(f"the plan does not hold for experiment {experiment.name}:{lines}")


def facts(plan: Plan, experiment: Experiment, task: Task[Any], strategy: BaseStrategy) -> Facts:
    """Return what experiment and task declare about themselves."""
    config, promise = experiment.strategy, task.protection()
    drawn = Sampler.ALL if config.fraction == 1 and config.cohort_size is None else Sampler.WITHOUT_REPLACEMENT
    if plan.central:  # the strategy draws the cohort by the plan, with the server's secret
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
        releases=tuple(sorted(kind for exchange in strategy.exchanges for kind in exchange.accepts)),
        evaluation=config.evaluate_fraction > 0,
        selection=bool(experiment.selection),
        robust=config.name if isinstance(strategy, Robust) else "",
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


def as_text(plan: Plan, given: Mapping[str, Any]) -> str:
    """Return the plan as it is sent to clients: JSON; empty where the experiment has none."""
    return json.dumps(plan.values(), sort_keys=True) if given else ""
