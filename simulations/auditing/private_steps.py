"""A one-run audit of private steps: the run's own steps, on canaries that only their own direction remembers."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn

from cloister.clients.private_steps import steps_of
from cloister.privacy.audits.one_run import audit_one_run
from cloister.privacy.audits.result import AuditResult, judge
from cloister.privacy.dpsgd import PrivateData
from cloister.privacy.noise import NoiseSource
from cloister.simulations.auditing.victim import Victim

_CANARIES = 1000


def one_run(victim: Victim) -> list[AuditResult]:
    """Include each canary with probability 1/2, take all private steps of a run at one client, and guess who was in.

    A canary's gradient is large and has a direction of its own, the worst that one unit can do. The code that samples,
    clips and noises is the one that the clients ran. The claim beside it is that for one client.
    """
    from cloister.privacy.accounting import epsilon

    plan = victim.plan
    count = min(_CANARIES, plan.population or _CANARIES)  # a plan that counts its places has no more of them
    members = victim.rng("one-run").random(count) < 0.5
    model = nn.Linear(count, 1, bias=False)
    nn.init.zeros_(model.weight)
    names = np.flatnonzero(members)
    eye = torch.eye(count) * 1e4
    data = PrivateData(owners=[str(name) for name in names], fetch=lambda indices: (eye[names[indices]],))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    source = NoiseSource.fresh()
    events: Counter[object] = Counter()
    for number in range(plan.rounds):
        done = steps_of(plan).run(model, _losses, data, optimiser, source.fork(number))
        events.update(done.events)
    scores = -model.weight.detach().double().numpy()[0]
    bound = audit_one_run(scores, members, delta=victim.delta)
    claimed = epsilon([event for event, count in events.items() for _ in range(count)], victim.delta)  # type: ignore[misc]
    passed, text = judge(bound.epsilon, claimed)
    return [
        AuditResult(
            name="one-run",
            unit=plan.unit,
            statistic="the final weight in a canary's own direction",
            epsilon=bound.epsilon,
            delta=victim.delta,
            claimed=claimed,
            passed=passed,
            numbers={"canaries": float(count), "guesses": float(bound.made), "right": float(bound.right)},
            text=f"{count} canaries in one run of all private steps of one client. {text}",
        )
    ]


def _losses(model: nn.Module, records: tuple[Tensor, ...]) -> Tensor:
    values: Tensor = model(records[0])[:, 0]
    return values
