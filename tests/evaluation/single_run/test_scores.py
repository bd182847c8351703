import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn import metrics as oracle
from statsmodels.stats.proportion import proportion_confint

from finetune_core.evaluation.single_run.calibration import compute_calibration
from finetune_core.evaluation.single_run.scores import NAMES, rank_true_class, score


@st.composite
def tables(draw):
    """Draw labels and logits.

    Few different values make ties, few of many classes make absent ones.
    """
    width, count = draw(st.integers(1, 6)), draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = random.choice(width, draw(st.integers(1, width)), replace=False)
    labels = random.choice(present, count)
    logits = (
        random.integers(-3, 4, (count, width)) / 2
        if draw(st.booleans())
        else random.normal(size=(count, width)) * 3
    )
    return labels, logits


def compute_scores(labels, logits, **settings_):
    logs = log_softmax(logits, axis=1)
    return score(labels, np.exp(logs), -logs[np.arange(len(labels)), labels], **settings_)


def values_by_name(found):
    return dict(zip(found.table["name"], found.table["value"], strict=True))


@pytest.mark.train
@given(tables())
@settings(max_examples=30, deadline=None)
def test_every_number_is_scikit_learns(table):
    labels, logits = table
    found = values_by_name(compute_scores(labels, logits, resamples=0))
    every = np.arange(logits.shape[1])
    probabilities = np.exp(log_softmax(logits, axis=1))
    predicted, present = probabilities.argmax(1), np.unique(labels)

    def average(function, name, labels_averaged=present):
        given = {"labels": labels_averaged, "average": name, "zero_division": 0}
        return function(labels, predicted, **given)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, on single classes
        expected = {
            "accuracy": oracle.accuracy_score(labels, predicted),
            "balanced_accuracy": oracle.balanced_accuracy_score(labels, predicted),
            "precision_macro": average(oracle.precision_score, "macro"),
            "recall_macro": average(oracle.recall_score, "macro"),
            "matthews_corrcoef": np.nan,
            "cohen_kappa": np.nan,
            "f1_macro": average(oracle.f1_score, "macro"),
            "f1_weighted": average(oracle.f1_score, "weighted"),
            "f1_micro": average(oracle.f1_score, "micro", every),
            "log_loss": 0,
            "brier": np.mean(((probabilities - np.eye(len(every))[labels]) ** 2).sum(1)),
        }
        if len(present) > 1:
            expected["matthews_corrcoef"] = oracle.matthews_corrcoef(labels, predicted)
            expected["cohen_kappa"] = oracle.cohen_kappa_score(labels, predicted)
        if len(every) > 1:
            expected["log_loss"] = oracle.log_loss(labels, probabilities, labels=every)
    calculated = {name: found[name] for name in expected}
    assert calculated == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(tables())
@settings(max_examples=30, deadline=None)
def test_ranking_numbers_are_scikit_learns_and_not_defined_without_the_class(table):
    labels, logits = table
    found = compute_scores(labels, logits, resamples=0)
    probabilities = np.exp(log_softmax(logits, axis=1))
    defined = []
    for label, row in found.classes.iterrows():
        positive = labels == label
        assert (label in found.absent) == (not positive.any())
        if positive.any():
            assert row["average_precision"] == pytest.approx(
                oracle.average_precision_score(positive, probabilities[:, label])
            )
        else:
            assert np.isnan(row["average_precision"])
        if positive.any() and not positive.all():
            defined.append(oracle.roc_auc_score(positive, probabilities[:, label]))
            assert row["roc_auc"] == pytest.approx(defined[-1])
        else:
            assert np.isnan(row["roc_auc"])
    assert values_by_name(found)["roc_auc"] == pytest.approx(
        np.mean(defined) if defined else np.nan, nan_ok=True
    )


def test_averages_over_classes_are_scikit_learns_where_all_are_present():
    random = np.random.default_rng(1)
    labels, logits = random.integers(0, 7, 400), random.normal(size=(400, 7))
    found = values_by_name(compute_scores(labels, logits, resamples=0))
    probabilities = np.exp(log_softmax(logits, axis=1))
    area = oracle.roc_auc_score(labels, probabilities, multi_class="ovr")
    precision = oracle.average_precision_score(np.eye(7)[labels], probabilities)
    assert (found["roc_auc"], found["average_precision"]) == pytest.approx((area, precision))
    for k in (3, 5):
        assert found[f"top_{k}_accuracy"] == oracle.top_k_accuracy_score(labels, probabilities, k=k)


@pytest.mark.parametrize(
    ("classes", "tops"),
    [(1, []), (2, []), (3, []), (4, ["top_3_accuracy"]), (6, ["top_3_accuracy", "top_5_accuracy"])],
)
def test_only_so_many_guesses_as_leave_something_to_miss(classes, tops):
    logits = np.random.default_rng(0).normal(size=(5, classes))
    found = compute_scores(np.zeros(5, dtype=int), logits, resamples=10)
    assert [name for name in found.table["name"] if name.startswith("top_")] == tops
    assert set(found.table["name"]) <= set(NAMES)


