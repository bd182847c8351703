"""Comparison of runs on corrupted images, by the statistics of any other images."""

import numpy as np
import pytest

from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.shift import (
    compare_shift,
    compute_corrupted_accuracies,
    list_common_corruptions,
    list_runs_without_predictions,
)
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit, list_corruptions
from finetune_core.evaluation.single_run.robustness_files import save_robustness
from finetune_core.training.predictions import predictions_mtime
from tests.earlier_robustness import write_accuracies
from tests.evaluation.simulated import IMAGES, draw_correct

NOISE, BLUR = CorruptedSplit("test", "noise", 3), CorruptedSplit("test", "blur", 1)


def save_measured(run, correct, noisy, images=IMAGES):
    """Save a run's robustness.

    ``noisy`` says which images are right at noise 3, ``correct`` at all other corruptions.
    """
    labels = np.arange(images) % 2

    def logits(answers):
        return np.eye(2)[np.where(answers[:images], labels, 1 - labels)]

    ids = [f"image{n:04d}.png" for n in range(images)]
    answers = [logits(noisy if which == NOISE else correct) for which in list_corruptions("test")]
    save_robustness(run, "test", ids, labels, answers, predictions_mtime(run.run_dir))
    return run


@pytest.fixture
def arms(make_run):
    """Make two strategies with two seeds each: alike on own images, far apart on noisy ones."""
    shares = {"feature_extraction": 0.8, "full": 0.5}
    return [
        (
            make_run(draw_correct(0.9, seed), strategy=name, seed=seed),
            draw_correct(0.9, seed),
            draw_correct(share, 10 * at + seed),
        )
        for at, (name, share) in enumerate(shares.items())
        for seed in (0, 1)
    ]


@pytest.mark.train
def test_the_verdict_is_that_of_the_same_answers_to_any_images(arms, make_run):
    runs = [save_measured(*arm) for arm in arms]
    both = compare_shift(runs, NOISE)
    same = compare_runs(
        [
            make_run(noisy, strategy=run.config.strategy, seed=run.config.seed)
            for run, _, noisy in arms
        ]
    )
    mine, theirs = both.shifted.to_json(), same.to_json()
    assert mine["split"] == "shifted"
    assert [arm["accuracy"] for arm in mine["arms"]] == [arm["accuracy"] for arm in theirs["arms"]]
    assert [arm["ci_low"] for arm in mine["arms"]] == [arm["ci_low"] for arm in theirs["arms"]]
    assert mine["pairs"] == theirs["pairs"]
    assert mine["size"] == theirs["size"]
    assert mine["action"] == theirs["action"]
    assert mine["pairs"][0]["strategies"]["different"]
    assert not both.own.to_json()["pairs"][0]["strategies"]["different"]
    assert [drop.value for drop in both.drops] == pytest.approx(
        [
            own.score.value - other.score.value
            for own, other in zip(both.own.arms, both.shifted.arms, strict=True)
        ]
    )
    assert not any(
        pair["networks"]["different"]
        for pair in compare_shift(runs, BLUR).shifted.to_json()["pairs"]
    )


@pytest.mark.train
@pytest.mark.parametrize("measure", ["macro_f1", "log_loss"])
def test_other_metrics_have_a_verdict_too(arms, measure):
    both = compare_shift([save_measured(*arm) for arm in arms], NOISE, measure)
    assert both.shifted.measure.name == measure
    assert both.shifted.pairs[0].networks.different


@pytest.mark.train
def test_accuracies_are_the_same_with_and_without_predictions(arms):
    runs = [save_measured(*arm) for arm in arms]
    comparison = compare_runs(runs)
    assert list_common_corruptions(comparison) == list_corruptions("test")[1:]
    assert list_runs_without_predictions(comparison) == []
    found, images = compute_corrupted_accuracies(comparison, NOISE)
    assert images == IMAGES
    shifted = compare_shift(runs, NOISE).shifted
    assert [one.value for one in found] == pytest.approx(
        [arm.accuracy.value for arm in shifted.arms]
    )
    write_accuracies(runs[1])
    assert list_common_corruptions(comparison) == list_corruptions("test")[1:]
    assert list_runs_without_predictions(comparison) == [runs[1]]
    assert compute_corrupted_accuracies(comparison, NOISE) == (found, images)
    with pytest.raises(RunError, match=rf"{runs[1].run_id}.*Measure its robustness"):
        compare_shift(runs, NOISE)


@pytest.mark.train
def test_runs_that_could_not_read_the_same_images_are_refused(arms):
    runs = [save_measured(*arm) for arm in arms]
    run, correct, noisy = arms[0]
    save_measured(run, correct, noisy, IMAGES - 1)
    assert list_common_corruptions(compare_runs(runs)) == []
    with pytest.raises(RunError, match="could not be read"):
        compare_shift(runs, NOISE)


@pytest.mark.train
def test_corrupted_images_are_not_held_against_what_was_published_of_other_data_sets(make_run):
    wins, loses = draw_correct(0.9, 1), draw_correct(0.4, 2)
    runs = [
        save_measured(
            make_run(wins, strategy=strategy, seed=seed),
            wins,
            wins if strategy == "full" else loses,
        )
        for strategy in ("full", "linear_probe_then_full")
        for seed in (0, 1)
    ]
    both = compare_shift(runs, NOISE)
    assert both.shifted.pairs[0].widest.different
    assert both.shifted.published == ()
