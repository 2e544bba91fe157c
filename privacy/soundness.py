"""Rules about a plan itself, and about the units, draws and weights that it takes for granted."""

from typing import TYPE_CHECKING

from cloister.errors import PlanError
from cloister.privacy import accounting
from cloister.privacy.events import Relation, Sampler, Unit
from cloister.privacy.facts import Facts, Refusal, Rule
from cloister.privacy.settings import ClipKind, Mechanism, Sampled, Trust, Weighting

if TYPE_CHECKING:
    from cloister.privacy.plan import Plan

PEOPLE = (Unit.SESSION, Unit.SUBJECT)
FEWEST_CLIENTS = 30
"""Clients below which noise that hides one of them in their sum drowns what they have in common."""


def overspending(plan: "Plan", facts: Facts) -> Refusal | None:
    """Return the refusal of a plan whose noise is given and costs more than its budget."""
    budget = plan.budget
    if budget is None or not plan.noisy or plan.noise_multiplier == 0:
        return None
    if _without_formula(plan, facts):
        return None  # which says so itself
    events = plan.events(plan.rounds or facts.rounds) * plan.clients
    cost = accounting.epsilon(events, budget.delta)
    if cost <= budget.epsilon:
        return None
    return Refusal(
        reason=f"the run costs epsilon {cost:.4g} at delta {budget.delta:g}, more than the budget of "
        f"{budget.epsilon:g}",
        alternative="set plan.noise_multiplier = 0, which finds the noise that the budget asks for; or take fewer "
        "rounds or steps",
    )


def _client_noise(plan: "Plan") -> bool:
    return plan.noisy and not plan.private_steps


def _by_people(plan: "Plan") -> bool:
    return plan.private_steps and plan.unit in PEOPLE


def _uncovered_layers(plan: "Plan", facts: Facts) -> str:
    if plan.clip is None or plan.clip.kind is not ClipKind.PER_LAYER:
        return ""
    bounds = tuple(plan.clip.per_layer)
    return ", ".join([name for name in facts.parameters if not name.startswith(bounds)][:5])


def _without_formula(plan: "Plan", facts: Facts) -> str:
    if not plan.noisy:
        return ""
    known = plan.model_copy(update={"noise_multiplier": plan.noise_multiplier or 1.0})
    try:
        reasons = [accounting.uncovered(event) for event in known.events(1)]
    except PlanError as error:
        return str(error.args[0])
    return next((reason for reason in reasons if reason), "")


def _counts_on_absence(plan: "Plan", facts: Facts) -> bool:
    matrix, rounds = plan.matrix, plan.rounds or facts.rounds or 1
    return matrix is not None and (matrix.separation > 1 or 0 < matrix.participations < rounds)


