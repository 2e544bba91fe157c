"""What strategies add to local training: SCAFFOLD's option II, MOON's references, FedRCL's clip, FedProx's anchor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloister.clients.objectives import Batch, ControlVariates, Moon, Proximal, RelaxedContrastive, objectives
from cloister.clients.state import ClientState
from cloister.clients.task import Round
from cloister.errors import WeightsError
from cloister.models.l2rw.config import ModelConfig, TrainConfig
from cloister.models.l2rw.network import Output, ReidNetwork
from cloister.models.l2rw.optimiser import make_optimiser, momentum_buffers, set_rate
from cloister.models.l2rw.spec import ReidSpec
from cloister.models.spec import Group
from cloister.randomness import SeedTree

SPEC = ReidSpec(ModelConfig(width=2, blocks=(1, 1, 1, 1), num_classes=3))


def build(seed: int = 0) -> ReidNetwork:
    return SPEC.build(torch.Generator().manual_seed(seed))


def round_of(folder: Path | None = None, number: int = 1, **received: dict[str, np.ndarray]) -> Round:
    return Round(
        number=number,
        total=9,
        client="cam1",
        seeds=SeedTree(experiment="test", seed=0),
        state=ClientState(folder, number),
        config={},
        received=received,
        reference={},
    )


def shared(network: ReidNetwork) -> set[str]:
    return {name for name, group in SPEC.groups(network).items() if group is Group.SHARED}


def controls(network: ReidNetwork, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    state = network.state_dict()
    return {name: generator.normal(size=state[name].shape).astype(np.float32) for name in sorted(shared(network))}


def batch_of(network: ReidNetwork) -> Batch:
    images, infrared = torch.randn(4, 3, 64, 32), torch.zeros(4, dtype=torch.bool)
    labels = torch.tensor([0, 0, 1, 1])
    return Batch(images=images, infrared=infrared, labels=labels, output=network(images, infrared))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_recovers_a_constant_gradient(tmp_path: Path, momentum: float) -> None:
    network, settings = build(), TrainConfig(momentum=momentum, weight_decay=0.0)
    optimiser, server = make_optimiser(network, settings), controls(network, 1)
    gradient, start = controls(network, 2), {n: p.detach().clone() for n, p in network.named_parameters()}
    own = {name: torch.from_numpy(values) for name, values in controls(network, 3).items()}
    ClientState(tmp_path, 1).save("control", own)
    control = ControlVariates(network, shared(network), optimiser, round_of(tmp_path, 2, control=server))
    parameters = dict(network.named_parameters())
    for step in range(5):
        set_rate(optimiser, 0.01 * (step + 1))
        optimiser.zero_grad()
        for name, values in gradient.items():
            parameters[name].grad = torch.from_numpy(values.copy())
        control.after_backward()
        optimiser.step()
        control.after_step()
    (release,) = control.finish()
    # Option II with a gradient g that never changes: c_i+ = c_i - c + (x - w) / A = g, so the change is g - c_i.
    assert release.kind == "control"
    assert set(release.arrays) == shared(network)
    for name, change in release.arrays.items():
        np.testing.assert_allclose(change, gradient[name] - own[name].numpy(), rtol=1e-3, atol=2e-3)
    kept = ClientState(tmp_path, 3).load("control")
    assert kept is not None
    torch.testing.assert_close(kept["head.weight"], torch.from_numpy(gradient["head.weight"]), rtol=1e-3, atol=2e-3)
    if momentum == 0:  # the step itself: w = x - eta (g - c_i + c), summed; the head's peak rate is 0.2
        moved = 0.2 * 0.01 * 15 * (gradient["head.weight"] - own["head.weight"].numpy() + server["head.weight"])
        expected = start["head.weight"].numpy() - moved
        np.testing.assert_allclose(network.head.weight.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_scaffold_controls_no_statistics_and_checks_what_it_got() -> None:
    network = build()
    optimiser = make_optimiser(network, TrainConfig())
    wrong = controls(network, 1)
    wrong["stem.norm.running_mean"] = np.zeros(2, np.float32)
    with pytest.raises(WeightsError, match="client cam1, round 1: control variates"):
        ControlVariates(network, shared(network), optimiser, round_of(control=wrong))


def test_scaffold_without_progress_leaves_its_variates() -> None:
    network = build()
    optimiser = make_optimiser(network, TrainConfig())
    control = ControlVariates(network, shared(network), optimiser, round_of(control=controls(network, 1)))
    (release,) = control.finish()  # no step was taken, or all at rate 0
    assert not any(change.any() for change in release.arrays.values())


def test_proximal_term_is_zero_at_the_received_weights_and_ignores_the_head() -> None:
    network = build()
    term, batch = Proximal(network, 0.5), batch_of(network)
    assert term.loss(batch).item() == 0
    with torch.no_grad():
        network.head.weight.add_(1.0)
        network.neck.bias.add_(2.0)
    assert term.loss(batch).item() == pytest.approx(0.25 * 4 * network.config.embedding)


def test_moon_waits_for_a_previous_model_and_leaves_references_alone(tmp_path: Path) -> None:
    network = build()
    first = Moon(network, round_of(tmp_path, 1), 1.0, 0.5)
    assert first.loss(batch_of(network)) is None
    first.finish()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    received, previous = build(), build()
    received.load_state_dict(network.state_dict())
    second = Moon(network, round_of(tmp_path, 2), 2.0, 0.5)
    batch = batch_of(network.train())
    loss = second.loss(batch)
    assert loss is not None
    loss.backward()
    assert network.stem.conv.weight.grad is not None
    # Its value, from the two reference models made anew: the received one and round 1's.
    previous.load_state_dict(ClientState(tmp_path, 2).load("previous") or {})
    cosines = torch.stack(
        [
            torch.cosine_similarity(batch.output.feature, model.eval()(batch.images).feature)
            for model in (received, previous)
        ]
    )
    assert loss.item() == pytest.approx(
        2.0 * torch.log1p((2 * (cosines[1] - cosines[0])).exp()).mean().item(), rel=1e-4
    )
    assert torch.equal(previous.stem.conv.weight, build().stem.conv.weight)


def test_moon_term_is_mu_log_2_where_both_references_agree(tmp_path: Path) -> None:
    network = build()
    Moon(network, round_of(tmp_path, 1), 1.0, 0.5).finish()
    loss = Moon(network, round_of(tmp_path, 2), 3.0, 0.5).loss(batch_of(network))
    assert loss is not None
    assert loss.item() == pytest.approx(3 * np.log(2), rel=1e-5)


def test_relaxed_contrastive_bounds_the_gradient() -> None:
    network = build()
    term, batch = RelaxedContrastive(network, 2.0, 0.05, 0.7, 0.01), batch_of(network)
    loss = term.loss(batch)
    halved = RelaxedContrastive(network, 1.0, 0.05, 0.7, 0.01).loss(batch)
    assert loss.item() == pytest.approx(2 * halved.item())
    loss.backward()
    term.after_backward()
    norm = torch.stack([p.grad.square().sum() for p in network.parameters() if p.grad is not None]).sum().sqrt()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({}, []),
        ({"proximal-mu": 0.0, "moon-mu": 0.0, "moon-temperature": 0.5, "fedrcl-weight": 0.0}, []),
        ({"proximal-mu": 0.1}, [Proximal]),
        ({"moon-mu": 1.0, "moon-temperature": 0.5}, [Moon]),
        (
            {"fedrcl-weight": 1.0, "fedrcl-temperature": 0.05, "fedrcl-threshold": 0.7, "fedrcl-clip": 10.0},
            [RelaxedContrastive],
        ),
    ],
)
def test_a_weight_of_zero_switches_off(config: dict[str, Any], kinds: list[type]) -> None:
    network = build()
    round_ = Round(**{**vars(round_of()), "config": config})
    found = objectives(network, shared(network), make_optimiser(network, TrainConfig()), round_)
    assert [type(objective) for objective in found] == kinds


def test_momentum_is_kept_by_name_and_rates_by_group() -> None:
    network, settings = build(), TrainConfig()
    network(torch.randn(4, 3, 64, 32)).logits.square().mean().backward()
    optimiser = make_optimiser(network, settings)
    set_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.01, 0.1]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(p)] for p in optimiser.param_groups[1]["params"]} == {"neck.weight", "neck.bias", "head.weight"}
    optimiser.step()
    kept = {name: value.clone() for name, value in momentum_buffers(network, optimiser).items()}
    assert set(kept) == {name for name, _ in network.named_parameters()}
    # The same step again with buffers carried over equals PyTorch's second step.
    twin = build()
    twin.load_state_dict(network.state_dict())
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        ours.grad = theirs.grad.clone()
    carried = make_optimiser(twin, settings, kept)
    set_rate(carried, 0.5)
    carried.step(), optimiser.step()
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_first_step_starts_from_zero_momentum_even_for_a_late_gradient() -> None:
    network, settings = build(), TrainConfig(weight_decay=0.0)
    optimiser = make_optimiser(network, settings)
    set_rate(optimiser, 1.0)
    early, late = network.neck.weight, network.head.weight
    start = late.detach().clone()
    early.grad = torch.ones_like(early)
    optimiser.step()
    late.grad = torch.ones_like(late)
    optimiser.step()
    torch.testing.assert_close(start - late.detach(), torch.full_like(start, 0.2 * 1.9))  # Nesterov: g + 0.9 g


def test_output_of_evaluation_has_no_levels() -> None:
    output: Output = build().eval()(torch.randn(2, 3, 64, 32))
    assert output.stages == ()
