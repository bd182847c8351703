"""Predictions of a run for another data set."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune_core.config import Edit
from finetune_core.data.dataset import load_dataset
from finetune_core.data.edits import add_edits
from finetune_core.errors import DataError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run import shift
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import (
    load_shifted_predictions,
    load_shifts,
    read_shift,
)
from finetune_core.evaluation.single_run.shifted import evaluate_shifted
from finetune_core.runs.store import read_run
from finetune_core.work import finish
from tests.drain import drain
from tests.factories import NASTY, shared_images
from tests.shifted import copy_images, darken_images


@pytest.fixture
def run(trained_runs, tmp_path):
    return read_run(*trained_runs.copied(tmp_path / "runs", "last_block"))


@pytest.fixture(scope="module")
def ids(trained_runs):
    """Return split -> ids of the run's images."""
    table = load_dataset(trained_runs.data).table
    return {split: rows["id"].tolist() for split, rows in table.groupby("split")}


def predict_and_evaluate(run, data, **settings):
    return evaluate_shifted(run, finish(predict_shifted([run], str(data), **settings)))


@pytest.mark.train
def test_the_same_images_in_another_folder_get_the_same_answers(run, ids, trained_runs, tmp_path):
    # Another byte makes another image of the same pixels: exact copies are left out.
    folder = copy_images(ids["test"], trained_runs.data, tmp_path / "same")
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes() + b"\0")
    result = predict_and_evaluate(run, folder)
    own = evaluation(run, "test")
    assert (result.split, result.images, result.accuracy) == ("shifted", own.images, own.accuracy)
    assert result.confusion.tolist() == own.confusion.tolist()
    mine, theirs = (one.predictions.set_index("id")["probabilities"] for one in (own, result))
    assert np.abs(np.stack(mine) - np.stack(theirs[mine.index])).max() < 1e-5
    assert result.drop[0] == 0
    assert result.drop[1] < 0 < result.drop[2]
    assert result.precision == "fp32"
    copies = result.shift.copies
    counted = (copies.training, copies.near, copies.validation, copies.test, copies.problem)
    assert counted == (0, 0, 0, 0, "")


@pytest.mark.train
def test_worse_images_are_predicted_as_predict_does_and_cost_accuracy(
    run, ids, trained_runs, tmp_path
):
    folder = darken_images(ids["test"], trained_runs.data, tmp_path / "dark", noise=110)
    steps, fingerprint = drain(predict_shifted([run], str(folder)))
    assert {"index", "copies", "decode", "evaluate"} <= {step.phase for step in steps}
    table = load_shifted_predictions(run.run_dir, fingerprint, 3)
    result = evaluate_shifted(run, fingerprint)
    probabilities = load_predictor(run).predict_proba([folder / sample for sample in table["id"]])
    rows = result.predictions.set_index("id").loc[table["id"]]
    np.testing.assert_allclose(np.stack(rows["probabilities"]), probabilities, atol=1e-5)
    assert [result.classes[label] for label in table["label"]] == [
        sample.split("/")[0] for sample in table["id"]
    ]
    own = evaluation(run, "test")
    assert result.accuracy < own.accuracy
    assert result.drop[0] == pytest.approx(own.accuracy - result.accuracy)
    # worse, although the number is higher
    assert result.drops.set_index("name").loc["log_loss", "value"] > 0
    assert result.calibrated.scaling is None or result.calibrated.scaling.source == "val"


@pytest.mark.train
def test_a_data_set_is_predicted_once_until_it_changes(
    run, ids, trained_runs, tmp_path, monkeypatch
):
    folder = darken_images(ids["test"], trained_runs.data, tmp_path / "dark")
    first = finish(predict_shifted([run], str(folder)))
    load, loaded = shift.load_predictor, []
    monkeypatch.setattr(
        shift, "load_predictor", lambda *given: loaded.append(given) or load(*given)
    )
    assert finish(predict_shifted([run], str(folder))) == first
    assert not loaded
    moved = folder.rename(tmp_path / "moved")  # what counts is what is in it
    assert finish(predict_shifted([run], str(moved))) == first
    assert not loaded
    add_edits(moved, [Edit(action="exclude", paths=(ids["test"][0],))])
    second = finish(predict_shifted([run], str(moved)))
    assert second != first
    assert len(loaded) == 1
    assert {one.fingerprint for one in load_shifts(run)[0]} == {first, second}
    assert len(load_shifted_predictions(run.run_dir, second, 3)) == len(ids["test"]) - 1


@pytest.mark.train
def test_classes_are_matched_and_what_is_unknown_or_missing_is_named(
    run, ids, trained_runs, tmp_path
):
    samples = [sample for sample in ids["test"] if not sample.startswith(NASTY)]
    folder = darken_images(samples, trained_runs.data, tmp_path / "other", {"red": " RED "})
    darken_images(samples[:3], trained_runs.data, folder, dict.fromkeys(("red", "blue"), "violet"))
    (folder / "blue" / "broken.png").write_bytes(b"no image")
    result = predict_and_evaluate(run, folder)
    assert (result.images, result.shift.unreadable) == (len(samples), 1)
    assert result.shift.respelled == {" RED ": "red"}
    assert result.shift.unknown == {"violet": 3}
    assert [result.classes[label] for label in result.scores.absent] == [NASTY]
    said = " ".join([*result.list_caveats(), result.describe_absent_classes()])
    assert "“ RED ” as “red”" in said
    assert "“violet” (3 images)" in said
    assert NASTY in said


