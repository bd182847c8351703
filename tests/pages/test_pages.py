"""Each page, run by Streamlit's own test harness against real run folders."""

import json
import os
from pathlib import Path

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.models.catalogue import backbone_info
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.strategies import STRATEGIES
from pages.shared.chrome import _UNDER_WHITE
from pages.shared.images import _OPENED_BY_IMAGE
from tests.deadline import wait_until
from tests.factories import NASTY
from tests.pages.harness import button, labels, open_page, words
from tests.trained import QUICK

PAGES = ("dataset", "configure", "train", "evaluate", "compare", "predict", "runs")


@pytest.fixture(autouse=True)
def readable(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))


@pytest.fixture
def run(trained_once, tmp_path, monkeypatch):
    """Puts a run into the app's own folder, or trains one with other settings; returns its id."""
    folder = trained_once.data
    monkeypatch.setenv("THAW_DATA_ROOTS", os.pathsep.join((str(tmp_path), str(folder))))

    def train(**settings):
        if not settings:
            return trained_once.copied(paths.runs_dir(), "last_block")[0].name
        reservation = create_run(
            make_config(QUICK | {"data": str(folder)} | settings), paths.runs_dir()
        )
        list(execute(reservation))
        return reservation.run_dir.name

    train.folder = folder
    train.both = lambda: [run_dir.name for run_dir in trained_once.copied(paths.runs_dir())]
    return train


def tiles(at):
    """The drawn stages."""
    return json.loads(at.get("bidi_component")[0].proto.json)["tiles"]


def looks(at):
    return [tile["look"] for tile in tiles(at)]


@pytest.mark.parametrize("name", ["home", *PAGES])
def test_every_page_opens_on_an_empty_machine_and_offers_a_way_on(name):
    at = open_page(name)
    assert len(at.title) == 1
    assert at.button, "nothing to press"
    if name in ("train", "evaluate", "compare", "predict"):
        assert "Try it now" in labels(at)


def test_home_tells_the_state_of_the_machine():
    at = open_page("home")
    assert {metric.label for metric in at.metric} == {
        "Device",
        "Precision",
        "Free memory",
        "Backbones ready",
    }
    assert labels(at)[0] == "Try it now"


def test_dataset_shows_the_sample_once_it_is_taken():
    at = open_page("dataset")
    assert not at.metric
    button(at, "Use the sample").click().run()
    assert at.query_params["data"] == "digits"
    result = {metric.label: metric.value for metric in at.metric}
    assert result == {
        "Images": "1,797",
        "Classes": "10",
        "Training": "1,259",
        "Validation": "269",
        "Test": "269",
    }
    at.session_state["dataset_view"] = "Images"
    at.run()
    assert len(at.get("image")) == 24


def test_dataset_reports_a_folder_that_is_not_there(tmp_path):
    at = open_page("dataset")
    at.session_state["data_source"] = "folder"
    at.session_state["data_folder"] = str(tmp_path / "nowhere")
    at.run()
    assert "There is no folder" in words(at)


def test_dataset_refuses_a_folder_that_the_server_may_not_read(image_folder, tmp_path_factory):
    folder = image_folder(tmp_path_factory.mktemp("elsewhere"), {"red": 12, "blue": 12})
    at = open_page("dataset")
    at.session_state["data_source"] = "folder"
    at.session_state["data_folder"] = str(folder)
    at.run()
    assert "outside the folders that Thaw may read" in words(at)
    assert not at.metric