ALONE: tuple[Rule, ...] = (
    Rule(
        lambda plan, facts: _client_noise(plan) and plan.unit is not Unit.CLIENT,
        "noise on whole updates hides one client, not one {plan.unit}: of a person on several clients, or with many "
        "records, it hides a part",
        'plan.mechanism = "dp-sgd", which draws and clips by {plan.unit}; or plan.unit = "client"',
    ),
    Rule(
        lambda plan, facts: plan.private_steps and plan.unit is Unit.CLIENT,
        "private steps inside a client hide what they draw there, not the client",
        'plan.mechanism = "gaussian" or "matrix", whose noise is on whole updates; or plan.unit = "subject"',
    ),
    Rule(
        lambda plan, facts: plan.private_steps and plan.trust is Trust.CENTRAL,
        "private steps are noised inside the client, so there is nothing left for the server to add",
        'plan.trust = "local"',
    ),
    Rule(
        lambda plan, facts: plan.mechanism is Mechanism.MATRIX and plan.trust is Trust.LOCAL,
        "noise that is correlated over the rounds belongs on the sum, at the server; a client that is not in every "
        "round cannot go on with it",
        'plan.trust = "central"; or plan.mechanism = "gaussian" with trust local',
    ),
    Rule(
        lambda plan, facts: plan.central and plan.centres is not None,
        "class centres that a client noises itself show who took part, which the server's noise is to hide",
        'plan.trust = "local"; or no [plan.centres], and no centres in the strategy',
    ),
    Rule(
        lambda plan, facts: plan.private_steps and plan.unit is Unit.EXAMPLE and plan.records > 1,
        "the unit is one example, but plan.records allows {plan.records} for each",
        'plan.records = 1; or plan.unit = "subject", if these are records of one person',
    ),
    Rule(
        lambda plan, facts: plan.sampler is Sampler.MIN_SEPARATION and plan.mechanism is not Mechanism.MATRIX,
        "a pause between two rounds of a client is what a matrix mechanism counts on; other noise gains nothing by it",
        'plan.mechanism = "matrix"; or plan.sampler = "poisson"',
    ),
    Rule(
        lambda plan, facts: (
            plan.mechanism is Mechanism.MATRIX and plan.sampler not in (Sampler.MIN_SEPARATION, Sampler.ALL)
        ),
        "the sensitivity of a matrix mechanism is that of all rounds of a client, which draws by {plan.sampler} do "
        "not bound",
        'plan.sampler = "min-separation" with matrix.separation; or plan.mechanism = "gaussian", which {plan.sampler} '
        "draws amplify",
    ),
    Rule(
        lambda plan, facts: plan.matrix is not None and plan.sampler is Sampler.ALL and _counts_on_absence(plan, facts),
        "everybody is in every round, but the matrix counts on {plan.matrix.separation} rounds from one of a client to "
        "its next, and on {plan.matrix.participations} of them at most (0: all)",
        'plan.sampler = "min-separation"; or matrix.separation = 1 and matrix.participations = 0',
    ),
    Rule(
        lambda plan, facts: (
            plan.central and plan.sampler is Sampler.WITHOUT_REPLACEMENT and plan.relation is Relation.ADD_REMOVE
        ),
        "a cohort of fixed size changes somebody else's place when a client is added or removed",
        'plan.relation = "replace-one", or "zero-out" where the number of clients is public; or plan.sampler = '
        '"poisson"',
    ),
    Rule(
        lambda plan, facts: plan.private_steps and plan.sample_size == 0,
        "a noisy sum is divided by plan.sample_size, which is not given; dividing by the batch or the expected batch "
        "of the client's own records tells how many it has",
        "plan.sample_size = a public number near the expected batch, the same for all clients",
    ),
    Rule(_without_formula, "what the plan does has no sound accounting: {details}", "what the reason says"),
    Rule(
        lambda plan, facts: (
            plan.clip is not None
            and plan.clip.kind is ClipKind.ADAPTIVE
            and not (plan.mechanism is Mechanism.GAUSSIAN and (plan.central or plan.distributed))
        ),
        "an adaptive clip follows the noisy sum of the clients' bits, with fresh noise in each round",
        'clip.kind = "flat" with a bound that is known or was found on public data; or plan.mechanism = "gaussian" '
        "with trust central or distributed",
    ),
    Rule(
        lambda plan, facts: plan.trust is Trust.DISTRIBUTED and plan.mechanism is not Mechanism.GAUSSIAN,
        "noise in shares is added to the sum of whole updates, afresh in each round; mechanism {plan.mechanism} adds "
        "none there, or other noise",
        'plan.mechanism = "gaussian"; or plan.trust = "local", for private steps, or "central", for a matrix mechanism',
    ),
    Rule(
        lambda plan, facts: plan.distributed and plan.relation is Relation.ADD_REMOVE,
        "the server of a secure sum sees who takes part, so that nobody can be added or removed unseen",
        'plan.relation = "zero-out": everybody takes part, and what she had to say is protected; or "replace-one"',
    ),
    Rule(
        lambda plan, facts: plan.distributed and plan.sampler is not Sampler.ALL,
        "the server of a secure sum sees who takes part: draws by {plan.sampler} hide nobody and amplify nothing",
        'plan.sampler = "all", also where cohorts are drawn: each round counts in full for whoever is in it',
    ),
    Rule(
        lambda plan, facts: plan.secure is not None and plan.central and plan.sampler is Sampler.POISSON,
        "the server of a secure sum asks a cohort for keys before it trains, so that a Poisson draw can come out too "
        "small for any sum, and a round without one tells how many were drawn",
        'plan.sampler = "all", or "without-replacement" with a cohort of fixed size; or no [plan.secure]',
    ),
)
"""Rules that need no facts: a plan that breaks one holds for no experiment, whoever sent it."""

