"""Layout and fixed point: every coordinate in its place, sums that are exact, and ranges that cannot wrap around."""

import math
from typing import Any

import numpy as np
import pytest

from cloister.errors import SecureSumError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.layout import FixedPoint, Layout

SHAPES: dict[str, tuple[int, ...]] = {"conv.weight": (2, 3, 1), "bias": (4,), "scale": (), "none": (0, 5)}
LAYOUT = Layout.of(SHAPES, {"centres": (3, 2), "clipped": ()})


def source() -> NoiseSource:
    return NoiseSource(bytes(32))


def arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    draws = np.random.default_rng(seed)
    return {name: draws.uniform(-1, 1, shape) for name, shape in shapes.items()}


def test_what_is_flattened_comes_back_by_name_in_the_layouts_order() -> None:
    tensors, extra = arrays(SHAPES), arrays({"centres": (3, 2), "clipped": ()})
    mixed = dict(reversed(tensors.items()))
    vector = LAYOUT.flatten(mixed, extra)
    assert vector.dtype == np.float64
    assert vector.size == LAYOUT.size - 1 == 11 + 7
    assert (LAYOUT.weighted, LAYOUT.unweighted) == (11, 7)
    parts = [tensors["conv.weight"], tensors["bias"], tensors["scale"], extra["centres"], extra["clipped"]]
    assert vector.tolist() == np.concatenate([part.reshape(-1) for part in parts]).tolist()
    for found, given in zip(LAYOUT.unflatten(vector), (tensors, extra), strict=True):
        assert list(found) == list(given)
        assert all(np.array_equal(found[name], given[name]) for name in given)


def test_arrays_of_any_memory_order_and_type_are_taken() -> None:
    layout = Layout.of({"a": (2, 3)})
    assert layout.flatten({"a": np.arange(6, dtype=np.float32).reshape(3, 2).T}).tolist() == [0, 2, 4, 1, 3, 5]
    assert layout.size == 7


def test_extra_names_alone_are_single_numbers() -> None:
    layout = Layout.of({"a": (2,)}, ["count", "clipped"])
    assert layout == Layout.of({"a": (2,)}, {"count": (), "clipped": ()})
    assert layout.flatten({"a": [1.0, 2.0]}, {"clipped": True, "count": 7}).tolist() == [1, 2, 7, 1]


def test_every_layout_has_a_digest_of_its_own() -> None:
    layouts = [
        LAYOUT,
        Layout.of(SHAPES),
        Layout.of(SHAPES, ["centres"]),
        Layout.of(dict(reversed(SHAPES.items()))),
        Layout.of(SHAPES | {"bias": (2, 2)}),
        Layout.of(SHAPES | {"bias": (4, 1)}),
        Layout.of(SHAPES | {"bias": (5,)}),
        Layout.of({"a": (1,), "b": ()}),
        Layout.of({"a": (), "b": (1,)}),
        Layout.of({"a": ()}, ["b"]),
        Layout.of({"a": (), "b": ()}),
        Layout.of({"ab": ()}),
        Layout.of({}, ["a", "b"]),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)
    assert Layout.of(SHAPES, {"centres": (3, 2), "clipped": ()}).digest == LAYOUT.digest
    assert len(LAYOUT.digest) == 32


@pytest.mark.parametrize(
    ("shapes", "extra", "match"),
    [
        ({}, (), "expected some names"),
        ({"": (1,)}, (), "expected some names"),
        ({"a": (1,)}, ["a"], "each once"),
        ({}, ["a", "a"], "each once"),
        ({"a": (-1,)}, (), r"integers from 0, found others in \['a'\]"),
        ({"a": (1.5,)}, (), "integers from 0"),
        ({"a": (1 << 20, 1 << 20)}, (), "at most 2\\^35 coordinates"),
    ],
)
def test_layouts_that_no_vector_has_are_refused(shapes: dict[str, Any], extra: list[str], match: str) -> None:
    with pytest.raises(SecureSumError, match=match):
        Layout.of(shapes, extra)


