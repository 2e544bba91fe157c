"""Which features that several images share are a collapsed model, and which are not."""

import numpy as np
import pytest

from cloister.errors import EvaluationError
from cloister.server.evaluation.features import refuse_copies

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def split(count: int = 100, people: int = 50) -> Split:
    """Features, images, places and identities of a split whose images are the last ``count`` of some more."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(count + 7, 8)).astype(np.float32)
    images = generator.integers(0, 256, (count + 7, 4, 2, 3), dtype=np.uint8)
    return features, images, np.arange(7, count + 7), np.arange(count) % people


def test_one_feature_for_several_people_is_an_error_beyond_5_percent() -> None:
    features, images, places, identities = split()
    features[7:12] = features[7]
    refuse_copies(features, images, places, identities)  # 5 of 100
    features[12] = features[7]
    with pytest.raises(EvaluationError, match=r"6 of 100 .* another person's image \(persons 0 and 1, for one\)"):
        refuse_copies(features, images, places, identities)


def test_shares_are_summed_over_features() -> None:
    """Three pairs, each of two people: no feature is common, but six images are confused."""
    features, images, places, identities = split()
    features[8:14:2] = features[7:13:2]
    with pytest.raises(EvaluationError, match="6 of 100"):
        refuse_copies(features, images, places, identities)


def test_one_feature_for_a_person_is_not_an_error() -> None:
    features, images, places, identities = split()
    features[places] = features[7 + identities]
    refuse_copies(features, images, places, identities)


def test_copies_of_one_picture_are_not_an_error_whoever_they_are_said_to_show() -> None:
    features, images, places, identities = split()
    features[7:27], images[7:27] = features[7], images[7]
    refuse_copies(features, images, places, identities)
    images[26, 0, 0, 0] ^= 1
    with pytest.raises(EvaluationError, match="20 of 100"):
        refuse_copies(features, images, places, identities)


def test_images_of_other_splits_do_not_count() -> None:
    features, images, places, identities = split()
    features[:8] = features[7]
    refuse_copies(features, images, places, identities)


def test_nearly_equal_features_are_told_apart() -> None:
    features, images, places, identities = split()
    features[places] = features[7] + np.arange(100, dtype=np.float32)[:, None] * 1e-6
    refuse_copies(features, images, places, identities)
