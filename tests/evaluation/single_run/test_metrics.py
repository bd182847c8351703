from math import nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from finetune_core.errors import RunError
from finetune_core.evaluation.single_run.metrics import confusion_order, evaluate, evaluated_splits
from finetune_core.formatting import percent

CLASSES = ("a", "b", "c", "never seen")


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 90)
    logits = random.normal(size=(90, 4)).astype(np.float32)
    logits[np.arange(90), labels] += 1.5
    split = np.array(["val"] * 40 + ["test"] * 50)
    return pd.DataFrame(
        {
            "id": [f"{n}.png" for n in range(90)],
            "split": split,
            "label": labels,
            "logits": list(logits),
        }
    )


def test_the_test_split_is_the_one_to_believe(table):
    assert evaluated_splits(table) == ["test", "val"]
    assert evaluate(table, CLASSES).split == "test"
    assert evaluate(table, CLASSES, "val").images == 40


def test_everything_agrees_with_scikit_learn(table):
    result = evaluate(table, CLASSES)
    rows = table[table["split"] == "test"]
    logits = np.stack(rows["logits"]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels, predicted = rows["label"], logits.argmax(1)
    assert result.accuracy == oracle.accuracy_score(labels, predicted)
    assert result.loss == pytest.approx(oracle.log_loss(labels, probabilities, labels=[0, 1, 2, 3]))
    np.testing.assert_array_equal(
        result.confusion, oracle.confusion_matrix(labels, predicted, labels=[0, 1, 2, 3])
    )
    report = oracle.classification_report(
        labels, predicted, labels=[0, 1, 2, 3], output_dict=True, zero_division=0
    )
    for index, row in result.per_class.iterrows():
        outcome = report[str(index)]
        expected = (
            (outcome["precision"], outcome["recall"], outcome["f1-score"])
            if outcome["support"]
            else (outcome["precision"], nan, nan)
        )
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(expected, nan_ok=True)


@given(st.integers(2, 6), st.integers(1, 50), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=60, deadline=None)
def test_per_class_metrics_are_scikit_learns_and_absent_classes_have_none(width, count, seed, data):
    random = np.random.default_rng(seed)
    present = random.choice(width, data.draw(st.integers(1, width)), replace=False)
    labels, logits = (
        random.choice(present, count),
        random.integers(-2, 3, (count, width)).astype(np.float32),
    )
    table = pd.DataFrame(
        {"id": range(count), "split": "test", "label": labels, "logits": list(logits)}
    )
    result = evaluate(table, tuple("abcdef"[:width]))
    predicted, every = logits.argmax(1), np.arange(width)
    np.testing.assert_array_equal(
        result.confusion, oracle.confusion_matrix(labels, predicted, labels=every)
    )
    outcome = oracle.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    precision, recall, f1, images = (np.asarray(one, dtype=float) for one in outcome)
    precision[result.confusion.sum(0) == 0] = nan
    recall[images == 0] = f1[images == 0] = nan
    expected = np.stack([precision, recall, f1, images], axis=1)
    np.testing.assert_allclose(
        result.per_class[["precision", "recall", "f1", "images"]].to_numpy(float), expected
    )
    assert result.per_class.loc[images == 0, ["roc_auc", "average_precision"]].isna().all(axis=None)
    share = result.per_class[["recall_low", "recall", "recall_high"]].to_numpy()[images > 0]
    assert (np.diff(share, axis=1) >= 0).all()
    assert result.per_class.loc[images == 0, ["recall_low", "recall_high"]].isna().all(axis=None)
    assert len(result.mistakes) == count - round(oracle.accuracy_score(labels, predicted) * count)


def test_shares_in_the_table_of_classes_are_written_as_everywhere_else(table):
    result = evaluate(table, CLASSES)
    _, rows = result.class_table()
    assert rows[0][1:3] == [
        percent(result.per_class["precision"][0]),
        percent(result.per_class["recall"][0]),
    ]
    assert (
        rows[0][3]
        == f"{percent(result.per_class['recall_low'][0])} to {percent(result.per_class['recall_high'][0])}"
    )
    assert rows[3][2] == "not defined"


def test_wilson_interval_of_a_known_case():
    table = pd.DataFrame(
        {
            "id": range(10),
            "split": "val",
            "label": 0,
            "logits": [np.array([9.0, 0.0])] * 8 + [np.array([0.0, 9.0])] * 2,
        }
    )
    result = evaluate(table, ("a", "b"))
    of_class = result.per_class.iloc[0]
    for interval in ((result.low, result.high), (of_class["recall_low"], of_class["recall_high"])):
        assert interval == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927, 8 of 10


def test_mistakes_come_with_the_most_confident_first(table):
    result = evaluate(table, CLASSES)
    assert len(result.mistakes) == round((1 - result.accuracy) * result.images)
    assert result.mistakes["confidence"].is_monotonic_decreasing
    assert (result.mistakes["predicted"] != result.mistakes["label"]).all()


def test_a_class_that_was_never_named_has_no_precision():
    table = pd.DataFrame(
        {"id": ["x", "y"], "split": "val", "label": [0, 1], "logits": [np.array([2.0, 1.0])] * 2}
    )
    row = evaluate(table, ("a", "b")).per_class.iloc[1]
    assert np.isnan(row["precision"])
    assert (row["recall"], row["f1"]) == (0, 0)


def test_losses_are_finite_where_probabilities_vanish():
    table = pd.DataFrame(
        {"id": ["x", "y"], "split": "val", "label": [0, 1], "logits": [np.array([0.0, 2000.0])] * 2}
    )
    result = evaluate(table, ("a", "b"))
    assert result.top_losses[["id", "loss"]].to_numpy().tolist() == [["x", 2000.0], ["y", 0.0]]
    assert result.loss == 1000


def test_the_hardest_classes_come_first_and_those_without_images_last(table):
    hardest = evaluate(table, CLASSES).hardest
    assert hardest["recall"].head(3).is_monotonic_increasing
    assert hardest["class"].iloc[-1] == "never seen"


def test_a_cell_of_the_confusion_matrix_has_its_images(table):
    result = evaluate(table, CLASSES)
    true, predicted = np.argwhere(result.confusion * (1 - np.eye(4, dtype=int)))[0]
    cell = result.cell(true, predicted)
    assert len(cell) == result.confusion[true, predicted]
    assert (cell["label"] == true).all()
    assert (cell["predicted"] == predicted).all()
    assert cell["confidence"].is_monotonic_decreasing
    for axis, whole in ((1, result.cell(true, None)), (0, result.cell(None, predicted))):
        assert len(whole) == result.confusion.sum(axis)[predicted if axis == 0 else true]
        assert set(cell["id"]) <= set(whole["id"])
        assert whole["loss"].is_monotonic_decreasing


def test_classes_that_are_confused_stand_side_by_side():
    confusion = np.diag([20] * 6)
    for one, other in ((0, 5), (2, 4)):
        confusion[one, other] = confusion[other, one] = 9
    order = confusion_order(confusion)
    assert sorted(order) == list(range(6))
    assert abs(order.index(0) - order.index(5)) == 1
    assert abs(order.index(2) - order.index(4)) == 1


@pytest.mark.parametrize("classes", [1, 2, 200])
def test_any_number_of_classes_has_an_order(classes):
    confusion = np.random.default_rng(0).integers(0, 2, (classes, classes))
    assert sorted(confusion_order(confusion)) == list(range(classes))


def test_a_single_class_is_evaluated_without_a_warning(recwarn):
    table = pd.DataFrame(
        {"id": ["x", "y"], "split": "val", "label": 0, "logits": [np.array([1.0])] * 2}
    )
    result = evaluate(table, ("only",))
    assert (result.accuracy, result.loss) == (1.0, 0.0)
    assert not [warning for warning in recwarn if "sklearn" in str(warning.filename)]


def test_a_split_that_was_not_predicted_is_named(table):
    with pytest.raises(RunError, match="no predictions for test images; it has val"):
        evaluate(table[table["split"] == "val"], CLASSES, "test")