def test_arrays_that_do_not_fit_are_refused() -> None:
    layout = Layout.of({"a": (2,), "b": ()}, ["c"])
    for tensors, extra in (({"a": [1, 2]}, {"c": 1}), ({"a": [1, 2], "b": 1}, None), ({"a": [1, 2], "b": 1}, {"d": 1})):
        with pytest.raises(SecureSumError, match="missing or unknown"):
            layout.flatten(tensors, extra)
    with pytest.raises(SecureSumError, match=r"expected 'a' of shape \(2,\), found \(2, 1\)"):
        layout.flatten({"a": [[1], [2]], "b": 1}, {"c": 1})
    for size in (3, 5):
        with pytest.raises(SecureSumError, match="expected a vector of 4 reals"):
            layout.unflatten(np.zeros(size))


@pytest.mark.parametrize("bits", [8, 18, 32, 33, 48, 64])
@pytest.mark.parametrize("clients", [1, 3, 10])
def test_the_range_is_the_largest_that_cannot_wrap_around(bits: int, clients: int) -> None:
    point = FixedPoint(bits=bits, clip=0.7, clients=clients, weight_cap=3.0)
    scale = point.levels / point.clip
    assert bits >= math.ceil(math.log2(clients * 2 * point.clip * scale + 1))
    assert point.levels == 1 << 52 or clients * 2 * (point.levels + 1) + 1 > 1 << bits


@pytest.mark.parametrize(("bits", "clients"), [(8, 5), (18, 100), (32, 50), (33, 3), (48, 7), (64, 1), (64, 9)])
def test_the_largest_sums_do_not_wrap_around(bits: int, clients: int) -> None:
    point = FixedPoint(bits=bits, clip=0.1, clients=clients, weight_cap=7.0, unweighted=2, unweighted_clip=3.0)
    vector = np.array([0.1, -0.1, 5.0, -5.0, 3.0, -9.0])
    total = np.zeros(7, point.encode(vector, 7.0, source()).dtype)
    for _ in range(clients):
        total += point.encode(vector, 7.0, source())
    total &= total.dtype.type((1 << bits) - 1)
    numerator, weight = point.decode(total, clients)
    most = clients * 0.7
    assert numerator == pytest.approx([most, -most, most, -most, 3 * clients, -3 * clients])
    assert weight == 7 * clients


def test_a_weighted_mean_is_that_of_the_reals_within_the_step() -> None:
    clients, draws = 20, np.random.default_rng(1)
    point = FixedPoint(bits=24, clip=1.0, clients=clients, weight_cap=500, unweighted=1)
    vectors, weights = draws.uniform(-1, 1, (clients, 70_000)), draws.integers(0, 501, clients)
    noise = source()
    encoded = [point.encode(v, float(w), noise.fork(i)) for i, (v, w) in enumerate(zip(vectors, weights, strict=True))]
    assert {each.dtype for each in encoded} == {np.dtype(np.uint32)}
    assert max(each.max() for each in encoded) < 1 << 24
    total = np.sum(encoded, 0, dtype=np.uint32) & np.uint32((1 << 24) - 1)
    numerator, weight = point.decode(total, clients)
    assert weight == weights.sum()
    expected = weights @ vectors
    expected[-1] = vectors[:, -1].sum()
    assert np.abs(numerator - expected)[:-1].max() < clients * point.step
    assert np.abs(numerator - expected)[-1] < clients / point.levels
    # Each of 20 clients is off by a standard deviation of at most half a step: the mean of 70,000 errors is near 0.
    assert abs((numerator - expected)[:-1].mean()) < 6 * point.step / 2 * math.sqrt(clients / 70_000)


def test_rounding_is_right_on_average_and_never_more_than_one_off() -> None:
    point = FixedPoint(bits=8, clip=1.0, clients=1)
    values = np.repeat(np.array([0.3, -0.3, 7.25, -7.25, 126.9]), 100_000) / point.levels
    assert point.levels == 127
    whole, _ = point.decode(point.encode(values, 1.0, source()), 1)
    errors = (whole - values).reshape(5, -1) * point.levels
    assert np.abs(errors).max() < 1
    for share, row in zip((0.3, 0.7, 0.25, 0.75, 0.9), errors, strict=True):  # up with this probability
        assert abs(row.mean()) < 6 * math.sqrt(share * (1 - share) / 100_000)
        assert np.unique(row.round(9)).size == 2


def test_values_are_clipped_before_they_are_weighted() -> None:
    point = FixedPoint(bits=32, clip=0.5, clients=2, weight_cap=10.0, unweighted=1)
    numerator, weight = point.decode(point.encode(np.array([4.0, -4.0, 4.0]), 2.0, source()), 1)
    assert numerator == pytest.approx([1.0, -1.0, 1.0])
    assert weight == 2


