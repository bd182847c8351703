from math import nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as oracle

from finetune_core.errors import RunError
from finetune_core.evaluation.single_run.metrics import confusion_order, evaluate, list_splits
from finetune_core.formatting import format_percent
from tests.evaluation.simulated import make_table

CLASSES = ("a", "b", "c", "never seen")


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 90)
    logits = random.normal(size=(90, 4)).astype(np.float32)
    logits[np.arange(90), labels] += 1.5
    split = np.array(["val"] * 40 + ["test"] * 50)
    return make_table(labels, logits, split)


def test_the_test_split_is_the_one_to_believe(table):
    assert list_splits(table) == ["test", "val"]
    assert evaluate(table, CLASSES).split == "test"
    assert evaluate(table, CLASSES, "val").images == 40


@pytest.mark.train
@given(st.integers(2, 6), st.integers(1, 50), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=25, deadline=None)
def test_per_class_metrics_are_scikit_learns_and_absent_classes_have_none(width, count, seed, data):
    random = np.random.default_rng(seed)
    present = random.choice(width, data.draw(st.integers(1, width)), replace=False)
    labels = random.choice(present, count)
    logits = random.integers(-2, 3, (count, width)).astype(np.float32)
    result = evaluate(make_table(labels, logits, "test"), tuple("abcdef"[:width]))
    predicted, every = logits.argmax(1), np.arange(width)
    assert result.accuracy == oracle.accuracy_score(labels, predicted)
    loss = oracle.log_loss(labels, softmax(logits.astype(float), axis=1), labels=every)
    assert result.loss == pytest.approx(loss)
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
    names = ("precision", "recall", "recall_low", "recall_high")
    precision, recall, low, high = (format_percent(result.per_class[name][0]) for name in names)
    assert rows[0][1:4] == [precision, recall, f"{low} to {high}"]
    assert rows[3][2] == "not defined"


def test_wilson_interval_of_a_known_case():
    table = make_table([0] * 10, [[9, 0]] * 8 + [[0, 9]] * 2)
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
    row = evaluate(make_table([0, 1], [[2, 1]] * 2), ("a", "b")).per_class.iloc[1]
    assert np.isnan(row["precision"])
    assert (row["recall"], row["f1"]) == (0, 0)


def test_losses_are_finite_where_probabilities_vanish():
    result = evaluate(make_table([0, 1], [[0, 2000]] * 2), ("a", "b"))
    losses = result.top_losses[["id", "loss"]].to_numpy().tolist()
    assert losses == [["0.png", 2000.0], ["1.png", 0.0]]
    assert result.loss == 1000


def test_the_hardest_classes_come_first_and_those_without_images_last(table):
    hardest = evaluate(table, CLASSES).hardest_classes
    assert hardest["recall"].head(3).is_monotonic_increasing
    assert hardest["class"].iloc[-1] == "never seen"


def test_a_cell_of_the_confusion_matrix_has_its_images(table):
    result = evaluate(table, CLASSES)
    true, predicted = np.argwhere(result.confusion * (1 - np.eye(4, dtype=int)))[0]
    cell = result.get_cell(true, predicted)
    assert len(cell) == result.confusion[true, predicted]
    assert (cell["label"] == true).all()
    assert (cell["predicted"] == predicted).all()
    assert cell["confidence"].is_monotonic_decreasing
    for axis, whole in ((1, result.get_cell(true, None)), (0, result.get_cell(None, predicted))):
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
    result = evaluate(make_table([0, 0], [[1]] * 2), ("only",))
    assert (result.accuracy, result.loss) == (1.0, 0.0)
    assert not [warning for warning in recwarn if "sklearn" in str(warning.filename)]


def test_a_split_that_was_not_predicted_is_named(table):
    with pytest.raises(RunError, match="no predictions for test images; it has val"):
        evaluate(table[table["split"] == "val"], CLASSES, "test")
