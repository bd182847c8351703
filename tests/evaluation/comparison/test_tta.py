"""Flips at test time: their mean, the paired test, how they are stored, and warnings."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest

from finetune_core.commands.evaluate import (
    evaluate_own_images,
    evaluation_json,
    measure_tta,
    print_evaluation,
)
from finetune_core.errors import ConfigError, RunError
from finetune_core.evaluation.comparison.tta import evaluate_flips, flip_warnings, tta_json
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.run_images import resolve_run_image
from finetune_core.evaluation.single_run.tta import load_flip_predictions, predict_with_flips
from finetune_core.runs.store import read_run
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.predictions import load_predictions, save_predictions
from finetune_core.work import finish
from tests.documents import missing_in_reference


@pytest.fixture(scope="module")
def flipped_once(trained_runs, tmp_path_factory):
    run = read_run(trained_runs.copied(tmp_path_factory.mktemp("flipped"), "last_block")[0])
    finish(predict_with_flips(run))
    return run


@pytest.fixture
def flipped(flipped_once, tmp_path):
    return read_run(shutil.copytree(flipped_once.run_dir, tmp_path / flipped_once.run_id))


def test_it_is_the_mean_over_the_image_and_its_mirror_image(flipped):
    predictor, table = load_predictor(flipped), load_flip_predictions(flipped)
    some = table.iloc[:: len(table) // 5]
    inputs = [
        network_input(
            resolve_run_image(flipped, one), predictor.network.info, predictor.image_size
        ).tensor
        for one in some["id"]
    ]
    straight, mirrored = (
        predictor.predict_proba_tensor(torch.stack(each))
        for each in (inputs, [one.flip(-1) for one in inputs])
    )
    assert np.abs(straight - mirrored).max() > 1e-4
    found = softmax(np.stack(some["logits"].tolist()).astype(np.float64), axis=1)
    np.testing.assert_allclose(found, (straight + mirrored) / 2, atol=1e-5)
    own = load_predictions(flipped.run_dir)
    assert set(zip(table["split"], table["id"], strict=True)) == set(
        zip(own["split"], own["id"], strict=True)
    )


def test_the_paired_test_is_mcnemars_on_both_splits(flipped):
    found, table, own = (
        evaluate_flips(flipped),
        load_flip_predictions(flipped),
        load_predictions(flipped.run_dir),
    )
    assert [one.plain.split for one in found] == ["test", "val"]
    for one in found:
        without, having = (
            each[each["split"] == one.plain.split]
            .set_index("id")
            .apply(lambda row: row["logits"].argmax() == row["label"], axis=1)
            for each in (own, table)
        )
        without = without.loc[having.index]
        gained, lost = int((having & ~without).sum()), int((without & ~having).sum())
        assert (one.only_with, one.only_without) == (gained, lost)
        assert one.with_flips.accuracy == pytest.approx(having.mean())
        assert one.claim.gain == pytest.approx(having.mean() - without.mean())
        assert one.claim.p == pytest.approx(
            binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        )


def test_a_large_gain_is_told_from_chance_and_a_small_one_is_not(make_run):
    right = np.arange(120) % 2 == 0
    run, better, alike = (
        make_run(right),
        make_run(right | (np.arange(120) < 60)),
        make_run(right | (np.arange(120) < 4)),
    )
    words = []
    for other in (better, alike):
        save_as_flips(run, other)
        [test, _] = evaluate_flips(run)
        words.append((test.different, test.to_text()))
    assert [different for different, _ in words] == [True, False]
    assert "25.0 points against without" in words[0][1]
    assert words[0][1].endswith("better.")
    assert words[1][1].endswith("not distinguishable from without.")


def save_as_flips(run, other):
    """Store the predictions of another run as this run's predictions with flips."""
    from finetune_core.evaluation.single_run import tta
    from finetune_core.training.predictions import predictions_mtime, write_table

    facts = {tta._FACTS: json.dumps({"predictions": predictions_mtime(run.run_dir)}).encode()}
    write_table(run.run_dir / tta._FILE, load_predictions(other.run_dir), facts)


def test_it_is_kept_until_the_run_is_evaluated_anew(flipped):
    assert load_flip_predictions(read_run(flipped.run_dir)) is not None
    measure_tta(flipped, "flips")  # known: nothing is computed
    save_predictions(flipped.run_dir, load_predictions(flipped.run_dir), "fp32")
    assert evaluate_flips(flipped) == []
    (flipped.run_dir / "tta-flips.parquet").write_bytes(b"nothing")
    assert tta_json(flipped) is None


def test_what_is_asked_for_wrongly_is_refused(flipped):
    with pytest.raises(ConfigError, match="tta: must be flips, not 'crops'"):
        measure_tta(flipped, "crops")
    save_predictions(flipped.run_dir, load_predictions(flipped.run_dir), "bf16")
    with pytest.raises(RunError, match="was evaluated in bf16"):
        finish(predict_with_flips(flipped))


def test_the_command_prints_it_and_every_field_is_in_the_reference(flipped, capsys):
    result = json.loads(
        json.dumps(
            evaluation_json(evaluate_own_images(flipped, None, corrupt=False)), allow_nan=False
        )
    )
    assert result["tta"]["how"] == "flips"
    assert not missing_in_reference({"tta", *result["tta"], *result["tta"]["splits"][0]})
    print_evaluation(evaluate_own_images(flipped, None, corrupt=False))
    assert "With flips: test accuracy" in capsys.readouterr().out


def test_names_that_look_directional_and_networks_that_saw_no_mirror_images_are_warned_of(make_run):
    right = np.ones(20, bool)
    assert flip_warnings(make_run(right, augmentation="flips")) == []
    [untrained] = flip_warnings(make_run(right))
    assert "not trained on mirror images" in untrained
    [named] = flip_warnings(make_run(right, augmentation="flips", classes=("left", "7")))
    assert "“left”, “7” look like directions, letters or digits" in named
