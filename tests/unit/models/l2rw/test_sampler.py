"""Batches of P people with K images each; step counts and weights against the published client tables."""

import numpy as np
import pytest

from cloister.errors import DataError
from cloister.models.l2rw.config import TrainConfig
from cloister.models.l2rw.sampler import (
    balanced_batches,
    check_client,
    effective_examples,
    identity_batches,
    steps_per_epoch,
)

SYSU = ((4721, 74, 0.1377), (5753, 90, 0.1679), (7909, 124, 0.2321), (5811, 91, 0.1698), (5973, 94, 0.1755))
SYSU += ((4000, 63, 0.1170),)
REGDB = ((2060, 33, 0.5), (2060, 33, 0.5))
LLCM = ((343, 6, 0.0104), (137, 3, 0.0042), (5733, 90, 0.1854), (5843, 92, 0.1896), (8019, 126, 0.2604))
LLCM += ((8450, 133, 0.2750), (1002, 16, 0.0313), (1089, 18, 0.0354), (305, 5, 0.0083))


@pytest.mark.parametrize("table", [SYSU, REGDB, LLCM])
def test_steps_and_weights_of_published_clients(table: tuple[tuple[int, int, float], ...]) -> None:
    weights = [effective_examples(images, 64) for images, _, _ in table]
    for (images, steps, share), weight in zip(table, weights, strict=True):
        assert steps_per_epoch(images, 64) == steps
        assert weight / sum(weights) == pytest.approx(share, abs=5.1e-5)


def labels_of(counts: list[int]) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)) * 3, counts)
    return np.random.default_rng(0).permutation(labels)


def test_a_batch_has_distinct_people_and_k_images_of_each() -> None:
    labels, settings = labels_of([1, 30, 2, 50, 9, 100]), TrainConfig(identities_per_batch=4, images_per_identity=3)
    batches = list(identity_batches(labels, settings, np.random.default_rng(1)))
    assert len(batches) == 192 // 12 + 1
    for batch in batches:
        people = labels[batch].reshape(4, 3)
        assert (people == people[:, :1]).all()
        assert len(set(people[:, 0])) == 4


def test_people_are_drawn_uniformly_whatever_their_images() -> None:
    labels, settings = labels_of([1, 3, 5, 1000]), TrainConfig(identities_per_batch=2, images_per_identity=2)
    drawn = np.concatenate(list(identity_batches(labels, settings, np.random.default_rng(2))))
    shares = np.bincount(labels[drawn] // 3) / len(drawn)
    np.testing.assert_allclose(shares, 0.25, atol=0.05)
    assert len(set(drawn[labels[drawn] == 3].tolist())) == 3  # every image of a person can be drawn


def test_same_generator_same_batches() -> None:
    labels, settings = labels_of([20] * 10), TrainConfig()
    draws = [np.concatenate(list(identity_batches(labels, settings, np.random.default_rng(s)))) for s in (5, 5, 6)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_balanced_batches_halve_the_lights() -> None:
    labels = np.repeat(np.arange(6), 10)
    infrared = np.tile(np.arange(10) < 4, 6)
    infrared[labels == 5] = False  # seen in visible light only: never drawn
    settings = TrainConfig(identities_per_batch=3, images_per_identity=4, sampling="balanced")
    for batch in balanced_batches(labels, infrared, settings, np.random.default_rng(0)):
        assert (labels[batch].reshape(3, 4) == labels[batch].reshape(3, 4)[:, :1]).all()
        assert 5 not in labels[batch]
        assert (infrared[batch].reshape(3, 4) == [False, False, True, True]).all()
    check_client("pooled", labels, infrared, settings)
    infrared[labels > 1] = False
    with pytest.raises(
        DataError, match=r"client pooled: expected at least 3 identities in visible and infrared.*found 2"
    ):
        check_client("pooled", labels, infrared, settings)


def test_too_small_clients_are_named() -> None:
    dark = np.zeros(200, np.bool_)
    check_client("cam9", labels_of([8] * 8), dark, TrainConfig())
    with pytest.raises(DataError, match="client cam9: expected at least 8 identities for a batch, found 7"):
        check_client("cam9", labels_of([20] * 7), dark, TrainConfig())
    with pytest.raises(DataError, match="client cam9: expected at least 64 images for a batch, found 63"):
        check_client("cam9", labels_of([8] * 7 + [7]), dark, TrainConfig())
