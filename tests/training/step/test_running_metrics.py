"""Tests that scores from counts are scikit-learn's scores from the images."""

import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from finetune_core.training.step.running_metrics import RunningMetrics

CLASSES = 5
images = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60
)


@pytest.mark.train
@settings(deadline=None, derandomize=True, database=None)
@given(images, st.integers(1, 20))
def test_scores_are_scikit_learns_whichever_classes_are_there(pairs, size):
    labels, predicted = np.array(pairs).T
    metrics = RunningMetrics.zeros(CLASSES)
    for start in range(0, len(labels), size):
        metrics.add(labels[start : start + size], predicted[start : start + size], 1.0)
    with warnings.catch_warnings(action="ignore"):  # classes that are named, but not there
        balanced = balanced_accuracy_score(labels, predicted)
    assert metrics.num_images == len(labels)
    assert metrics.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert metrics.compute_scores() == pytest.approx(
        {
            "balanced_accuracy": balanced,
            "macro_f1": f1_score(labels, predicted, average="macro", zero_division=0),
        }
    )


def test_the_loss_is_a_mean_over_images_not_over_batches():
    metrics = RunningMetrics.zeros(2)
    metrics.add(np.array([0, 1, 1]), np.array([0, 0, 0]), 1.0)
    metrics.add(np.array([0]), np.array([0]), 5.0)
    assert metrics.loss == pytest.approx(2.0)


def test_counts_that_an_earlier_version_saved_are_read():
    read = TypeAdapter(RunningMetrics).validate_json
    found = read(
        '{"images": [1, 2], "named": [2, 1], "hits": [1, 1], "loss_sum": 0.5}', strict=True
    )
    assert found == RunningMetrics([1, 2], [2, 1], [1, 1], 0.5)
    assert found.predicted == [2, 1]
    assert read(json.dumps(asdict(found)), strict=True) == found
