"""Streams of correlated noise: each kind makes C^-1 Z, survives a restart bit for bit, and keeps to its plan."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import PlanError, PrivacyError
from cloister.privacy.blt import Buffered
from cloister.privacy.correlated import Factorisation, NoiseStream, factorise
from cloister.privacy.matrix import Banded, Vector, optimal
from cloister.privacy.noise import NoiseSource
from cloister.privacy.tree import Tree

KEY = bytes(range(32))
LAYOUT = {"weight": (2, 3), "bias": (3,), "scalar": ()}
ROUNDS = 12
KINDS: dict[str, dict[str, int]] = {
    "independent": {},
    "banded": {"bands": 4},
    "blt": {"buffers": 3},
    "tree": {},
}


def made(kind: str, **values: int) -> Factorisation:
    return factorise(kind, **{"rounds": ROUNDS, "separation": 4, **KINDS[kind], **values})


def stream(kind: str, key: bytes = KEY, **values: int) -> NoiseStream:
    return NoiseStream(made(kind, **values), NoiseSource(key))


def run(noise: NoiseStream, rounds: int, size: int, std: float = 1.0) -> Vector:
    """Return the noise of some rounds, rounds by coordinates."""
    return np.array([noise.next({"x": (size,)}, std)["x"] for _ in range(rounds)])


def encoder(factor: Any) -> Vector:
    """Return ``C``, written out from its definition: rounds (tree: nodes in order of completion) by rounds."""
    rounds = factor.rounds
    if isinstance(factor, Tree):
        rows = []
        for end in range(1, rounds + 1):
            start = (end - 1) // factor.restart * factor.restart
            width = 1
            while width <= end - start and (end - start) % width == 0:
                rows.append([float(end - width <= round < end) for round in range(rounds)])
                width *= 2
        return np.array(rows)
    column = np.zeros(rounds)
    if isinstance(factor, Banded):
        column[: len(factor.column)] = factor.column[:rounds]
    else:
        assert isinstance(factor, Buffered)
        column[0] = 1
        for i in range(1, rounds):
            column[i] = sum(s * d ** (i - 1) for s, d in zip(factor.scales, factor.decays, strict=True))
    return np.array([[column[i - j] if i >= j else 0.0 for j in range(rounds)] for i in range(rounds)])


def decoder(factor: Any) -> Vector:
    """Return ``B``, with ``B C = A``: for a tree, that which weighs the nodes inside each prefix best."""
    matrix = encoder(factor)
    workload = np.tril(np.ones((factor.rounds, factor.rounds)))
    if not isinstance(factor, Tree):
        return workload @ np.linalg.inv(matrix)
    ends = np.array([np.flatnonzero(row).max() + 1 for row in matrix])
    rows = np.zeros((factor.rounds, len(matrix)))
    for end in range(1, factor.rounds + 1):
        rows[end - 1, ends <= end] = np.ones(end) @ np.linalg.pinv(matrix[ends <= end, :end])
    return rows


def draws(factor: Any, size: int, std: float) -> Vector:
    """Return ``Z``: what each round draws from its own fork of the key, in order."""
    rows = []
    for round in range(factor.rounds):
        source, local = NoiseSource(KEY).fork("round", round), round % getattr(factor, "restart", 1)
        count = ((local + 1) & -(local + 1)).bit_length() if isinstance(factor, Tree) else 1
        rows += [source.gaussian(size, std) for _ in range(count)]
    return np.array(rows)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    """What each kind of stream must do."""

    def test_the_streamed_noise_is_that_of_dense_algebra(self, kind: str) -> None:
        factor = made(kind).factor
        noise = run(stream(kind), ROUNDS, size=7, std=2.5)
        assert np.cumsum(noise, axis=0) == pytest.approx(decoder(factor) @ draws(factor, 7, 2.5), abs=1e-10)
        assert decoder(factor) @ encoder(factor) == pytest.approx(np.tril(np.ones((ROUNDS, ROUNDS))), abs=1e-10)

    def test_the_sensitivity_is_that_of_the_worst_pattern(self, kind: str) -> None:
        found = made(kind, participations=2)
        matrix = encoder(found.factor)
        worst = max(
            np.linalg.norm(matrix[:, first] + matrix[:, second])
            for first, second in itertools.combinations(range(ROUNDS), 2)
            if second - first >= 4
        )
        assert found.sensitivity == pytest.approx(worst)
        single = made(kind, separation=ROUNDS)
        assert single.sensitivity == pytest.approx(np.linalg.norm(encoder(single.factor), axis=0).max())

    def test_a_restored_stream_goes_on_bit_for_bit(self, kind: str) -> None:
        whole = stream(kind)
        expected = [whole.next(LAYOUT, 0.7) for _ in range(ROUNDS)]
        for stop in range(ROUNDS):
            first = stream(kind)
            for _ in range(stop):
                first.next(LAYOUT, 0.7)
            state = first.state()
            first.next(LAYOUT, 0.7)  # a state is a copy: what the stream does afterwards does not change it
            second = stream(kind)
            second.restore(state)
            assert second.round == stop
            for round in range(stop, ROUNDS):
                found = second.next(LAYOUT, 0.7)
                assert all(found[name].tobytes() == expected[round][name].tobytes() for name in LAYOUT)

    def test_a_replayed_round_replays_its_noise(self, kind: str) -> None:
        noise = stream(kind)
        run(noise, 5, size=4)
        state = noise.state()
        first = run(noise, 3, size=4)
        noise.restore(state)
        assert run(noise, 3, size=4).tobytes() == first.tobytes()

    def test_every_round_and_every_key_has_its_own_noise(self, kind: str) -> None:
        values = np.concatenate([run(stream(kind), ROUNDS, 5), run(stream(kind, key=bytes(32)), ROUNDS, 5)])
        assert len(np.unique(values)) == values.size

    def test_prefix_sums_have_the_covariance_of_the_decoder(self, kind: str) -> None:
        size, std = 40_000, 1.5
        prefixes = np.cumsum(run(stream(kind), ROUNDS, size, std), axis=0)
        matrix = decoder(made(kind).factor)
        expected = std**2 * matrix @ matrix.T
        found = prefixes @ prefixes.T / size
        # A sample covariance of Gaussians: its variance is (s_ii s_jj + s_ij^2) / size; the key is fixed.
        diagonal = np.diag(expected)
        deviation = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / size)
        assert (np.abs(found - expected) / deviation).max() < 5
        assert np.diag(found).max() == pytest.approx(std**2 * made(kind).factor.errors().maximum, rel=0.04)

    def test_names_shapes_and_order(self, kind: str) -> None:
        found = stream(kind).next(LAYOUT, 1.0)
        assert {name: value.shape for name, value in found.items()} == LAYOUT
        assert all(value.dtype == np.float64 for value in found.values())
        backwards = stream(kind).next(dict(reversed(LAYOUT.items())), 1.0)
        assert all(found[name].tobytes() == backwards[name].tobytes() for name in LAYOUT)

    def test_no_round_beyond_those_of_the_sensitivity(self, kind: str) -> None:
        noise = stream(kind, rounds=3)
        run(noise, 3, size=2)
        with pytest.raises(PrivacyError, match="expected at most 3 rounds"):
            run(noise, 1, size=2)

    def test_noise_of_another_size_is_refused(self, kind: str) -> None:
        noise = stream(kind)
        noise.next(LAYOUT, 1.0)
        state = noise.state()
        with pytest.raises(PrivacyError, match=r"expected the standard deviation of the first round, 1\.0, found 0\.9"):
            noise.next(LAYOUT, 0.9)
        with pytest.raises(PrivacyError, match=r"found others: \['bias'\]"):
            noise.next({**LAYOUT, "bias": (4,)}, 1.0)
        with pytest.raises(PrivacyError, match=r"found others: \['scalar'\]"):
            noise.next({name: shape for name, shape in LAYOUT.items() if name != "scalar"}, 1.0)
        assert noise.state()["memory"].tobytes() == state["memory"].tobytes()  # what was refused left no trace
        assert noise.round == 1

    @pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
    def test_noise_that_is_none_is_refused(self, kind: str, std: float) -> None:
        with pytest.raises(PrivacyError):
            stream(kind).next(LAYOUT, std)

    def test_the_state_of_another_plan_is_refused(self, kind: str) -> None:
        state = stream(kind).state()
        for other in [stream(kind, separation=3), stream(kind, rounds=11), stream(kind, participations=1)]:
            with pytest.raises(PrivacyError, match=r"saved state cannot be used.*expected one of"):
                other.restore(state)
        for name in set(KINDS) - {kind}:
            with pytest.raises(PrivacyError, match="saved state cannot be used"):
                stream(name).restore(state)

    @pytest.mark.parametrize("damage", ["no memory", "no about", "short", "not json", "wrong type", "no factor"])
    def test_a_damaged_state_is_refused(self, kind: str, damage: str) -> None:
        noise = stream(kind)
        noise.next(LAYOUT, 1.0)
        state = noise.state()
        about = state["about"].tobytes()
        if damage == "no memory":
            del state["memory"]
        elif damage == "no about":
            del state["about"]
        elif damage == "short":
            state["memory"] = np.zeros((state["memory"].shape[0], 3))
        else:
            text = {"not json": about[:-1], "wrong type": b"[]", "no factor": about.replace(b'"factor"', b'"f"')}[
                damage
            ]
            state["about"] = np.frombuffer(text, np.uint8)
        before = noise.state()
        with pytest.raises(PrivacyError, match="saved state cannot be used"):
            noise.restore(state)
        assert noise.state()["about"].tobytes() == before["about"].tobytes()

    def test_the_standard_deviation_ties_plan_and_noise(self, kind: str) -> None:
        assert stream(kind).std(1.5, clip=0.2) == pytest.approx(1.5 * 0.2 * made(kind).sensitivity)


def test_a_run_keeps_the_factor_it_began_with() -> None:
    fitted = made("banded")
    cut = Factorisation(
        kind=fitted.kind, request=fitted.request, factor=Banded(ROUNDS, tuple(optimal(4).tolist())), sensitivity=1.0
    )
    first = NoiseStream(cut, NoiseSource(KEY))
    run(first, 5, size=3)
    second = stream("banded")
    second.restore(first.state())
    assert second.std(1.0, 1.0) == first.std(1.0, 1.0)
    assert run(second, 4, size=3).tobytes() == run(first, 4, size=3).tobytes()


def test_memory_is_what_was_promised() -> None:
    assert [made("banded", bands=bands).factor.depth for bands in (1, 2, 4)] == [0, 1, 3]
    assert [made("blt", buffers=buffers).factor.depth for buffers in (1, 2, 4)] == [1, 2, 4]
    assert [made("tree", rounds=rounds, participations=1).factor.depth for rounds in (7, 8, 12)] == [3, 4, 4]
    noise = stream("banded")
    noise.next({"x": (100,)}, 1.0)
    assert noise.state()["memory"].shape == (3, 100)


def test_participations_are_what_the_separation_allows() -> None:
    assert made("banded", separation=5).request["participations"] == 3
    assert made("banded", separation=5, participations=2).request["participations"] == 2
    assert made("banded", separation=5, participations=9).request["participations"] == 3
    assert made("banded", separation=5, participations=9) == made("banded", separation=5)


def test_a_tree_restarts_only_where_units_come_back() -> None:
    assert made("tree").factor == Tree(ROUNDS, 4)
    assert made("tree", participations=1).factor == Tree(ROUNDS, ROUNDS)
    assert made("tree", separation=20).factor == Tree(ROUNDS, ROUNDS)


def test_more_bands_than_rounds_are_as_many() -> None:
    assert made("banded", bands=99) == made("banded", bands=ROUNDS)


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        ("diagonal", {}, "kind: expected banded, blt, tree or independent, found 'diagonal'"),
        ("banded", {"bands": 0}, "bands: expected 1 to 12"),
        ("blt", {"buffers": 0}, "buffers: expected 1 to 8"),
        ("tree", {"separation": 0}, "separation: expected at least 1"),
        ("tree", {"rounds": 0}, "rounds: expected at least 1"),
        ("tree", {"participations": -1}, "participations: expected at least 1, found -1"),
    ],
)
def test_what_no_matrix_has_is_refused(kind: str, values: dict[str, int], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        factorise(kind, **{"rounds": ROUNDS, "separation": 4, **values})


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rounds=st.integers(1, 20),
    separation=st.integers(1, 8),
    participations=st.integers(0, 5),
    bands=st.integers(1, 8),
    buffers=st.integers(1, 3),
    stop=st.integers(0, 20),
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=3),
)
def test_any_stream_is_dense_algebra_and_survives_a_restart(
    kind: str,
    rounds: int,
    separation: int,
    participations: int,
    bands: int,
    buffers: int,
    stop: int,
    sizes: list[int],
) -> None:
    plan = {"rounds": rounds, "separation": separation, "participations": participations}
    found = factorise(kind, **plan, bands=bands, buffers=buffers)
    layout = {f"entry {index}": (size,) for index, size in enumerate(sizes)}
    noise = NoiseStream(found, NoiseSource(KEY))
    rows = []
    for round in range(rounds):
        if round == stop:
            state = noise.state()
            noise = NoiseStream(found, NoiseSource(KEY))
            noise.restore(state)
        parts = noise.next(layout, 1.0)
        rows.append(np.concatenate([parts[name] for name in layout]))
    expected = decoder(found.factor) @ draws(found.factor, sum(sizes), 1.0)
    assert np.cumsum(rows, axis=0) == pytest.approx(expected, abs=1e-9)
