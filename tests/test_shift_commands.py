"""``evaluate --on`` and ``compare --on``: runs on the images of another data set."""

import json
import shutil

import pytest
from typer.testing import CliRunner

import finetune_core
from finetune_core.__main__ import app
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.shift import (
    compare_shift,
    list_shifts,
)
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import Copies, Shift
from finetune_core.evaluation.single_run.shifted import describe_left_out
from finetune_core.formatting import format_percent, format_points
from finetune_core.runs.store import read_run
from finetune_core.work import finish
from tests.documents import missing_in_reference
from tests.factories import copy_run, shared_images, tiny_config, train, trained_run
from tests.shifted import copy_images, darken_images

SETTINGS = {"epochs": 1, "learning_rate": 0.01, "test_fraction": 0.3}
TAG = "blue [b]"  # a class name with special characters of a terminal


def images():
    return shared_images(**{"red": 24, TAG: 24, "violet": 24})


def thaw(*arguments, exit_code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == exit_code, done.stderr
    return done


@pytest.fixture(scope="module")
def compared(home_of_shared_fixtures, tmp_path_factory):
    """Return runs of two strategies with two seeds each, other data, and the printed comparison."""
    base = tmp_path_factory.mktemp("shifted")
    samples = [f"{name}/{at:03d}.png" for name in ("red", "violet") for at in range(24)]
    other = darken_images(samples, images(), base / "dark")
    darken_images(samples[:4], images(), other, {"red": "[bold]pink"})
    runs = []
    for strategy in ("feature_extraction", "last_block"):
        for seed in (0, 1):
            run = trained_run(tiny_config(images(), **SETTINGS, strategy=strategy, seed=seed))
            runs.append(read_run(copy_run(run.run_dir, base / "runs")))
    folders = [run.run_dir for run in runs]
    return runs, other, json.loads(thaw("compare", *folders, "--on", other, "--json").stdout)


@pytest.mark.train
def test_a_comparison_has_a_verdict_and_numbers_on_either_axis(compared):
    runs, other, result = compared
    shifted = result["shifted"]
    assert (result["split"], shifted["split"], shifted["images"]) == ("test", "shifted", 48)
    assert [arm["arm"] for arm in shifted["arms"]] == [arm["arm"] for arm in result["arms"]]
    own = shifted["in_distribution"]
    assert shifted["compared_classes"] == ["red", "violet"]
    assert own["images"] == result["images"] - sum(shifted["own_only_classes"].values())
    for one, worse, drop in zip(own["arms"], shifted["arms"], shifted["drops"], strict=True):
        assert drop["arm"] == one["arm"]
        assert drop["value"] == pytest.approx(one["value"] - worse["accuracy"])
        assert drop["low"] <= drop["value"] <= drop["high"]
        assert worse["ci_low"] <= worse["accuracy"] <= worse["ci_high"]
    assert shifted["pairs"][0]["strategies"]["verdict"] in shifted["pairs"][0]["verdict"]
    assert " on 48 images: shifted accuracy " in shifted["answer"]
    assert shifted["unknown_classes"] == {"[bold]pink": 4}
    assert shifted["data"] == str(other)
    assert not missing_in_reference({*shifted, *shifted["drops"][0]})
    assert list_shifts(runs).keys() == {shifted["fingerprint"]}


def test_runs_that_have_predicted_it_are_compared_without_asking_them_again(compared, monkeypatch):
    """Read the same predictions from commands, pages and Python functions."""
    runs, other, result = compared
    monkeypatch.setattr(
        "finetune_core.evaluation.single_run.shift.load_predictor",
        lambda *_: pytest.fail("asked again"),
    )
    text = thaw("compare", *(run.run_dir for run in runs), "--on", other).stdout
    assert result["answer"] in text
    assert result["shifted"]["answer"] in text
    assert "48 shifted images" in text
    assert "“[bold]pink” (4 images)" in text


@pytest.mark.train
def test_the_report_holds_the_other_axis(compared, tmp_path):
    runs, other, _ = compared
    usual = [*(run.run_dir for run in runs[:2]), "--json", "--report"]
    thaw("compare", *usual, tmp_path / "without.html")
    assert "Distribution shift" not in (tmp_path / "without.html").read_text()
    done = thaw("compare", *usual, tmp_path / "with.html", "--on", other)
    page = (tmp_path / "with.html").read_text()
    assert "<h2>Distribution shift</h2>" in page
    assert json.loads(done.stdout)["shifted"]["answer"] in page
    assert "48 images of another data set" in page


@pytest.mark.train
def test_on_the_same_images_both_axes_say_the_same(compared, tmp_path):
    runs, *_ = compared
    folder = copy_images(evaluation(runs[0], "test").predictions["id"], images(), tmp_path / "same")
    # exact copies would be left out
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes() + b"\0")
    fingerprint = finish(predict_shifted(runs, str(folder)))
    intervals, tests = ["difference", "ci_low", "ci_high"], ["p", "holm_p", "mcnemar_p"]
    for measure in ("accuracy", "macro_f1", "log_loss"):
        both = compare_shift(runs, fingerprint, measure)
        own, shifted = both.own.to_json(), both.shifted.to_json()
        for one, other in zip(own["pairs"], shifted["pairs"], strict=True):
            for name in (*intervals, *tests, "only_a", "only_b", "image_error"):
                assert other[name] == pytest.approx(one[name], abs=1e-5), (measure, name)
            assert (other["different"], other["verdict"]) == (one["different"], one["verdict"])
        assert (shifted["size"], shifted["action"]) == (own["size"], own["action"])
        assert shifted["answer"] == own["answer"].replace(" test ", " shifted ")
        assert [drop.value for drop in both.drops] == pytest.approx([0] * 2, abs=1e-5)
        assert all(drop.low < 0 < drop.high for drop in both.drops)


