"""The exact leak: what a first fully connected layer gives away, before and after clipping and noise."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cloister.errors import AuditError
from cloister.privacy.audits.exact_leak import audit_exact_leak, recover_input, recover_inputs, recover_label


def gradients(generator: torch.Generator, batch: int = 1, labels: list[int] | None = None) -> tuple[np.ndarray, ...]:
    """The inputs ``[batch, 64]``, and the gradients of a small classifier: W1, b1, W2, b2."""
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    inputs = torch.rand(batch, 64, generator=generator)
    y = torch.tensor(labels) if labels else torch.randint(10, (batch,), generator=generator)
    found = torch.autograd.grad(functional.cross_entropy(net(inputs), y), list(net.parameters()))
    return inputs.numpy(), *(part.numpy() for part in found)


def clipped(parts: tuple[np.ndarray, ...], z: float, draws: np.random.Generator) -> list[np.ndarray]:
    norm = np.sqrt(sum(float((part**2).sum()) for part in parts))
    return [part * min(1, 1 / norm) + draws.normal(0, z, part.shape) for part in parts]


def test_one_example_is_recovered_to_the_precision_of_its_floats() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        inputs, weight, bias, *_ = gradients(generator)
        assert np.abs(recover_input(weight, bias) - inputs[0]).mean() < 3e-8
        update = recover_input(-0.05 * weight, -0.05 * bias)  # one step of gradient descent
        assert np.abs(update - inputs[0]).mean() < 1e-7


@pytest.mark.parametrize(("z", "low", "high"), [(0.01, 0.05, 0.25), (0.1, 0.4, 0.9), (1.0, 0.5, 1.0)])
def test_clipping_and_noise_hide_it(z: float, low: float, high: float) -> None:
    """About 0.14, 0.68 and 0.77 for clip 1, by the net; here 0.10, 0.55 and 0.64."""
    generator, draws, errors = torch.Generator().manual_seed(1), np.random.default_rng(1), []
    for _ in range(50):
        inputs, *parts = gradients(generator)
        weight, bias, *_ = clipped(tuple(parts), z, draws)
        errors.append(np.abs(recover_input(weight, bias) - inputs[0]).mean())
    assert low < np.mean(errors) < high


def test_clipping_alone_hides_nothing() -> None:
    inputs, *parts = gradients(torch.Generator().manual_seed(2))
    small = [part * 1e-3 for part in parts]
    assert np.abs(recover_input(small[0], small[1]) - inputs[0]).mean() < 1e-7


def test_the_label_is_the_only_negative_entry() -> None:
    generator = torch.Generator().manual_seed(3)
    for label in range(10):
        *_, bias = gradients(generator, labels=[label])
        assert recover_label(bias) == label
        with pytest.raises(AuditError, match="check its sign"):
            recover_label(np.abs(bias))


def test_the_audit_fails_without_protection_and_passes_with_it() -> None:
    inputs, *parts = gradients(torch.Generator().manual_seed(4))
    assert not audit_exact_leak(parts[0], parts[1], inputs).passed
    hidden = clipped(tuple(parts), 1.0, np.random.default_rng(4))
    result = audit_exact_leak(hidden[0], hidden[1], inputs)
    assert result.passed
    assert result.numbers["least-error"] > 0.3


def test_a_row_that_answers_to_one_example_of_a_batch_gives_it_away() -> None:
    inputs = np.random.default_rng(5).random((2, 6))
    signals = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, -0.2], [0.0, 0.0]])  # rows by examples; the last row is dead
    weight, bias = signals @ inputs, signals.sum(1)
    assert len(recover_inputs(weight, bias)) == 3
    result = audit_exact_leak(weight, bias, inputs)
    assert result.numbers["recovered"] == 2
    assert result.numbers["mean-error"] < 1e-12


def test_nothing_released_is_nothing_recovered() -> None:
    zeros = np.zeros((4, 6))
    assert audit_exact_leak(zeros, zeros[:, 0], np.ones((1, 6))).passed
    with pytest.raises(AuditError, match="zeros only"):
        recover_input(zeros, zeros[:, 0])
    with pytest.raises(AuditError, match="fully connected"):
        recover_inputs(zeros, np.zeros(5))
    with pytest.raises(AuditError, match="finite"):
        recover_inputs(np.full((4, 6), np.nan), zeros[:, 0])
