"""Local training with noise at every optimiser step, the same for every task.

A task says what its records are, whose they are, and what each one's loss is (:class:`~.task.PrivateTraining`); how
units are drawn, gradients clipped and noise added is the plan's, carried out by :mod:`cloister.privacy.dpsgd`. A client
whose data cannot be used takes the same steps on nothing but noise: that it failed says something about its data.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cloister.clients.noise import key_of, noise_of
from cloister.clients.task import PrivateTraining, Round, Task, Update
from cloister.errors import ConfigError, PlanError, PrivacyError
from cloister.models.spec import Group
from cloister.privacy.contributions import bounded
from cloister.privacy.dpsgd import PrivateData, PrivateSteps, RecordSteps
from cloister.privacy.events import Sampler
from cloister.privacy.per_record import Method
from cloister.privacy.plan import Plan
from cloister.privacy.sampling import Everyone, Poisson, Shuffled, UnitSampler, WithoutReplacement
from cloister.privacy.settings import Sampled
from cloister.privacy.subjects import UnitSteps

Log = Callable[[object, str, object], None]
_MANY = 2_000_000  # parameters from which a gradient per record no longer fits: then norms first (ghost clipping)


def train(task: Task[Any], model: nn.Module, load: Callable[[], Any], round: Round, log: Log) -> Update:
    """Take the plan's private steps on what ``load`` returns; ``log`` is the client's own.

    Where anything about the data goes wrong, now or in a later step, all steps are taken anew on nothing but noise.
    """
    received = {name: values.detach().clone() for name, values in model.state_dict().items()}
    try:
        return _train(task, model, load(), round)
    except (ConfigError, PrivacyError):
        raise
    except Exception as error:  # whatever is wrong with the data, nobody outside may see that it is
        log(round.number, type(error).__name__, error)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            values.copy_(received[name])
    return _train(task, model, None, round)


def _train(task: Task[Any], model: nn.Module, records: Any, round: Round) -> Update:
    folder, run = round.state.folder, str(round.config.get("run", ""))
    noise = noise_of(folder, run, round.number).fork("steps")
    with torch.random.fork_rng():  # what a loss draws (augmentation) must be as secret as who was drawn
        torch.manual_seed(int(noise.fork("augmentation").integers(2**62, 1)[0]))
        training = task.private(model, records, round)
        chosen = _chosen(round.plan, training, folder)
        data = PrivateData(
            owners=[str(training.units[index]) for index in chosen],
            fetch=lambda indices: training.fetch(chosen[indices]),
        )
        groups = task.spec.groups(model)
        shared = {name for name, _ in model.named_parameters() if groups[name] is Group.SHARED}
        steps = steps_of(round.plan, sum(values.numel() for values in model.parameters()))
        counted = count()
        schedule = training.optimiser.register_step_pre_hook(lambda *_: training.before_step(next(counted)))
        try:
            done = steps.run(model, training.losses, data, training.optimiser, noise, learned=shared)
        finally:
            schedule.remove()
        releases = training.finish(model)
    return Update(examples=1, steps=done.steps, events=done.events, releases=releases)


def steps_of(plan: Plan, parameters: int = 0) -> PrivateSteps:
    """Return the private steps of one round under ``plan``, for a model with so many parameters.

    Raises :class:`PlanError` for a plan without noise on every step, or without the public number to divide by.
    """
    if not plan.private_steps or plan.clip is None:
        raise PlanError(f"private steps: expected mechanism dp-sgd with [plan.clip], found {plan.mechanism}")
    if plan.sample_size < 1:
        raise PlanError(
            "private steps: expected sample_size, a public number of units to divide every noisy sum by, found 0; "
            "set plan.sample_size, such as the rate times the units that a client is known to have"
        )
    stage = plan.client_stages()[0]
    values: dict[str, Any] = {
        "sampler": _sampler(plan),
        "steps": int(stage["steps"]),
        "bounds": stage.bounds,
        "noise_multiplier": stage["noise_multiplier"],
        "denominator": stage["divisor"],
        "unit": plan.unit,
        "relation": plan.relation,
    }
    if stage.name == "unit-steps":
        return UnitSteps(**values, records=int(stage["records"]))
    method = Method.GHOST if set(stage.bounds) == {""} and parameters > _MANY else Method.HOOKS
    return RecordSteps(**values, group=int(stage["records"]), method=method)


def _sampler(plan: Plan) -> UnitSampler:
    match plan.sampler:
        case Sampler.POISSON:
            return Poisson(rate=plan.rate)
        case Sampler.WITHOUT_REPLACEMENT:
            return WithoutReplacement(size=plan.sample_size, population=plan.population)
        case Sampler.FIXED:
            return Shuffled(size=plan.sample_size, population=plan.population)
        case Sampler.ALL:
            return Everyone()
    raise PlanError(f"private steps: sampler {plan.sampler} draws clients, not units; use poisson")


def _chosen(plan: Plan, training: PrivateTraining, folder: Path | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the records that may be used: all, or at most the plan's number of each unit where records are drawn."""
    if plan.sampled is Sampled.UNITS or plan.unit == "example":
        return np.arange(len(training.units))
    return bounded([str(unit) for unit in training.units], plan.records, key_of(folder))
