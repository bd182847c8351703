"""The three orders on made-up features with a known first image."""

import numpy as np
import torch

from finetune_core.labelling.orders import (
    rank_probable,
    rank_similar,
    rank_uncertain_diverse,
)
from finetune_core.training.heads.logistic import Linear


def draw_two_sides(random, count):
    """Return features of images far on either side of a boundary, then of three groups on it."""
    far = random.normal(0, 1, (count, 40)).astype(np.float32)
    far[:, 0] = np.where(np.arange(count) % 2, 60, -60)
    far[:, 1:20] = far[:, :1] / 2
    close = []
    for group in range(3):
        some = random.normal(0, 0.3, (8, 40)).astype(np.float32)
        some[:, 20 + group] += 20
        close.append(some)
    return np.concatenate([far, *close])


PROBE = Linear(
    torch.stack(
        [
            torch.cat([torch.ones(20), torch.zeros(20)]),
            -torch.cat([torch.ones(20), torch.zeros(20)]),
        ]
    ),
    torch.zeros(2),
)


def test_what_changes_under_dropout_comes_first_one_of_each_group():
    features = draw_two_sides(np.random.default_rng(0), 200)
    ranked = rank_uncertain_diverse(features, features, PROBE, 3, seed=1)
    assert sorted(ranked) == list(range(224))
    assert sorted((ranked[:3] - 200) // 8) == [0, 1, 2]
    assert set(ranked[200:]) < set(range(200))  # the last ones are far from the boundary
    again = rank_uncertain_diverse(features, features, PROBE, 3, seed=1)
    assert (ranked == again).all()


def test_without_a_probe_the_first_ones_are_diverse():
    features = draw_two_sides(np.random.default_rng(0), 0)
    ranked = rank_uncertain_diverse(features, features, None, 3, seed=0)
    assert sorted(ranked[:3] // 8) == [0, 1, 2]


def test_a_batch_larger_than_what_is_left_takes_everything():
    features = draw_two_sides(np.random.default_rng(0), 0)[:4]
    assert sorted(rank_uncertain_diverse(features, features, PROBE, 10, seed=0)) == [0, 1, 2, 3]
    assert len(rank_uncertain_diverse(features[:0], features[:0], PROBE, 10, seed=0)) == 0


def test_equal_images_fill_a_batch_without_repeats():
    features = np.ones((6, 40), np.float32)
    assert sorted(rank_uncertain_diverse(features, features, None, 4, seed=0)) == list(range(6))


def test_similar_means_the_same_direction_whatever_the_length():
    features = np.array([[0, 1], [5, 5], [0.1, 0], [-3, 0]], np.float32)
    assert rank_similar(features, np.array([10, 0], np.float32)).tolist() == [2, 1, 0, 3]


def test_the_most_probable_comes_first():
    assert rank_probable(np.array([0.1, 0.9, 0.5])).tolist() == [1, 2, 0]
