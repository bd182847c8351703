import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from finetune_core.evaluation.curves import accuracy_interval, coverage_curve, named_at, one_vs_rest, thinned
from finetune_core.evaluation.metrics import evaluate


def judged(count=3000, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)) + np.eye(classes)[labels]
    table = pd.DataFrame({"id": [f"{n}.png" for n in range(count)], "split": "test", "label": labels, "logits": list(logits)})
    return evaluate(table, tuple("abcdefgh"[:classes]))


def test_few_points_draw_the_same_areas():
    result = judged()
    curve = one_vs_rest(result, 1)
    row = result.per_class.iloc[1]
    assert len(curve.roc) <= 300
    assert len(curve.recall_precision) <= 300
    assert oracle.auc(curve.roc["false_positives"], curve.roc["true_positives"]) == pytest.approx(row["roc_auc"], abs=0.003)
    area = oracle.auc(curve.recall_precision["recall"], curve.recall_precision["precision"])
    assert area == pytest.approx(row["average_precision"], abs=0.01)
    assert curve.share == pytest.approx(row["images"] / 3000)


def test_a_curve_of_one_class_only_is_not_defined():
    assert one_vs_rest(judged(5, 1), 0) is None
    table = pd.DataFrame({"id": ["x", "y"], "split": "val", "label": 0, "logits": [np.zeros(2)] * 2})
    assert one_vs_rest(evaluate(table, ("a", "b")), 1) is None


def test_who_names_everything_is_as_accurate_as_ever():
    result = judged()
    curve = coverage_curve(result)
    assert (curve["coverage"].iloc[-1], curve["accuracy"].iloc[-1]) == (1, pytest.approx(result.accuracy))
    assert curve["threshold"].is_monotonic_decreasing
    middle = curve.iloc[len(curve) // 2]
    named = named_at(result, middle["threshold"])
    assert (named.share, named.accuracy) == pytest.approx((middle["coverage"], middle["accuracy"]))
    assert named.low < named.accuracy < named.high


def test_images_of_equal_confidence_are_named_together():
    table = pd.DataFrame(
        {
            "id": list("wxyz"),
            "split": "val",
            "label": [0, 1, 0, 1],
            "logits": [np.array([1.0, 0.0])] * 3 + [np.array([0.0, 3.0])],
        }
    )
    curve = coverage_curve(evaluate(table, ("a", "b")))
    assert curve["coverage"].tolist() == [0.25, 1.0]
    assert curve["accuracy"].tolist() == [1.0, 0.75]


def test_nothing_named_has_no_accuracy():
    nothing = named_at(judged(40), 1.1)
    assert (nothing.images, nothing.share) == (0, 0)
    assert np.isnan([nothing.accuracy, nothing.low, nothing.high]).all()
    assert accuracy_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)  # Wilson 1927


def test_thinning_keeps_both_ends():
    curve = thinned(pd.DataFrame({"x": range(1000)}), 10)
    assert len(curve) == 10
    assert (curve["x"].iloc[0], curve["x"].iloc[-1]) == (0, 999)
