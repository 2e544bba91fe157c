"""Losses against closed forms, and against loops over pairs in double precision."""

import math

import numpy as np
import pytest
import torch

from cloister.models.l2rw.losses import (
    centre_loss,
    circle_loss,
    identity_loss,
    moon_loss,
    proximal_loss,
    relaxed_contrastive_loss,
    triplet_loss,
)

PAIRS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
LABELS = torch.tensor([0, 0, 1, 1])


def random_batch(people: int = 4, images: int = 3, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(people * images, width, generator=generator, dtype=torch.float32)
    return features.requires_grad_(), torch.arange(people).repeat_interleave(images)


def test_identity_loss_of_no_knowledge_is_the_log_of_the_classes() -> None:
    logits, labels = torch.zeros(3, 10), torch.tensor([1, 4, 4])
    assert identity_loss(logits, labels).item() == pytest.approx(math.log(10))
    present = torch.tensor([False, True, False, False, True, False, False, False, False, True])
    assert identity_loss(logits, labels, present).item() == pytest.approx(math.log(3))


def test_absent_classes_get_no_gradient() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    present = torch.tensor([True, True, False, True, False])
    identity_loss(logits, torch.tensor([0, 1, 3, 0]), present).backward()
    assert logits.grad is not None
    assert not logits.grad[:, [2, 4]].any()
    assert logits.grad[:, [0, 1, 3]].abs().min() > 0


def test_circle_loss_of_one_point() -> None:
    # All cosines 1: l_p = -64 * 0.45 * 0.45 = -12.96, l_n = 64 * 1.45 * 0.55 = 51.04, two negatives, divided by B = 4.
    expected = (51.04 - 12.96 + math.log(2)) / 4
    assert circle_loss(torch.ones(4, 3), LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_circle_loss_of_separate_points() -> None:
    # s_p = 1, s_n = 0: both exponents -12.96, one positive and two negatives; the length of a feature does not matter.
    expected = math.log1p(2 * math.exp(-25.92)) / 4
    assert circle_loss(PAIRS * torch.tensor([[1.0], [2.0], [3.0], [4.0]]), LABELS).item() == pytest.approx(
        expected, rel=1e-3
    )


def test_circle_loss_equals_loops_over_pairs() -> None:
    features, labels = random_batch()
    unit = features.detach().double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(unit)):
        pulls, pushes = [], []
        for j in range(len(unit)):
            s = unit[i] @ unit[j]
            if labels[i] != labels[j]:
                pushes.append(math.exp(64 * max(0.0, s + 0.45) * (s - 0.45)))
            elif i != j:
                pulls.append(math.exp(-64 * max(0.0, 1.45 - s) * (s - 0.55)))
        total += math.log1p(sum(pulls) * sum(pushes))
    assert circle_loss(features, labels).item() == pytest.approx(total / len(unit) ** 2, rel=1e-4)


def test_circle_loss_weights_carry_no_gradient() -> None:
    # One anchor pair with s_p = 0.6 and s_n = 0: d/ds of g a (s - 1 + m) with constant a, not of its product.
    s = torch.tensor(0.6, requires_grad=True)
    other = torch.stack([s, torch.zeros(()), (1 - s.square()).sqrt()])
    features = torch.stack([torch.tensor([1.0, 0.0, 0.0]), other, torch.tensor([0.0, 1.0, 0.0])])
    circle_loss(features, torch.tensor([0, 0, 1])).backward()
    pull, push = -64 * 0.85 * (0.6 - 0.55), 64 * 0.45 * -0.45
    slope = -64 * 0.85 / (1 + math.exp(-(pull + push)))
    assert s.grad is not None
    assert s.grad.item() == pytest.approx(2 * slope / 9, rel=1e-3)


def test_a_lone_identity_adds_nothing_and_breaks_nothing() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    for loss in (circle_loss(features, torch.arange(3)), triplet_loss(features, torch.arange(3))):
        assert loss.item() == 0
        loss.backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_triplet_loss_equals_loops_over_pairs() -> None:
    features, labels = random_batch()
    points = features.detach().double().numpy()
    total = 0.0
    for i in range(len(points)):
        distance = np.linalg.norm(points - points[i], axis=1)
        positive = (labels.numpy() == labels[i].item()) & (np.arange(len(points)) != i)
        negative = labels.numpy() != labels[i].item()
        weights_p = np.exp(distance[positive]) / np.exp(distance[positive]).sum()
        weights_n = np.exp(-distance[negative]) / np.exp(-distance[negative]).sum()
        margin = (weights_p * distance[positive]).sum() - (weights_n * distance[negative]).sum()
        total += math.log1p(math.exp(margin))
    loss = triplet_loss(features, labels)
    assert loss.item() == pytest.approx(total / len(points), rel=1e-5)
    loss.backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()  # the distance of a point to itself is 0


def test_centre_loss_forms() -> None:
    features, centres = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    cosine = (0 + 1 - math.sqrt(0.5)) / 2
    euclidean = (4 + 0 + 1 + 1) / 4
    assert centre_loss(features, centres).item() == pytest.approx(cosine, abs=1e-6)
    assert centre_loss(features, centres, "euclidean").item() == pytest.approx(euclidean)
    assert centre_loss(features, centres, "mixed").item() == pytest.approx((cosine + euclidean) / 2)


@pytest.mark.parametrize("form", ["cosine", "euclidean", "mixed"])
def test_centre_loss_skips_zero_centres(form: str) -> None:
    features = torch.tensor([[3.0, 1.0], [0.0, 2.0]], requires_grad=True)
    centres = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert centre_loss(features, centres, form).item() == centre_loss(features[:1], centres[:1], form).item()
    for none in (centre_loss(features, torch.zeros(2, 2), form), centre_loss(features[:0], centres[:0], form)):
        assert none.item() == 0
        none.backward()


def test_proximal_loss_is_half_mu_times_the_squared_distance() -> None:
    now = {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.ones(2, 2), "head": torch.ones(1)}
    then = {"a": torch.tensor([0.0, 0.0]), "b": torch.zeros(2, 2)}
    loss = proximal_loss(now, then, 0.01)
    assert loss.item() == pytest.approx(0.005 * (5 + 4))
    loss.backward()
    torch.testing.assert_close(now["a"].grad, 0.01 * torch.tensor([1.0, 2.0]))


def test_moon_loss_closed_form() -> None:
    here, away = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert moon_loss(here, here, away, 0.5).item() == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)
    assert moon_loss(here, away, here, 0.5).item() == pytest.approx(math.log1p(math.exp(2)), rel=1e-5)
    assert moon_loss(here, away, away, 0.5).item() == pytest.approx(math.log(2), rel=1e-5)


