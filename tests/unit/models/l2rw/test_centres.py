"""Class centres against a worked example and a loop over identities."""

import numpy as np
import pytest
import torch

from cloister.models.l2rw.centres import CentreCollector, CentrePull, class_centres
from cloister.models.l2rw.config import TrainConfig


def test_worked_example() -> None:
    # Identity 7: mean 3.25, nearest two are 2 and 1. Identity 3 has fewer than two images: its mean.
    features = torch.tensor([[0.0], [1.0], [40.0], [2.0], [10.0]])
    values, labels = class_centres(features, torch.tensor([7, 7, 3, 7, 7]), 2)
    assert labels.tolist() == [3, 7]
    assert values.tolist() == [[40.0], [1.5]]


def test_as_many_as_k_is_the_mean_and_ties_go_to_the_earlier() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    labels = torch.zeros(4, dtype=torch.int64)
    assert class_centres(features, labels, 4)[0].tolist() == [[1.0, 1.0]]
    assert class_centres(features, labels, 5)[0].tolist() == [[1.0, 1.0]]
    assert class_centres(features, labels, 2)[0].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("top_k", [1, 4, 9])
def test_equals_a_loop_over_identities(top_k: int) -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(200, 6)), generator.integers(0, 30, 200) * 2
    values, identities = class_centres(torch.from_numpy(features), torch.from_numpy(labels), top_k)
    assert identities.tolist() == sorted(set(labels.tolist()))
    for row, identity in zip(values.numpy(), identities.tolist(), strict=True):
        members = features[labels == identity]
        mean = members.mean(0)
        nearest = members[np.argsort(np.linalg.norm(members - mean, axis=1))[:top_k]]
        np.testing.assert_allclose(row, mean if len(members) < top_k else nearest.mean(0))


def test_collector_normalises_as_the_settings_say() -> None:
    features, labels = torch.tensor([[3.0, 4.0], [0.0, 5.0]], requires_grad=True), torch.tensor([1, 0])
    for feature, expected in (("normalised", [[0.0, 1.0], [0.6, 0.8]]), ("raw", [[0.0, 5.0], [3.0, 4.0]])):
        collector = CentreCollector(8, 2, TrainConfig(centre_feature=feature))  # room to spare is not looked at
        collector.add(features[:1], labels[:1])
        collector.add(features[1:], labels[1:])
        values, identities = collector.centres()
        assert identities.tolist() == [0, 1]
        torch.testing.assert_close(values, torch.tensor(expected))
        assert not values.requires_grad


def test_pull_skips_identities_without_a_centre() -> None:
    pull = CentrePull(torch.tensor([[1.0, 0.0]]), torch.tensor([4]), 6, TrainConfig(mrb_weight=2.0))
    features = torch.tensor([[0.0, 3.0], [5.0, 5.0]], requires_grad=True)
    assert pull.loss(features, torch.tensor([4, 1])).item() == pytest.approx(2.0)  # 2 * (1 - cos 90 degrees)
    nothing = pull.loss(features, torch.tensor([0, 1]))
    assert nothing.item() == 0
    nothing.backward()


def test_pull_compares_like_with_like() -> None:
    centre, feature = torch.tensor([[1.0, 0.0]]), torch.tensor([[7.0, 0.0]])
    for kind, expected in (("normalised", 0.0), ("raw", 18.0)):
        settings = TrainConfig(mrb_form="euclidean", centre_feature=kind)
        pull = CentrePull(centre, torch.tensor([0]), 1, settings)
        assert pull.loss(feature, torch.tensor([0])).item() == pytest.approx(expected)
