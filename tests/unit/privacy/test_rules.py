"""Every refusal, by the smallest change that earns it; and that what is sound is not refused."""

import dataclasses
import re
from typing import Any

import pytest

from cloister.privacy.combinations import COMBINATIONS
from cloister.privacy.events import Sampler
from cloister.privacy.facts import Facts, Refusal
from cloister.privacy.plan import Plan
from cloister.privacy.rules import check
from cloister.privacy.soundness import SOUNDNESS

CLIENT: dict[str, Any] = {
    "unit": "client",
    "mechanism": "gaussian",
    "trust": "central",
    "sampler": "poisson",
    "rate": 0.1,
    "population": 1000,
    "noise_multiplier": 1.0,
    "clip": {"bound": 1.0},
}
SUBJECT: dict[str, Any] = {
    "unit": "subject",
    "mechanism": "dp-sgd",
    "sampler": "poisson",
    "rate": 0.05,
    "sample_size": 8,
    "steps": 10,
    "records": 4,
    "clients": 1000,
    "noise_multiplier": 1.5,
    "clip": {"bound": 1.0},
}
MATRIX: dict[str, Any] = {
    **CLIENT,
    "mechanism": "matrix",
    "sampler": "min-separation",
    "rate": 1.0,
    "matrix": {"separation": 4, "bands": 4},
}
BUFFERS: dict[str, Any] = {**CLIENT, "sampler": "all", "rate": 1.0, "sample_size": 100, "relation": "zero-out"}
LOCAL: dict[str, Any] = {**CLIENT, "trust": "local", "sampler": "all", "rate": 1.0}
EXAMPLE: dict[str, Any] = {**SUBJECT, "unit": "example", "sampled": "records", "records": 1, "clients": 1}
GROUPS: dict[str, Any] = {**SUBJECT, "sampled": "records", "records": 20}
ADAPTIVE: dict[str, Any] = {**CLIENT, "clip": {"kind": "adaptive"}}
LAYERS: dict[str, Any] = {**CLIENT, "clip": {"kind": "per-layer", "per_layer": {"stem.": 1, "head.": 2}}}
CAPPED: dict[str, Any] = {**CLIENT, "weighting": "capped", "weight_cap": 100}
SUBSET: dict[str, Any] = {
    **CLIENT,
    "sampler": "without-replacement",
    "rate": 1.0,
    "sample_size": 50,
    "relation": "replace-one",
}
SECURE: dict[str, Any] = {"secure": {"size": 1000}}
SHARES: dict[str, Any] = {**LOCAL, **SECURE, "trust": "distributed", "relation": "zero-out"}
CENTRES = {"bound": 1.0, "noise_multiplier": 2.0, "count_multiplier": 2.0}
NONE: dict[str, Any] = {}

FACTS = Facts(strategy="fedavg", weighting="uniform", clients=1000, rounds=20, parameters=("stem.w", "head.w"))


def refusals(values: dict[str, Any], **facts: Any) -> list[Refusal]:
    plan = Plan.of(values)
    drawn = plan.sampler if plan.central else Sampler.ALL
    return check(plan, dataclasses.replace(FACTS, **{"drawn": drawn, **facts}))


