"""Gradient inversion on small networks: simulated clients, labels, and pictures that are found or not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import AuditError
from cloister.privacy.audits.inversion import (
    Attack,
    LocalSteps,
    Simulation,
    reconstruct,
    recover_labels,
    total_variation,
)
from cloister.privacy.audits.similarity import psnr

SHAPE = (3, 16, 16)


def network(norm: bool = False) -> nn.Sequential:
    """A LeNet as in DLG, smooth, with wide random weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 2, 2), nn.Sigmoid()]
    if norm:
        layers.insert(1, nn.BatchNorm2d(12))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return net


def pictures(count: int) -> Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return functional.interpolate(coarse, size=SHAPE[1:], mode="bicubic").clamp(0, 1)


def simulation(*batches: tuple[int, ...], net: nn.Module | None = None, **settings: Any) -> Simulation:
    steps = LocalSteps(batches=batches, **{"rate": 0.1, **settings})
    return Simulation(net or network(), functional.cross_entropy, steps)


def attacked(client: Simulation, images: Tensor, labels: Tensor, *, noise: float = 0.0, **settings: Any) -> Tensor:
    """The pictures found from what the client would release on ``images``."""
    generator = torch.Generator().manual_seed(2)
    target = client.update(images, labels)
    target = {name: value + noise * torch.randn(value.shape, generator=generator) for name, value in target.items()}
    attack = Attack(**{"total_variation": 0.005, **settings})
    return reconstruct(client, target, SHAPE, labels, attack, generator).images


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_the_simulated_client_is_sgd(momentum: float, weight_decay: float) -> None:
    images, labels, net = pictures(3), torch.tensor([4, 5, 6]), network()
    client = simulation((0, 1), (2,), (0, 2), net=net, momentum=momentum, weight_decay=weight_decay)
    found = client.update(images, labels)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for batch in ([0, 1], [2], [0, 2]):
        optimiser.zero_grad()
        functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimiser.step()
    for name, value in net.named_parameters():
        assert torch.allclose(found[name], value.detach() - before[name], atol=1e-7)


def test_the_network_is_not_changed_by_an_attack() -> None:
    net = network(norm=True).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attacked(simulation((0, 1), net=net), pictures(2), torch.tensor([1, 2]), iterations=3)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_one_picture_is_found_and_noise_hides_it() -> None:
    images, labels = pictures(1), torch.tensor([3])
    found = attacked(simulation((0,)), images, labels, iterations=200)
    assert psnr(images, found).item() > 17
    hidden = attacked(simulation((0,)), images, labels, iterations=200, noise=0.05)
    assert psnr(images, hidden).item() < 13


def test_dlg_finds_it_too() -> None:
    images, labels = pictures(1), torch.tensor([3])
    assert psnr(images, attacked(simulation((0,)), images, labels, iterations=200, method="dlg")).item() > 30


def test_pictures_are_found_through_several_local_steps() -> None:
    images, labels = pictures(2), torch.tensor([0, 1])
    found = attacked(simulation((0,), (1,), (0,)), images, labels, iterations=150, method="dlg")
    assert psnr(images, found).min() > 18


def test_the_best_restart_is_kept_and_its_trace_falls() -> None:
    images, labels, client = pictures(1), torch.tensor([3]), simulation((0,))
    target = client.update(images, labels)
    attacks = [Attack(iterations=40, restarts=count, total_variation=0.005) for count in (1, 3)]
    runs = [reconstruct(client, target, SHAPE, labels, attack, torch.Generator().manual_seed(5)) for attack in attacks]
    assert runs[1].loss <= runs[0].loss
    assert len(runs[0].trace) == 40
    assert runs[0].trace[-1] < 0.4 * runs[0].trace[0]
    assert runs[0].loss <= runs[0].trace[-1] + 0.01
    assert 0 <= runs[1].images.min() <= runs[1].images.max() <= 1


def test_statistics_of_batch_norm_pull_the_pictures_towards_them() -> None:
    net = network(norm=True).train()
    images, labels, client = pictures(2), torch.tensor([1, 2]), simulation((0, 1), net=net)
    inputs = net[0](images).detach()
    statistics = {"1": (inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), unbiased=False))}
    target = client.update(images, labels)
    gaps = []
    for weight in (0.0, 10.0):
        attack = Attack(iterations=60, total_variation=0.005, statistics=weight)
        seed = torch.Generator().manual_seed(0)
        found = reconstruct(client, target, SHAPE, labels, attack, seed, statistics=statistics).images
        gaps.append((net[0](found).mean((0, 2, 3)) - statistics["1"][0]).square().mean().item())
    assert gaps[1] < 0.2 * gaps[0]


def test_labels_are_read_off_the_head() -> None:
    images, net = pictures(3), network()
    net[5].weight.data *= 0.05  # as after initialisation: no class is much more probable than others
    for labels in ([7], [2, 9], [0, 4, 5]):
        client = simulation(tuple(range(len(labels))), net=net)
        update = client.update(images[: len(labels)], torch.tensor(labels))
        assert recover_labels(update["5.weight"], len(labels)).tolist() == labels
    with pytest.raises(AuditError, match="1 to C labels"):
        recover_labels(update["5.weight"], 11)


def test_total_variation() -> None:
    image = torch.zeros(1, 1, 2, 3)
    image[0, 0, 0, 0] = 1.0
    assert total_variation(image).item() == pytest.approx(1 / 3 + 1 / 4)


def test_what_cannot_be_attacked_is_refused() -> None:
    client, labels = simulation((0,)), torch.tensor([3])
    target = client.update(pictures(1), labels)
    seed = torch.Generator()
    with pytest.raises(AuditError, match=r"finite 5\.bias of shape \(10,\) in the release, found nothing"):
        reconstruct(client, {n: v for n, v in target.items() if n != "5.bias"}, SHAPE, labels, Attack(), seed)
    with pytest.raises(AuditError, match="expected 1 labels"):
        reconstruct(client, target, SHAPE, torch.tensor([1, 2]), Attack(), seed)
    with pytest.raises(AuditError, match="zeros only"):
        reconstruct(client, {n: 0 * v for n, v in target.items()}, SHAPE, labels, Attack(), seed)
    with pytest.raises(AuditError, match="parameters that learn"):
        Simulation(network(), functional.cross_entropy, LocalSteps(batches=((0,),)), names=["7.weight"])
