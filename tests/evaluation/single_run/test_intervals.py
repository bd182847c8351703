import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from finetune_core.evaluation.intervals import accuracy_interval, difference_interval, wilson


def test_wilsons_interval_is_statsmodels():
    right, images = np.array([0, 1, 8, 10, 3, 5000]), np.array([5, 1, 10, 10, 400, 10_000])
    expected = proportion_confint(right, images, method="wilson")
    np.testing.assert_allclose(wilson(right, images), expected, atol=1e-12)
    assert accuracy_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)  # Wilson 1927


def test_no_images_have_no_interval():
    assert np.isnan(wilson(np.array([0]), np.array([0]))).all()
    assert np.isnan(accuracy_interval(0, 0)).all()


def test_the_interval_of_a_difference_is_newcombes():
    found = difference_interval(accuracy_interval(56, 70), accuracy_interval(48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)  # Newcombe 1998, method 10
    found = difference_interval(accuracy_interval(10, 10), accuracy_interval(0, 20))
    assert found == pytest.approx((1.0, 0.6791, 1.0), abs=1e-4)


def test_a_difference_of_what_is_not_defined_is_not_defined():
    assert np.isnan(difference_interval(accuracy_interval(0, 0), accuracy_interval(1, 2))).all()


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        right = random.binomial([60, 90], [0.9, 0.7])
        _, low, high = difference_interval(
            accuracy_interval(int(right[0]), 60), accuracy_interval(int(right[1]), 90)
        )
        held += low <= 0.2 <= high
    assert 0.93 < held / 2000 < 0.98
