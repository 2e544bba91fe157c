"""Linkage of class centres: found without noise, not found under enough of it."""

import numpy as np
import pytest

from cloister.errors import AuditError
from cloister.privacy.audits.linkage import audit_centres, audit_pairs, rank_one, similarities


def people(count: int = 40, each: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of ``count`` people, embeddings of ``each`` pictures of them, and who is on these."""
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(count, 64))
    return (
        means,
        np.repeat(means, each, 0) + 0.5 * generator.normal(size=(count * each, 64)),
        np.repeat(np.arange(count), each),
    )


def test_similarities_and_hits() -> None:
    scores = similarities(np.array([[2.0, 0.0], [0.0, -1.0]]), np.array([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
    assert scores == pytest.approx(np.array([[1, 0, 0.5**0.5], [0, -1, -(0.5**0.5)]]))
    assert rank_one(scores, np.array([7, 8]), np.array([7, 8, 9])).tolist() == [True, False]


def test_plain_centres_are_linked_and_noised_ones_are_not() -> None:
    means, gallery, shown = people()
    plain = audit_centres(means, np.arange(40), gallery, shown)
    assert not plain.passed
    assert plain.numbers["rank-1"] == 1.0
    assert plain.numbers["chance"] == pytest.approx(1 / 40)
    assert plain.numbers["auc"] > 0.99
    noised = means + 30 * np.random.default_rng(1).normal(size=means.shape)
    hidden = audit_centres(noised, np.arange(40), gallery, shown)
    assert hidden.passed
    assert hidden.numbers["rank-1"] < 0.15
    assert 0.4 < hidden.numbers["auc"] < 0.65


def test_people_who_are_not_in_the_gallery_are_left_out() -> None:
    means, gallery, shown = people()
    few = shown < 10
    result = audit_centres(means, np.arange(40), gallery[few], shown[few])
    assert result.numbers["centres"] == 10
    assert result.numbers["chance"] == pytest.approx(0.1)
    with pytest.raises(AuditError, match="found none; use a gallery"):
        audit_centres(means[20:], np.arange(20, 40), gallery[few], shown[few])


def test_two_clients_centres_are_linked_under_private_labels() -> None:
    means, *_ = people()
    generator = np.random.default_rng(2)
    first = means[:30] + 0.3 * generator.normal(size=(30, 64))
    order = generator.permutation(np.arange(10, 40))  # the second client saw others too, and numbers them as it likes
    second = means[order] + 0.3 * generator.normal(size=(30, 64))
    plain = audit_pairs(first, np.arange(30), second, order)
    assert plain.numbers["centres"] == 20
    assert plain.numbers["rank-1"] > 0.95
    assert plain.numbers["chance"] == pytest.approx(1 / 30)
    assert not plain.passed
    assert audit_pairs(generator.normal(size=(30, 64)), np.arange(30), second, order).passed
    with pytest.raises(AuditError, match="both clients"):
        audit_pairs(first[:5], np.arange(5), second, order)


def test_what_cannot_be_linked_is_refused() -> None:
    with pytest.raises(AuditError, match="same network"):
        similarities(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(AuditError, match="finite"):
        similarities(np.full((2, 3), np.nan), np.ones((2, 3)))
    with pytest.raises(AuditError, match="one person only"):
        audit_centres(np.ones((1, 3)), np.zeros(1, dtype=int), np.ones((2, 3)), np.zeros(2, dtype=int))