SOUND: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": (NONE, {"weighting": "examples", "buffers": ("bn.mean",), "releases": ("centres",), "evaluation": True}),
    "clip alone": ({"clip": {"bound": 1.0}}, {"robust": "krum"}),
    "client noise at the server": (CLIENT, {}),
    "client noise, capped weights": (CAPPED, {"weighting": "examples"}),
    "client noise, subset": (SUBSET, {}),
    "client noise, everybody": ({**CLIENT, "sampler": "all", "rate": 1.0}, {}),
    "client noise, adaptive clip": (ADAPTIVE, {}),
    "client noise, clip by layers": (LAYERS, {}),
    "client noise, BatchNorm without its buffers": (CLIENT, {"normalisation": "batch", "coupling": ("triplet",)}),
    "client noise of few clients that is asked for": (
        {**CLIENT, "population": 10, "rate": 1.0, "budget": {"epsilon": 100.0, "delta": 1e-3}},
        {"clients": 10},
    ),
    "client noise by each client": (LOCAL, {"robust": "krum", "asynchronous": True}),
    "matrix": (MATRIX, {}),
    "buffers, each client once in each": (BUFFERS, {"asynchronous": True}),
    "buffers, one client replaced": ({**BUFFERS, "relation": "replace-one"}, {"asynchronous": True}),
    "buffers, adaptive clip": ({**BUFFERS, "clip": {"kind": "adaptive"}}, {"asynchronous": True}),
    "buffers, matrix": (
        {**BUFFERS, "mechanism": "matrix", "matrix": {"separation": 1, "bands": 4}},
        {"asynchronous": True},
    ),
    "buffers of private clients": (SUBJECT, {"asynchronous": True}),
    "subjects": (SUBJECT, {"normalisation": "group"}),
    "subjects on one client": ({**SUBJECT, "clients": 1}, {"disjoint": True}),
    "subjects, with a robust rule behind": (SUBJECT, {"robust": "multikrum"}),
    "subjects, with centres": ({**SUBJECT, "centres": CENTRES}, {"releases": ("centres",)}),
    "sessions": ({**SUBJECT, "unit": "session"}, {}),
    "groups": (GROUPS, {}),
    "examples": (EXAMPLE, {}),
    "examples, shuffled": ({**EXAMPLE, "sampler": "fixed", "rate": 1.0, "population": 100}, {}),
    "examples, subset": (
        {**EXAMPLE, "sampler": "without-replacement", "rate": 1.0, "population": 100},
        {},
    ),
    "within its budget": ({**CLIENT, "budget": {"epsilon": 3.6, "delta": 1e-5}}, {}),
    "calibrated later": ({**CLIENT, "noise_multiplier": 0, "budget": {"epsilon": 1.0, "delta": 1e-5}}, {}),
    "crowds in public": (SUBJECT, {"subjects_per_record": 3, "public_graph": True}),
    "noise in a secure sum": (CLIENT, {"aggregation": "secure"}),
    "noise in shares": (SHARES, {"aggregation": "secure"}),
    "noise in shares, adaptive clip": ({**SHARES, "clip": {"kind": "adaptive"}}, {"aggregation": "secure"}),
    "a secure sum of capped weights": (
        {**SECURE, "clip": {"bound": 1.0}, "weighting": "capped", "weight_cap": 100},
        {"aggregation": "secure", "weighting": "examples", "buffers": ("bn.mean",)},
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_is_not_refused(name: str) -> None:
    values, facts = SOUND[name]
    assert [str(refusal) for refusal in refusals(values, **facts)] == []


# (plan, facts, what the reason says, what the alternative says): one for each rule
BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no noise": ({**CLIENT, "noise_multiplier": 0}, {}, "neither noise nor a budget", "plan.noise_multiplier"),
    "a budget without noise": ({"budget": {"epsilon": 1.0, "delta": 1e-5}}, {}, "no budget is kept", "dp-sgd"),
    "client noise for people": ({**CLIENT, "unit": "subject"}, {}, "hides one client", 'mechanism = "dp-sgd"'),
    "steps for clients": ({**SUBJECT, "unit": "client"}, {}, "not the client", '"gaussian"'),
    "steps at the server": ({**SUBJECT, "trust": "central"}, {"drawn": "poisson"}, "nothing left", '"local"'),
    "matrix at clients": ({**MATRIX, "trust": "local"}, {}, "belongs on the sum", 'trust = "central"'),
    "few clients": ({**CLIENT, "population": 29}, {"clients": 29}, "drowns the model; fewer than 30", '"subject"'),
    "large delta": (
        {**CLIENT, "budget": {"epsilon": 9.0, "delta": 1e-3}},
        {},
        "published outright",
        "below 1 / 1000",
    ),
    "centres under central noise": (
        {**CLIENT, "centres": CENTRES},
        {"releases": ("centres",)},
        "show who took part",
        'plan.trust = "local"',
    ),
    "records of an example": ({**EXAMPLE, "records": 2}, {}, "allows 2 for each", "plan.records = 1"),
    "people without names": (SUBJECT, {"unit_ids": False}, "do not say whose", "identity for each record"),
    "sessions without names": ({**SUBJECT, "unit": "session"}, {"unit_ids": False}, "do not say whose", "identity"),
    "no group bound": ({**GROUPS, "records": 1}, {}, "without a bound on how many", 'sampled = "units"'),
    "people on several clients": ({**SUBJECT, "clients": 1}, {}, "loses privacy at each", "plan.clients = 1000"),
    "crowds": (SUBJECT, {"subjects_per_record": 3}, "up to 3 people share a record", "public"),
    "a pause": ({**CLIENT, "sampler": "min-separation", "rate": 1.0}, {}, "counts on", '"matrix"'),
    "matrix by draws": ({**MATRIX, "sampler": "poisson", "rate": 0.1}, {}, "do not bound", '"min-separation"'),
    "matrix by everybody": ({**MATRIX, "sampler": "all"}, {}, "4 rounds from one", "matrix.separation = 1"),
    "matrix by everybody, once": (
        {**MATRIX, "sampler": "all", "matrix": {"participations": 1}},
        {},
        "on 1 of them at most",
        "matrix.participations = 0",
    ),
    "Poisson by name": (
        CLIENT,
        {"drawn": Sampler.WITHOUT_REPLACEMENT},
        "accounts for clients drawn by poisson, but the federation draws by without-replacement",
        'plan.sampler = "without-replacement"',
    ),
    "Poisson of shuffled clients": (CLIENT, {"drawn": Sampler.FIXED}, "draws by fixed", 'plan.sampler = "fixed"'),
    "Poisson of fixed size": (CLIENT, {"cohort_size": 100}, "a cohort of fixed size is no Poisson draw", "leave"),
    "Poisson of a fraction": (CLIENT, {"fraction": 0.2}, "no Poisson draw", "plan.rate alone"),
    "subset of a secret number": ({**SUBSET, "relation": "add-remove"}, {}, "somebody else's place", '"replace-one"'),
    "another population": (CLIENT, {"clients": 999}, "there are 999 clients", "plan.population = 999"),
    "no divisor": ({**SUBJECT, "sample_size": 0}, {}, "tells how many it has", "plan.sample_size"),
    "more steps": (SUBJECT, {"local_steps": 11}, "takes 11 steps in a round", "plan.steps = 11"),
    "more rounds": ({**CLIENT, "rounds": 19}, {}, "accounts for 19", "plan.rounds = 20"),
    "no formula": ({**GROUPS, "relation": "replace-one"}, {}, "no sound accounting.*add-remove", "what the reason"),
    "layers left out": (LAYERS, {"parameters": ("stem.w", "neck.w")}, "no bound for neck.w", 'clip.kind = "flat"'),
    "adaptive steps": ({**SUBJECT, "clip": {"kind": "adaptive"}}, {}, "noisy sum of the clients' bits", '"flat"'),
    "adaptive clients": ({**LOCAL, "clip": {"kind": "adaptive"}}, {}, "sum of the clients' bits", '"flat"'),
    "raw counts": (CLIENT, {"weighting": "examples"}, "depend on how many records", '"capped"'),
    "roots of raw counts": (LOCAL, {"weighting": "sqrt"}, "weights by sqrt", '"capped"'),
    "counts of private clients": (SUBJECT, {"weighting": "examples"}, "leave it without noise", '"uniform"'),
    "capped counts of private clients": (
        {**SUBJECT, "weighting": "capped", "weight_cap": 9},
        {},
        "leave it without noise",
        'plan.weighting = "uniform"',
    ),
    "BatchNorm": (SUBJECT, {"normalisation": "batch"}, "BatchNorm normalises", "group normalisation"),
    "BatchNorm for examples": (EXAMPLE, {"normalisation": "batch"}, "one example's gradient", "group normalisation"),
    "BatchNorm for sessions": ({**SUBJECT, "unit": "session"}, {"normalisation": "batch"}, "BatchNorm", "group norm"),
    "pairs": (SUBJECT, {"coupling": ("triplet", "centre")}, "losses triplet, centre couple", "cross-entropy"),
    "pairs of examples": (EXAMPLE, {"coupling": ("triplet",)}, "losses triplet couple", "cross-entropy"),
    "objectives": (SUBJECT, {"strategy": "moon", "objectives": ("moon",)}, "moon adds moon", "fedavg"),
    "scaffold": (CLIENT, {"strategy": "scaffold"}, "control variates", '"fedavg"'),
    "fednova": (CLIENT, {"strategy": "fednova"}, "how many records", '"fedavg"'),
    "searches": (CLIENT, {"searches": True}, "tune their learning rate", "fixed learning rate"),
    "buffers": (CLIENT, {"buffers": ("bn.mean",)}, "bn.mean leave outside the clip", "fedbn"),
    "control variates": (CLIENT, {"releases": ("control",)}, "second vector", "switch them off"),
    "head rows": (SUBJECT, {"releases": ("head",)}, "each belong to one person", "switch them off"),
    "centres": (SUBJECT, {"releases": ("centres",)}, "mean of one person's features", "plan.centres"),
    "something new": ({**SUBJECT, "centres": CENTRES}, {"releases": ("centres", "optimiser")}, "optimiser", "off"),
    "training metrics": (SUBJECT, {"metrics": ("loss",)}, "loss are measured on private records", "keep them"),
    "evaluation": (CLIENT, {"evaluation": True}, "clients evaluate", "evaluate_fraction = 0"),
    "selection": (SUBJECT, {"selection": True}, "a round is chosen", "last round"),
    "failures": (SUBJECT, {"failures": "error"}, "a client that fails", "the zero update"),
    "robust": (CLIENT, {"robust": "fedmedian"}, "fedmedian is no sum", 'trust = "local"'),
    "robust by plan": ({**CLIENT, "robust": "krum"}, {}, "krum is no sum", 'trust = "local"'),
    "iterations": (CLIENT, {"robust": "geometric-median"}, "every iteration of geometric-median", "noisy mean"),
    "FLTrust": (CLIENT, {"robust": "fltrust"}, "root set", "consented"),
    "root data": (SUBJECT, {"root_data": True}, "root set", "public or consented"),
    "robust in secret": (NONE, {"robust": "krum", "aggregation": "secure"}, "krum needs single", "geometric-median"),
    "stale masks": (NONE, {"asynchronous": True, "aggregation": "secure"}, "masks cancel", "fixed cohort"),
    "drawn buffers": (
        {**CLIENT, "relation": "zero-out"},
        {"asynchronous": True},
        "nobody draws it .* draws by poisson do not count",
        'plan.sampler = "all", which counts every client once in every buffer',
    ),
    "buffers with a pause": (
        {**MATRIX, "relation": "zero-out"},
        {"asynchronous": True},
        "nobody makes it pause",
        "separation = 1",
    ),
    "buffers of a secret number": (
        {**BUFFERS, "relation": "add-remove"},
        {"asynchronous": True},
        "closes after a number of replies",
        'plan.relation = "zero-out"',
    ),
    "largest entries": (SUBJECT, {"compression": "top-k"}, "which entries are the largest", "random-k"),
    "largest entries in secret": (
        NONE,
        {"compression": "top-k", "aggregation": "secure"},
        "the same entries",
        "public",
    ),
    "shares of steps": (
        {**SUBJECT, **SECURE, "trust": "distributed", "relation": "zero-out", "sampler": "all", "rate": 1.0},
        {"aggregation": "secure"},
        "mechanism dp-sgd adds none there",
        'plan.trust = "local"',
    ),
    "shares of a secret cohort": (
        {**SHARES, "relation": "add-remove"},
        {"aggregation": "secure"},
        "sees who takes part, so that nobody can be added",
        'plan.relation = "zero-out"',
    ),
    "shares of draws": (
        {**SHARES, "sampler": "poisson", "rate": 0.5},
        {"aggregation": "secure"},
        "draws by poisson hide nobody",
        'plan.sampler = "all"',
    ),
    "keys of a secret cohort": ({**CLIENT, **SECURE}, {"aggregation": "secure"}, "asks a cohort for keys", '"all"'),
    "rows beside a secure sum": (
        NONE,
        {"aggregation": "secure", "releases": ("centres", "head")},
        "^head leave each client beside the secure sum",
        "switch them off",
    ),
    "shares for more than are asked": (
        SHARES,
        {"aggregation": "secure", "cohort_size": 500},
        "made for sums of 1000 clients, but 500 are asked",
        "plan.sample_size = 500",
    ),
    "reports beside a secure sum": (
        NONE,
        {"aggregation": "secure", "evaluation": True},
        "one by one, beside a secure sum",
        "strategy.evaluate_fraction = 0",
    ),
    "centres among shares": (
        {**SHARES, "centres": CENTRES},
        {"aggregation": "secure", "releases": ("centres",)},
        "no part of what the shares",
        'plan.trust = "local"',
    ),
    "raw counts in a secure sum": (
        NONE,
        {"aggregation": "secure", "weighting": "examples"},
        "which a secure sum does not show",
        'plan.weighting = "capped"',
    ),
    "clip before compression": (
        {"clip": {"bound": 1.0}},
        {"compression": "quantised", "clip_after": False},
        "clipped before it is compressed",
        "will decompress",
    ),
    "too dear": ({**CLIENT, "budget": {"epsilon": 1.0, "delta": 1e-5}}, {}, "costs epsilon 3.591 at delta", "= 0"),
    "too dear on all clients": (
        {**SUBJECT, "clients": 8, "budget": {"epsilon": 6.0, "delta": 1e-5}},
        {},
        "more than the budget of 6",
        "fewer rounds",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_sound_is_refused_with_its_reason_and_the_nearest_thing_that_is(name: str) -> None:
    values, facts, reason, alternative = BROKEN[name]
    found = refusals(values, **facts)
    matching = [refusal for refusal in found if re.search(reason, refusal.reason)]
    assert len(matching) == 1, [str(refusal) for refusal in found]
    assert re.search(re.escape(alternative), matching[0].alternative), matching[0].alternative
    assert str(matching[0]) == f"{matching[0].reason}; instead: {matching[0].alternative}"


def test_every_rule_has_a_case_of_its_own() -> None:
    broken = set()
    for values, facts, _, _ in BROKEN.values():
        plan = Plan.of(values)
        declared = dataclasses.replace(FACTS, **{"drawn": plan.sampler if plan.central else Sampler.ALL, **facts})
        broken |= {rule for rule in (*SOUNDNESS, *COMBINATIONS) if rule.refusal(plan, declared)}
    assert broken == {*SOUNDNESS, *COMBINATIONS}


def test_all_refusals_come_at_once() -> None:
    found = refusals({**CLIENT, "robust": "krum"}, evaluation=True, weighting="examples", buffers=("bn.mean",))
    assert len(found) == 4


# What combines with what: columns secure sum, noise at the server, both; buffer; compression. Noise under a secure sum
# is noise at the server here. True: it holds.
TABLE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, bool]]] = {
    "weighted mean, raw": (
        NONE,
        {"weighting": "examples"},
        {"secure": False, "central": False, "both": False, "buffer": True, "compression": True},  # weights need a cap
    ),
    "weighted mean, capped": (
        {"weighting": "capped", "weight_cap": 100},
        {"weighting": "examples"},
        {"secure": True, "central": True, "both": True, "buffer": True, "compression": True},
    ),
    "krum": (
        NONE,
        {"robust": "krum"},
        {"secure": False, "central": False, "both": False, "buffer": True, "compression": True},
    ),
    "median": (
        NONE,
        {"robust": "fedmedian"},
        {"secure": False, "central": False, "both": False, "buffer": True, "compression": True},
    ),
    "trimmed mean": (
        NONE,
        {"robust": "fedtrimmedavg"},
        {"secure": False, "central": False, "both": False, "buffer": True, "compression": True},
    ),
    "geometric median": (
        NONE,
        {"robust": "geometric-median"},
        {"secure": True, "central": False, "both": False, "buffer": True, "compression": True},
    ),
    "norm clipping": (
        {"clip": {"bound": 1.0}},
        {"robust": "norm-clipping"},
        {"secure": True, "central": True, "both": True, "buffer": True, "compression": True},
    ),
    "fltrust": (
        NONE,
        {"robust": "fltrust"},
        {"secure": False, "central": False, "both": False, "buffer": True, "compression": True},
    ),
    "adaptive clip": (
        ADAPTIVE,
        {},
        {"secure": True, "central": True, "both": True, "compression": True},
    ),
    "adaptive clip per buffer": (
        {**BUFFERS, "clip": {"kind": "adaptive"}},
        {},
        {"buffer": True},
    ),
    "fedbuff": (
        NONE,
        {"asynchronous": True},
        {"secure": False, "central": False, "both": False, "robust": True, "compression": True},
    ),
    "fedbuff, each client once in each": (BUFFERS, {"asynchronous": True}, {"central": True, "compression": True}),
    "top-k": (
        NONE,
        {"compression": "top-k"},
        {"secure": False, "central": False, "both": False, "robust": True, "buffer": True},
    ),
    "public indices": (
        NONE,
        {"compression": "random-k"},
        {"secure": True, "central": True, "both": True, "robust": True, "buffer": True},
    ),
    "batch-norm buffers": (
        NONE,
        {"buffers": ("bn.mean",)},
        {"secure": True, "central": False, "both": False, "robust": True, "buffer": True, "compression": True},
    ),
}
COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "secure": (NONE, {"aggregation": "secure"}),
    "central": (CLIENT, {}),
    "both": (CLIENT, {"aggregation": "secure"}),
    "robust": (NONE, {"robust": "fedmedian"}),
    "buffer": (NONE, {"asynchronous": True}),
    "compression": (NONE, {"compression": "quantised"}),
}


@pytest.mark.parametrize(
    ("row", "column", "holds"), [(row, column, holds) for row in TABLE for column, holds in TABLE[row][2].items()]
)
def test_what_combines_with_what(row: str, column: str, holds: bool) -> None:
    values, facts, _ = TABLE[row]
    over, more = COLUMNS[column]
    found = refusals({**over, **values}, **{**facts, **more})
    assert (found == []) is holds, [str(refusal) for refusal in found]
