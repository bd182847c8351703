"""Judgement whether training was long enough, on planted curves of both kinds and real runs."""

from dataclasses import replace

import numpy as np
import pytest

from finetune_core.config import make_config
from finetune_core.runs.convergence import (
    accumulate_rates,
    judge_run,
    judge_together,
    predict_fall,
)
from tests.factories import shared_images, trained_run

SCHEDULES = {"constant": {}, "cosine": {"schedule": "cosine", "warmup_epochs": 1}}


def curve(pace, schedule, epochs, seed):
    """Return losses that fall to 0.4 like exp(-pace * training), with the noise of an epoch."""
    settings = {"data": "any", "epochs": epochs, **SCHEDULES[schedule]}
    spent = accumulate_rates(make_config(settings), 10, epochs)
    noise = np.random.default_rng(seed).normal(0, 0.008, epochs)
    return spent, 0.4 + 1.2 * np.exp(-pace * np.array(spent) / spent[-1]) + noise


# Of each kind ten curves. A fall of 7 % or more is still to come where the pace is 3 or less, of
# 0.6 % or less where it is 6 or more.
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("epochs", [10, 20, 40])
@pytest.mark.parametrize(("paces", "falls"), [((0.5, 1, 2, 3), True), ((6, 8, 10, 20), False)])
def test_planted_curves_are_told_apart_whatever_the_schedule(schedule, epochs, paces, falls):
    judged = [
        (predict_fall(*curve(pace, schedule, epochs, seed)) is not None) == falls
        for seed, pace in enumerate(paces * 10)
    ]
    assert sum(judged) >= 0.9 * len(judged)


def test_a_fall_of_less_than_a_hundredth_of_a_nat_is_none():
    spent, losses = curve(1, "constant", 20, 0)
    assert predict_fall(spent, losses) is not None
    assert predict_fall(spent, losses * 0.01) is None


def test_a_loss_that_rises_again_has_stopped_falling():
    spent, losses = curve(10, "constant", 20, 0)
    assert predict_fall(spent, losses + np.linspace(0, 0.3, 20)) is None


def test_predicted_fall_is_about_what_a_quarter_more_of_training_brings():
    spent, _ = curve(2, "constant", 40, 0)
    losses = 0.4 + 1.2 * np.exp(-2 * np.array(spent) / spent[-1])
    now, later = losses[-1], 0.4 + 1.2 * np.exp(-2.5)
    assert predict_fall(spent, losses) == pytest.approx((now - later) / now, abs=0.03)


def test_spent_rates_of_a_constant_schedule_are_epochs():
    assert accumulate_rates(make_config({"data": "any", "epochs": 3}), 7, 3) == [1, 2, 3]


@pytest.fixture(scope="module")
def probe():
    return trained_run(strategy="linear_probe")


@pytest.fixture(scope="module")
def undertrained():
    return trained_run(strategy="feature_extraction", epochs=6, learning_rate=1e-5)


def test_a_fitted_head_has_converged_and_an_unfinished_run_is_unknown(probe):
    assert judge_run(probe.config, probe.history).converged is True
    unfinished = replace(probe.history, end=None)
    assert judge_run(probe.config, unfinished).converged is None


def test_few_epochs_show_no_trend():
    run = trained_run(epochs=2)
    judged = judge_run(run.config, run.history)
    assert (judged.converged, "fewer than" in judged.reason) == (None, True)


@pytest.mark.train
def test_a_run_that_is_right_on_every_validation_image_has_converged(undertrained):
    falling = [
        row | {"val_loss": 1 - 0.1 * epoch, "val_accuracy": 0.9}
        for epoch, row in enumerate(undertrained.history.epochs)
    ]
    right = [row | {"val_accuracy": 1.0} for row in falling]
    for epochs, converged in ((falling, False), (right, True)):
        history = replace(undertrained.history, epochs=epochs)
        assert judge_run(undertrained.config, history).converged is converged


@pytest.mark.train
def test_a_run_that_fits_labels_without_meaning_is_unknown(undertrained):
    def judge(train_loss):
        epochs = [
            row | {"train_loss": train_loss, "val_loss": 3 - 0.1 * epoch, "val_accuracy": 0.3}
            for epoch, row in enumerate(undertrained.history.epochs)
        ]
        return judge_run(undertrained.config, replace(undertrained.history, epochs=epochs))

    assert judge(1.0).converged is False
    judged = judge(0.1)
    assert (judged.converged, "no better than a guess" in judged.reason) == (None, True)


@pytest.mark.train
def test_feature_extraction_that_falls_behind_its_probe_has_not_converged(probe, undertrained):
    one, other = judge_together([(run.config, run.history) for run in (undertrained, probe)])
    assert (one.converged, other.converged) == (False, True)


@pytest.mark.train
def test_a_run_that_fits_about_as_well_as_the_probe_is_not_behind_it(probe, undertrained):
    fitted, end = probe.history.fitted, probe.history.end
    near = {
        "train_loss": fitted["train_loss"] + 0.04,
        "train_accuracy": fitted["train_accuracy"] - 0.015,
        "val_loss": end["val_loss"] + 0.02,
    }
    history = replace(
        undertrained.history, epochs=[row | near for row in undertrained.history.epochs]
    )
    one, _ = judge_together([(undertrained.config, history), (probe.config, probe.history)])
    assert one.converged is True
    far = replace(history, epochs=[row | {"train_loss": 1.0} for row in history.epochs])
    one, _ = judge_together([(undertrained.config, far), (probe.config, probe.history)])
    assert one.converged is False


@pytest.mark.train
def test_a_deeper_strategy_that_fits_worse_than_a_shallower_one_has_not_converged(probe):
    slow = trained_run(strategy="full", epochs=2, learning_rate=1e-6)
    alone = judge_run(slow.config, slow.history)
    beside, _ = judge_together([(run.config, run.history) for run in (slow, probe)])
    assert (alone.converged, beside.converged) == (None, False)
    assert "fewer layers" in beside.reason


@pytest.mark.train
def test_runs_on_other_features_say_nothing_of_each_other(undertrained):
    other = trained_run(
        strategy="linear_probe", data=str(shared_images(red=9, blue=9)), image_size=40
    )
    one, _ = judge_together([(run.config, run.history) for run in (undertrained, other)])
    assert "probe" not in one.reason