def test_relaxed_contrastive_loss_closed_forms() -> None:
    # Identical images of a person, others orthogonal: hardest positive 1, negatives 0 and 0; the other image, at 1,
    # is above the threshold and as near as the anchor itself.
    tight = math.log1p(2 * math.exp(-20)) + math.log(2)
    assert relaxed_contrastive_loss([PAIRS], LABELS).item() == pytest.approx(tight, rel=1e-5)
    # cos 0.5 within a person: below the threshold, so the penalty is log(1 + exp(-2 / 0.05)) = 0.
    half = torch.tensor([[1, 0, 0, 0], [0.5, 0.75**0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 0.75**0.5]])
    loose = math.log1p(2 * math.exp(-10))
    assert relaxed_contrastive_loss([half], LABELS).item() == pytest.approx(loose, rel=1e-3)
    assert relaxed_contrastive_loss([half], LABELS, threshold=0.4).item() == pytest.approx(
        loose + math.log1p(math.exp(-10)), rel=1e-3
    )
    levels = [PAIRS, half]
    assert relaxed_contrastive_loss(levels, LABELS).item() == pytest.approx((tight + loose) / 2, rel=1e-4)


def test_relaxed_contrastive_loss_equals_loops_over_anchors() -> None:
    features, labels = random_batch()
    unit = features.detach().double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(unit)):
        s = unit @ unit[i]
        same = labels.numpy() == labels[i].item()
        hardest, negatives = s[same].min(), np.sort(s[~same])[-2:]
        total += math.log(1 + sum(math.exp((n - hardest) / 0.05) for n in negatives))
        within = s[same & (np.arange(len(unit)) != i)].min()
        total += math.log1p(math.exp(((within if within >= -0.2 else -1) - 1) / 0.05))
    loss = relaxed_contrastive_loss([features], labels, 0.05, -0.2)
    assert loss.item() == pytest.approx(total / len(unit), rel=1e-5)
    loss.backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_relaxed_contrastive_loss_does_not_push_a_lone_image_from_itself() -> None:
    # Three people with one image each, orthogonal: log(1 + 2 exp(-1 / 0.05)), and no other image to keep away from.
    # Were the anchor its own nearest, the penalty would be log 2.
    alone = math.log1p(2 * math.exp(-20))
    assert relaxed_contrastive_loss([torch.eye(3)], torch.arange(3)).item() == pytest.approx(alone, abs=1e-7)


def test_relaxed_contrastive_loss_survives_lone_people_and_a_single_one() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    (
        relaxed_contrastive_loss([features], torch.arange(3)) + relaxed_contrastive_loss([features], torch.zeros(3))
    ).backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
