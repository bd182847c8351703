"""Ensemble of a strategy's seeds: the mean of their probabilities on the same images."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from statsmodels.stats.proportion import proportion_confint

from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.models.ensemble import mean_log_probabilities
from finetune_core.reports.html import (
    arms_table,
    comparison_html,
    describe_ensemble,
)
from finetune_core.training.predictions import load_predictions
from tests.evaluation.simulated import draw_correct


def test_it_is_the_mean_of_probabilities_whatever_the_scale_of_the_logits():
    logits = (
        np.random.default_rng(0).normal(size=(3, 50, 4)) * np.array([1, 10, 900])[:, None, None]
    )
    wanted = softmax(logits, axis=2).mean(0)
    np.testing.assert_allclose(np.exp(mean_log_probabilities(logits)), wanted, atol=1e-12)
    assert np.isfinite(mean_log_probabilities(logits)).all()


def test_networks_that_agree_are_their_own_ensemble():
    logits = np.random.default_rng(0).normal(size=(1, 50, 4))
    np.testing.assert_allclose(
        mean_log_probabilities(np.repeat(logits, 5, axis=0)),
        np.log(softmax(logits[0], axis=1)),
        atol=1e-12,
    )


def correct_by_hand(runs):
    """Return which images the mean of the runs' probabilities classifies correctly."""
    tables = [load_predictions(run.run_dir) for run in runs]
    tables = [table[table["split"] == "test"].sort_values("id") for table in tables]
    mean = np.mean(
        [softmax(np.stack(table["logits"].tolist()), axis=1) for table in tables], axis=0
    )
    return mean.argmax(1) == tables[0]["label"].to_numpy()


def test_it_stands_beside_each_strategy_with_its_interval(make_run):
    block = [make_run(draw_correct(0.8, seed), seed=seed) for seed in range(3)]
    full = [make_run(draw_correct(0.7, 10), strategy="full")]
    comparison = compare_runs([*block, *full])
    arms = {arm.title: arm for arm in comparison.arms}
    correct = correct_by_hand(block)
    found = arms["Last block"].ensemble
    assert found.value == pytest.approx(correct.mean())
    assert (found.low, found.high) == pytest.approx(
        proportion_confint(correct.sum(), len(correct), method="wilson")
    )
    assert arms["Full fine-tuning"].ensemble is None
    columns, rows = arms_table(comparison)
    place = columns.index("Ensemble of the seeds")
    cells = {row[0].removesuffix(" ★"): row[place] for row in rows}
    assert cells["Full fine-tuning"] == "one seed"
    assert cells["Last block"].startswith(f"{100 * found.value:.1f} % (")
    result = comparison.to_json()
    values = [arm["ensemble"] and arm["ensemble"]["value"] for arm in result["arms"]]
    assert values == [found.value, None]
    assert result["ensemble"] is None
    json.dumps(result, allow_nan=False)


def test_of_one_strategy_alone_it_is_that_of_all_its_runs(make_run):
    runs = [make_run(draw_correct(0.8, seed), seed=seed) for seed in range(3)]
    comparison = compare_runs(runs)
    assert comparison.ensemble.value == pytest.approx(correct_by_hand(runs).mean())
    words = describe_ensemble(comparison)
    assert words.startswith("Ensemble of the 3 seeds (mean of their probabilities): accuracy ")
    assert words in comparison_html(comparison)
    assert compare_runs(runs[:1]).ensemble is None
    assert "Ensemble of the seeds" not in arms_table(comparison)[0]


def test_log_loss_of_an_ensemble_is_lower_than_the_mean_of_its_networks(make_run):
    comparison = compare_runs(
        [make_run(draw_correct(0.8, seed), seed=seed) for seed in range(3)], "log_loss"
    )
    assert comparison.ensemble.value < np.mean([arm.score.value for arm in comparison.arms])
    assert comparison.ensemble.low < comparison.ensemble.value < comparison.ensemble.high
