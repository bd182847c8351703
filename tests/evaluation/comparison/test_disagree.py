import numpy as np
import pandas as pd
import pytest

from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.disagree import find_disagreements
from finetune_core.training.predictions import prediction_table, save_predictions


def test_every_image_is_on_one_side_whatever_the_order_of_the_rows(make_run):
    right = np.random.default_rng(3).random((2, 60)) < 0.7
    found = find_disagreements(make_run(right[0]), make_run(right[1], strategy="full"))

    def numbered(rows):
        return sorted(int(sample[5:9]) for sample in rows["id"])

    assert numbered(found.only_a) == np.flatnonzero(right[0] & ~right[1]).tolist()
    assert numbered(found.only_b) == np.flatnonzero(~right[0] & right[1]).tolist()
    assert (found.both, found.neither) == (
        (right[0] & right[1]).sum(),
        (~right[0] & ~right[1]).sum(),
    )
    assert found.images == 60
    assert found.split == "test"
    assert (found.only_a["predicted_a"] == found.only_a["label"]).all()
    assert (found.only_a["predicted_b"] != found.only_a["label"]).all()
    assert (found.only_b["predicted_b"] == found.only_b["label"]).all()


def test_the_clearest_cases_come_first_and_say_how_sure_each_run_is(make_run):
    runs = [make_run([True] * 4), make_run([True] * 4, strategy="full")]
    labels = np.array([0, 0, 1, 1])
    given = [[3, 0], [1, 0], [0, 3], [0, 3]], [[0, 3], [0, 9], [1, 0], [0, 1]]  # logits
    for run, logits in zip(runs, given, strict=True):
        table = prediction_table(pd.Series(list("wxyz")), "test", labels, np.array(logits, float))
        save_predictions(run.run_dir, table, "fp32")
    found = find_disagreements(*runs)

    def sure(difference):
        return 1 / (1 + np.exp(-difference))

    apart = {"w": sure(3) - sure(-3), "x": sure(1) - sure(-9), "y": sure(3) - sure(-1)}
    assert found.only_a["id"].tolist() == sorted(apart, key=apart.get, reverse=True)
    result = found.only_a.set_index("id").loc["x"]
    assert result["confidence_a"] == pytest.approx(sure(1))
    assert result["confidence_b"] == pytest.approx(sure(9))
    assert (result["predicted_a"], result["predicted_b"]) == (0, 1)
    assert found.only_b.empty
    assert (found.both, found.neither) == (1, 0)


def test_where_one_run_has_no_test_images_the_validation_images_are_taken(make_run):
    found = find_disagreements(
        make_run([True, False]), make_run([False, True], strategy="full", tested=False)
    )
    assert found.split == "val"
    assert (found.only_a["id"].tolist(), found.only_b["id"].tolist()) == (
        ["vimage0000.png"],
        ["vimage0001.png"],
    )


def test_equal_settings_do_not_hide_different_images(make_run):
    one, other = make_run([True] * 4), make_run([True] * 4, names="other")
    with pytest.raises(RunError, match="not evaluated on the same images"):
        find_disagreements(one, other)
