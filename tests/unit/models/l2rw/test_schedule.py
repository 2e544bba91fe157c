"""The triangular schedule against the learning rates that the released code printed, and AGW's steps."""

import numpy as np
import pytest

from cloister.errors import ConfigError
from cloister.models.l2rw.config import TrainConfig
from cloister.models.l2rw.schedule import rate, stepped, triangular


def test_released_order_logs_the_published_rates() -> None:
    # RegDB: 2,060 images, 33 batches, a list of 32 rates; rates as printed in the public notebook, peak 0.2.
    printed = [0.2 * triangular(0, 50, step, 33, order="released") for step in (0, 20)]
    assert [round(value, 6) for value in printed] == [0.012128, 0.007441]


def test_natural_order_is_continuous_and_ends_at_zero() -> None:
    epochs, steps = 50, 33
    rates = np.array([[triangular(e, epochs, s, steps) for s in range(steps)] for e in range(epochs)])
    assert rates[0, 0] == pytest.approx(1e-4)
    assert rates[16, 0] == rates.max() == 1.0
    np.testing.assert_allclose(rates[1:, 0], rates[:-1, -1])
    assert rates[-1, -1] == 0.0
    np.testing.assert_allclose(rates[:, 0], np.interp(np.arange(50), [0, 16, 50], [1e-4, 1, 0]))
    assert (np.diff(rates.reshape(-1)) >= -1e-12).sum() == 16 * 33 + epochs - 1 - 16  # up to the peak; equal at joints


def test_both_orders_take_the_same_rates_but_for_one() -> None:
    natural = sorted(triangular(3, 30, step, 20) for step in range(19))
    assert sorted(triangular(3, 30, step, 20, order="released") for step in range(19)) == pytest.approx(natural)


def test_peak_is_the_same_for_thirty_epochs() -> None:
    assert triangular(16, 30, 0, 10) == 1.0
    assert triangular(23, 30, 0, 10) == pytest.approx(0.5)


def test_a_peak_behind_the_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"peak_round.*found 16 of 12 rounds"):
        rate(TrainConfig(), 1, 12, 0, 10)


def test_stepped_schedule() -> None:
    assert [stepped(epoch) for epoch in (0, 4, 9, 10, 19, 20, 49, 50)] == [0.1, 0.5, 1, 1, 1, 0.1, 0.1, 0.01]
    assert rate(TrainConfig(schedule="stepped"), 1, 5, 3, 10) == 0.1