@pytest.mark.train
def test_runs_that_left_out_other_images_are_refused_with_the_reason(compared, tmp_path):
    (run, *_), other, _ = compared
    ids = load_dataset(images(), test_fraction=0.3).table["id"]
    half = train(
        tiny_config(copy_images(ids[::2], images(), tmp_path / "half"), **SETTINGS), tmp_path
    )
    done = thaw("compare", run.run_dir, half.run_dir, "--on", other, "--json", exit_code=2)
    assert "not evaluated on the same images" in " ".join(done.stderr.split())
    mixed = copy_images(ids, images(), tmp_path / "mixed")
    darken_images(ids[:4], images(), tmp_path / "dark")
    shutil.copytree(tmp_path / "dark", mixed / "red" / "dark")
    fingerprint = finish(predict_shifted([run, half], str(mixed)))
    with pytest.raises(RunError, match="copies of its own images"):
        compare_runs([run, half], on=fingerprint)


def test_other_data_that_are_not_there_are_refused_before_anything_trains(compared, tmp_path):
    nowhere, runs_dir = tmp_path / "nowhere", tmp_path / "runs"
    asked = ("compare", images(), "--on", nowhere, "--runs-dir", runs_dir)
    assert "no folder" in thaw(*asked, exit_code=2).stderr
    assert not runs_dir.exists()
    folder = compared[0][0].run_dir
    assert "no folder" in thaw("evaluate", folder, "--on", nowhere, exit_code=2).stderr
    with pytest.raises(FinetuneError, match="no folder"):
        finetune_core.compare(compared[0], on=nowhere)


def test_an_evaluation_on_other_data_holds_the_runs_own_and_the_drop(compared):
    (run, *_), other, _ = compared
    result = json.loads(thaw("evaluate", run.run_dir, "--on", other, "--json").stdout)
    own = json.loads(thaw("evaluate", run.run_dir, "--json").stdout)
    restricted, drops = result["in_distribution"], result["drops"]
    assert result["own_only_classes"] == {TAG: own["images"] - restricted["images"]}
    assert restricted.keys() == own.keys()
    assert (result["split"], result["images"], result["precision"]) == ("shifted", 48, "fp32")
    assert result["on"]["unknown_classes"] == {"[bold]pink": 4}
    assert result["absent_classes"] == [TAG]
    lower = restricted["accuracy"] - result["accuracy"]
    assert drops["accuracy"]["value"] == pytest.approx(lower)
    assert drops["log_loss"]["value"] == pytest.approx(result["loss"] - restricted["loss"])
    for drop in drops.values():
        if drop["value"] is not None and drop["low"] is not None:
            assert drop["low"] <= drop["value"] <= drop["high"]
    assert not missing_in_reference({*result, *result["on"], *drops["accuracy"]})
    found = finetune_core.evaluate(run, on=other)
    assert (found.accuracy, found.own.accuracy) == (result["accuracy"], restricted["accuracy"])
    assert found.drop == tuple(drops["accuracy"].values())
    assert found.describe_drop() in repr(found)
    columns, rows = found.score_rows()
    cell = dict(zip(columns, rows[0], strict=True))["Drop"]
    assert cell == f"{format_points(found.drop[0])} points"
    assert f"{format_percent(found.low)} to {format_percent(found.high)}" in rows[0]


def test_people_read_the_drop_with_its_interval_and_what_was_left_out(compared):
    (run, *_), other, _ = compared
    text = " ".join(thaw("evaluate", run.run_dir, "--on", other).stdout.split())
    assert "Shifted accuracy" in text
    assert "95 % interval of the drop" in text
    assert "“[bold]pink” (4 images)" in text
    assert f"Without images here, and left out of averages: {TAG}." in text


def test_copies_of_what_an_earlier_run_was_trained_on_are_contamination():
    shift = Shift("/other", "0" * 16, 1, ["cat"], {}, {}, 0, Copies(0, 0, 0, earlier=3))
    said = "3 images may be copies of training images of a run that this one started from"
    assert said in " ".join(describe_left_out(shift))


@pytest.mark.train
def test_in_python_the_comparison_is_that_of_the_command_and_shows_itself(compared, tmp_path):
    runs, other, result = compared
    folders, report = [run.run_dir for run in runs], tmp_path / "report.html"
    found = finetune_core.compare(folders, on=other, report=report)
    assert found.to_json() == result["shifted"]
    assert found.own.to_json()["pairs"] == result["pairs"]
    assert "<h2>Distribution shift</h2>" in report.read_text()
    shown = found._repr_html_()
    assert "48 images of another data set" in shown
    assert "[bold]pink" in shown
    assert str(found.shifted.verdict) in repr(found)
    assert str(found.own.verdict) in repr(found)
    assert finetune_core.compare(runs).to_json()["pairs"] == result["pairs"]