@pytest.mark.train
def test_copies_of_training_images_are_left_out_and_near_ones_are_counted(
    run, ids, trained_runs, tmp_path
):
    folder = darken_images(ids["test"], trained_runs.data, tmp_path / "mixed")
    copy_images(ids["train"][:4], trained_runs.data, folder)
    copy_images(ids["val"][:2], trained_runs.data, folder)
    copy_images(ids["test"][:3], trained_runs.data, folder / "again")
    for file in (folder / "again").rglob("*.png"):
        file.rename(folder / file.parent.name / f"again-{file.name}")
    shutil.rmtree(folder / "again")
    lighter = np.asarray(Image.open(trained_runs.data / ids["train"][5]), dtype=float) * 0.9
    Image.fromarray(np.uint8(lighter)).save(folder / "red" / "nearly.png")
    result = predict_and_evaluate(run, folder)
    copies = result.shift.copies
    assert (copies.training, copies.near, copies.validation, copies.test) == (4, 1, 2, 3)
    used = set(result.predictions["id"])
    assert used == {"red/nearly.png", *ids["test"]}  # the darkened ones
    said = " ".join(result.list_caveats())
    counts = "4 training images, 2 validation images, 3 test images"
    assert f"exact copies of the run's own images: {counts}." in said
    assert "1 image may be near-copies of training images" in said


@pytest.mark.train
def test_a_run_whose_images_are_gone_says_that_copies_were_not_looked_for(
    run, ids, trained_runs, tmp_path
):
    folder = darken_images(ids["test"], trained_runs.data, tmp_path / "dark")
    config = run.config.model_copy(update={"data": str(tmp_path / "gone")})
    (run.run_dir / "config.json").write_text(config.model_dump_json())
    result = predict_and_evaluate(read_run(run.run_dir), folder)
    assert result.images == len(ids["test"])
    assert result.shift.copies.training is None
    assert any("were not looked for" in line for line in result.list_caveats())


def test_data_that_nothing_can_be_evaluated_on_are_refused_in_words(
    run, ids, trained_runs, tmp_path
):
    copies = copy_images(ids["train"][:3], trained_runs.data, tmp_path / "copies")
    for data, said in (
        (shared_images(violet=3, pink=3), "none of the classes"),
        (copies, "exact copy of one of its own images"),
        (trained_runs.data, "exact copy of one of its own images"),
        (tmp_path / "nowhere", "no folder"),
    ):
        with pytest.raises(DataError, match=said):
            predict_and_evaluate(run, data)
    assert load_shifts(run) == ([], [])


@pytest.mark.train
def test_what_lies_outside_the_readable_folders_is_refused_even_packed(
    run, ids, trained_runs, tmp_path
):
    folder = darken_images(ids["test"], trained_runs.data, tmp_path / "outside" / "dark")
    packed = shutil.make_archive(str(tmp_path / "outside" / "dark"), "zip", folder)
    roots = [trained_runs.data]
    for data in (folder, packed):
        with pytest.raises(DataError, match="lies outside the folders"):
            predict_and_evaluate(run, data, roots=roots)
    inside = shutil.copyfile(packed, tmp_path / "dark.zip")
    roots += [tmp_path, os.environ["THAW_HOME"]]
    assert predict_and_evaluate(run, inside, roots=roots).images == len(ids["test"])


@pytest.mark.train
def test_splits_of_the_other_data_do_not_count_and_a_manifest_will_do(
    run, ids, trained_runs, tmp_path
):
    half = len(ids["test"]) // 2
    folder = tmp_path / "split"
    darken_images(ids["test"][:half], trained_runs.data, folder / "train")
    darken_images(ids["test"][half:], trained_runs.data, folder / "val")
    result = predict_and_evaluate(run, folder)
    assert result.images == len(ids["test"])
    samples = result.predictions["id"]
    rows = [f"{sample},{('blue', 'red')[at % 2]}" for at, sample in enumerate(samples)]
    (folder / "set.csv").write_text("\n".join(["path,label", *rows]))
    counts = (
        predict_and_evaluate(run, folder / "set.csv")
        .per_class.set_index("class")["images"]
        .to_dict()
    )
    assert counts == {"blue": -(-len(rows) // 2), "red": len(rows) // 2, NASTY: 0}


@pytest.mark.train
def test_work_that_is_broken_off_keeps_nothing_and_several_runs_are_named(
    trained_runs, ids, tmp_path
):
    runs = [read_run(folder) for folder in trained_runs.copied(tmp_path / "runs")]
    folder = darken_images(ids["test"], trained_runs.data, tmp_path / "dark")
    work = predict_shifted(runs, str(folder))
    assert next(step for step in work if step.phase == "evaluate").subject == runs[0].run_id
    work.close()
    assert [load_shifts(run) for run in runs] == [([], [])] * 2
    steps, fingerprint = drain(predict_shifted(runs, str(folder)))
    assert {step.subject for step in steps if step.phase == "evaluate"} == {
        run.run_id for run in runs
    }
    assert [read_shift(run, fingerprint).data for run in runs] == [str(folder)] * 2
    # once: both have the same images
    assert {step.subject for step in steps if step.phase == "copies"} == {runs[0].run_id}
