"""``evaluate --on`` and ``compare --on``: runs on the images of another data set, beside their own."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finetune_core
from finetune_core.__main__ import app
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.shift import (
    compare_shift,
    corrupted_accuracies,
    corruptions_of,
    shifts_of,
)
from finetune_core.evaluation.single_run.corruptions import Corrupted
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import Copies, Shift
from finetune_core.evaluation.single_run.shifted import left_out_in_words
from finetune_core.runs.store import RunStore
from finetune_core.work import finish
from tests.documents import missing_in_reference
from tests.shifted import copied, darkened

FAST = (
    "--epochs",
    1,
    "--batch-size",
    16,
    "--image-size",
    32,
    "--lr",
    0.003,
    "--precision",
    "fp32",
    "--test-fraction",
    0.3,
)
TAG = "blue [b]"  # a class whose name means something to a terminal


def thaw(*arguments, exit_code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == exit_code, done.stderr
    return done


@pytest.fixture(scope="module")
def compared(image_folder_once, tmp_path_factory):
    """(folder of runs, data, other data, what was printed): two strategies with two seeds each, trained and compared on both."""
    base = tmp_path_factory.mktemp("shifted")
    data = image_folder_once(base / "images", {"red": 24, TAG: 24, "violet": 24})
    other = darkened(
        [f"{name}/{at:03d}.png" for name in ("red", "violet") for at in range(24)],
        data,
        base / "dark",
    )
    darkened([f"red/{at:03d}.png" for at in range(4)], data, other, {"red": "[bold]pink"})
    choice = ("--strategies", "feature_extraction,last_block", "--seeds", "0,1")
    done = thaw(
        "compare", data, *choice, *FAST, "--on", other, "--runs-dir", base / "runs", "--json"
    )
    return base / "runs", data, other, json.loads(done.stdout)


@pytest.fixture
def runs(compared):
    return [run for run in RunStore(compared[0]).runs() if run.status == "finished"]


def test_a_comparison_has_a_verdict_and_numbers_on_either_axis(compared, runs):
    *_, other, result = compared
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
    assert shifted["strategies"] in shifted["verdict"]
    assert shifted["unknown_classes"] == {"[bold]pink": 4}
    assert shifted["data"] == str(other)
    assert not missing_in_reference({*shifted, *shifted["drops"][0]})
    assert shifts_of(runs).keys() == {shifted["fingerprint"]}


def test_runs_that_have_predicted_it_are_compared_without_asking_them_again(
    compared, runs, monkeypatch
):
    monkeypatch.setattr(
        "finetune_core.evaluation.single_run.shift.load_predictor",
        lambda *_: pytest.fail("asked again"),
    )
    again = json.loads(
        thaw("compare", *(run.run_dir for run in runs), "--on", compared[2], "--json").stdout
    )
    assert again["shifted"]["arms"] == compared[3]["shifted"]["arms"]


def test_the_report_holds_the_other_axis(compared, runs, tmp_path):
    usual = [*(run.run_dir for run in runs[:2]), "--json", "--report"]
    thaw("compare", *usual, tmp_path / "without.html")
    assert "Distribution shift" not in (tmp_path / "without.html").read_text()
    done = thaw("compare", *usual, tmp_path / "with.html", "--on", compared[2])
    page = (tmp_path / "with.html").read_text()
    result = json.loads(done.stdout)
    assert "<h2>Distribution shift</h2>" in page
    assert result["shifted"]["networks"] in page
    assert "48 images of another data set" in page


def test_people_read_both_verdicts(compared, runs):
    text = thaw("compare", *(run.run_dir for run in runs), "--on", compared[2]).stdout
    assert compared[3]["strategies"] in text
    assert compared[3]["shifted"]["strategies"] in text
    assert "48 shifted images" in text
    assert "“[bold]pink” (4 images)" in text


@pytest.mark.parametrize("measure", ["accuracy", "macro_f1", "log_loss"])
def test_on_the_same_images_both_axes_say_the_same(compared, runs, tmp_path, measure):
    ids = evaluation(runs[0], "test").predictions["id"]
    folder = copied(ids, compared[1], tmp_path / "same")
    for file in folder.rglob("*.png"):  # exact copies would be left out
        file.write_bytes(file.read_bytes() + b"\0")
    fingerprint = finish(predict_shifted(runs, str(folder)))
    both = compare_shift(runs, fingerprint, measure)
    own, shifted = both.own.to_json(), both.shifted.to_json()
    for one, other in zip(own["pairs"], shifted["pairs"], strict=True):
        for name in (
            "difference",
            "ci_low",
            "ci_high",
            "p",
            "holm_p",
            "mcnemar_p",
            "only_a",
            "only_b",
            "image_error",
        ):
            assert other[name] == pytest.approx(one[name], abs=1e-5), name
        assert (other["different"], other["verdict"]) == (one["different"], one["verdict"])
    assert shifted["verdict"] == own["verdict"]
    assert [drop.value for drop in both.drops] == pytest.approx([0] * len(both.drops), abs=1e-5)
    assert all(drop.low < 0 < drop.high for drop in both.drops)


def test_of_log_loss_a_drop_is_what_it_rises_by(compared, runs):
    fingerprint = compared[3]["shifted"]["fingerprint"]
    both = compare_shift(runs, fingerprint, "log_loss")
    for arm, other, drop in zip(both.matched.arms, both.shifted.arms, both.drops, strict=True):
        assert drop.value == pytest.approx(other.score.value - arm.score.value)


def test_runs_that_left_out_other_images_are_refused_with_the_reason(compared, runs, tmp_path):
    data, other = compared[1], compared[2]
    table = load_dataset(data, test_fraction=0.3).table
    half = copied(table["id"][::2], data, tmp_path / "half")
    done = thaw("train", half, *FAST, "--runs-dir", tmp_path / "runs", "--json")
    trained = json.loads(done.stdout)["run_dir"]
    done = thaw("compare", runs[0].run_dir, trained, "--on", other, "--json", exit_code=2)
    assert "not evaluated on the same images" in " ".join(done.stderr.split())
    mixed = copied(table["id"], data, tmp_path / "mixed")
    darkened(table["id"][:4], data, tmp_path / "dark")
    shutil.copytree(tmp_path / "dark", mixed / "red" / "dark")
    elsewhere = RunStore(Path(trained).parent).run(Path(trained).name)
    fingerprint = finish(predict_shifted([runs[0], elsewhere], str(mixed)))
    with pytest.raises(Exception, match="copies of its own images"):
        compare_runs([runs[0], elsewhere], on=fingerprint)


def test_other_data_that_are_not_there_are_refused_before_anything_trains(compared, tmp_path):
    done = thaw(
        "compare",
        compared[1],
        *FAST,
        "--on",
        tmp_path / "nowhere",
        "--runs-dir",
        tmp_path / "runs",
        exit_code=2,
    )
    assert "no folder" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_evaluation_on_other_data_holds_the_runs_own_and_the_drop(compared, runs):
    done = thaw("evaluate", runs[0].run_dir, "--on", compared[2], "--json")
    result = json.loads(done.stdout)
    own = json.loads(thaw("evaluate", runs[0].run_dir, "--json").stdout)
    restricted = result["in_distribution"]
    assert result["own_only_classes"] == {TAG: own["images"] - restricted["images"]}
    assert restricted.keys() == own.keys()
    assert (result["split"], result["images"], result["precision"]) == ("shifted", 48, "fp32")
    assert result["on"]["unknown_classes"] == {"[bold]pink": 4}
    assert result["absent_classes"] == [TAG]
    assert result["drops"]["accuracy"]["value"] == pytest.approx(
        restricted["accuracy"] - result["accuracy"]
    )
    for drop in result["drops"].values():
        assert (
            drop["value"] is None
            or drop["low"] is None
            or drop["low"] <= drop["value"] <= drop["high"]
        )
    assert result["drops"]["log_loss"]["value"] == pytest.approx(
        result["loss"] - restricted["loss"]
    )
    assert not missing_in_reference({*result, *result["on"], *result["drops"]["accuracy"]})


def test_people_read_the_drop_with_its_interval_and_what_was_left_out(compared, runs):
    text = " ".join(thaw("evaluate", runs[0].run_dir, "--on", compared[2]).stdout.split())
    assert "shifted images" in text
    assert "95 % interval of the drop" in text
    assert "“[bold]pink” (4 images)" in text
    assert f"Without images here, and left out of averages: {TAG}." in text
    assert (
        "no folder" in thaw("evaluate", runs[0].run_dir, "--on", "/not/there", exit_code=2).stderr
    )


def test_copies_of_what_an_earlier_run_was_trained_on_are_contamination():
    shift = Shift("/other", "0" * 16, 1, ["cat"], {}, {}, 0, Copies(0, 0, 0, earlier=3))
    assert (
        "3 images may be copies of training images of a run that this one started from"
        in " ".join(left_out_in_words(shift))
    )


def test_in_python_the_evaluation_is_that_of_the_command(compared, runs):
    found = finetune_core.evaluate(runs[0], on=compared[2])
    result = json.loads(thaw("evaluate", runs[0].run_dir, "--on", compared[2], "--json").stdout)
    assert (found.accuracy, found.own.accuracy) == (
        result["accuracy"],
        result["in_distribution"]["accuracy"],
    )
    assert found.drop == tuple(result["drops"]["accuracy"].values())
    assert found.drop_in_words() in repr(found)
    columns, rows = found.score_rows()
    assert dict(zip(columns, rows[0], strict=True))["Drop"] == f"{found.drop[0]:.3f}".replace(
        "-", "−"
    )
    assert f"{found.low:.3f} to {found.high:.3f}" in rows[0]


def test_in_python_the_comparison_is_that_of_the_command_and_shows_itself(compared, runs, tmp_path):
    found = finetune_core.compare(
        [run.run_dir for run in runs], on=compared[2], report=tmp_path / "report.html"
    )
    assert found.to_json() == compared[3]["shifted"]
    assert found.own.to_json()["pairs"] == compared[3]["pairs"]
    assert "<h2>Distribution shift</h2>" in (tmp_path / "report.html").read_text()
    shown = found._repr_html_()
    assert "48 images of another data set" in shown
    assert "[bold]pink" in shown
    assert found.shifted.networks in repr(found)
    assert found.own.networks in repr(found)
    alone = finetune_core.compare(runs)
    assert alone.to_json()["pairs"] == compared[3]["pairs"]
    with pytest.raises(FinetuneError, match="no folder"):
        finetune_core.compare(runs, on=tmp_path / "nowhere")


def test_corruptions_that_were_measured_for_all_runs_are_an_axis_too(runs):
    some = runs[:2]
    comparison = compare_runs(some)
    assert corruptions_of(comparison) == []
    known = [finish(measure_robustness(run, "test")) for run in some]
    offered = corruptions_of(comparison)
    assert len(offered) == 15
    found, images = corrupted_accuracies(comparison, Corrupted("test", "noise", 3))
    assert images == comparison.images
    by_run = {
        run.run_id: one.rows.set_index(["corruption", "severity"])["accuracy"]["noise", 3]
        for run, one in zip(some, known, strict=True)
    }
    for arm, accuracy in zip(comparison.arms, found, strict=True):
        values = [by_run[member.run.run_id] for member in arm.members]
        assert accuracy.value == pytest.approx(sum(values) / len(values))
        assert accuracy.low <= accuracy.value <= accuracy.high
