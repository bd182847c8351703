import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from finetune_core.evaluation.single_run.calibration import (
    compute_calibration,
    fit_temperature,
    scale_split,
)
from tests.evaluation.simulated import make_table


def draw_logits(count=4000, classes=4, seed=0, factor=1.0):
    """Return logits and labels that are drawn from them; overconfident by ``factor``."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)) * 2
    labels = (
        (softmax(logits, axis=1).cumsum(1) < random.random((count, 1))).sum(1).clip(max=classes - 1)
    )
    return logits * factor, labels


def make_predictions(splits, factor=3.0):
    parts = []
    for seed, (split, count) in enumerate(splits.items()):
        logits, labels = draw_logits(count, seed=seed, factor=factor)
        ids = [f"{split}/{n}.png" for n in range(count)]
        parts.append(
            pd.DataFrame({"id": ids, "split": split, "label": labels, "logits": list(logits)})
        )
    return pd.concat(parts, ignore_index=True)


def test_bins_are_scikit_learns():
    logits, labels = draw_logits(factor=2.0)
    probabilities = softmax(logits, axis=1)
    correct = probabilities.argmax(1) == labels
    for ours, theirs in (("width", "uniform"), ("mass", "quantile")):
        found = compute_calibration(logits, labels, ours).bins
        accuracy, confidence = calibration_curve(
            correct, probabilities.max(1), n_bins=15, strategy=theirs
        )
        np.testing.assert_allclose(found["accuracy"], accuracy)
        np.testing.assert_allclose(found["confidence"], confidence)
        assert found["images"].sum() == len(labels)
        assert (found["accuracy_low"] <= found["accuracy"]).all()
        assert (found["accuracy"] <= found["accuracy_high"]).all()


def test_the_error_of_a_known_case():
    sure = np.log(np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10))
    labels = np.array([0] * 7 + [1] * 3 + [0] * 6 + [1] * 4)
    found = compute_calibration(sure, labels)
    assert found.ece == pytest.approx((10 * 0.2 + 10 * 0.0) / 20)
    assert found.bins["images"].tolist() == [10, 10]
    wilson = found.bins[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy().tolist()
    assert wilson == [
        pytest.approx((0.6, 0.3127, 0.8318), abs=1e-4),
        pytest.approx((0.7, 0.3968, 0.8922), abs=1e-4),
    ]


def test_a_well_calibrated_network_needs_no_temperature():
    logits, labels = draw_logits(20_000)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert compute_calibration(logits, labels).ece < 0.015
    assert fit_temperature(logits * 3, labels) == pytest.approx(3, abs=0.1)


def test_the_test_split_is_scaled_by_the_validation_images_alone():
    table = make_predictions({"val": 2000, "test": 1000})
    found = scale_split(table, "test")
    logits, labels = draw_logits(2000, seed=0, factor=3.0)
    assert (found.source, found.images) == ("val", (2000,))
    assert found.temperatures == (pytest.approx(fit_temperature(logits, labels)),)
    test_logits, test_labels = draw_logits(1000, seed=1, factor=3.0)
    np.testing.assert_allclose(found.logits, test_logits / found.temperatures[0])
    assert (
        compute_calibration(found.logits, test_labels).ece
        < compute_calibration(test_logits, test_labels).ece / 3
    )
    shuffled = table.assign(label=np.where(table["split"] == "test", 0, table["label"]))
    assert (
        scale_split(shuffled, "test").temperatures == found.temperatures
    )  # no look at what is reported


def test_validation_alone_is_scaled_half_by_half():
    table = make_predictions({"val": 400})
    found = scale_split(table, "val")
    assert (found.source, found.images) == ("halves", (200, 200))
    factor = np.stack(table["logits"])[:, 0] / found.logits[:, 0]
    first = np.isclose(factor, found.temperatures[0])
    assert first.sum() == 200
    other, labels = np.stack(table["logits"])[~first], table["label"].to_numpy()[~first]
    assert found.temperatures[0] == pytest.approx(fit_temperature(other, labels))
    backwards = scale_split(table.iloc[::-1], "val")
    # whatever the order of the rows
    np.testing.assert_allclose(backwards.logits[::-1], found.logits)


def test_too_few_images_and_a_single_class_are_not_scaled():
    assert scale_split(make_predictions({"val": 5}), "val") is None
    assert scale_split(make_predictions({"val": 5, "test": 20}), "test") is None
    assert scale_split(make_table([0] * 99, [[0]] * 99), "val") is None


def test_images_that_are_all_right_do_not_settle_a_temperature():
    table = make_predictions({"val": 100, "test": 100})
    table["label"] = [int(row.argmax()) for row in table["logits"]]
    assert scale_split(table, "test").is_at_limit
    assert not scale_split(make_predictions({"val": 100, "test": 100}), "test").is_at_limit


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_one_image_and_equal_confidences_are_binned(binning):
    assert compute_calibration(np.zeros((1, 2)), np.array([1]), binning).ece == pytest.approx(0.5)
    assert compute_calibration(np.zeros((9, 1)), np.zeros(9, dtype=int), binning).ece == 0


@pytest.mark.train
@pytest.mark.parametrize(
    ("factor", "count"),
    [(1.0, 100), (3.0, 800)]
    + [
        pytest.param(*one, marks=pytest.mark.exhaustive)
        for one in ((1.0, 800), (1.5, 100), (3.0, 100))
    ],
)
def test_the_interval_of_the_error_holds_the_truth_however_well_calibrated(factor, count):
    """Plain percentiles of a bootstrap never contain the error of a calibrated network."""
    logits, labels = draw_logits(200_000, seed=99, factor=factor)
    truth, trials, held = compute_calibration(logits, labels, resamples=0).ece, 120, 0
    for trial in range(trials):
        found = compute_calibration(*draw_logits(count, seed=trial, factor=factor), resamples=200)
        assert found.ece_low <= found.ece <= found.ece_high
        held += found.ece_low <= truth <= found.ece_high
    assert held / trials >= 0.87


def test_without_resamples_the_error_has_no_interval():
    found = compute_calibration(*draw_logits(50), resamples=0)
    assert np.isnan([found.ece_low, found.ece_high]).all()