def test_dataset_names_what_is_wrong_with_a_folder(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 12, NASTY: 12})
    Path(folder, "red", "text.jpg").write_text("hello")
    victim = sorted(Path(folder, "red").glob("*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:1500])
    at = open_page("dataset")
    at.session_state["data_source"] = "folder"
    at.session_state["data_folder"] = str(folder)
    at.run()
    assert "text\\.jpg is not an image" in words(at)
    assert "damaged or cut short" in words(at)
    assert "<b>" not in words(at).replace("\\<b\\>", "")


def test_configure_draws_the_strategy():
    at = open_page("configure", data="digits")
    assert looks(at) == ["frozen"] * 7 + ["warm", "head"]
    at.session_state["form_strategy"] = "feature_extraction"
    at.run()
    assert looks(at) == ["frozen"] * 8 + ["head"]
    assert "12,810" in words(at)


def test_recipes_set_the_form():
    at = open_page("configure")
    button(at, "The tutorial's recipe").click().run()
    if not backbone_info("resnet18").ready:
        button(at, "Switch to resnet18").click().run()
    assert not at.exception
    state = {
        name: at.session_state[f"form_{name}"]
        for name in ("backbone", "strategy", "optimizer", "learning_rate", "batch_size")
    }
    assert state == {
        "backbone": "resnet18",
        "strategy": "last_block",
        "optimizer": "adam",
        "learning_rate": "0.0001",
        "batch_size": 32,
    }
    assert at.session_state["form_epochs"] == 10
    assert at.session_state["form_image_size"] == 224
    assert [tile["name"] for tile in tiles(at)] == [
        "stem",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "head",
    ]
    button(at, "Feature extraction").click().run()
    assert (at.session_state["form_strategy"], at.session_state["form_learning_rate"]) == (
        "feature_extraction",
        "0.001",
    )


def test_bad_values_are_refused_beside_their_fields_all_at_once():
    at = open_page("configure", data="digits")
    at.number_input(key="form_epochs").set_value(-1)
    at.number_input(key="form_batch_size").set_value(0)
    at.text_input(key="form_learning_rate").set_value("fast")
    at.run()
    text = words(at)
    assert "Epochs must be at least 1" in text
    assert "Batch size must be at least 1" in text
    assert "Learning rate must be a number" in text
    assert "3 settings cannot be used" in text
    assert button(at, "Start training").disabled


@pytest.mark.parametrize("data", [{"data": "digits"}, {}], ids=["data", "no data"])
def test_the_strategy_stays_drawn_whatever_is_wrong_in_the_form(data):
    at = open_page("configure", **data)
    before = [(tile["name"], tile["look"]) for tile in tiles(at)]
    at.text_input(key="form_learning_rate").set_value("fast")
    at.text_input(key="form_weight_decay").set_value("-1")
    at.number_input(key="form_epochs").set_value(0)
    at.number_input(key="form_image_size").set_value(5)
    at.run()
    assert not at.exception
    assert [(tile["name"], tile["look"]) for tile in tiles(at)] == before
    assert {tile["rate"] for tile in tiles(at)} == {"unchanged", "rate ?"}
    assert "Learning rate must be a number" in words(at)


def test_an_error_inside_more_settings_opens_it_and_all_errors_are_listed_beside_start():
    at = open_page("configure", data="digits")
    assert at.session_state["more_settings"] is False
    at.selectbox(key="form_schedule").set_value("cosine").run()
    at.text_input(key="form_warmup_epochs").set_value("3").run()
    assert at.session_state["more_settings"] is False
    at.number_input(key="form_epochs").set_value(2).run()
    assert at.session_state["more_settings"] is True
    text = words(at).replace("\\", "")
    assert "1 setting cannot be used" in text
    assert text.count("the warm-up must end") == 2  # beside its field, and beside the button
    at.session_state["more_settings"] = False
    at.run()
    assert at.session_state["more_settings"] is False, "it was closed on purpose"


def test_custom_rates_and_cut_on_the_page():
    at = open_page("configure")
    at.session_state["form_strategy"] = "custom"
    at.run()
    at.selectbox(key="custom_cut").set_value("block3").run()
    assert looks(at) == ["frozen"] * 3 + ["warm"] * 5 + ["head"]
    assert not at.exception


def test_training_starts_from_the_page_and_is_found_again(run, known):
    at = open_page("configure", data=known(run.folder))
    at.number_input(key="form_image_size").set_value(32)
    at.number_input(key="form_epochs").set_value(3)
    at.run()
    button(at, "Start training").click().run()
    assert not at.exception
    folders = list(paths.runs_dir().iterdir())
    assert len(folders) == 1
    request_stop(folders[0])
    again = open_page("train", run=folders[0].name)
    assert folders[0].name in words(again).replace("\\", "")


def test_train_shows_a_finished_run_with_its_interval(run):
    at = open_page("train", run=run())
    text = words(at)
    assert "correct" in text
    assert "95 % interval" in text
    assert "frozen stages are bit for bit what they were" in text
    assert "See the evaluation" in labels(at)


def test_train_shows_a_failure_in_words(run):
    with pytest.raises(Exception, match="not finite"):
        run(
            backbone="squeezenet1_1",
            weights="none",
            image_size=64,
            optimizer="sgd",
            learning_rate=10,
            strategy="full",
            epochs=30,
        )
    at = open_page("train")
    assert "not finite" in words(at)


def test_a_stopped_run_is_resumed_from_its_page(run):
    reservation = create_run(
        make_config({"data": str(run.folder), "image_size": 32, "epochs": 2}), paths.runs_dir()
    )
    request_stop(reservation.run_dir, pause=True)
    list(execute(reservation))
    at = open_page("train", run=reservation.run_dir.name)
    assert "Resume" in labels(at)
    button(at, "Resume").click().run()
    assert not at.exception
    wait_until(lambda: "RunFinished" in (reservation.run_dir / "events.jsonl").read_text())
    assert "Resume" not in labels(open_page("train", run=reservation.run_dir.name))


def test_an_unknown_run_in_the_address_is_said_and_not_fatal(run):
    run()
    at = open_page("train", run="no-such-run")
    assert "There is no run" in words(at)


def test_evaluate_shows_metrics_and_mistakes(run):
    at = open_page("evaluate", run=run())
    assert {metric.label for metric in at.metric} == {"Accuracy", "95 % interval", "Loss", "Images"}
    assert len(at.get("plotly_chart")) == 1
    assert len(at.dataframe[0].value) == 3


def test_predict_knows_the_classes(run):
    assert "This network distinguishes 3 classes" in words(open_page("predict", run=run()))


def test_names_never_become_markup(run):
    run_id = run()
    for name in ("train", "evaluate", "predict"):
        at = open_page(name, run=run_id)
        assert NASTY not in words(at)
        constants = {_UNDER_WHITE, _OPENED_BY_IMAGE}
        assert {element.proto.body for element in at.get("html")} <= constants


def test_what_people_call_their_runs_never_becomes_markup(run):
    first, second = run.both()
    nasty = "[free money](https://example.org) <b>:red[x]"
    for run_id in (first, second):
        RunStore(paths.runs_dir()).describe(run_id, nasty, f"note {nasty}")
    for name in ("home", "train", "evaluate", "compare", "predict"):
        at = open_page(name, run=first)
        kinds = ("markdown", "caption", "info", "warning", "error", "success", "header", "title")
        texts = [
            element.value
            for kind in kinds
            for element in at.get(kind)
            if "free money" in str(element.value)
        ]
        assert name not in ("home", "train") or texts
        assert not any(
            "](http" in value or "<b>" in value or ":red[" in value for value in texts
        ), (name, texts)


def test_a_browser_that_lags_behind_and_sends_an_old_label_keeps_its_run(run):
    mine, _newer = run.both()
    at = open_page("train", run=mine)
    box, before = at.selectbox(key="run_box"), "what it was called before somebody renamed it"
    box.options.append(before)
    box.select(before).run()
    assert not at.exception
    assert at.query_params["run"] in (mine, [mine])
    assert at.selectbox(key="run_box").value == mine
    assert "There is no run" not in words(at)


def test_a_renamed_run_folder_is_listed_like_any_other(run):
    run_id = run()
    (paths.runs_dir() / run_id).rename(paths.runs_dir() / "baseline")
    assert "baseline" in words(open_page("home"))
    assert "correct" in words(open_page("train", run="baseline"))


@pytest.mark.train
def test_forecast_puts_all_strategies_side_by_side(run, finished, known):
    at = open_page("configure", data=known(run.folder))
    at.number_input(key="form_image_size").set_value(32)
    at.number_input(key="form_batch_size").set_value(4)
    at.run()
    button(at, "Forecast all strategies").click().run()
    finished(at)
    table = at.dataframe[0].value
    assert list(table["Strategy"]) == [
        f"▸ {one.title}" if name == "last_block" else one.title
        for name, one in STRATEGIES.items()
        if name != "custom"
    ]


def closer(run_id, what):
    """What the Train page tells of a run under one of its closer looks."""
    at = open_page("train", run=run_id)
    at.session_state["closer"] = what
    at.run()
    assert not at.exception
    return at


@pytest.mark.train
def test_train_says_where_the_time_went_and_what_the_cache_did(run):
    def result(run_id):
        return words(closer(run_id, "Timing")).replace("\\", "")

    first, second = run(seed=1), run(seed=2)
    assert "Computing the frozen stages (once)" in result(first)
    assert "Frozen stages: not compiled: " in result(first)
    assert "100 % of it was cached before" in result(second)
    assert "compiled" not in result(second)
    assert "nothing is frozen" in result(run(strategy="full"))


def test_train_shows_stages_flips_and_a_log(run):
    run_id = run(epochs=4)
    stages = closer(run_id, "Stages")
    assert len(stages.get("vega_lite_chart")) == 5
    assert "class" in words(closer(run_id, "Prediction flips"))
    log = closer(run_id, "Log").code[0].value.splitlines()
    assert "Finished after" in log[0]  # the latest first
    assert sum("Epoch" in line for line in log) == 4
