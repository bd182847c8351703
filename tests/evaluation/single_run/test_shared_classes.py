"""Shifted images of some of a run's classes: both sides are restricted to the shared ones."""

import numpy as np
import pandas as pd
import pytest

from finetune_core.commands.evaluate import evaluation_json
from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.shift import compare_shift
from finetune_core.evaluation.intervals import accuracy_interval, difference_interval
from finetune_core.evaluation.single_run.metrics import to_arrays
from finetune_core.evaluation.single_run.scores import score
from finetune_core.evaluation.single_run.shared_classes import find_shared_classes
from finetune_core.evaluation.single_run.shift_files import Copies, Shift, save_shift
from finetune_core.evaluation.single_run.shifted import LOWER_IS_BETTER, evaluate_shifted
from finetune_core.training.predictions import (
    load_predictions,
    prediction_table,
    predictions_mtime,
    save_predictions,
)
from tests.documents import missing_in_reference

MARK = "0" * 16
CAT, DOG = 0, 1
IMAGES = 80  # of the run's own, every second one a dog


def make_correct(cats, dogs):
    """Return bool ``[images]``: right on these shares of the cats and of the dogs."""
    correct = np.zeros(IMAGES, bool)
    correct[::2] = np.arange(IMAGES // 2) < cats * IMAGES // 2
    correct[1::2] = np.arange(IMAGES // 2) < dogs * IMAGES // 2
    return correct


def save_shifted(run, labels, correct):
    """Store predictions for another data set in the run directory."""
    labels, correct = np.asarray(labels), np.asarray(correct)
    logits = np.eye(2)[np.where(correct, labels, 1 - labels)]
    ids = pd.Series([f"other{at:03d}.png" for at in range(len(labels))])
    shift = Shift(
        "/other",
        MARK,
        predictions_mtime(run.run_dir),
        run.started["classes"],
        {},
        {},
        0,
        Copies(0, 0, 0, 0),
        without_own=True,
    )
    save_shift(run, shift, prediction_table(ids, "shifted", labels, logits))


@pytest.fixture
def hard_dogs(make_run):
    """Make a run right on all cats and half of the dogs, and on 27 of 30 shifted cats."""
    run = make_run(make_correct(cats=1.0, dogs=0.5))
    save_shifted(run, [CAT] * 30, np.arange(30) < 27)
    return run


def test_a_folder_of_the_easy_class_alone_is_no_gain(hard_dogs):
    found = evaluate_shifted(hard_dogs, MARK)
    assert found.shared.names == ("cat",)
    assert (found.own.images, found.own.accuracy) == (IMAGES // 2, 1.0)
    wanted = difference_interval(accuracy_interval(40, 40), accuracy_interval(27, 30))
    assert found.drop == pytest.approx(wanted)
    assert found.drop[0] == pytest.approx(0.1)
    assert "10.0 points below the 100.0 % on 40 test images of the same 1 class" in repr(found)
    said = " ".join(found.list_caveats())
    assert "compared on the 1 class that both have images of: “cat”" in said
    assert "Left out of the run's own images" in said
    assert "“dog” (40 images)" in said
    assert [row[0] for row in found.class_rows()[1]] == ["cat"]


def test_every_metric_is_of_the_same_classes_on_both_sides(hard_dogs):
    found = evaluate_shifted(hard_dogs, MARK)
    own = load_predictions(hard_dogs.run_dir, 2).sort_values("id")
    own = own[(own["split"] == "test") & (own["label"] == CAT)]
    wanted = score(*to_arrays(own)).table.set_index("name")["value"]
    drops = found.drops.set_index("name")
    here = found.scores.table.set_index("name")["value"]
    for name, value in wanted.items():
        sign = -1 if name in LOWER_IS_BETTER else 1
        assert drops.at[name, "value"] == pytest.approx(sign * (value - here[name]), nan_ok=True)
    assert drops.loc["f1_micro"].equals(drops.loc["accuracy"])


def test_the_json_says_which_classes(hard_dogs):
    result = evaluation_json(evaluate_shifted(hard_dogs, MARK))
    assert result["compared_classes"] == ["cat"]
    assert result["own_only_classes"] == {"dog": 40}
    assert result["shifted_only_classes"] == {}
    assert result["in_distribution"]["images"] == 40
    assert not missing_in_reference({*result})


@pytest.mark.train
@pytest.mark.parametrize("measure", ["accuracy", "macro_f1", "log_loss"])
def test_a_comparison_drops_by_the_same_classes(make_run, hard_dogs, measure):
    other = make_run(make_correct(cats=0.9, dogs=1.0), strategy="full")
    save_shifted(other, [CAT] * 30, np.arange(30) < 15)
    both = compare_shift([hard_dogs, other], MARK, measure)
    assert (both.own.images, both.matched.images, both.shifted.images) == (80, 40, 30)
    for arm, drop in zip(both.matched.arms, both.drops, strict=True):
        alone = evaluate_shifted(arm.runs[0], MARK)
        name = {"macro_f1": "f1_macro"}.get(measure, measure)
        wanted = alone.drops.set_index("name").loc[name]
        assert (drop.value, drop.low, drop.high) == pytest.approx(tuple(wanted))
        assert drop.value > 0
    result = both.to_json()
    assert result["compared_classes"] == ["cat"]
    assert result["in_distribution"]["images"] == 40
    assert [one["value"] for one in result["in_distribution"]["arms"]] == [
        arm.score.value for arm in both.matched.arms
    ]
    assert any("“dog” (40 images)" in line for line in both.describe_left_out())
    assert not missing_in_reference({*result, *result["in_distribution"]})


def test_shifted_images_without_own_ones_of_their_class_are_left_out_too(make_run):
    run = make_run(make_correct(cats=1.0, dogs=0.5))
    table = load_predictions(run.run_dir, 2)
    dogs = (table["split"] == "test") & (table["label"] == DOG)
    save_predictions(run.run_dir, table[~dogs], "fp32")
    save_shifted(run, [CAT] * 10 + [DOG] * 5, [True] * 10 + [False] * 5)
    found = evaluate_shifted(run, MARK)
    assert (found.images, found.accuracy, found.own.images) == (10, 1.0, 40)
    assert "Left out of the shifted images" in " ".join(found.list_caveats())
    save_shifted(run, [DOG] * 5, [True] * 5)
    with pytest.raises(RunError, match="no class in common"):
        evaluate_shifted(run, MARK)
    with pytest.raises(RunError, match="no class in common"):
        compare_shift([run], MARK)
    assert evaluate_shifted(run, MARK, "val").shared.names == ("dog",)


def test_where_both_sides_have_all_classes_nothing_is_said():
    found = find_shared_classes(("cat", "dog"), np.array([0, 1, 1]), np.array([1, 0]))
    assert found.is_complete
    assert found.to_sentences() == []
