"""Shifted data on Evaluate and Compare."""

from pathlib import Path

import pytest

from finetune_core.data.recent import list_recent_sources, remember_source
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.shift import compare_shift, compute_corrupted_accuracies
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import list_runs_without_shift, load_shifts
from finetune_core.evaluation.single_run.shifted import evaluate_shifted
from finetune_core.formatting import format_percent, format_points
from finetune_core.work import finish
from tests.answers import answer_rightly
from tests.earlier_robustness import write_accuracies
from tests.factories import NASTY, shared_images, tiny_config, trained_run
from tests.pages.harness import (
    button,
    button_labels,
    evaluate_state,
    open_page,
    page_text,
    place_run,
    press,
    unescaped_text,
)
from tests.shifted import darken_images

PINK = "pink <i>*x*"  # a class that no run has
START = "Evaluate on these images"
NOISE = CorruptedSplit("test", "noise", 3)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Copy a run of Last block and one of Feature extraction into the app's own folder."""
    data = shared_images(**{"red": 20, "blue": 20, NASTY: 20})
    monkeypatch.setenv("THAW_DATA_ROOTS", f"{data}:{tmp_path}")
    return [
        place_run(trained_run(tiny_config(data, strategy=strategy)), name)
        for strategy, name in (("feature_extraction", "earlier"), ("last_block", "later"))
    ]


@pytest.fixture
def dark_images(runs, tmp_path):
    """Write darkened test images of two of the classes, and some of an unknown class."""
    tested, data = evaluation(runs[0], "test").predictions["id"], Path(runs[0].config.data)
    known = [sample for sample in tested if not sample.startswith(NASTY)]
    folder = darken_images(known, data, tmp_path / "dark *night*")
    red = [sample for sample in known if sample.startswith("red")]
    return darken_images(red[:2], data, folder, {"red": PINK})


def opened(run, **query):
    return open_page("evaluate", run=run.run_id, state=evaluate_state("Shifted data"), **query)


def deltas(at):
    return {metric.label: (metric.value, metric.delta) for metric in at.metric}


@pytest.mark.train
def test_a_run_is_evaluated_on_another_data_set_and_the_drop_has_an_interval(
    runs, dark_images, wait_until_finished
):
    run = runs[0]
    at = opened(run)
    assert "Drop" not in deltas(at)
    at.text_input(key="other_data").set_value(str(dark_images))
    press(at, START)
    wait_until_finished(at)
    [shift], _ = load_shifts(run)
    found = evaluate_shifted(run, shift.fingerprint)
    drop, low, high = found.drop
    assert deltas(at)["Drop"] == (
        f"{format_points(drop)} points",
        f"95 % interval {format_points(low)} to {format_points(high)}",
    )
    assert deltas(at)["Shifted accuracy"][0] == format_percent(found.accuracy)
    assert deltas(at)["In-distribution accuracy"][0] == format_percent(found.own.accuracy)
    scores, classes = (table.value for table in at.dataframe[-2:])
    assert {"Accuracy", "Balanced accuracy", "F1 (macro)", "Log loss"} <= set(scores["Metric"])
    assert sorted(classes["Class"]) == ["blue", "red"]
    assert f"“{PINK}” (2 images)" in unescaped_text(at)
    assert f"left out of averages: {NASTY}" in unescaped_text(at)
    assert "compared on the 2 classes that both have images of" in unescaped_text(at)
    assert PINK not in page_text(at)  # escaped
    assert NASTY not in page_text(at)
    assert [source.path for source in list_recent_sources([dark_images.parent], 5)] == [
        str(dark_images)
    ]
    assert at.query_params["shifted"] in (shift.fingerprint, [shift.fingerprint])


