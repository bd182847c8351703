"""Nearest neighbours among made-up embeddings."""

import numpy as np
import pytest

from finetune_core.inspection import similar
from finetune_core.inspection.similar import Embeddings

IDS = np.array(["a", "b", "c", "d"], dtype=object)
FEATURES = np.array([[1, 0], [3, 0.3], [0, 2], [-5, 0]])


def test_the_nearest_come_first_by_angle_and_not_by_length():
    found = Embeddings.from_features(IDS, FEATURES).find_nearest("a", 3)
    assert [sample for sample, _ in found] == ["b", "c", "d"]
    assert [distance for _, distance in found] == pytest.approx(
        [1 - 3 / np.hypot(3, 0.3), 1, 2], abs=2e-3
    )


def test_no_more_than_asked_for_and_never_the_image_itself():
    embeddings = Embeddings.from_features(IDS, np.ones((4, 3)))
    for sample in IDS:
        found = embeddings.find_nearest(sample, 2)
        assert len(found) == 2
        assert sample not in dict(found)
        assert all(0 <= distance < 2e-3 for _, distance in found)
    assert len(embeddings.find_nearest("a", 99)) == 3


def test_an_image_without_an_embedding_has_no_neighbours():
    assert Embeddings.from_features(IDS, FEATURES).find_nearest("gone", 3) == []


def test_features_that_are_all_nought_are_at_distance_one():
    found = Embeddings.from_features(IDS, np.vstack([np.zeros(2), FEATURES[1:]])).find_nearest(
        "a", 3
    )
    assert [distance for _, distance in found] == [1, 1, 1]


def test_many_images_are_compared_block_by_block(monkeypatch):
    random = np.random.default_rng(0)
    ids = np.array([f"{number:02}" for number in range(50)], dtype=object)
    embeddings = Embeddings.from_features(ids, random.normal(size=(50, 6)))
    whole = [sample for sample, _ in embeddings.find_nearest("17", 50)]
    monkeypatch.setattr(similar, "_AT_ONCE", 7)
    assert [sample for sample, _ in embeddings.find_nearest("17", 50)] == whole