def test_of_equal_classes_the_first_is_the_one_named():
    even = np.full((3, 3), 1 / 3)
    assert rank_true_class(np.array([0, 1, 2]), even).tolist() == [0, 1, 2]


def test_shares_of_images_have_wilsons_interval_and_equal_numbers_have_equal_ones():
    random = np.random.default_rng(7)
    labels = random.integers(0, 7, 74)
    found = compute_scores(labels, random.normal(size=(74, 7)) + np.eye(7)[labels])
    table = found.table.set_index("name")
    for name in ("accuracy", "f1_micro", "top_3_accuracy", "top_5_accuracy"):
        right = round(table.at[name, "value"] * 74)
        wanted = proportion_confint(right, 74, method="wilson")
        assert tuple(table.loc[name, ["low", "high"]]) == pytest.approx(wanted)
    assert table.loc["f1_micro"].equals(table.loc["accuracy"])
    assert table.loc["recall_macro"].equals(table.loc["balanced_accuracy"])


@pytest.mark.train
def test_intervals_are_those_of_resampling_within_classes():
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    logits = random.normal(size=(100, 3)) + 1.2 * np.eye(3)[labels]
    probabilities = np.exp(log_softmax(logits, axis=1))
    predicted = probabilities.argmax(1)
    places = [np.flatnonzero(labels == label) for label in range(3)]
    drawn = [
        np.concatenate([random.choice(place, len(place)) for place in places]) for _ in range(400)
    ]
    macro = {"average": "macro"}
    oracles = {
        "f1_macro": lambda rows: oracle.f1_score(labels[rows], predicted[rows], **macro),
        "roc_auc": lambda rows: oracle.roc_auc_score(
            labels[rows], probabilities[rows], multi_class="ovr"
        ),
        "precision_macro": lambda rows: oracle.precision_score(
            labels[rows], predicted[rows], **macro
        ),
        "matthews_corrcoef": lambda rows: oracle.matthews_corrcoef(labels[rows], predicted[rows]),
        "cohen_kappa": lambda rows: oracle.cohen_kappa_score(labels[rows], predicted[rows]),
    }
    table = compute_scores(labels, logits, resamples=4000).table.set_index("name")
    for name, value_of in oracles.items():
        row = table.loc[name]
        expected = np.percentile([value_of(rows) for rows in drawn], (2.5, 97.5))
        assert (row["low"], row["high"]) == pytest.approx(tuple(expected), abs=0.03)
        assert row["low"] <= row["value"] <= row["high"]


@pytest.mark.train
def test_95_of_100_intervals_hold_the_truth():
    random = np.random.default_rng(3)
    held = 0
    for trial in range(300):
        labels = np.repeat([0, 1], 100)
        logits = np.stack([np.zeros(200), random.normal(size=200) + 2 * (labels - 0.5)], axis=1)
        table = compute_scores(labels, logits, resamples=300, seed=trial).table
        row = table.set_index("name").loc["balanced_accuracy"]
        held += row["low"] <= 0.8413 <= row["high"]  # the normal distribution function at 1
    assert 0.91 <= held / 300 <= 0.98


def test_the_same_seed_gives_the_same_intervals():
    random = np.random.default_rng(4)
    labels, logits = random.integers(0, 3, 50), random.normal(size=(50, 3))
    one, other, third = (compute_scores(labels, logits, seed=seed).table for seed in (0, 0, 1))
    assert one.equals(other)
    assert not one.equals(third)


def test_a_resample_in_parts_is_the_same_size(monkeypatch):
    monkeypatch.setattr("finetune_core.evaluation.single_run.scores._CELLS", 70)
    random = np.random.default_rng(5)
    labels, logits = random.integers(0, 3, 30), random.normal(size=(30, 3))
    row = compute_scores(labels, logits, resamples=99).table.set_index("name").loc["accuracy"]
    assert row["low"] < row["value"] < row["high"]


def test_agreement_beyond_chance_is_not_defined_of_a_single_class_and_nought_of_a_single_answer():
    logits = np.random.default_rng(0).normal(size=(9, 3))
    one = values_by_name(compute_scores(np.zeros(9, dtype=int), logits, resamples=5))
    assert np.isnan([one["matthews_corrcoef"], one["cohen_kappa"]]).all()
    same = values_by_name(
        compute_scores(np.arange(9) % 3, np.tile([2.0, 1.0, 0.0], (9, 1)), resamples=0)
    )
    assert (same["matthews_corrcoef"], same["cohen_kappa"]) == (0, pytest.approx(0))


def test_the_calibration_error_and_its_interval_are_those_of_the_reliability_diagram():
    random = np.random.default_rng(6)
    labels, logits = random.integers(0, 3, 300), random.normal(size=(300, 3)) * 2
    row = (
        compute_scores(labels, logits).table.set_index("name").loc["ece", ["value", "low", "high"]]
    )
    found = compute_calibration(logits, labels)
    assert row.tolist() == pytest.approx([found.ece, found.ece_low, found.ece_high])
