"""Properties of the retrieval metrics that hold for every data set's rules."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cloister.server.evaluation.ranking import RULES, Labels, distances, rank, summarise

rule_sets = st.sampled_from(sorted(RULES))
seeds = st.integers(0, 2**32 - 1)


def case(seed: int) -> tuple[np.ndarray, Labels, Labels]:
    """Distances without ties, and labels of which some queries have no match."""
    generator = np.random.default_rng(seed)
    queries, images = int(generator.integers(1, 12)), int(generator.integers(1, 30))
    distance = generator.permuted(np.tile(np.linspace(0, 1, images), (queries, 1)), axis=1)
    return distance, some_labels(generator, queries), some_labels(generator, images)


def some_labels(generator: np.random.Generator, count: int) -> Labels:
    return Labels(identities=generator.integers(0, 6, count), cameras=generator.integers(1, 7, count))


@given(rule_sets, seeds)
def test_the_order_of_the_gallery_does_not_matter_without_ties(rules: str, seed: int) -> None:
    distance, query, gallery = case(seed)
    ranking = rank(distance, query, gallery, RULES[rules])
    assume(ranking.valid.any())
    shuffled = np.random.default_rng(seed + 1).permutation(distance.shape[1])
    again = rank(distance[:, shuffled], query, gallery.take(shuffled), RULES[rules])
    assert summarise(again) == pytest.approx(summarise(ranking))
    np.testing.assert_array_equal(shuffled[again.order[:, 0]], ranking.order[:, 0])


@given(rule_sets, seeds)
def test_the_names_of_people_do_not_matter(rules: str, seed: int) -> None:
    distance, query, gallery = case(seed)
    ranking = rank(distance, query, gallery, RULES[rules])
    assume(ranking.valid.any())
    names = np.random.default_rng(seed).permutation(100)[:6]
    renamed = [Labels(identities=names[part.identities], cameras=part.cameras) for part in (query, gallery)]
    assert summarise(rank(distance, *renamed, RULES[rules])) == pytest.approx(summarise(ranking))


@given(rule_sets, seeds)
def test_metrics_lie_in_order_between_zero_and_one(rules: str, seed: int) -> None:
    ranking = rank(*case(seed), RULES[rules])
    assume(ranking.valid.any())
    metrics = summarise(ranking)
    assert 0 <= metrics["rank1"] <= metrics["rank5"] <= metrics["rank10"] <= metrics["rank20"] <= 1
    assert 0 < metrics["minp"] <= 1
    assert 0 < metrics["map"] <= 1


@given(rule_sets, seeds)
def test_perfect_features_score_everything(rules: str, seed: int) -> None:
    """A person's images all have one feature, which nobody else's comes near."""
    generator = np.random.default_rng(seed)
    query, gallery = some_labels(generator, 15), some_labels(generator, 40)
    assume(len(set(gallery.identities.tolist())) > 1)
    prototypes = generator.normal(size=(6, 6))
    ranking = rank(
        distances(prototypes[query.identities], prototypes[gallery.identities]), query, gallery, RULES[rules]
    )
    assume(ranking.valid.any())
    assert summarise(ranking) == pytest.approx(dict.fromkeys(("rank1", "rank5", "rank10", "rank20", "map", "minp"), 1))


@given(seeds, st.floats(0.01, 100))
def test_the_length_of_a_feature_does_not_matter(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    query, gallery = generator.normal(size=(3, 8)), generator.normal(size=(5, 8))
    np.testing.assert_allclose(distances(query * scale, gallery), distances(query, gallery), atol=1e-5)
