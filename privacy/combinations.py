"""Rules about what a plan is combined with: training, other releases, robust rules, secure sums, buffers, compression.

They follow the table of what combines with what of the design: secure aggregation and central noise as columns; rules,
clips, buffers, sparsification and BatchNorm as rows.
"""

from typing import TYPE_CHECKING

from cloister.privacy.events import Relation, Sampler
from cloister.privacy.facts import Facts, Rule
from cloister.privacy.settings import Weighting

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan

ITERATED = frozenset({"geometric-median", "centred-clipping"})
"""Robust rules of which each iteration is one sum of bounded or weighted updates."""
NORM_CLIPPING = "norm-clipping"
"""The robust rule that is a clip and nothing else."""
_NO_SENSITIVITY = {
    "control": "control variates (SCAFFOLD) are a second vector as long as the model",
    "head": "rows of a classifier head each belong to one person",
    "centres": "a class centre is the mean of one person's features",
}
_STRATEGIES = {
    "scaffold": "its clients send control variates beside the update, and correct each step by them",
    "fednova": "it divides by the number of steps that each client took, which tells how many records it has",
}


def _rule(plan: "Plan", facts: Facts) -> str:
    """Return the robust rule in force, where it is more than a clip."""
    name = facts.robust or plan.robust
    return "" if name == NORM_CLIPPING else name


def _bare(plan: "Plan", facts: Facts) -> str:
    """Return what leaves beside the weights and no plan bounds."""
    if not plan.noisy:
        return ""
    kinds = [kind for kind in facts.releases if kind != "centres" or plan.centres is None]
    return "; ".join(f"{kind} ({_NO_SENSITIVITY[kind]})" if kind in _NO_SENSITIVITY else kind for kind in kinds)


def _other_cohort(plan: "Plan", facts: Facts) -> str:
    """Return how many clients are asked in a round, where the shares of noise are made for another number."""
    if not plan.distributed or facts.clients == 0:
        return ""
    number = facts.cohort_size or max(1, int(facts.fraction * facts.clients + 1e-9))
    return "" if number == plan.cohort else str(number)


def _secure(facts: Facts) -> bool:
    return facts.aggregation == "secure"


_TRAINING = (
    Rule(
        lambda plan, facts: plan.private_steps and facts.normalisation == "batch",
        "BatchNorm normalises each record by the statistics of its batch, so clipping one {plan.unit}'s gradient does "
        "not bound what she changes",
        "a network with group normalisation, or with stored statistics that are frozen",
    ),
    Rule(
        lambda plan, facts: plan.private_steps and ", ".join(facts.coupling),
        "the losses {details} couple records: a record's gradient depends on other people's records",
        'a loss of single records, such as cross-entropy alone; or plan.unit = "client"',
    ),
    Rule(
        lambda plan, facts: plan.private_steps and ", ".join(facts.objectives),
        "strategy {facts.strategy} adds {details} to local training, past the clip of a step or over several records",
        'strategy "fedavg" or one of its servers (fedavgm, fedadam, fedyogi, fedadagrad); or plan.unit = "client"',
    ),
    Rule(
        lambda plan, facts: plan.noisy and facts.strategy in _STRATEGIES and _STRATEGIES[facts.strategy],
        "strategy {facts.strategy}: {details}",
        'strategy "fedavg" or "fedprox", whose clients send one update',
    ),
    Rule(
        lambda plan, facts: plan.noisy and facts.searches,
        "clients tune their learning rate or stop early by their private records, and the choice is a release that "
        "nothing accounts for",
        "a fixed learning rate and number of steps, found on public data or worlds",
    ),
)

_RELEASES = (
    Rule(
        lambda plan, facts: plan.noisy and ", ".join(facts.buffers[:5]),
        "{details} leave outside the clip (BatchNorm statistics and other buffers), as a release without noise",
        "a network without such buffers (group normalisation); or keep them at the clients (strategy fedbn)",
    ),
    Rule(
        _bare,
        "beside the weights there leave, without bound or noise: {details}",
        "switch them off in the strategy; or, for class centres, noise them by [plan.centres]",
    ),
    Rule(
        lambda plan, facts: plan.noisy and ", ".join(facts.metrics),
        "{details} are measured on private records in training and leave without noise",
        "keep them at the client; evaluate the global model on public or consented data at the server",
    ),
    Rule(
        lambda plan, facts: plan.noisy and facts.evaluation,
        "clients evaluate on private records, and what they report is a release without noise",
        "strategy.evaluate_fraction = 0; evaluate on public or consented data at the server",
    ),
    Rule(
        lambda plan, facts: plan.noisy and facts.selection,
        "a round is chosen by results on private records, and the choice is a release",
        "take the last round (no [selection]), or choose on public data",
    ),
    Rule(
        lambda plan, facts: plan.noisy and facts.failures != "zero",
        "a client that fails because of its own data says so, which is a release",
        'failures = "zero": it sends the zero update, which is noised like any other',
    ),
)