@pytest.mark.train
def test_its_mistakes_are_shown_from_the_other_data_set_and_can_be_opened(runs, dark_images):
    fingerprint = finish(predict_shifted([runs[0]], str(dark_images)))
    answer_rightly(runs[0], False, fingerprint)
    found = evaluate_shifted(runs[0], fingerprint)
    worst = found.mistakes.iloc[0]
    at = opened(runs[0])
    assert f"{len(found.mistakes)} mistakes" in unescaped_text(at)
    assert len(at.get("image")) == min(12, len(found.mistakes))
    at.button(key=f"open-mistakes-{runs[0].run_id}-{fingerprint}-{worst['id']}").click().run()
    assert f"True class: **{found.classes[worst['label']]}**" in unescaped_text(at)
    assert not at.error
    assert "Grad-CAM" in page_text(at)
    at.segmented_control(key="mistakes-by").set_value("loss").run()
    (dark_images / found.top_losses.iloc[0]["id"]).unlink()
    assert "no longer exists" in unescaped_text(at.run())


@pytest.mark.train
def test_data_that_one_run_has_predicted_are_offered_to_other_runs(
    runs, dark_images, wait_until_finished
):
    finish(predict_shifted([runs[0]], str(dark_images)))
    remember_source(str(dark_images))
    assert "Drop" in deltas(opened(runs[0]))
    other = opened(runs[1])
    assert "Drop" not in deltas(other)
    other.button(key=f"other-{dark_images}").click().run()
    press(other, START)
    wait_until_finished(other)
    assert "Drop" in deltas(other)


@pytest.mark.train
def test_the_address_says_which_data_set(runs, dark_images, tmp_path):
    darker = darken_images(
        evaluation(runs[0], "test").predictions["id"],
        Path(runs[0].config.data),
        tmp_path / "darker",
        noise=120,
    )
    marks = [finish(predict_shifted([runs[0]], str(folder))) for folder in (dark_images, darker)]
    for mark, folder in zip(marks, (dark_images, darker), strict=True):
        at = opened(runs[0], shifted=mark)
        assert at.selectbox(key="shift_box").value == mark
        assert str(folder) in unescaped_text(at)
    assert set(at.selectbox(key="shift_box").options) == {"dark *night*", "darker"}
    at.selectbox(key="shift_box").set_value(marks[0]).run()
    assert at.query_params["shifted"] in (marks[0], [marks[0]])
    assert deltas(at)["Shifted accuracy"][0] == format_percent(
        evaluate_shifted(runs[0], marks[0]).accuracy
    )


def test_while_it_goes_on_the_page_can_be_used_and_it_can_be_stopped(
    runs, dark_images, hold_back, wait_until_finished
):
    at = opened(runs[0])
    at.text_input(key="other_data").set_value(str(dark_images))
    gate = hold_back("pages.shared.evaluation.other_data.predict_shifted")
    press(at, START)
    assert button(at, START).disabled
    press(at, "Stop")
    gate.set()
    wait_until_finished(at)
    assert load_shifts(runs[0]) == ([], [])
    assert not button(at, START).disabled


@pytest.mark.train
def test_data_that_cannot_be_used_are_refused_in_words(runs, tmp_path, wait_until_finished):
    at = opened(runs[0])
    for named, problems in (
        ("", []),
        ("/", ["lies outside the folders"]),
        (str(tmp_path / "nowhere"), ["no folder"]),
    ):
        at.text_input(key="other_data").set_value(named)
        press(at, START)
        wait_until_finished(at)
        assert len(at.error) == len(problems)
        assert all(problem in at.error[0].value for problem in problems)
    assert load_shifts(runs[0]) == ([], [])


@pytest.mark.train
def test_damaged_predictions_are_named_and_can_be_made_again(
    runs, dark_images, wait_until_finished
):
    run = runs[0]
    fingerprint = finish(predict_shifted([run], str(dark_images)))
    file = run.run_dir / f"shifted-{fingerprint}.parquet"
    content = bytearray(file.read_bytes())
    content[8:40] = bytes(32)  # of its rows; what it says of itself is at its end
    file.write_bytes(content)
    at = opened(run)
    assert any("is damaged" in error.value.replace("\\", "") for error in at.error)
    press(at, "Evaluate again")
    wait_until_finished(at)
    assert not at.error
    assert "Drop" in deltas(at)
    file.write_bytes(b"PAR1")
    assert any("is damaged" in warning.value.replace("\\", "") for warning in opened(run).warning)


