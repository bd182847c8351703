import pytest

from finetune_core.config import make_config
from finetune_core.formatting import PHASE_WORDS
from finetune_core.training.lr_finder import find_rate, suggested
from finetune_core.work import finish
from tests.drain import drained


@pytest.fixture
def config(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 14, "blue": 14, "green": 14})
    settings = {
        "image_size": 32,
        "batch_size": 10,
        "precision": "fp32",
        "strategy": "feature_extraction",
    }
    return make_config(settings | {"data": str(folder)})


def test_the_loss_falls_then_rises_and_a_rate_between_is_suggested(config):
    steps, curve = drained(find_rate(config))
    assert {step.phase for step in steps} <= PHASE_WORDS.keys()
    assert list(curve.rates) == sorted(curve.rates)
    assert 1e-5 <= curve.suggestion <= 1
    assert min(curve.losses) < curve.losses[0]


def test_the_same_test_twice_sees_the_same(config):
    assert finish(find_rate(config)) == finish(find_rate(config))


def test_a_loss_that_never_falls_gets_no_suggestion():
    rates = [10.0**power for power in range(-7, 1)]
    assert suggested(rates, [1.0] * 8) is None
    assert suggested(rates, [1.0, 1.1, 1.2, 2, 3, 4, 5, 6]) is None


def test_the_suggestion_is_well_below_where_the_loss_was_lowest():
    rates = [10.0**power for power in range(-7, 1)]
    assert suggested(rates, [2.0, 2.0, 1.9, 1.2, 0.6, 0.5, 0.9, 4.0]) == pytest.approx(1e-3, rel=10)
    assert suggested(rates, [2.0, 2.0, 1.9, 1.2, 0.6, 0.5, 0.9, 4.0]) <= 1e-2 / 10