_ROBUST = (
    Rule(
        lambda plan, facts: plan.central and _rule(plan, facts) not in ("", *ITERATED) and _rule(plan, facts),
        "{details} is no sum: one client can change its result by more than clip / clients, so noise for that hides "
        "nobody",
        "the noisy mean of clipped updates, which bounds every client's influence already; or plan.trust = "
        '"local", after which any rule is post-processing',
    ),
    Rule(
        lambda plan, facts: plan.central and _rule(plan, facts) in ITERATED and _rule(plan, facts),
        "every iteration of {details} is a release of its own, and the plan accounts for one in a round",
        'the noisy mean of clipped updates; or plan.trust = "local", after which any rule is post-processing',
    ),
    Rule(
        lambda plan, facts: plan.noisy and (facts.root_data or (plan.central and _rule(plan, facts) == "fltrust")),
        "the server's own data (FLTrust's root set) go into every model without noise, and the people in them are "
        "protected by nothing",
        'root data that are public or consented to, with plan.trust = "local"; or the noisy mean of clipped updates',
    ),
    Rule(
        lambda plan, facts: _secure(facts) and _rule(plan, facts) not in ("", *ITERATED) and _rule(plan, facts),
        "{details} needs single updates, and secure aggregation shows their sum only",
        "geometric-median, whose iterations are weighted sums; or the rule between groups of clients, each summed "
        'securely; or aggregation "plain"',
    ),
)

_TRANSPORT = (
    Rule(
        lambda plan, facts: _secure(facts) and ", ".join(kind for kind in facts.releases if kind != "centres"),
        "{details} leave each client beside the secure sum, one by one",
        "switch them off in the strategy; or no [plan.secure]",
    ),
    Rule(
        lambda plan, facts: _other_cohort(plan, facts),
        "shares of noise are made for sums of {plan.cohort:g} clients, but {details} are asked in a round; with fewer, "
        "the sum has less noise than is accounted",
        "plan.sample_size = {details} (and plan.population), or ask as many as the plan says",
    ),
    Rule(
        lambda plan, facts: _secure(facts) and not plan.noisy and facts.evaluation,
        "clients report what they measure on their records one by one, beside a secure sum that shows nobody alone",
        "strategy.evaluate_fraction = 0; evaluate on public or consented data at the server",
    ),
    Rule(
        lambda plan, facts: _secure(facts) and plan.distributed and "centres" in facts.releases,
        "class centres are no part of what the shares of noise are for",
        'no centres in the strategy; or plan.trust = "local" with [plan.centres], which are then summed',
    ),
    Rule(
        lambda plan, facts: (
            _secure(facts)
            and not plan.noisy
            and facts.weighting != "uniform"
            and plan.weighting is not Weighting.CAPPED
        ),
        "weights by {facts.weighting} need each client's number of records, which a secure sum does not show",
        'plan.weighting = "capped" with plan.weight_cap: the weight is one more number in the sum; or '
        'strategy.weighting = "uniform"',
    ),
    Rule(
        lambda plan, facts: _secure(facts) and facts.asynchronous,
        "masks cancel among the clients of one round, and a buffer of stale updates mixes rounds",
        "rounds with a fixed cohort for each buffer; or aggregation plain",
    ),
    Rule(
        lambda plan, facts: plan.central and facts.asynchronous and plan.sampler is not Sampler.ALL,
        "a client is in a buffer once it has answered: nobody draws it and nobody makes it pause, so it can be in "
        "every buffer, which draws by {plan.sampler} do not count",
        'plan.sampler = "all", which counts every client once in every buffer (a matrix with separation = 1 and '
        'participations = 0); plan.trust = "local"; or synchronous rounds',
    ),
    Rule(
        lambda plan, facts: plan.central and facts.asynchronous and plan.relation is Relation.ADD_REMOVE,
        "a buffer closes after a number of replies, so a client that is added or removed changes who else is in it",
        'plan.relation = "zero-out" where it is public who answers and when, or "replace-one"; or synchronous rounds',
    ),
    Rule(
        lambda plan, facts: plan.noisy and facts.compression == "top-k",
        "which entries are the largest depends on the data, and leaves without noise",
        "entries chosen by public draws (random-k), or quantisation",
    ),
    Rule(
        lambda plan, facts: _secure(facts) and facts.compression == "top-k",
        "a secure sum needs the same entries of every client, and the largest differ from one to the next",
        "entries chosen by public draws (random-k), or quantisation",
    ),
    Rule(
        lambda plan, facts: plan.clip is not None and bool(facts.compression) and not facts.clip_after,
        "the update is clipped before it is compressed, and what is decompressed can have a larger norm",
        "clip what the server will decompress, or noise it",
    ),
)

COMBINATIONS: tuple[Rule, ...] = (*_TRAINING, *_RELEASES, *_ROBUST, *_TRANSPORT)