@pytest.mark.train
def test_compare_has_two_axes_once_the_missing_runs_are_evaluated(
    runs, dark_images, wait_until_finished
):
    fingerprint = finish(predict_shifted(runs[:1], str(dark_images)))
    at = open_page("compare", shift="true")
    assert "1 run of 2 cannot be compared" in unescaped_text(at)
    press(at, "Evaluate the missing 1 run")
    wait_until_finished(at)
    assert list_runs_without_shift(runs, fingerprint) == []
    both = compare_shift(latest_first(runs), fingerprint)
    text = unescaped_text(at)
    assert all(line in text for line in both.shifted.verdict.lines)
    # At the top on all classes; beside the shifted verdict on those that both sides have.
    assert both.own.verdict.answer in text
    assert both.matched.verdict.answer in text
    tables = [table.value for table in at.dataframe]
    columns, rows = both.to_rows()
    assert any(list(table.columns) == columns and table.values.tolist() == rows for table in tables)
    assert not [label for label in button_labels(at) if label.startswith("Evaluate the missing")]
    assert PINK not in page_text(at)


@pytest.mark.train
def test_compare_evaluates_all_runs_on_a_data_set_that_is_named_there(
    runs, dark_images, wait_until_finished
):
    at = open_page("compare", shift="true")
    assert "None of these runs was evaluated on shifted images yet." in unescaped_text(at)
    at.text_input(key="other_data").set_value(str(dark_images))
    press(at, START)
    wait_until_finished(at)
    assert [len(load_shifts(run)[0]) for run in runs] == [1, 1]
    at.segmented_control(key="judged_by").set_value("log_loss").run()
    fingerprint = load_shifts(runs[0])[0][0].fingerprint
    assert compare_shift(
        latest_first(runs), fingerprint, "log_loss"
    ).shifted.verdict.answer in unescaped_text(at)


@pytest.mark.train
def test_corruptions_that_all_runs_know_are_on_the_same_axis(runs):
    finish(measure_robustness(runs[0], "test"))
    assert "None of these runs" in unescaped_text(open_page("compare", shift="true"))
    finish(measure_robustness(runs[1], "test"))
    at = open_page("compare", shifted="corrupted-noise-3")
    assert len(at.selectbox(key="shift_box").options) == 15
    assert "Gaussian noise, strong (0.38)" in at.selectbox(key="shift_box").options
    both = compare_shift(latest_first(runs), NOISE)
    assert shifted_column(at) == [format_percent(arm.score.value) for arm in both.shifted.arms]
    assert both.shifted.verdict.answer in unescaped_text(at)
    at.segmented_control(key="judged_by").set_value("log_loss").run()
    assert compare_shift(
        latest_first(runs), NOISE, "log_loss"
    ).shifted.verdict.answer in unescaped_text(at)


@pytest.mark.train
def test_corruptions_of_an_earlier_version_have_no_verdict_until_measured_again(runs):
    write_accuracies(runs[0], images=evaluation(runs[0], "test").images)
    finish(measure_robustness(runs[1], "test"))
    at = open_page("compare", shifted="corrupted-noise-3")
    found, _ = compute_corrupted_accuracies(compare_runs(latest_first(runs)), NOISE)
    assert shifted_column(at) == [format_percent(one.value) for one in found]
    assert (
        f"measured the robustness of {runs[0].run_id} and kept accuracies only"
        in unescaped_text(at)
    )
    assert "Measure it again" in unescaped_text(at)
    at.segmented_control(key="judged_by").set_value("log_loss").run()
    assert "Measure it again" in unescaped_text(at)
    finish(measure_robustness(runs[0], "test"))
    assert "Measure it again" not in unescaped_text(
        open_page("compare", shifted="corrupted-noise-3")
    )


def shifted_column(at):
    return next(table.value for table in at.dataframe if "Shifted" in table.value.columns)[
        "Shifted"
    ].tolist()


def latest_first(runs):
    """Return the runs in the order of the page: the latest first."""
    return sorted(runs, key=lambda run: run.run_id, reverse=True)
