"""Distributed noise: what a client sends, what the sum says, what it costs, and that nothing wraps."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from cloister.errors import PlanError, PrivacyError
from cloister.privacy import distributed
from cloister.privacy.accounting import epsilon
from cloister.privacy.clipping import ClipBound, split_noise
from cloister.privacy.distributed import Distributed, fitting_scale, rounded_norm
from cloister.privacy.entries import Entry, EntryKind
from cloister.privacy.events import Event, EventKind, Relation, Unit
from cloister.privacy.gaussian import exact_epsilon
from cloister.privacy.ledger import FILE_NAME, Ledger
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.keys import Secret
from cloister.privacy.secagg.masks import Stream

SEED = bytes(range(32))
ROOT = NoiseSource(bytes(range(1, 33)))
GAUSSIAN, SKELLAM = EventKind.DISCRETE_GAUSSIAN, EventKind.SKELLAM
BOTH = pytest.mark.parametrize("mechanism", [GAUSSIAN, SKELLAM])


def scheme(**values: Any) -> Distributed:
    common: dict[str, Any] = {
        "mechanism": SKELLAM,
        "size": 1000,
        "clip": 1.0,
        "bits": 18,
        "clients": 100,
        "least": 100,
        "noise_multiplier": 1.0,
        "unit": Unit.CLIENT,
        "relation": Relation.ZERO_OUT,
    }
    return Distributed(**{**common, **values})


def summed(plan: Distributed, vectors: Any, label: str = "", bits: Any = None) -> np.ndarray:
    """What a secure sum gives."""
    parts = [
        plan.encode(vector, ROOT.fork(label, client), SEED, bit=bit)
        for client, (vector, bit) in enumerate(zip(vectors, bits or [0.0] * len(vectors), strict=True))
    ]
    return wrapped(parts, plan.bits)


def wrapped(parts: list[np.ndarray], bits: int) -> np.ndarray:
    return (np.sum(parts, axis=0, dtype=np.uint64) % (1 << bits)).astype(np.uint32)


def central(multiplier: float, **values: Any) -> Event:
    common: dict[str, Any] = {"unit": Unit.CLIENT, "relation": Relation.ZERO_OUT}
    return Event(**{**common, "kind": EventKind.GAUSSIAN, "noise_multiplier": multiplier, **values})


# Published numbers.


@pytest.mark.parametrize(("bits", "expected"), [(12, 476.88), (16, 7630.5), (18, 30522), (20, 122088)])
def test_as_many_steps_as_published_fit_into_the_modulus(bits: int, expected: float) -> None:
    assert fitting_scale(bits, 1.0, 65536, 100, 0.1) == pytest.approx(expected, rel=1e-5)
    plan = scheme(bits=bits, size=65536, noise_multiplier=1.0)  # 100 shares of 0.1
    assert plan.share_std == pytest.approx(0.1)
    assert plan.share == int(0.1 * expected)  # whole, so that the noise is what was asked for
    assert plan.scale * 0.1 == pytest.approx(plan.share)


@pytest.mark.parametrize(("step", "norm"), [(1e-2, 1.631318), (1e-3, 1.008718), (1e-4, 1.000133)])
def test_rounding_inflates_the_norm_as_published(step: float, norm: float) -> None:
    assert rounded_norm(1 / step, 65536) * step == pytest.approx(norm, abs=1e-6)
    assert rounded_norm(0.001, 4) == pytest.approx(min(2.001, math.sqrt(1e-6 + 1 + 1.001)))
    assert rounded_norm(100, 1) == pytest.approx(min(101, math.sqrt(1e4 + 0.25 + 100.5)))


@pytest.mark.parametrize(("survivors", "expected"), [(100, 4.3772), (90, 4.6530), (70, 5.3882), (50, 6.5730)])
def test_missing_shares_cost_what_is_published(survivors: int, expected: float) -> None:
    plan = scheme(bits=20)
    event = plan.event(survivors)
    assert exact_epsilon(event.noise_multiplier, 1e-5) == pytest.approx(expected, abs=1e-3)
    assert event.shares == survivors
    by_renyi = epsilon([central(math.sqrt(survivors / 100))], 1e-5, accountant="rdp")
    assert epsilon([event], 1e-5) == pytest.approx(by_renyi, rel=0.01)


def test_who_adds_no_noise_counts_as_missing() -> None:
    planned = scheme(least=80, dishonest=20, bits=20)
    assert planned.share_std == pytest.approx(1 / math.sqrt(60))
    assert planned.event().shares == 60
    assert planned.event().noise_multiplier == pytest.approx(1.0, rel=1e-4)
    assert planned.event(100).noise_multiplier == pytest.approx(math.sqrt(80 / 60), rel=1e-4)
    unplanned = scheme(bits=20)
    np.testing.assert_allclose(
        replace(unplanned, least=50, noise_multiplier=math.sqrt(0.5)).rdp(np.array([2.0, 8.0])),
        unplanned.rdp(np.array([2.0, 8.0]), survivors=50),
        rtol=1e-3,
    )
    for survivors in (20, 0, 101):
        with pytest.raises(PlanError, match="survivors"):
            planned.event(survivors)


@BOTH
@pytest.mark.parametrize("multiplier", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("size", [1 << 12, 1 << 16, 1 << 20])
def test_eighteen_bits_cost_at_most_one_percent_of_the_epsilon_of_central_noise(
    mechanism: EventKind, multiplier: float, size: int
) -> None:
    cost = epsilon([scheme(mechanism=mechanism, size=size, noise_multiplier=multiplier).event()], 1e-5)
    by_server = epsilon([central(multiplier)], 1e-5, accountant="rdp")
    assert by_server <= cost <= 1.01 * by_server
    coarse = epsilon([scheme(mechanism=mechanism, size=size, noise_multiplier=multiplier, bits=11).event()], 1e-5)
    assert coarse > 1.01 * by_server


# What the sum says.


@BOTH
def test_the_mean_errs_as_under_central_noise(mechanism: EventKind) -> None:
    """100 clients, 4096 numbers, 18 bits: the root mean square error is multiplier x clip / clients."""
    plan = scheme(mechanism=mechanism, size=4096, clip=2.0, noise_multiplier=1.5)
    vectors = np.random.default_rng(0).normal(size=(100, 4096)).astype(np.float32)
    vectors *= (1.999 / np.linalg.norm(vectors, axis=1))[:, None]
    found = plan.decode(summed(plan, vectors, str(mechanism)), SEED, divisor=100).vector
    errors = found - vectors.mean(0, dtype=np.float64)
    expected = 1.5 * 2.0 / 100
    assert errors.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * 4096))
    assert abs(errors.mean()) < 6 * expected / math.sqrt(4096)
    assert np.abs(errors).max() < 6 * expected
    # Of what is not that noise, nothing is left that matters: rounding, a hundred times.
    rounding = math.sqrt(100 / 4) / plan.scale / 100
    assert rounding < 1e-3 * expected


def test_without_noise_sums_are_exact_to_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch)
    plan = scheme(size=300, clip=0.5, bits=20, noise_multiplier=0.01)
    vectors = np.random.default_rng(0).normal(size=(100, 300)) / 40
    found = plan.decode(summed(plan, vectors), SEED).vector
    np.testing.assert_allclose(found, vectors.sum(0), atol=6 * math.sqrt(100 / 4) / plan.scale)
    one = plan.encode(np.zeros(300), ROOT.fork(0), SEED)
    assert one.dtype == np.uint32
    assert not one.any()


def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        kind: (lambda std, n, source: np.zeros(n, np.int64), most) for kind, (_, most) in distributed._SAMPLERS.items()
    }
    monkeypatch.setattr(distributed, "_SAMPLERS", table)


def test_the_upper_half_of_the_modulus_is_negative() -> None:
    plan, found = scheme(size=1024), []
    for steps in ((1 << 17) - 1, 1 << 17, (1 << 17) + 1):
        total = np.zeros(1024, np.uint32)
        total[0] = steps
        found.append(plan.decode(total, SEED).vector * plan.scale * math.sqrt(1024) / (1 << 17))
    # The first column of the rotation is all signs.
    np.testing.assert_allclose(np.abs(found), 1.0, rtol=1e-4)
    np.testing.assert_array_equal(np.sign(found[1]), -np.sign(found[0]))
    np.testing.assert_array_equal(np.sign(found[1]), np.sign(found[2]))


@BOTH
def test_a_share_has_the_promised_variance_and_is_the_clients_own(mechanism: EventKind) -> None:
    plan = scheme(mechanism=mechanism, size=1 << 14, least=80, dishonest=20)
    shares = [plan.encode(np.zeros(1 << 14), ROOT.fork("share", client), SEED).astype(np.int64) for client in range(2)]
    first, second = (np.where(share >= 1 << 17, share - (1 << 18), share) for share in shares)
    for share in (first, second):
        assert share.var() == pytest.approx(plan.share**2, rel=6 * math.sqrt(2 / (1 << 14)))
        assert share.var() / plan.scale**2 == pytest.approx(1 / 60, rel=0.1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / 128


@BOTH
def test_a_long_vector_is_encoded_in_parts_like_a_short_one(
    monkeypatch: pytest.MonkeyPatch, mechanism: EventKind
) -> None:
    monkeypatch.setattr(distributed, "_PART", 300)
    plan = scheme(mechanism=mechanism, clients=2, least=2, noise_multiplier=0.3)
    vectors = np.random.default_rng(0).normal(size=(2, 1000)) / 40
    errors = plan.decode(summed(plan, vectors, "parts"), SEED).vector - vectors.sum(0)
    assert errors.std() == pytest.approx(0.3, rel=6 / math.sqrt(2000))
    noise = summed(plan, np.zeros((2, 1000)), "parts")
    assert len({part.tobytes() for part in np.array_split(noise[:900], 3)}) == 3  # no part repeats another


def test_the_masks_of_a_secure_sum_take_it_and_leave_the_sum_as_it_is() -> None:
    plan = scheme(size=1000, clients=3, least=3, noise_multiplier=0.1)
    vectors = np.random.default_rng(0).normal(size=(3, 1000)) / 40
    sent = [plan.encode(vector, ROOT.fork("masked", client), SEED) for client, vector in enumerate(vectors)]
    expected = plan.decode(wrapped(sent, plan.bits), SEED).vector
    stream = Stream(b"session", 1, b"layout", plan.bits)
    for low, high in ((0, 1), (0, 2), (1, 2)):
        seed = bytes([low, high]) * 16
        stream.add(sent[low], Secret(seed), "vector")
        stream.subtract(sent[high], Secret(seed), "vector")
    assert np.std(sent[0]) == pytest.approx((1 << 18) / math.sqrt(12), rel=0.1)  # one alone says nothing
    np.testing.assert_array_equal(plan.decode(wrapped(sent, plan.bits), SEED).vector, expected)


# What a client sends, whatever its vector is.


@pytest.mark.parametrize("bits", [11, 18])
def test_a_vector_far_beyond_the_clip_is_within_the_bound(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    silence(monkeypatch)
    plan = scheme(size=1000, bits=bits, clip=0.7)
    cases = [np.full(1000, 1e6), np.eye(1000)[3] * 50, np.random.default_rng(0).normal(size=1000), -np.ones(1000)]
    for vector in cases:
        sent = plan.encode(vector.astype(np.float32), ROOT.fork("far", bits), SEED).astype(np.int64)
        steps = centred(sent, bits)
        norm = float(np.linalg.norm(steps))
        assert 0.9 * plan.scale * 0.7 < norm <= plan.l2
        assert np.abs(steps).sum() <= plan.event().l1


def centred(sent: np.ndarray, bits: int) -> np.ndarray:
    return np.where(sent >= 1 << (bits - 1), sent - (1 << bits), sent)


def test_rounding_is_repeated_until_the_norm_is_within_the_bound() -> None:
    """Halves are the worst case: a try fails in one of about fifty, and none of 3,000 vectors is beyond the bound."""
    scaled = np.full(256, 0.5)
    bound = rounded_norm(8.0, 256)
    assert bound**2 == pytest.approx(64 + 64 + 16)
    once = [float(np.sum((ROOT.fork("once", run).uniform(256) < 0.5) ** 2)) for run in range(3000)]
    assert sum(square > bound**2 for square in once) > 20
    many = [distributed._rounded(scaled, bound, ROOT.fork("many", run)) for run in range(3000)]
    assert max(int(steps @ steps) for steps in many) <= bound**2
    assert np.mean(many) == pytest.approx(0.5, abs=0.005)  # cut at the top, by little


def test_rounding_has_no_bias() -> None:
    scaled = np.array([0.25, -0.25, 3.9, -7.0, 0.0])
    found = np.mean([distributed._rounded(scaled, 100.0, ROOT.fork("bias", run)) for run in range(4000)], axis=0)
    assert np.abs(found - scaled).max() < 6 * 0.5 / math.sqrt(4000)
    assert (found[3], found[4]) == (-7.0, 0.0)


def test_what_cannot_be_rounded_within_the_bound_is_cut() -> None:
    cut = distributed._rounded(np.array([1.9, -1.9] * 4), math.sqrt(8), ROOT.fork("cut"))  # a try in 10^8 succeeds
    assert cut.tolist() == [1, -1] * 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_counts_as_zeros(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    silence(monkeypatch)
    vector = np.ones(1000)
    vector[5] = bad
    assert not scheme().encode(vector, ROOT.fork("bad"), SEED).any()


# Wrapping around.


@BOTH
@pytest.mark.parametrize("spiky", [True, False])
def test_nothing_wraps_when_all_clients_send_the_same_vector_at_the_clip(mechanism: EventKind, spiky: bool) -> None:
    """The worst case of the scale: the sum of the vectors is as long as it can be."""
    plan = scheme(mechanism=mechanism, size=1 << 12, clients=32, least=32, noise_multiplier=0.5, bits=14)
    vector = np.eye(1 << 12)[7] if spiky else np.random.default_rng(1).normal(size=1 << 12)
    vector = vector / np.linalg.norm(vector)
    sent = [centred(plan.encode(vector, ROOT.fork("wrap", n), SEED).astype(np.int64), 14) for n in range(32)]
    unwrapped = np.sum(sent, axis=0)
    total = (unwrapped % (1 << 14)).astype(np.uint32)
    # A coordinate's standard deviation, over all vectors and seeds, is an eighth of the modulus: 4 to its half.
    deviation = math.sqrt((32 * plan.scale) ** 2 / (1 << 12) + 32 * plan.share**2 + 32 / 4)
    assert 0.97 < deviation / ((1 << 14) / 8) <= 1
    inside = np.abs(unwrapped) < 1 << 13
    assert (~inside).mean() < 4 * math.erfc(4 / math.sqrt(2)) + 2 / (1 << 12)
    assert inside[np.abs(unwrapped) < 3.99 * deviation].all()
    np.testing.assert_array_equal(centred(total.astype(np.int64), 14)[inside], unwrapped[inside])
    error = plan.decode(total, SEED).vector - 32 * vector
    assert error.std() < 1.1 * 0.5


@settings(max_examples=50)
@given(
    bits=st.integers(8, 32),
    clients=st.integers(1, 10_000),
    log_size=st.integers(0, 24),
    multiplier=st.floats(0.1, 20),
    mechanism=st.sampled_from([GAUSSIAN, SKELLAM]),
    relation=st.sampled_from([Relation.ZERO_OUT, Relation.REPLACE_ONE]),
    share=st.floats(0.01, 1),
)
def test_four_deviations_always_fit(
    bits: int, clients: int, log_size: int, multiplier: float, mechanism: EventKind, relation: Relation, share: float
) -> None:
    least = max(1, math.ceil(share * clients))
    values: dict[str, Any] = {"mechanism": mechanism, "noise_multiplier": multiplier, "relation": relation}
    try:
        plan = scheme(bits=bits, clients=clients, least=least, size=1 << log_size, **values)
    except PlanError:  # too few bits, or too many
        reject()
    signal = (clients * plan.scale * plan.bound) ** 2 / plan.dimension
    assert 4 * math.sqrt(signal + clients * plan.share**2 + clients / 4) <= 2 ** (bits - 1) * (1 + 1e-9)
    assert plan.share_std * plan.scale == pytest.approx(plan.share)
    event = plan.event()
    assert event.noise_multiplier <= multiplier * (1 + 1e-9)  # what is accounted is never more than what is added
    assert event.noise_multiplier * event.l2 == pytest.approx(plan.share * math.sqrt(least))
    assert event.l2 <= event.l1 <= event.l2 * math.sqrt(plan.dimension) * (1 + 1e-9)


# Replaced units, bits of an adaptive clip.


def test_replacing_moves_the_sum_twice_as_far_and_gets_twice_the_noise() -> None:
    zeroed, replaced = scheme(bits=20), scheme(bits=20, relation=Relation.REPLACE_ONE)
    assert replaced.share_std == pytest.approx(2 * zeroed.share_std)
    assert replaced.event().l2 == pytest.approx(2 * replaced.l2)
    assert replaced.event().noise_multiplier == pytest.approx(zeroed.event().noise_multiplier, rel=1e-4)


@pytest.mark.parametrize(("relation", "spread"), [(Relation.ZERO_OUT, 1.0), (Relation.REPLACE_ONE, 2.0)])
def test_bits_travel_as_one_more_coordinate_at_no_extra_cost(relation: Relation, spread: float) -> None:
    plan = scheme(size=4095, clip=3.0, bits_noise=5.0, relation=relation, bits=20)
    assert plan.dimension == 4096
    update = split_noise(1.0, 5.0, spread=spread)
    if spread == 1:
        assert update == pytest.approx(1.005038, abs=1e-6)  # Andrew et al. 2021, 100 clients
    # Noise on the vector and on the bits, as the split has it; both in one event of multiplier 1.
    assert plan.share_std * 10 == pytest.approx(update * 3.0 * spread)
    assert plan.share_std * 10 / plan.bit_scale == pytest.approx(5.0)
    assert plan.bound == pytest.approx(math.hypot(3.0, plan.bit_scale / 2))
    assert plan.event().noise_multiplier == pytest.approx(1.0, rel=1e-3)
    vectors = np.random.default_rng(0).normal(size=(100, 4095)) / 40
    votes = [0.5] * 70 + [-0.5] * 25 + [0.0] * 5
    runs = [plan.decode(summed(plan, vectors, f"bits {run}", votes), SEED, divisor=50) for run in range(2)]
    for found in runs:
        assert abs(found.bits - 22.5) < 6 * 5.0
        errors = found.vector - vectors.sum(0) / 50
        assert errors.std() == pytest.approx(update * 3.0 * spread / 50, rel=0.1)
    clip = ClipBound(bound=3.0, cohort=100.0).after(runs[0].bits)
    assert 2.0 < clip.bound < 4.0


def test_the_noised_sum_of_bits_has_the_noise_that_was_asked_for() -> None:
    plan = scheme(size=3, clip=3.0, bits_noise=5.0, clients=10, least=10, bits=20)
    found = [plan.decode(summed(plan, np.zeros((10, 3)), f"sum {run}", [0.5] * 10), SEED).bits for run in range(400)]
    assert np.mean(found) == pytest.approx(5.0, abs=6 * 5 / 20)
    assert np.std(found) == pytest.approx(5.0, rel=6 / math.sqrt(800))


def test_a_clip_that_moves_changes_nothing_about_the_cost() -> None:
    first = scheme(bits_noise=5.0, clip=0.1)
    assert {replace(first, clip=0.1 * 1.37**n).event() for n in range(30)} == {first.event()}


# In a ledger.


@BOTH
@pytest.mark.usefixtures("no_sync")
def test_a_ledger_keeps_such_an_event(tmp_path: Path, mechanism: EventKind) -> None:
    plan = scheme(mechanism=mechanism, least=80, dishonest=10)
    about: dict[str, Any] = {"unit": plan.unit, "relation": plan.relation, "task": "t", "kinds": {"arrays": 9}}
    before = Entry(kind=EntryKind.RELEASE, run="r", round=1, content="ab" * 32, events=(central(2.0),), **about)
    after = Entry(kind=EntryKind.RELEASE, run="r", round=2, content="ab" * 32, events=(plan.event(90),), **about)
    with Ledger.open(tmp_path / FILE_NAME) as ledger:
        ledger.append(before)
        ledger.append(after)
    with Ledger.read(tmp_path / FILE_NAME) as again:
        assert list(again.entries()) == [before, after]
        assert again.verify() == 2
        found = epsilon(again.events(), 1e-5)
    as_gaussian = [central(2.0), central(math.sqrt(80 / 70))]
    assert found == pytest.approx(epsilon(as_gaussian, 1e-5, accountant="rdp"), rel=0.01)


# What is refused.


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"mechanism": EventKind.GAUSSIAN}, "mechanism to be discrete-gaussian or skellam, found gaussian"),
        ({"size": 0}, "size"),
        ({"clip": 0.0}, "clip"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"bits": 7}, "bits to be from 8 to 32, found 7"),
        ({"bits": 33}, "bits to be from 8 to 32"),
        ({"least": 101}, "dishonest < least <= clients"),
        ({"dishonest": 100}, "dishonest < least <= clients"),
        ({"dishonest": -1}, "dishonest < least <= clients"),
        ({"relation": Relation.ADD_REMOVE}, "who takes part is not hidden"),
        ({"bits": 8, "clients": 2000, "least": 2000}, "take more bits"),
        ({"bits_noise": -1.0}, "bits_noise"),
        ({"bits_noise": 0.4}, "adaptive clip: expected a noise multiplier above 0 and below 0.8"),
    ],
)
def test_schemes_that_cannot_hold_are_refused(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        scheme(**wrong)
    assert scheme(mechanism=GAUSSIAN, bits=24).share > 1 << 15


def test_vectors_and_bits_that_do_not_fit_are_refused() -> None:
    for vector in (np.zeros(999), np.zeros((1000, 1))):
        with pytest.raises(PlanError, match="vector to be of 1000 numbers"):
            scheme().encode(vector, ROOT.fork("no"), SEED)
    with pytest.raises(PlanError, match="expected float32 or float64"):
        scheme().encode(np.zeros(1000, np.int64), ROOT.fork("no"), SEED)  # type: ignore[arg-type]
    for plan, bit in ((scheme(), 0.5), (scheme(bits_noise=5.0), 0.6), (scheme(bits_noise=5.0), math.nan)):
        with pytest.raises(PlanError, match="bit to be within a half"):
            plan.encode(np.zeros(1000), ROOT.fork("no"), SEED, bit=bit)


def test_what_is_no_sum_is_refused() -> None:
    plan, good = scheme(), np.zeros(1024, np.uint32)
    assert plan.decode(good, SEED).vector.shape == (1000,)
    for total in (good[:-1], good.astype(np.int64), good + np.uint32(1 << 18)):
        with pytest.raises(PrivacyError, match=r"expected 1024 unsigned integers below 2\^18"):
            plan.decode(total, SEED)
    with pytest.raises(PrivacyError, match="a positive divisor"):
        plan.decode(good, SEED, divisor=0)


def test_a_rotation_of_another_round_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch)
    plan, vector = scheme(), np.full(1000, 1 / math.sqrt(1000))
    sent = plan.encode(vector, ROOT.fork("seed"), SEED)
    assert plan.decode(sent, SEED).vector @ vector == pytest.approx(1.0, abs=0.01)
    assert abs(plan.decode(sent, bytes(32)).vector @ vector) < 0.2


@BOTH
def test_bits_beyond_what_the_sampler_goes_to_are_room_alone(mechanism: EventKind) -> None:
    wide = scheme(mechanism=mechanism, bits=32, clients=7, least=5)
    assert wide.share <= distributed._SAMPLERS[mechanism][1]
    assert wide.scale == pytest.approx(wide.share / wide.share_std)
    assert wide.event().noise_multiplier == pytest.approx(wide.noise_multiplier, rel=1e-2)
