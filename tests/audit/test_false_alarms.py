"""Every audit on sound and on broken mechanisms: no more than 1 false alarm in 20, and what is broken is caught.

Each trial is a whole audit with a key of its own. Sound mechanisms are as good as their claim and no better, wherever
that can be had, so that an audit which exaggerates is seen. Keys are fixed: the counts below do not change.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.privacy.audits.bounds import epsilon_from_scores
from cloister.privacy.audits.canaries import Canaries, CanaryWatch, audit_canaries
from cloister.privacy.audits.exact_leak import audit_exact_leak
from cloister.privacy.audits.linkage import audit_centres, audit_pairs
from cloister.privacy.audits.lira import audit_lira, leave_one_out, lira_scores
from cloister.privacy.audits.one_run import audit_one_run
from cloister.privacy.audits.similarity import audit_reconstruction
from cloister.privacy.clipping import clip_flat
from cloister.privacy.events import Unit
from cloister.privacy.gaussian import exact_epsilon
from cloister.privacy.noise import NoiseSource

DELTA = 1e-5
TRIALS = 60
MOST = 3
"""1 in 20 of the trials."""

Trial = Callable[[NoiseSource, float], bool]
"""Takes the noise and a factor by which it is too small; returns whether the audit raised an alarm."""


def canaries_final(noise: NoiseSource, weaker: float) -> bool:
    """Client-level noise on the sum of one round, seen in the last model."""
    canaries = Canaries(seed=int(noise.integers(2**31, 1)[0]), size=2000, count=32, unused=32)
    total = noise.gaussian(canaries.size, 1.0 / weaker) + sum(canaries.updates(1.0))
    return not audit_canaries(canaries, canaries.cosines(total), delta=DELTA, claimed=exact_epsilon(1.0, DELTA)).passed


def canaries_rounds(noise: NoiseSource, weaker: float) -> bool:
    """Client-level noise over four rounds, of which each direction's best is taken."""
    canaries = Canaries(seed=int(noise.integers(2**31, 1)[0]), size=2000, count=32, unused=32)
    watch, model = CanaryWatch(canaries, np.zeros(canaries.size)), np.zeros(canaries.size)
    for _ in range(4):
        model = model + sum(canaries.updates(1.0)) + noise.gaussian(canaries.size, 2.0 / weaker)
        watch.see(model)
    return not audit_canaries(canaries, watch.most, delta=DELTA, claimed=exact_epsilon(1.0, DELTA)).passed


def one_run(noise: NoiseSource, weaker: float) -> bool:
    """Randomised response with epsilon 1 on each canary's coin, for which the one-run bound is tight."""
    coins = noise.bernoulli(0.5, 1000)
    truth = noise.bernoulli(1 / (1 + math.exp(-weaker)), 1000)
    answers = np.where(truth, coins, ~coins)
    return audit_one_run(answers + noise.uniform(1000) / 10, coins, delta=0.0).epsilon > 1.0


def many_runs(noise: NoiseSource, weaker: float) -> bool:
    """Independent runs with and without one unit."""
    scores = noise.gaussian((2, 1000), 1.0 / weaker)
    return epsilon_from_scores(1 + scores[0], scores[1], delta=DELTA) > exact_epsilon(1.0, DELTA)


def people(noise: NoiseSource) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of 200 people, and which of them 9 models were trained on."""
    vectors = noise.gaussian((200, 2000), 1.0)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), noise.bernoulli(0.5, 9 * 200).reshape(9, 200)


def membership(noise: NoiseSource, weaker: float) -> bool:
    """A noisy sum of people's vectors, by likelihood ratios with 8 shadow models."""
    vectors, members = people(noise)
    statistics = (members @ vectors + noise.gaussian((9, 2000), 2.0 / weaker)) @ vectors.T
    enough = (members[1:].sum(0) >= 2) & ((~members[1:]).sum(0) >= 2)
    scores = lira_scores(statistics[1:, enough], members[1:, enough], statistics[0, enough])
    claim = exact_epsilon(2.0, DELTA)
    named = {"unit": Unit.SUBJECT, "statistic": "", "delta": DELTA, "claimed": claim}
    return not audit_lira(scores, members[0, enough], **named).passed


