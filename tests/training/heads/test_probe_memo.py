"""Tests that equal linear probes are fitted once."""

import numpy as np
import pytest
import torch

from finetune_core.training.heads.logistic import linear_probe
from finetune_core.training.heads.probe_memo import fit_once
from finetune_core.work import finish


@pytest.fixture
def images():
    random = np.random.default_rng()  # unlike those of any other test of this process
    labels = torch.arange(40) % 3
    features = torch.from_numpy(random.standard_normal((40, 6)).astype(np.float32))
    features[:, 0] += labels
    return features, labels, np.arange(40)


def count_steps(*images):
    return sum(1 for _ in fit_once(*images))


def test_a_known_probe_is_the_same_head_without_a_step(images):
    head, choice = finish(fit_once(*images, 3, 0))
    again, same_choice = finish(fit_once(*images, 3, 0))
    expected, _ = finish(linear_probe(*images, 3, 0))
    assert torch.equal(head.weight, expected.weight)
    assert torch.equal(again.weight, head.weight)
    assert same_choice is choice
    assert count_steps(*images, 3, 0) == 0


def test_other_images_labels_groups_or_seeds_are_fitted_anew(images):
    features, labels, sets = images
    finish(fit_once(features, labels, sets, 3, 0))
    assert count_steps(features + 1e-3, labels, sets, 3, 0)
    assert count_steps(features, labels.roll(1), sets, 3, 0)
    assert count_steps(features, labels, sets // 2, 3, 0)
    assert count_steps(features, labels, sets, 4, 0)
    assert count_steps(features, labels, sets, 3, 1)
