import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from finetune_core.errors import RunError
from finetune_core.evaluation.metrics import evaluate, judged_splits

CLASSES = ("a", "b", "c", "never seen")


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 90)
    logits = random.normal(size=(90, 4)).astype(np.float32)
    logits[np.arange(90), labels] += 1.5
    split = np.array(["val"] * 40 + ["test"] * 50)
    return pd.DataFrame({"id": [f"{n}.png" for n in range(90)], "split": split, "label": labels, "logits": list(logits)})


def test_the_test_split_is_the_one_to_believe(table):
    assert judged_splits(table) == ["test", "val"]
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
    np.testing.assert_array_equal(result.confusion, oracle.confusion_matrix(labels, predicted, labels=[0, 1, 2, 3]))
    report = oracle.classification_report(labels, predicted, labels=[0, 1, 2, 3], output_dict=True, zero_division=0)
    for index, row in result.per_class.iterrows():
        told = report[str(index)]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(
            (told["precision"], told["recall"], told["f1-score"])
        )


def test_wilson_interval_of_a_known_case():
    table = pd.DataFrame(
        {"id": range(10), "split": "val", "label": 0, "logits": [np.array([9.0, 0.0])] * 8 + [np.array([0.0, 9.0])] * 2}
    )
    result = evaluate(table, ("a", "b"))
    assert (result.low, result.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927, 8 of 10


def test_mistakes_come_with_the_most_confident_first(table):
    result = evaluate(table, CLASSES)
    assert len(result.mistakes) == round((1 - result.accuracy) * result.images)
    assert result.mistakes["confidence"].is_monotonic_decreasing
    assert (result.mistakes["predicted"] != result.mistakes["label"]).all()


def test_a_single_class_is_judged_without_a_warning(recwarn):
    table = pd.DataFrame({"id": ["x", "y"], "split": "val", "label": 0, "logits": [np.array([1.0])] * 2})
    result = evaluate(table, ("only",))
    assert (result.accuracy, result.loss) == (1.0, 0.0)
    assert not [warning for warning in recwarn if "sklearn" in str(warning.filename)]


def test_a_split_that_was_not_predicted_is_named(table):
    with pytest.raises(RunError, match="no predictions for test images; it has val"):
        evaluate(table[table["split"] == "val"], CLASSES, "test")
