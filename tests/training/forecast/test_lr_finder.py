"""Tests of the learning rate that is suggested after a short test."""

import pytest

from finetune_core.formatting import PHASE_TITLES
from finetune_core.training.forecast.lr_finder import find_rate, suggest_rate
from finetune_core.work import finish
from tests.drain import drain
from tests.factories import tiny_config


@pytest.mark.train
def test_the_loss_falls_then_rises_and_a_rate_between_is_suggested_each_time_the_same():
    config = tiny_config(strategy="feature_extraction")
    steps, curve = drain(find_rate(config))
    assert {step.phase for step in steps} <= PHASE_TITLES.keys()
    assert list(curve.rates) == sorted(curve.rates)
    assert 1e-5 <= curve.suggestion <= 1
    assert min(curve.losses) < curve.losses[0]
    assert finish(find_rate(config)) == curve


def test_a_loss_that_never_falls_gets_no_suggestion():
    rates = [10.0**power for power in range(-7, 1)]
    assert suggest_rate(rates, [1.0] * 8) is None
    assert suggest_rate(rates, [1.0, 1.1, 1.2, 2, 3, 4, 5, 6]) is None


def test_the_suggestion_is_well_below_where_the_loss_was_lowest():
    rates = [10.0**power for power in range(-7, 1)]
    found = suggest_rate(rates, [2.0, 2.0, 1.9, 1.2, 0.6, 0.5, 0.9, 4.0])
    assert found == pytest.approx(1e-3, rel=10)
    assert found <= 1e-2 / 10
