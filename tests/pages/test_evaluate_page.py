"""Evaluate: headline, confusions, mistakes, and each tab, on a few coloured images."""

from pathlib import Path

import pandas as pd
import pytest

from finetune_core import paths
from finetune_core.evaluation.comparison.tta import evaluate_flips
from finetune_core.evaluation.single_run import evaluate
from finetune_core.evaluation.single_run.evaluate import HELD_OUT, evaluation
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.events import EpochEnded
from tests.factories import image_folder, tiny_config, train
from tests.pages.harness import (
    button,
    evaluate_state,
    open_page,
    page_text,
    press,
    read_metrics,
    unescaped_text,
    widget_keys,
)

NASTY = '<script>alert("x")<'


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train two runs; return (home, images).

    ``tested`` has no test images of the nasty class, ``untested`` has no test images at all. Three
    images of ``tested`` have a wrong label.
    """
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("images")
    image_folder(folder, {"red": 30, "blue": 30, NASTY: 14})
    rows = []
    for path in sorted(folder.rglob("*.png")):
        name, number = path.parent.name, int(path.stem)
        split = "train" if number < 10 else "val" if number < 14 else "test"
        label = "blue" if name == "red" and number >= 27 else name
        rows.append((path.relative_to(folder).as_posix(), label, split, "AB"[number % 2]))
    manifest = folder / "set.csv"
    pd.DataFrame(rows, columns=["path", "label", "split", "camera"]).to_csv(manifest, index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_HOME", str(home))
        usual = {"strategy": "full", "epochs": 3, "batch_size": 8, "learning_rate": 3e-3}
        for name, config in (
            ("tested", tiny_config(manifest, **usual)),
            ("untested", tiny_config(folder, test_fraction=0, **usual)),
        ):
            run = train(config, paths.runs_dir())
            run.run_dir.rename(paths.runs_dir() / name)
    return home, folder


@pytest.fixture
def in_its_home(trained, monkeypatch):
    monkeypatch.setenv("THAW_HOME", str(trained[0]))
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained[1]))


@pytest.fixture
def run(trained, in_its_home):
    return RunStore(trained[0] / "runs").get_run("tested")


def opened(run_id="tested", view="Mistakes"):
    at = open_page("evaluate", run=run_id, state=evaluate_state(view))
    assert NASTY not in page_text(at)
    return at


def captions(at):
    return [image.proto.imgs[0].caption.replace("\\", "") for image in at.get("image")]


def tables(at):
    return [table.value for table in at.dataframe]


@pytest.mark.train
def test_the_headline_is_of_the_test_images_and_validation_is_called_optimistic(run):
    at = opened()
    result = evaluation(run, "test")
    assert read_metrics(at).keys() == {"Test accuracy", "Majority class"}
    assert any("Export" in box.label for box in at.expander)
    assert result.images == 32
    assert f"32 test images, {HELD_OUT}." in page_text(at)
    at.session_state["evaluate_split"] = "val"
    at.run()
    assert f"chosen on these {evaluation(run, 'val').images} validation images" in page_text(at)
    assert "a little optimistic. Rely on the test images." in page_text(at)
    untested = opened("untested")
    assert "There are no test images." in untested.warning[0].value


def test_classes_stand_with_the_hardest_first_and_absent_ones_have_no_numbers(run):
    at = opened(view="Metrics")
    table = tables(at)[1]
    assert table["recall"].dropna().is_monotonic_increasing
    last = table.iloc[-1]
    assert (last["Class"], last["Images"]) == (NASTY, 0)
    assert table.iloc[-1][["recall", "f1"]].isna().all()
    assert "not defined" in page_text(at)
    assert pd.isna(last["interval"])
    assert all(" to " in interval for interval in table["interval"][:-1])


@pytest.mark.train
def test_a_cell_of_the_matrix_shows_its_images_and_what_the_network_looked_at(run):
    at = opened()
    result = evaluation(run, "test")
    wrong = result.list_confusions(1).iloc[0]
    true, predicted = result.classes.index(wrong["true"]), result.classes.index(wrong["predicted"])
    cell, mistakes = result.get_cell(true, predicted), len(at.get("image"))
    shown = min(12, len(cell))
    assert at.button(key="all-mistakes").disabled
    at.selectbox(key="true-tested-test").set_value(true).run()
    images = result.confusion[true].sum()
    assert f"**All of {wrong['true']}, the highest loss first**: {images} images" in unescaped_text(
        at
    )
    at.selectbox(key="predicted-tested-test").set_value(predicted).run()
    assert len(at.get("image")) == shown > 0
    sample = cell["id"].iloc[0]
    thumbnail = at.button(key=f"open-cell-tested-test-{true}-{predicted}-{sample}")
    assert thumbnail.label.replace("\\", "") == Path(sample).stem
    thumbnail.click().run(timeout=300)
    assert len(at.get("image")) == shown + 4
    assert sample in captions(at)
    assert any(caption.startswith(f"True class: {wrong['true']}") for caption in captions(at))
    assert any(caption.startswith(f"Predicted: {wrong['predicted']}") for caption in captions(at))
    layers = at.selectbox(key="layer-tested")
    # at 32 pixels the maps after it are one cell
    assert layers.options[-1] == "layer3, 2 × 2 (last)"
    assert layers.value == "layer2"
    assert "map of 4 × 4 cells" in page_text(at)
    nasty = result.classes.index(NASTY)
    at.selectbox(key="true-tested-test").set_value(nasty)
    at.selectbox(key="predicted-tested-test").set_value(nasty)
    at.run()
    assert "no image" in page_text(at)
    at.button(key="all-mistakes").click().run()
    assert at.selectbox(key="true-tested-test").value is None
    assert len(at.get("image")) == mistakes


def test_an_image_that_is_gone_is_said_and_nothing_else_breaks(trained, run):
    sample = evaluation(run, "test").mistakes["id"].iloc[0]
    file = trained[1] / sample
    file.rename(file.with_suffix(".away"))
    try:
        at = opened()
        assert "no longer exists" in page_text(at)
        opens = [
            key for key in widget_keys(at) if str(key).startswith("open-mistakes-tested-test-")
        ]
        assert opens
        assert f"open-mistakes-tested-test-{sample}" not in opens
    finally:
        file.with_suffix(".away").rename(file)


def test_mistakes_or_highest_losses(run):
    at = opened()
    result = evaluation(run, "test")
    assert f"{len(result.mistakes)} mistakes" in page_text(at)
    assert len(at.get("image")) == min(12, len(result.mistakes))
    at.session_state["mistakes-by"] = "loss"
    at.run()
    assert len(at.get("image")) == 12
    assert captions(at)[0].endswith(f"loss {result.top_losses['loss'].iloc[0]:.2f}")


def test_a_tab_is_worked_out_only_when_it_is_opened(run):
    for cached in (evaluate._compute_scores, evaluate._compute_class_curves, evaluate._calibrate):
        cached.cache_clear()
    opened()
    at = opened(view="Slices")
    assert "camera" in at.selectbox(key="by-tested-test").options
    assert [
        one.cache_info().misses
        for one in (evaluate._compute_scores, evaluate._compute_class_curves, evaluate._calibrate)
    ] == [0, 0, 0]


def test_all_numbers_have_intervals_and_say_what_they_leave_out(run):
    at = opened(view="Metrics")
    table = tables(at)[0].set_index("Metric")
    assert len(table) == 14
    assert table.loc["Matthews correlation (MCC)", "95 % interval"]
    [headline] = [one for one in at.metric if one.label == "Test accuracy"]
    assert headline.value == table.loc["Test accuracy", "Value"]
    assert headline.delta == f"95 % interval {table.loc['Test accuracy', '95 % interval']}"
    assert all(" to " in interval for interval in table["95 % interval"])
    assert "There are no images of 1 class here" in page_text(at)


def test_curves_of_the_hardest_classes_and_the_areas_of_all(run):
    at = opened(view="Curves")
    assert len(at.get("plotly_chart")) == 2
    areas = tables(at)[2].set_index("Class")
    assert areas.loc[NASTY, "ROC AUC"] == "not defined"
    assert " to " in areas.loc["red", "ROC AUC, 95 % interval"]
    at.multiselect(key="curves-tested-test").set_value([]).run()
    assert "Choose a class" in page_text(at)
    assert not at.get("plotly_chart")


def test_calibration_says_what_the_temperature_was_fitted_on(run):
    at = opened(view="Calibration")
    error = next(metric for metric in at.metric if metric.label == "ECE")
    assert error.delta.startswith("95 % interval ")
    assert "Too few images to fit a temperature on" in page_text(
        at
    )  # there are twelve for validation
    assert read_metrics(at)["Coverage"].endswith("%")
    at.slider(key="threshold").set_value(100).run()
    assert read_metrics(at)["Selective accuracy"] == "–"
    assert len(at.get("plotly_chart")) == 2


@pytest.mark.train
def test_robustness_is_measured_once_and_kept_whatever_is_pressed_meanwhile(
    run, hold_back, wait_until_finished
):
    at = opened(view="Robustness")
    kept = run.run_dir / "robustness-test.parquet"
    assert not kept.exists()
    gate = hold_back("pages.shared.evaluation.tabs.measure_robustness")
    at.button(key="measure").click().run()
    at.segmented_control(key="evaluate_split").set_value("val").run()
    at.segmented_control(key="evaluate_split").set_value("test").run()
    assert at.button(key="measure").disabled
    assert any(button.label == "Stop" for button in at.button)
    gate.set()
    wait_until_finished(at)
    assert kept.is_file()
    again = opened(view="Robustness")
    assert again.button(key="measure").label == "Measure again"
    assert "Most harmful" in page_text(again)
    assert len(again.get("plotly_chart")) == 1


@pytest.mark.train
def test_images_outside_the_folders_that_may_be_read_are_not_shown(
    run, tmp_path, monkeypatch, wait_until_finished
):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    at = opened()
    assert not at.get("image")
    assert unescaped_text(at).count("lies outside the folders that Thaw may read here") == 1
    assert not [key for key in widget_keys(at) if str(key).startswith("open-")]
    at = opened(view="Robustness")
    at.button(key="measure").click().run(timeout=300)
    wait_until_finished(at)
    assert "lies outside the folders" in at.error[0].value


@pytest.mark.train
def test_how_results_are_looked_at_stays_while_other_tabs_and_pages_are(run):
    def look(at, **state):
        for key, value in state.items():
            at.session_state[key] = value
        return at.run()

    at = opened()
    at.segmented_control(key="shares").set_value("true")
    at.segmented_control(key="order").set_value("confusion").run()
    look(at, evaluate_view="Reliability")
    at.segmented_control(key="binning").set_value("mass")
    at.slider(key="threshold").set_value(55).run()
    at.switch_page("pages/runs.py").run()
    at.switch_page("pages/evaluate.py")
    look(at, evaluate_view="Mistakes")
    chosen = [at.segmented_control(key=key).value for key in ("shares", "order")]
    assert chosen == ["true", "confusion"]
    look(at, evaluate_view="Reliability")
    assert at.segmented_control(key="binning").value == "mass"
    assert at.slider(key="threshold").value == 55


@pytest.mark.train
def test_flips_at_test_time_are_measured_at_a_click_and_shown_again(runs, wait_until_finished):
    query = {"run": runs[0].run_id, "state": evaluate_state("Test-time augmentation (flip)")}
    at = open_page("evaluate", **query)
    assert "It was not trained on mirror images" in unescaped_text(at)
    press(at, "Evaluate with flips")
    wait_until_finished(at)
    lines = [one.to_text() for one in evaluate_flips(runs[0])]
    assert len(lines) == 2
    for page in (at, open_page("evaluate", **query)):
        assert all(line in unescaped_text(page) for line in lines)
        assert button(page, "Measure again")


@pytest.mark.train
def test_a_run_stopped_in_bf16_says_so_and_one_click_evaluates_it_in_fp32(
    native_bf16, folder, wait_until_finished
):
    reservation = create_run(tiny_config(folder, precision="bf16"), paths.runs_dir())
    for event in execute(reservation):
        if isinstance(event, EpochEnded):
            request_stop(reservation.run_dir)
    captions = [one.value for one in open_page("train").caption]
    assert any("metrics of each epoch are computed in bf16" in caption for caption in captions)
    at = open_page("evaluate", run=reservation.run_dir.name)
    assert any("Computed in bf16" in warning.value for warning in at.warning)
    press(at, "Evaluate in fp32")
    wait_until_finished(at)
    assert not any("Computed in bf16" in warning.value for warning in at.warning)
    assert "Evaluate in fp32" not in [one.label for one in at.button]
