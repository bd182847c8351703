import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn import metrics as oracle

from finetune_core.evaluation.single_run.curves import (
    coverage_curve,
    one_vs_rest,
    selective_prediction,
    thin_curve,
)
from finetune_core.evaluation.single_run.metrics import evaluate
from tests.evaluation.simulated import make_table


def make_evaluation(count=3000, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)) + np.eye(classes)[labels]
    return evaluate(make_table(labels, logits, "test"), tuple("abcdefgh"[:classes]))


def test_few_points_draw_the_same_areas():
    result = make_evaluation()
    curve = one_vs_rest(result, 1)
    row = result.per_class.iloc[1]
    assert len(curve.roc) <= 300
    assert curve.prevalence == row["images"] / result.images
    assert len(curve.recall_precision) <= 300
    assert oracle.auc(curve.roc["false_positives"], curve.roc["true_positives"]) == pytest.approx(
        row["roc_auc"], abs=0.003
    )
    area = oracle.auc(curve.recall_precision["recall"], curve.recall_precision["precision"])
    assert area == pytest.approx(row["average_precision"], abs=0.01)


def test_a_curve_of_one_class_only_is_not_defined():
    assert one_vs_rest(make_evaluation(5, 1), 0) is None
    assert one_vs_rest(evaluate(make_table([0, 0], [[0, 0]] * 2), ("a", "b")), 1) is None


@pytest.mark.train
def test_bands_are_those_of_curves_that_scikit_learn_draws_of_resamples():
    result = make_evaluation(600)
    labels = result.predictions["label"].to_numpy()
    probability = np.stack(result.predictions["probabilities"])[:, 1].round(1)  # ties, too
    result.predictions["probabilities"] = list(np.repeat(probability[:, None], 3, axis=1))
    curve = one_vs_rest(result, 1, resamples=1000)
    random = np.random.default_rng(7)
    places = [np.flatnonzero(labels == label) for label in range(3)]
    found, precise = [], []
    for _ in range(1000):
        rows = np.concatenate([random.choice(place, len(place)) for place in places])
        false, true, _ = oracle.roc_curve(labels[rows] == 1, probability[rows])
        precision, recall, _ = oracle.precision_recall_curve(labels[rows] == 1, probability[rows])
        found.append(np.interp(0.25, false, true))
        precise.append(precision[recall >= 0.5 - 1e-9][-1])
    for band, at, outcome in (
        (curve.roc_band, 0.25, found),
        (curve.recall_precision_band, 0.5, precise),
    ):
        row = band[np.isclose(band.iloc[:, 0], at)].iloc[0]
        np.testing.assert_allclose(
            row[["low", "high"]].to_numpy(float), np.percentile(outcome, (2.5, 97.5)), atol=0.02
        )


@pytest.mark.train
def test_95_of_100_bands_hold_the_true_curve():
    random = np.random.default_rng(3)
    held = []
    for trial in range(150):
        labels = np.repeat([0, 1], 100)
        score = random.normal(size=200) + 1.5 * labels
        logits = np.stack([np.zeros(200), score], axis=1)
        result = evaluate(make_table(labels, logits, "test"), ("a", "b"))
        row = one_vs_rest(result, 1, resamples=200, seed=trial).roc_band.iloc[20]
        held.append(row["low"] <= norm.cdf(1.5 - norm.isf(0.2)) <= row["high"])
    assert 0.89 <= np.mean(held) <= 0.99


def test_a_band_narrows_with_images_and_holds_its_own_curve():
    wide, narrow = (
        one_vs_rest(make_evaluation(count), 1, resamples=100).roc_band for count in (100, 3000)
    )
    assert (narrow["high"] - narrow["low"]).mean() < (wide["high"] - wide["low"]).mean() / 3
    curve = one_vs_rest(make_evaluation(), 1)
    band = curve.roc_band[1:]  # at 0, a curve goes straight up
    inside = np.interp(
        band["false_positives"], curve.roc["false_positives"], curve.roc["true_positives"]
    )
    thinning = 0.003
    assert (band["low"] <= inside + thinning).all()
    assert (inside <= band["high"] + thinning).all()


def test_who_names_everything_is_as_accurate_as_ever():
    result = make_evaluation()
    curve = coverage_curve(result)
    last = curve.iloc[-1]
    assert (last["coverage"], last["accuracy"]) == (1, pytest.approx(result.accuracy))
    assert curve["threshold"].is_monotonic_decreasing
    middle = curve.iloc[len(curve) // 2]
    selected = selective_prediction(result, middle["threshold"])
    assert (selected.share, selected.accuracy) == pytest.approx(
        (middle["coverage"], middle["accuracy"])
    )
    assert selected.low < selected.accuracy < selected.high


def test_images_of_equal_confidence_are_named_together():
    table = make_table([0, 1, 0, 1], [[1, 0]] * 3 + [[0, 3]])
    curve = coverage_curve(evaluate(table, ("a", "b")))
    assert curve["coverage"].tolist() == [0.25, 1.0]
    assert curve["accuracy"].tolist() == [1.0, 0.75]


def test_nothing_named_has_no_accuracy():
    nothing = selective_prediction(make_evaluation(40), 1.1)
    assert (nothing.images, nothing.share) == (0, 0)
    assert np.isnan([nothing.accuracy, nothing.low, nothing.high]).all()


def test_thinning_keeps_both_ends():
    curve = thin_curve(pd.DataFrame({"x": range(1000)}), 10)
    assert len(curve) == 10
    assert (curve["x"].iloc[0], curve["x"].iloc[-1]) == (0, 999)
