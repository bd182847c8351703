"""Dataset → Camera and Predict → Live camera, with batches as the component would send them."""

import os
from types import SimpleNamespace

import pytest
import streamlit as st

from finetune_core import paths
from finetune_core.data.camera import (
    choose_split,
    list_frames_by_class,
    manifest_path,
    recordings_folder,
)
from finetune_core.data.entry import load_split
from finetune_core.training.strategies.catalogue import BASELINE
from finetune_core.work import finish
from pages.shared import camera
from tests.data.test_camera import encode_base64, jpeg, make_message, press
from tests.factories import tiny_config, tiny_weights, train, trained_run
from tests.pages.harness import ANN, open_page, page_text, place_run

FINE_TUNING = {BASELINE, "feature_extraction", "last_block"}


@pytest.fixture
def component(monkeypatch):
    """Return the camera's latest arguments; ``sends`` arrives with the next drawing of the page."""
    found = SimpleNamespace(data={}, sends=None)

    def drawn(*, data, key, on_frames_change):
        if found.sends is not None:
            st.session_state[key], found.sends = SimpleNamespace(frames=found.sends), None
            on_frames_change()
            st.rerun()
        found.data = data

    monkeypatch.setattr(camera, "_CAMERA", drawn)
    return found


def opened(page="dataset", **state):
    return open_page(page, state={"data_source": "camera"} | state)


def click(at, key):
    at.button(key=key).click().run()
    return at


def recorded(presses=2, classes=("cup", "pen")):
    for number, name in enumerate(classes):
        for one in range(presses):
            folder = press(
                f"{name}{one}",
                name,
                [jpeg(1000 * number + 100 * one + frame) for frame in range(6)],
                recording="objects",
            )
    return folder


def test_frames_that_arrive_are_kept_and_the_component_hears_of_it(component):
    at = opened(recording_class="cup")
    assert component.data == {
        "mode": "record",
        "recording": "objects",
        "class_name": "cup",
        "ready": False,
        "answered": "",
        "unstored": "",
    }
    component.sends = make_message(
        recording="objects", frames=[encode_base64(jpeg()), encode_base64(jpeg(1))]
    )
    at.run()
    assert component.data["answered"] == "a1"
    assert list_frames_by_class(recordings_folder() / "objects") == {
        "cup": ["p1_00000.jpg", "p1_00001.jpg"]
    }
    assert "**cup** · 2 frames · 1 recording · 2 more needed" in page_text(at)


def test_what_the_disk_could_not_take_is_said_and_sent_again_until_it_is_stored(
    component, monkeypatch
):
    at = opened(recording_class="cup")
    with monkeypatch.context() as full:
        full.setattr(
            "finetune_core.data.limits.shutil.disk_usage",
            lambda _folder: SimpleNamespace(free=1000),
        )
        component.sends = make_message(recording="objects")
        at.run()
    assert "The latest frames are not stored" in at.error[0].value
    assert (component.data["answered"], component.data["unstored"]) == ("", "a1")
    component.sends = make_message(recording="objects")
    at.run()
    assert not at.error
    assert (component.data["answered"], component.data["unstored"]) == ("a1", "")
    assert list_frames_by_class(recordings_folder() / "objects") == {"cup": ["p1_00000.jpg"]}


def test_what_is_not_taken_is_said_and_answered_once(component):
    at = opened(recording_class="cup")
    for hostile in (
        {"id": "a1"},
        make_message(frames=["?"]),
        make_message(**{"class": "../../up"}),
        "x",
    ):
        component.sends = hostile
        at.run()
        assert len(at.error) == 1
        assert not (paths.data_dir() / "camera").exists()
    assert component.data["answered"] == "a1"


def test_a_name_that_cannot_be_one_is_said_at_its_field_and_nothing_can_be_recorded(component):
    at = opened(recording_class="a/b")
    assert "The class needs another name" in at.error[0].value
    assert component.data["class_name"] == ""


