"""The Evaluate page, run by Streamlit's own test harness against runs that were trained on a few coloured images."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.evaluation.single_run import evaluate
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore
from tests.pages.harness import open_page, words

NASTY = '<script>alert("x")<'
SETTINGS = {
    "image_size": 32,
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def trained(image_folder_once, tmp_path_factory):
    """Where runs and data are: ``tested`` has test images, none of the nasty class, some wrongly labelled; ``untested`` has none."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_HOME", str(home))
        image_folder_once(folder, {"red": 30, "blue": 30, NASTY: 14})
        rows = []
        for path in sorted(folder.rglob("*.png")):
            name, number = path.parent.name, int(path.stem)
            split = "train" if number < 10 else "val" if number < 14 else "test"
            label = "blue" if name == "red" and number >= 27 else name
            rows.append(
                {
                    "path": path.relative_to(folder).as_posix(),
                    "label": label,
                    "split": split,
                    "camera": "AB"[number % 2],
                }
            )
        manifest = folder / "set.csv"
        pd.DataFrame(rows).to_csv(manifest, index=False)
        for name, data, settings in (
            ("tested", manifest, {}),
            ("untested", folder, {"test_fraction": 0}),
        ):
            reservation = create_run(
                make_config({"data": str(data), **SETTINGS, **settings}), paths.runs_dir()
            )
            list(execute(reservation))
            shutil.move(reservation.run_dir, paths.runs_dir() / name)
    return home, folder


@pytest.fixture(autouse=True)
def in_its_home(trained, monkeypatch):
    monkeypatch.setenv("THAW_HOME", str(trained[0]))
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained[1]))


@pytest.fixture
def run(trained):
    return RunStore(trained[0] / "runs").run("tested")


def opened(run_id="tested", view="Mistakes"):
    return open_page("evaluate", run=run_id, state={"evaluate_view": view})


def metrics(at):
    return {metric.label: metric.value for metric in at.metric}


def captions(at):
    return [image.proto.imgs[0].caption.replace("\\", "") for image in at.get("image")]


def tables(at):
    return [table.value for table in at.dataframe]


def test_the_headline_is_of_the_test_images_and_validation_is_called_optimistic(run):
    at = opened()
    result = evaluation(run, "test")
    assert metrics(at)["Images"] == str(result.images) == "32"
    assert "used for nothing before" in words(at)
    at.session_state["evaluate_split"] = "val"
    at.run()
    assert metrics(at)["Images"] == str(evaluation(run, "val").images)
    assert "a little optimistic. Rely on the test images." in words(at)
    untested = opened("untested")
    assert "There are no test images." in untested.warning[0].value


def test_classes_stand_with_the_hardest_first_and_absent_ones_have_no_numbers():
    at = opened()
    table = tables(at)[0]
    assert table["recall"].dropna().is_monotonic_increasing
    last = table.iloc[-1]
    assert (last["Class"], last["Images"]) == (NASTY, 0)
    assert table.iloc[-1][["recall", "f1"]].isna().all()
    assert "not defined" in words(at)
    assert pd.isna(last["interval"])
    assert all(" to " in interval for interval in table["interval"][:-1])


def test_a_cell_of_the_matrix_shows_its_images_and_what_the_network_looked_at(run):
    at = opened()
    result = evaluation(run, "test")
    wrong = result.confusions(1).iloc[0]
    true, predicted = result.classes.index(wrong["true"]), result.classes.index(wrong["predicted"])
    cell, before = result.cell(true, predicted), len(at.get("image"))
    shown = min(6, len(cell))
    at.selectbox(key="true-tested-test").set_value(true).run()
    assert (
        f"**All of {wrong['true']}, the highest loss first**: {result.confusion[true].sum()} images"
        in words(at).replace("\\", "")
    )
    at.selectbox(key="predicted-tested-test").set_value(predicted).run()
    assert len(at.get("image")) == before + shown > before
    sample = cell["id"].iloc[0]
    thumbnail = at.button(key=f"open-cell-tested-test-{true}-{predicted}-{sample}")
    assert thumbnail.label.replace("\\", "") == Path(sample).name
    thumbnail.click().run(timeout=300)
    assert not at.exception
    assert len(at.get("image")) == before + shown + 4
    assert sample in captions(at)
    assert any(caption.startswith(f"True class: {wrong['true']}") for caption in captions(at))
    assert any(caption.startswith(f"Predicted: {wrong['predicted']}") for caption in captions(at))
    layers = at.selectbox(key="layer-tested")
    # at 32 pixels the maps after it are one cell
    assert layers.options[-1] == "block5, 2 × 2 (last)"
    assert layers.value == "block3"
    assert "map of 4 × 4 cells" in words(at)


def test_an_empty_cell_is_said_to_be_empty(run):
    at = opened()
    nasty = evaluation(run, "test").classes.index(NASTY)
    at.selectbox(key="true-tested-test").set_value(nasty)
    at.selectbox(key="predicted-tested-test").set_value(nasty)
    at.run()
    assert "no image" in words(at)