def test_the_largest_value_is_never_rounded_beyond_the_range() -> None:
    for clip in (3 / 7, 6 / 7):
        point = FixedPoint(bits=50, clip=clip, clients=1)
        assert clip * (point.levels / clip) > point.levels  # in doubles: a sixteenth more, and so now and then one up
        numerator, _ = point.decode(point.encode(np.array([clip, -clip] * 1000), 1.0, source()), 1)
        assert np.abs(numerator) == pytest.approx(np.full(2000, clip))


def test_a_client_of_weight_0_adds_nothing_but_what_has_no_weight() -> None:
    point = FixedPoint(bits=32, clip=1.0, clients=2, weight_cap=10.0, unweighted=1)
    numerator, weight = point.decode(point.encode(np.ones(3), 0.0, source()), 1)
    assert numerator.tolist() == [0, 0, 1]
    assert weight == 0


@pytest.mark.parametrize("weight", [-0.1, 10.1, float("nan"), float("inf")])
def test_weights_beyond_the_cap_are_refused(weight: float) -> None:
    with pytest.raises(SecureSumError, match="expected a weight from 0 to 10"):
        FixedPoint(bits=32, clip=1.0, clients=2, weight_cap=10.0).encode(np.ones(3), weight, source())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_reals_that_are_none_are_refused(bad: float) -> None:
    point = FixedPoint(bits=32, clip=1.0, clients=2, unweighted=1)
    for index in (0, 70_000):
        vector = np.zeros(70_001)
        vector[index] = bad
        with pytest.raises(SecureSumError, match="expected finite reals"):
            point.encode(vector, 1.0, source())


def test_vectors_of_another_form_are_refused() -> None:
    point = FixedPoint(bits=32, clip=1.0, clients=2, unweighted=2)
    for vector in (np.zeros((2, 2)), np.zeros(1)):
        with pytest.raises(SecureSumError, match="expected a vector of at least 2 reals"):
            point.encode(vector, 1.0, source())
    for total in (np.zeros(2, np.uint32), np.zeros(5, np.uint64), np.zeros((5, 1), np.uint32), np.zeros(5)):
        with pytest.raises(SecureSumError, match="expected a vector of uint32"):
            point.decode(total, 1)
    for count in (0, 3, -1):
        with pytest.raises(SecureSumError, match="sum over 1 to 2 clients"):
            point.decode(np.zeros(5, np.uint32), count)


def test_a_total_that_no_clients_have_is_refused() -> None:
    point = FixedPoint(bits=32, clip=1.0, clients=100)
    good = point.encode(np.ones(3), 1.0, source())
    for index, value in ((0, 2 * point.levels), (1, -2 * point.levels), (3, -1)):
        total = good.copy()
        total[index] = value % (1 << 32)
        with pytest.raises(SecureSumError, match="expected one in their range"):
            point.decode(total, 1)
        if index < 3:
            point.decode(total, 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bits": 0}, "modulus"),
        ({"bits": 65}, "modulus"),
        ({"clip": 0.0}, "finite clip"),
        ({"clip": float("inf")}, "finite clip"),
        ({"weight_cap": -1.0}, "finite weight_cap"),
        ({"weight_cap": float("nan")}, "finite weight_cap"),
        ({"unweighted_clip": 0.0}, "finite unweighted_clip"),
        ({"clients": 0}, "clients from 1"),
        ({"unweighted": -1}, "unweighted from 0"),
        ({"bits": 7, "clients": 64}, r"found 2\^7; give at least 8 bits"),
        (
            {"bits": 16, "clients": 10, "weight_cap": 4000.0},
            r"10 clients of weight 4000, found 2\^16; give at least 17",
        ),
    ],
)
def test_ranges_that_hold_nothing_are_refused(change: dict[str, Any], match: str) -> None:
    FixedPoint(bits=16, clip=1.0, clients=10)
    with pytest.raises(SecureSumError, match=match):
        FixedPoint(**{"bits": 16, "clip": 1.0, "clients": 10} | change)


def test_as_many_bits_as_asked_for_are_enough() -> None:
    FixedPoint(bits=8, clip=1.0, clients=64)
    FixedPoint(bits=17, clip=1.0, clients=10, weight_cap=4000.0)
