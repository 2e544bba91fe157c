"""The secure sum of a round, as plan and shapes make it: the same terms on both sides, and no part beyond its slack."""

from typing import Any

import numpy as np
import pytest

from cloister.errors import PlanError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.privacy.summing import RoundSum, asked, least, secure_of, shares_of

SHAPES: dict[str, tuple[int, ...]] = {"w": (30, 10), "b": (10,)}
PLAN: dict[str, Any] = {
    "unit": "client",
    "clip": {"bound": 2.0},
    "population": 10,
    "secure": {"size": 310, "bits": 16, "dropouts": 0.25},
}
NOISED: dict[str, Any] = {
    **PLAN,
    "mechanism": "gaussian",
    "trust": "distributed",
    "relation": "zero-out",
    "noise_multiplier": 1.0,
    "secure": {**PLAN["secure"], "adversaries": 0.05},
}


def part(plan: dict[str, Any] = PLAN, **changes: Any) -> RoundSum:
    made = Plan.of(plan)
    values = {"plan": made, "run": "r", "number": 1, "shapes": SHAPES, "clip": made.clip_norm}
    return RoundSum(**{**values, **changes})


def vector(seed: int, norm: float = 2.0) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed).normal(size=310)
    draws *= norm / np.linalg.norm(draws)
    return {"w": draws[:300].reshape(30, 10), "b": draws[300:]}


def test_everything_that_differs_gives_other_terms() -> None:
    others = [
        part(run="s"),
        part(number=2),
        part(shapes={"w": (10, 30), "b": (10,)}),
        part(rows=(3, 4)),
        part(request=bytes(32)),
        part({**PLAN, "secure": {**PLAN["secure"], "adversaries": 0.2}}),
        part({**PLAN, "weighting": "capped", "weight_cap": 5}),
    ]
    assert part().terms == part().terms
    assert len({it.terms.digest for it in (part(), *others)}) == 1 + len(others)


def test_a_sum_of_encodings_is_the_sum_and_none_is_longer_than_its_slack_says() -> None:
    made, source = part(), NoiseSource(bytes(32))
    encoded = [made.encode(vector(k), source.fork(k), weight=1.0, bit=0.0) for k in range(8)]
    total = np.sum(encoded, axis=0, dtype=np.uint64).astype(np.uint32) & np.uint32(0xFFFF)
    found = made.decode(total, 8)
    assert found.weights == 8
    np.testing.assert_allclose(found.values["w"], sum(vector(k)["w"] for k in range(8)), atol=8 * 2 / 3276)
    for k, one in enumerate(encoded):
        alone = made.decode(one, 1).values
        length = np.sqrt(sum(float(np.square(values).sum()) for values in alone.values()))
        assert length <= 2.0 * (1 + made.slack), k
    assert 0 < made.slack < 0.01


def test_class_centres_and_counts_lie_beside_the_weighted_part() -> None:
    made, source = part(rows=(4, 3)), NoiseSource(bytes(32))
    centres = {"labels": np.array([2, 0]), "values": np.full((2, 3), 0.5, np.float32)}
    found = made.decode(made.encode(vector(1), source, weight=0.25, bit=0.0, centres=centres), 1)
    assert found.centres is not None
    sums, counts = found.centres
    assert counts.tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(sums[[0, 2]], 0.5, atol=1e-3)
    np.testing.assert_allclose(sums[[1, 3]], 0.0, atol=1e-3)
    np.testing.assert_allclose(found.values["b"], 0.25 * vector(1)["b"], atol=1e-3)


@pytest.mark.parametrize(
    "centres",
    [
        {"labels": np.array([4]), "values": np.zeros((1, 3))},
        {"labels": np.array([-1]), "values": np.zeros((1, 3))},
        {"labels": np.array([1]), "values": np.zeros((1, 2))},
        {"labels": np.array([[1]]), "values": np.zeros((1, 3))},
    ],
)
def test_centres_that_do_not_fit_are_refused(centres: dict[str, np.ndarray]) -> None:
    with pytest.raises(PlanError, match="expected labels below 4 and rows of 3"):
        part(rows=(4, 3)).encode(vector(1), NoiseSource(bytes(32)), weight=1.0, bit=0.0, centres=centres)


def test_a_plan_says_how_large_its_vector_is_and_how_few_may_be_in_a_sum() -> None:
    assert least(Plan.of(PLAN)) == 3  # the plan's minimum: nothing else rests on how many
    shares = shares_of(Plan.of(NOISED))
    assert (shares.clients, shares.least, shares.dishonest) == (10, 8, 1)
    assert part(NOISED).terms.minimum == 8  # of all that are asked, not of those that came
    assert part(NOISED).terms.size == shares.dimension == 512
    steps = {**PLAN, "mechanism": "dp-sgd", "steps": 1, "sample_size": 2, "unit": "subject", "noise_multiplier": 1.0}
    steps["secure"] = {**PLAN["secure"], "largest": 3.0, "clients": 6}
    assert asked(Plan.of(steps)) == 6
    assert part(steps)._fixed.clients == 6
    with pytest.raises(PlanError, match="expected 310, the numbers in this model, found 300"):
        part({**PLAN, "secure": {"size": 300}})
    with pytest.raises(PlanError, match="expected a table with the size"):
        secure_of(Plan.of({**PLAN, "secure": {}}))
    with pytest.raises(PlanError, match="expected a table with the size"):
        secure_of(Plan.none())
