import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from finetune_core.evaluation.intervals import accuracy_interval, wilson


def test_wilsons_interval_is_statsmodels():
    right, images = np.array([0, 1, 8, 10, 3, 5000]), np.array([5, 1, 10, 10, 400, 10_000])
    expected = proportion_confint(right, images, method="wilson")
    np.testing.assert_allclose(wilson(right, images), expected, atol=1e-12)
    assert accuracy_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)  # Wilson 1927


def test_no_images_have_no_interval():
    assert np.isnan(wilson(np.array([0]), np.array([0]))).all()
    assert np.isnan(accuracy_interval(0, 0)).all()
