"""Every attack against its formula, worked out by hand or with SciPy."""

import numpy as np
import pytest
from scipy import stats

from cloister.errors import ConfigError
from cloister.simulations.attacks import ATTACKS, alie_z
from cloister.simulations.experiment import ByzantineConfig

HONEST = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]])
OWN = np.array([[1.0, -1.0], [0.5, 4.0]])


def sent(name: str, strength: float | None = None) -> np.ndarray:
    return ATTACKS[name](HONEST, OWN, strength, np.random.default_rng(0))


def test_the_experiments_attacks_are_these() -> None:
    annotation = ByzantineConfig.model_fields["attack"].annotation
    assert set(annotation.__args__) == {"none", *ATTACKS}


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("sign-flip", None, [[-1, 1], [-0.5, -4]]),
        ("sign-flip", 3.0, [[-3, 3], [-1.5, -12]]),
        ("ipm", None, [[-1.5, -1.5], [-1.5, -1.5]]),
        ("ipm", 10.0, [[-30, -30], [-30, -30]]),
        ("alie", 2.0, [[3 - 2 * np.sqrt(8 / 3), 3 - 2 * np.sqrt(2)]] * 2),
        ("mimic", None, [[1, 2], [1, 2]]),
        ("scaled", None, [[2.5, -2.5], [1.25, 10]]),
        ("scaled", 7.0, [[7, -7], [3.5, 28]]),
        ("nan", None, [[np.nan, np.nan], [np.nan, np.nan]]),
        ("inf", None, [[-np.inf, np.inf], [-np.inf, np.inf]]),
    ],
)
def test_what_attackers_send(name: str, strength: float | None, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(sent(name, strength), expected, rtol=1e-12)


def test_noise_has_the_standard_deviation_asked_for() -> None:
    own = np.zeros((2, 20_000))
    for strength, expected in ((None, 1.0), (0.1, 0.1)):
        found = ATTACKS["noise"](np.zeros((3, 20_000)), own, strength, np.random.default_rng(0))
        assert found.std() == pytest.approx(expected, rel=0.03)
        assert abs(found.mean()) < 0.03 * expected
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("clients", "attackers", "share"),
    [(50, 24, 24 / 26), (50, 12, 24 / 38), (7, 2, 3 / 5), (20, 8, 9 / 12), (3, 1, 1 / 2), (10, 5, 4 / 5)],
)
def test_alie_hides_among_the_honest_clients_whom_it_needs(clients: int, attackers: int, share: float) -> None:
    # s = floor(n / 2 + 1) - f honest ones are needed, and share = (n - f - s) / (n - f): of 50 with 24, s = 2.
    assert alie_z(clients, attackers) == pytest.approx(stats.norm.ppf(share), rel=1e-9, abs=1e-12)
    honest = np.random.default_rng(1).normal(size=(clients - attackers, 3))
    found = ATTACKS["alie"](honest, np.zeros((attackers, 3)), None, np.random.default_rng(0))
    np.testing.assert_allclose(found[0], honest.mean(axis=0) - stats.norm.ppf(share) * honest.std(axis=0))


def test_few_attackers_hide_no_deviation_and_a_majority_need_not_hide() -> None:
    assert alie_z(10, 1) == 0.0  # Phi^-1(4/9) would push the other way
    for clients, attackers in ((2, 1), (10, 6), (11, 6)):
        with pytest.raises(ConfigError, match=f"at most half of three clients or more, found {attackers} of"):
            alie_z(clients, attackers)


def test_attacks_write_to_nothing() -> None:
    honest, own = HONEST.copy(), OWN.copy()
    honest.flags.writeable = own.flags.writeable = False
    for attack in ATTACKS.values():
        assert attack(honest, own, None, np.random.default_rng(0)).shape == own.shape
