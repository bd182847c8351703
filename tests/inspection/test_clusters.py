"""Effective number of independent images in a sample with near-duplicates."""

import numpy as np
import pytest

from finetune_core.inspection.clusters import cluster_residuals, cluster_sums, effective_images


def test_images_that_are_independent_count_one_each():
    right = np.random.default_rng(0).random((3, 50)) < 0.7
    assert effective_images(right, np.arange(50)).tolist() == [50.0] * 3


def test_copies_that_are_answered_alike_count_once():
    right = (np.random.default_rng(0).random((3, 80)) < 0.6).repeat(4, axis=1)
    found = effective_images(right, np.arange(80).repeat(4))
    assert found == pytest.approx(np.full(3, 80.0), rel=0.01)


def test_images_of_a_group_that_are_answered_independently_keep_their_number():
    right = np.random.default_rng(0).random((40, 2000)) < 0.6
    found = effective_images(right, np.arange(500).repeat(4))
    assert found.max() <= 2000
    assert found.mean() > 1800


def test_where_all_are_correct_or_none_copies_count_once():
    right = np.repeat([[True], [False]], 40, axis=1)
    assert effective_images(right, np.arange(10).repeat(4)).tolist() == [10.0, 10.0]
    assert effective_images(right, np.zeros(40, int)).tolist() == [1.0, 1.0]


def test_the_variance_is_that_of_a_share_over_clusters_drawn_anew():
    random = np.random.default_rng(0)
    sizes = random.integers(1, 6, 200)
    sets = random.permutation(np.arange(200).repeat(sizes))
    chance = random.beta(1, 1, 200)[sets]
    right = (random.random(len(sets)) < chance)[None]
    sums = cluster_sums(right.astype(int), sets)[0]
    drawn = random.integers(0, 200, (4000, 200))
    counts = np.unique(sets, return_counts=True)[1]
    spread = (sums[drawn].sum(1) / counts[drawn].sum(1)).std()
    share = right.mean()
    found = np.sqrt(share * (1 - share) / effective_images(right, sets)[0])
    assert found == pytest.approx(spread, rel=0.05)
    assert cluster_residuals(right, sets).sum() == pytest.approx(0, abs=1e-9)