def test_an_image_that_is_gone_is_said_and_nothing_else_breaks(trained, run):
    sample = evaluation(run, "test").mistakes["id"].iloc[0]
    file = trained[1] / sample
    file.rename(file.with_suffix(".away"))
    try:
        at = opened()
        assert "no longer exists" in words(at)
        assert not [
            button for button in at.button if button.key == f"open-mistakes-tested-test-{sample}"
        ]
        assert [
            button
            for button in at.button
            if str(button.key).startswith("open-mistakes-tested-test-")
        ]
    finally:
        file.with_suffix(".away").rename(file)


def test_mistakes_or_highest_losses(run):
    at = opened()
    result = evaluation(run, "test")
    assert f"{len(result.mistakes)} mistakes" in words(at)
    assert len(at.get("image")) == min(12, len(result.mistakes))
    at.session_state["mistakes-by"] = "loss"
    at.run()
    assert len(at.get("image")) == 12
    assert captions(at)[0].endswith(f"loss {result.top_losses['loss'].iloc[0]:.2f}")


def test_a_tab_is_worked_out_only_when_it_is_opened():
    for cached in (evaluate._scores, evaluate._class_curves, evaluate._calibrated):
        cached.cache_clear()
    opened()
    opened(view="Slices")
    assert [
        one.cache_info().misses
        for one in (evaluate._scores, evaluate._class_curves, evaluate._calibrated)
    ] == [0, 0, 0]


def test_all_numbers_have_intervals_and_say_what_they_leave_out():
    at = opened(view="Metrics")
    table = tables(at)[1].set_index("Metric")
    assert len(table) == 14
    assert table.loc["Matthews correlation (MCC)", "95 % interval"]
    assert table.loc["Accuracy", "95 % interval"].endswith("%")
    assert all(" to " in interval for interval in table["95 % interval"])
    assert "There are no images of 1 class here" in words(at)


def test_curves_of_the_hardest_classes_and_the_areas_of_all():
    at = opened(view="Curves")
    assert len(at.get("plotly_chart")) == 3
    areas = tables(at)[1].set_index("Class")
    assert areas.loc[NASTY, "ROC AUC"] == "not defined"
    assert " to " in areas.loc["red", "ROC AUC, 95 % interval"]
    at.multiselect(key="curves-tested-test").set_value([]).run()
    assert "Choose a class" in words(at)
    assert len(at.get("plotly_chart")) == 1


def test_calibration_says_what_the_temperature_was_fitted_on():
    at = opened(view="Calibration")
    error = next(metric for metric in at.metric if metric.label == "ECE")
    assert error.delta.startswith("95 % interval ")
    assert "Too few images to fit a temperature on" in words(at)  # there are twelve for validation
    assert metrics(at)["Coverage"].endswith("%")
    at.slider(key="threshold").set_value(100).run()
    assert metrics(at)["Selective accuracy"] == "–"
    assert len(at.get("plotly_chart")) == 3


def test_slices_offer_what_a_manifest_says():
    at = opened(view="Slices")
    assert "camera" in at.selectbox(key="by-tested-test").options
    assert not at.exception


def test_robustness_is_measured_once_and_stays_with_the_run_whatever_is_pressed_meanwhile(
    run, held_back, finished
):
    at = opened(view="Robustness")
    kept = run.run_dir / "robustness-test.parquet"
    assert not kept.exists()
    gate = held_back("pages.shared.evaluation.tabs.measure_robustness")
    at.button(key="measure").click().run()
    at.segmented_control(key="shares").set_value("true").run()
    assert at.button(key="measure").disabled
    assert any(button.label == "Stop" for button in at.button)
    gate.set()
    finished(at)
    assert kept.is_file()
    again = opened(view="Robustness")
    assert again.button(key="measure").label == "Measure again"
    assert "Most harmful" in words(again)
    assert len(again.get("plotly_chart")) == 2


@pytest.mark.parametrize(
    "view", ["Mistakes", "Metrics", "Curves", "Calibration", "Slices", "Robustness"]
)
def test_names_never_become_markup(view):
    assert NASTY not in words(opened(view=view))


def test_the_network_can_be_exported_from_here():
    assert any("Export" in box.label for box in opened().expander)


def test_images_outside_the_folders_that_may_be_read_are_not_shown(
    run, tmp_path, monkeypatch, finished
):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    at = opened()
    assert not at.get("image")
    assert (
        words(at).replace("\\", "").count("lies outside the folders that Thaw may read here") == 1
    )
    assert not [button for button in at.button if str(button.key).startswith("open-")]
    at = opened(view="Robustness")
    at.button(key="measure").click().run(timeout=300)
    finished(at)
    assert "lies outside the folders" in at.error[0].value


def test_how_results_are_looked_at_stays_while_other_tabs_and_pages_are(run):
    at = opened(view="Calibration")
    at.segmented_control(key="shares").set_value("true")
    at.segmented_control(key="order").set_value("confusion")
    at.segmented_control(key="binning").set_value("mass")
    at.slider(key="threshold").set_value(55).run()
    at.session_state["evaluate_view"] = "Mistakes"
    at.run()
    at.switch_page("pages/runs.py").run()
    at.switch_page("pages/evaluate.py")
    at.session_state["evaluate_view"] = "Calibration"
    at.run()
    assert not at.exception
    assert [at.segmented_control(key=key).value for key in ("shares", "order", "binning")] == [
        "true",
        "confusion",
        "mass",
    ]
    assert at.slider(key="threshold").value == 55