@pytest.mark.train
def test_frames_are_deleted_one_by_one_or_all_of_a_class_and_come_back(component):
    folder = recorded()
    at = opened(recording_class="cup")
    frame = "cup/cup1_00005.jpg"
    at.checkbox(key=f"choose-recorded-objects-cup-{frame}").check().run()
    click(at, "delete-frames")
    assert not (folder / frame).exists()
    assert "1 frame deleted." in page_text(at)
    click(at, "delete-class")
    assert list(list_frames_by_class(folder)) == ["pen"]
    click(at, "undo-delete")
    assert len(list_frames_by_class(folder)["cup"]) == 11


def test_one_class_is_not_enough_and_one_press_gives_no_honest_test(component):
    recorded(classes=("cup",), presses=1)
    at = opened(recording_class="cup")
    assert at.button(key="train-on-recording").disabled
    assert at.button(key="compare-recording").disabled
    assert "record it once more, or its accuracy will be too high" in page_text(at)


@pytest.mark.train
def test_a_recording_leads_to_configure_and_to_a_comparison_with_fine_tuning(component):
    folder = recorded()
    at = opened(recording_class="cup")
    at.session_state["form_strategy"] = "full"
    click(at, "train-on-recording")
    assert at.session_state["data_path"][1] == str(manifest_path(folder))
    assert at.session_state["form_strategy"] == BASELINE
    assert load_split(manifest_path(folder))["near_duplicates"] == "together"
    assert "objects\\.csv**: 24 images in 2 classes" in page_text(at)
    at = click(opened(recording_class="cup"), "compare-recording")
    assert set(at.session_state["compare_strategies"]) == FINE_TUNING
    assert any(button.label.startswith("Start ") for button in at.button)


def test_where_people_sign_in_each_sees_their_own_recordings(component):
    recorded()
    at = open_page("dataset", user=ANN, state={"data_source": "camera", "recording_class": "cup"})
    assert "6 frames" not in page_text(at)
    component.sends = make_message(recording="objects")
    at.run()
    assert "**cup** · 1 frame ·" in page_text(at)
    assert len(list_frames_by_class(recordings_folder() / "objects")["cup"]) == 12


def test_live_frames_are_answered_with_a_bar_for_each_class(component):
    place_run(trained_run(), "finished")
    at = opened("predict", input_kind="live")
    assert "Turn on the camera" in at.info[0].value
    component.sends = {"id": "a1", "frames": [encode_base64(jpeg())]}
    at.run()
    assert component.data == {"mode": "live", "answered": "a1", "unstored": ""}
    bars = at.get("progress")
    shares = [float(bar.proto.value) for bar in bars]
    assert [bar.proto.text.strip("*").split(" ")[0] for bar in bars] == ["blue", "green", "red"]
    assert sum(shares) == pytest.approx(100, abs=2)
    component.sends = {"id": "a2", "frames": ["?"]}
    at.run()
    assert "not base64" in at.error[0].value
    assert component.data["answered"] == "a2"


@pytest.mark.train
def test_a_run_on_a_recording_leads_to_the_live_camera_and_to_a_comparison(component, monkeypatch):
    roots = (paths.data_dir(), tiny_weights().parent)
    monkeypatch.setenv("THAW_DATA_ROOTS", os.pathsep.join(map(str, roots)))
    folder = recorded()
    finish(choose_split(folder))
    train(
        tiny_config(manifest_path(folder), strategy=BASELINE, near_duplicates="together"),
        paths.runs_dir(),
    )
    click(opened("train"), "to-live")
    assert component.data == {"mode": "live", "answered": "", "unstored": ""}
    at = click(opened("predict", input_kind="live"), "compare-live")
    assert set(at.session_state["compare_strategies"]) == FINE_TUNING
    assert "objects\\.csv \\(24 images\\)" in page_text(at)
    assert any(button.label == "Start 7 runs" for button in at.button)
