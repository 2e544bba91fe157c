"""The metrics against a slow reference written from the protocols' text, against scikit-learn, and by hand."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cloister.errors import EvaluationError
from cloister.server.evaluation.ranking import RULES, Labels, distances, rank, summarise

Query = tuple[int, int]


def sees(rules: str, query: Query, image: Query) -> bool:
    """Whether the protocol leaves this gallery image to this query; both are (identity, camera)."""
    if rules == "sysu-mm01":
        return not (query[1] == 3 and image[1] == 2)
    if rules in ("llcm", "hitsz-vcm"):
        return not (query[0] == image[0] and query[1] == image[1])
    return True


def reference(distance: np.ndarray, queries: list[Query], gallery: list[Query], rules: str) -> dict[str, float] | None:
    """Rank-k, mAP and mINP by loops over queries and ranks; None if no query is valid."""
    firsts, precisions, penalties = [], [], []
    for row, query in enumerate(queries):
        kept = [place for place in range(len(gallery)) if sees(rules, query, gallery[place])]
        kept.sort(key=lambda place: (distance[row, place], place))
        ranking = [gallery[place][0] for place in kept]
        hits = [position for position, identity in enumerate(ranking, start=1) if identity == query[0]]
        if not hits:
            continue
        precisions.append(sum(j / position for j, position in enumerate(hits, start=1)) / len(hits))
        penalties.append(len(hits) / hits[-1])
        if rules in ("sysu-mm01", "llcm"):
            people: list[int] = []
            for identity in ranking:
                if identity not in people:
                    people.append(identity)
            firsts.append(people.index(query[0]) + 1)
        else:
            firsts.append(hits[0])
    if not firsts:
        return None
    result = {f"rank{k}": sum(first <= k for first in firsts) / len(firsts) for k in (1, 5, 10, 20)}
    return result | {"map": sum(precisions) / len(precisions), "minp": sum(penalties) / len(penalties)}


def labels(images: list[Query]) -> Labels:
    return Labels(identities=np.array([i for i, _ in images]), cameras=np.array([c for _, c in images]))


def random_cases(count: int) -> Iterator[tuple[np.ndarray, list[Query], list[Query]]]:
    """Random labels with queries whose person is not in the gallery, and rankings from a rough similarity."""
    generator = np.random.default_rng(7)
    for _ in range(count):
        people, size = int(generator.integers(2, 40)), int(generator.integers(2, 80))
        queries = [(int(generator.integers(0, people + 3)), int(generator.integers(1, 7))) for _ in range(25)]
        gallery = [(int(generator.integers(0, people)), int(generator.integers(1, 7))) for _ in range(size)]
        same = np.array([[query[0] == image[0] for image in gallery] for query in queries])
        yield generator.normal(size=same.shape) - 1.2 * same, queries, gallery


@pytest.mark.parametrize("rules", sorted(RULES))
def test_metrics_equal_the_slow_reference(rules: str) -> None:
    seen, invalid = 0, 0
    for distance, queries, gallery in random_cases(60):
        expected = reference(distance, queries, gallery, rules)
        ranking = rank(distance, labels(queries), labels(gallery), RULES[rules])
        if expected is None:
            with pytest.raises(EvaluationError, match="has a true match"):
                summarise(ranking)
            continue
        assert summarise(ranking) == pytest.approx(expected, abs=1e-12)
        seen, invalid = seen + 1, invalid + int((~ranking.valid).sum())
    assert seen > 40
    assert invalid > 100


def test_the_five_rule_sets_differ_where_the_protocols_do() -> None:
    """One infrared query of camera 3; by hand."""
    gallery = [(9, 2), (8, 1), (8, 4), (7, 3), (9, 5), (7, 6)]
    distance = np.arange(6.0)[None]
    found = {name: summarise(rank(distance, labels([(7, 3)]), labels(gallery), rules)) for name, rules in RULES.items()}
    # SYSU: camera 2 goes, so the ranking is 8 8 7 9 7: person 7 is the second person; hits at images 3 and 5.
    assert found["sysu-mm01"] == pytest.approx(
        {"rank1": 0, "rank5": 1, "rank10": 1, "rank20": 1, "map": (1 / 3 + 2 / 5) / 2, "minp": 2 / 5}
    )
    # LLCM and VCM: (7, camera 3) goes, so 9 8 8 9 7: person 7 is the third person, and image 5.
    assert found["llcm"]["map"] == found["hitsz-vcm"]["map"] == pytest.approx(1 / 5)
    # RegDB and BUPTCampus: nothing goes: hits at images 4 and 6.
    assert found["regdb"] == found["buptcampus"]
    assert found["regdb"]["map"] == pytest.approx((1 / 4 + 2 / 6) / 2)


def test_duplicates_of_a_person_count_once_at_identity_level_only() -> None:
    gallery = [(8, 1)] * 5 + [(7, 1)]
    distance = np.arange(6.0)[None]
    at = {name: summarise(rank(distance, labels([(7, 6)]), labels(gallery), RULES[name])) for name in ("llcm", "regdb")}
    assert rank(distance, labels([(7, 6)]), labels(gallery), RULES["llcm"]).first_hit[0] == 2
    assert (at["llcm"]["rank5"], at["regdb"]["rank5"]) == (1, 0)
    assert at["llcm"]["map"] == at["regdb"]["map"] == pytest.approx(1 / 6)


def test_average_precision_is_scikit_learns() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        relevant = generator.random(40) < 0.3
        relevant[0] = True
        distance = generator.normal(size=(1, 40))
        gallery = [(int(match), 1) for match in relevant]
        ranking = rank(distance, labels([(1, 6)]), labels(gallery), RULES["regdb"])
        expected = average_precision_score(relevant, -distance[0])
        assert ranking.average_precision[0] == pytest.approx(expected, abs=1e-12)


def test_equal_distances_keep_the_gallerys_order() -> None:
    distance = np.random.default_rng(0).integers(0, 3, (1, 500)).astype(float)
    gallery = [(1 + place, 1) for place in range(500)]
    ranking = rank(distance, labels([(1, 6)]), labels(gallery), RULES["regdb"], refuse_ties=False)
    assert ranking.order[0].tolist() == sorted(range(500), key=lambda place: (distance[0, place], place))


def test_removed_images_stand_behind_the_kept_ones() -> None:
    gallery = [(5, 2), (6, 2), (7, 1), (5, 4)]
    ranking = rank(np.arange(4.0)[None], labels([(5, 3)]), labels(gallery), RULES["sysu-mm01"])
    assert (ranking.kept[0], ranking.order[0, :2].tolist()) == (2, [2, 3])


def test_distance_is_negative_cosine() -> None:
    query, gallery = np.array([[3.0, 4.0]]), np.array([[6.0, 8.0], [4.0, -3.0], [-3.0, -4.0]])
    np.testing.assert_allclose(distances(query, gallery), [[-1.0, 0.0, 1.0]], atol=1e-6)


@pytest.mark.parametrize(
    ("query", "gallery", "found"),
    [
        ([[1, np.nan]], [[1, 0], [0, 1]], "query features: row 0 is not finite"),
        ([[1, 0]], [[1, 0], [np.inf, 1]], "gallery features: row 1 is not finite"),
        ([[0, 0]], [[1, 0], [0, 1]], "query features: row 0 has length zero"),
        ([[1, 0]], [[0, 1], [0, 0]], "gallery features: row 1 has length zero"),
        ([[1, 0]], [[1, 1], [2, 2], [3, 3]], "all 3 gallery images are equally far away"),
        ([[1, 0]], [[1, 1e-9], [1, -1e-9]], "equally far away"),
        ([[1, 0], [2, 0], [3, 1e-9]], [[1, 0], [0, 1]], "all 3 queries are equally far from each gallery image"),
        ([[1, 0], [1e30, 0]], [[1, 0], [0, 1]], "query features: row 1 is too long for single precision"),
        ([[1, 0]], [[1, 0], [0, 1], [1e20, 1e20]], r"gallery features: row 2 is too long .* \(1 of 3 rows are so\)"),
        ([], [[1, 0]], "non-empty"),
    ],
)
def test_features_without_a_score_are_an_error(query: list, gallery: list, found: str) -> None:
    with pytest.raises(EvaluationError, match=found):
        distances(np.array(query, dtype=np.float32), np.array(gallery, dtype=np.float32))


def test_features_beyond_single_precision_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="query features: row 0 is too long"):
        distances(np.array([[1e300, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))


def test_features_of_extreme_but_sound_lengths_have_distances() -> None:
    query, gallery = np.array([[3e18, 4e18]]), np.array([[6e-6, 8e-6], [4.0, -3.0]])
    np.testing.assert_allclose(distances(query, gallery), [[-1.0, 0.0]], atol=1e-6)


def test_some_equal_queries_and_a_single_one_have_distances() -> None:
    gallery = np.array([[1.0, 0.0], [0.0, 1.0]])
    equal = distances(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), gallery)
    np.testing.assert_allclose(equal, [[-1, 0], [-1, 0], [0, -1]], atol=1e-6)
    np.testing.assert_allclose(distances(np.array([[1.0, 0.0]]), gallery), [[-1, 0]], atol=1e-6)
    np.testing.assert_allclose(distances(np.array([[1.0, 0.0], [0.0, 1.0]]), gallery[:1]), [[-1], [0]], atol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_distances_that_are_not_finite_are_an_error(broken: float) -> None:
    with pytest.raises(EvaluationError, match="not finite"):
        rank(np.array([[broken, 1.0]]), labels([(1, 3)]), labels([(1, 1), (2, 1)]), RULES["regdb"])


def test_a_model_that_gives_few_different_features_has_no_score() -> None:
    """Two features for everybody: every query has a spread, but file order decides who is first."""
    gallery = [(person, 1) for person in range(10)]
    distance = np.array([[float((person + query) % 2) for person in range(10)] for query in range(10)])
    with pytest.raises(EvaluationError, match="10 of 10 queries have a true match exactly as far away"):
        rank(distance, labels([(person, 6) for person in range(10)]), labels(gallery), RULES["regdb"])


def test_ties_among_strangers_or_among_true_matches_are_harmless() -> None:
    distance = np.array([[0.1, 0.1, 0.9, 0.9]])
    ranking = rank(distance, labels([(1, 6)]), labels([(1, 1), (1, 2), (2, 1), (3, 1)]), RULES["regdb"])
    assert summarise(ranking)["map"] == 1.0


def test_a_score_of_some_queries_leaves_out_the_others() -> None:
    gallery = [(1, 1), (2, 1)]
    ranking = rank(np.array([[0.0, 1.0], [0.0, 1.0]]), labels([(1, 3), (2, 6)]), labels(gallery), RULES["regdb"])
    assert summarise(ranking)["rank1"] == 0.5
    assert summarise(ranking, np.array([True, False]))["rank1"] == 1.0
    with pytest.raises(EvaluationError, match="true match"):
        summarise(ranking, np.array([False, False]))


def test_every_position_of_a_lone_match_has_its_closed_form() -> None:
    """One match at position p of n: AP = INP = 1/p, Rank-k = [p <= k]."""
    for size, position in product((1, 7, 30), range(1, 31)):
        if position <= size:
            gallery = [(1 if place == position else 10 + place, 1) for place in range(1, size + 1)]
            metrics = summarise(rank(np.arange(float(size))[None], labels([(1, 6)]), labels(gallery), RULES["regdb"]))
            expected = {f"rank{k}": float(position <= k) for k in (1, 5, 10, 20)}
            assert metrics == pytest.approx(expected | {"map": 1 / position, "minp": 1 / position})
