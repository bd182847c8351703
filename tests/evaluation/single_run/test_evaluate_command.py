import json
import math

import numpy as np
import pytest

from finetune_core.commands.evaluate import evaluate_own_images, evaluation_json, print_evaluation
from tests.documents import missing_in_reference
from tests.earlier_robustness import write_accuracies

RIGHT = np.arange(120) % 5 > 0  # 80 %


def test_everything_that_the_page_says_is_in_the_json(make_run):
    run = write_accuracies(make_run(RIGHT, classes=("cat", "dog")))
    result = json.loads(
        json.dumps(evaluation_json(evaluate_own_images(run, None, corrupt=False)), allow_nan=False)
    )
    assert (result["split"], result["images"], result["accuracy"]) == ("test", 120, 0.8)
    assert result["scores"]["accuracy"]["value"] == 0.8
    assert (
        result["per_class"][0]["roc_auc_low"]
        <= result["per_class"][0]["roc_auc"]
        <= result["per_class"][0]["roc_auc_high"]
    )
    assert (
        result["per_class"][0]["recall_low"]
        < result["per_class"][0]["recall"]
        < result["per_class"][0]["recall_high"]
    )
    assert {"matthews_corrcoef", "cohen_kappa", "precision_macro", "recall_macro", "ece"} <= set(
        result["scores"]
    )
    assert (
        result["calibration"]["ece_low"]
        <= result["calibration"]["ece"]
        <= result["calibration"]["ece_high"]
    )
    assert result["scores"]["ece"]["high"] == pytest.approx(result["calibration"]["ece_high"])
    sure = math.e / (1 + math.e)
    assert result["calibration"]["ece"] == pytest.approx(0.8 - sure)
    assert result["calibration"]["fitted_on"] == "val"
    assert result["calibration"]["temperature_at_limit"] is False
    # at which it is 80 % sure
    assert result["calibration"]["temperatures"] == [pytest.approx(1 / math.log(4), rel=1e-3)]
    assert result["calibration"]["ece_scaled"] == pytest.approx(0, abs=1e-3)
    for name in ("accuracy", "f1_micro"):
        row = result["scores"][name]
        ends = [result["accuracy_low"], result["accuracy_high"]]
        assert [row["low"], row["high"]] == pytest.approx(ends)
    assert len(result["robustness"]) == 16
    assert result["slices"] == []  # nobody has looked at these images


def test_every_field_is_in_the_json_reference(make_run):
    result = evaluation_json(
        evaluate_own_images(write_accuracies(make_run(RIGHT)), None, corrupt=False)
    )
    rows = (
        result["scores"]["accuracy"],
        result["calibration"],
        result["per_class"][0],
        result["robustness"][0],
    )
    assert not missing_in_reference(
        {*result, *result["scores"], *(name for row in rows for name in row)}
    )


def test_what_is_not_defined_is_null(make_run):
    run = make_run(RIGHT[:10], tested=False, classes=("cat", "dog"))
    result = evaluation_json(evaluate_own_images(run, None, corrupt=False))
    assert result["split"] == "val"
    assert result["robustness"] is None
    assert result["calibration"]["temperatures"] is None  # too few images to fit on
    json.dumps(result, allow_nan=False)


def test_people_read_the_same_and_that_validation_is_optimistic(make_run, capsys):
    run = write_accuracies(make_run(RIGHT))
    print_evaluation(evaluate_own_images(run, None, corrupt=False))
    text = capsys.readouterr().out
    assert "Test accuracy 80.0 % on 120 images" in text
    assert "fitted on other images" in text
    assert "Expected calibration error (ECE) 6.9 % (95 % interval " in text
    assert "Matthews correlation (MCC)" in text
    assert "25.0 %" in text
    assert "optimistic" not in text
    print_evaluation(evaluate_own_images(run, "val", corrupt=False))
    assert "a little optimistic" in capsys.readouterr().out