SOUNDNESS: tuple[Rule, ...] = (
    *ALONE,
    Rule(
        lambda plan, facts: plan.noisy and plan.noise_multiplier == 0 and plan.budget is None,
        "the plan has neither noise nor a budget to find it from",
        "give plan.noise_multiplier, or [plan.budget] with epsilon and delta",
    ),
    Rule(
        lambda plan, facts: bool(plan.budget) and not plan.noisy,
        "the plan has a budget, but mechanism none adds no noise, and no budget is kept without",
        'plan.mechanism = "dp-sgd" for people, or no [plan.budget]',
    ),
    # Unit and mechanism
    Rule(
        lambda plan, facts: (
            plan.central
            and not plan.budget
            and max(plan.population, facts.clients) < FEWEST_CLIENTS
            and plan.unit is Unit.CLIENT
        ),
        "noise that hides one of {facts.clients} clients in their sum drowns the model; fewer than "
        f"{FEWEST_CLIENTS} clients are too few for the unit client",
        'plan.unit = "subject" with plan.mechanism = "dp-sgd"; or state a [plan.budget], if the noise is wanted',
    ),
    Rule(
        lambda plan, facts: (
            plan.unit is Unit.CLIENT
            and plan.budget is not None
            and plan.budget.delta * max(plan.population, facts.clients) >= 1
        ),
        "delta {plan.budget.delta:g} allows one of {facts.clients} clients to be published outright",
        "a delta well below 1 / {facts.clients}",
    ),
    Rule(
        lambda plan, facts: _by_people(plan) and not facts.unit_ids,
        "records do not say whose they are, so what one {plan.unit} contributes cannot be bounded",
        'data with an identity for each record; or plan.unit = "example", which protects a record and no person',
    ),
    Rule(
        lambda plan, facts: _by_people(plan) and plan.sampled is Sampled.RECORDS and plan.records == 1,
        "records are drawn one by one without a bound on how many of one {plan.unit} there are: 20 records of a "
        "person under an epsilon of 0.9 for one record really cost 26.8",
        'plan.sampled = "units"; or plan.records = the most records of one {plan.unit}, the rest being left out',
    ),
    Rule(
        lambda plan, facts: _by_people(plan) and facts.clients > 1 and plan.clients == 1 and not facts.disjoint,
        "a {plan.unit} on several of the {facts.clients} clients loses privacy at each, and the plan counts one",
        "plan.clients = {facts.clients} (the worst case), or the most that one can be on; or declare that no "
        "{plan.unit} is on two clients",
    ),
    Rule(
        lambda plan, facts: _by_people(plan) and facts.subjects_per_record > 1 and not facts.public_graph,
        "up to {facts.subjects_per_record} people share a record, and which records are kept so that no one is in too "
        "many depends on who is in them",
        "records with one person each (cropped), or data in which who is in which record is public",
    ),
    # Draws
    Rule(
        lambda plan, facts: plan.central and plan.sampler is not facts.drawn,
        "the plan accounts for clients drawn by {plan.sampler}, but the federation draws by {facts.drawn}; "
        "Poisson's formula in particular holds for no other draw",
        'plan.sampler = "{facts.drawn}"; or draw the cohort as the plan says',
    ),
    Rule(
        lambda plan, facts: (
            plan.central
            and plan.sampler is Sampler.POISSON
            and (facts.cohort_size > 0 or facts.fraction not in (1.0, plan.rate))
        ),
        "the plan draws each client with probability {plan.rate:g}, but the strategy asks for a cohort of its own "
        "(cohort_size {facts.cohort_size}, fraction {facts.fraction:g}); a cohort of fixed size is no Poisson draw",
        "leave strategy.cohort_size and strategy.fraction out; plan.rate alone says how many come",
    ),
    Rule(
        lambda plan, facts: plan.central and plan.population != facts.clients,
        "the sum of a round is divided by a public number made from plan.population = {plan.population}, but there are "
        "{facts.clients} clients; dividing by the replies that came would tell who came",
        "plan.population = {facts.clients}",
    ),
    Rule(
        lambda plan, facts: plan.private_steps and facts.local_steps > plan.steps,
        "a client takes {facts.local_steps} steps in a round, but the plan accounts for {plan.steps}",
        "plan.steps = {facts.local_steps}, or shorter local training",
    ),
    Rule(
        lambda plan, facts: plan.noisy and 0 < plan.rounds < facts.rounds,
        "the run has {facts.rounds} rounds, but the plan accounts for {plan.rounds}",
        "plan.rounds = {facts.rounds} (or 0, which takes the experiment's), or fewer rounds",
    ),
    # Clip and weights
    Rule(
        _uncovered_layers,
        "clip.per_layer has no bound for {details}; noise for bounds that some entries do not keep hides nothing",
        'a bound for every shared entry ("" stands for all that have no other); or clip.kind = "flat"',
    ),
    Rule(
        lambda plan, facts: (
            _client_noise(plan) and facts.weighting != "uniform" and plan.weighting is not Weighting.CAPPED
        ),
        "weights by {facts.weighting} make what one client changes depend on how many records it has, and nobody knows "
        "how many that can be",
        'plan.weighting = "capped" with plan.weight_cap; or strategy.weighting = "uniform"',
    ),
    Rule(
        lambda plan, facts: plan.private_steps and (facts.weighting != "uniform" or plan.weighting is Weighting.CAPPED),
        "a client's number of records, from which its weight is made, would leave it without noise",
        'strategy.weighting = "uniform" and plan.weighting = "uniform"',
    ),
)


def unsound(plan: "Plan") -> list[Refusal]:
    """Return every reason why ``plan`` holds for no experiment at all: what a client can tell of one it was sent.

    A client knows nothing of the experiment, and cannot take a server's word for it.
    """
    nothing_known = Facts(strategy="", weighting="uniform", clients=0, rounds=0)
    refusals = [rule.refusal(plan, nothing_known) for rule in ALONE]
    return [refusal for refusal in refusals if refusal is not None]