def membership_in_turn(noise: NoiseSource, weaker: float) -> bool:
    """The same, each model audited with all others."""
    vectors, members = people(noise)
    statistics = (members @ vectors + noise.gaussian((9, 2000), 2.0 / weaker)) @ vectors.T
    enough = (members.sum(0) >= 3) & ((~members).sum(0) >= 3)
    scores = leave_one_out(statistics[:, enough], members[:, enough], offline=True)
    named = {"unit": Unit.SUBJECT, "statistic": "", "delta": DELTA, "claimed": exact_epsilon(2.0, DELTA)}
    return not audit_lira(scores, members[:, enough], **named).passed


def exact_leak(noise: NoiseSource, weaker: float) -> bool:
    """The update of a first layer, clipped to 1 and noised."""
    generator = torch.Generator().manual_seed(int(noise.integers(2**31, 1)[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    inputs = torch.rand(1, 64, generator=generator)
    loss = functional.cross_entropy(net(inputs), torch.tensor([3]))
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    update = {str(index): gradient.numpy() for index, gradient in enumerate(gradients)}
    clipped = clip_flat(update, 1.0).values
    sent = {name: part + noise.gaussian(part.shape, 1.0 / weaker) for name, part in clipped.items()}
    return not audit_exact_leak(sent["0"], sent["1"], inputs.numpy()).passed


def reconstruction(noise: NoiseSource, weaker: float) -> bool:
    """Pictures under so much noise that nothing is left of them; an attacker can do no better than to smooth it."""
    coarse = torch.from_numpy(noise.uniform((30, 3, 6, 4))).float()
    everybody = functional.interpolate(coarse, size=(24, 16), mode="bilinear")
    originals = everybody[:6]
    received = originals + torch.from_numpy(noise.gaussian(originals.shape, 1000.0 / weaker)).float()
    received = functional.avg_pool2d(received, 3, stride=1, padding=1).clamp(0, 1)
    return not audit_reconstruction(
        originals,
        received,
        embed=_colours,
        gallery=_colours(everybody).double().numpy(),
        gallery_labels=np.arange(30),
        labels=np.arange(6),
    ).passed


def _colours(images: Tensor) -> Tensor:
    return (images - 0.5).flatten(1)


def centres(noise: NoiseSource, weaker: float) -> bool:
    """Class centres of unit length under noise, searched for in a gallery."""
    means = noise.gaussian((40, 64), 1 / 8)
    gallery = np.repeat(means, 3, 0) + noise.gaussian((120, 64), 1 / 16)
    sent = means + noise.gaussian(means.shape, 1000.0 / weaker)
    return not audit_centres(sent, np.arange(40), gallery, np.repeat(np.arange(40), 3)).passed


def pairs(noise: NoiseSource, weaker: float) -> bool:
    """Class centres of two clients who number their people privately."""
    means, order = noise.gaussian((40, 64), 1 / 8), noise.permutation(40)
    first, second = (values + noise.gaussian(values.shape, 1000.0 / weaker) for values in (means, means[order]))
    return not audit_pairs(first, np.arange(40), second, order).passed


# How much weaker than claimed the broken twin's noise is. A claim of epsilon 4.4 is disproved by a tenth already.
AUDITS: dict[str, tuple[Trial, float]] = {
    "canaries-final": (canaries_final, 10),
    "canaries-rounds": (canaries_rounds, 10),
    "one-run": (one_run, 10),
    "many-runs": (many_runs, 10),
    "membership": (membership, 10),
    "membership-in-turn": (membership_in_turn, 10),
    "exact-leak": (exact_leak, 1e6),
    "reconstruction": (reconstruction, 1e6),
    "centres": (centres, 1e6),
    "pairs": (pairs, 1e6),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AUDITS)
def test_a_sound_mechanism_is_hardly_ever_accused(name: str) -> None:
    trial, _ = AUDITS[name]
    key = NoiseSource(b"sound mechanisms and false alarm")
    assert sum(trial(key.fork(name, number), 1.0) for number in range(TRIALS)) < MOST


@pytest.mark.parametrize("name", AUDITS)
def test_its_broken_twin_is_always_caught(name: str) -> None:
    trial, weaker = AUDITS[name]
    key = NoiseSource(b"broken mechanisms and true alarm")
    assert all(trial(key.fork(name, number), weaker) for number in range(5))
