"""Findings and selections on the Dataset page: what can be done in one click, what is confirmed case by case, and the way back."""

import shutil

import numpy as np
import pytest
from PIL import Image

from finetune_core.config import Edit
from finetune_core.data.dataset import load_dataset
from finetune_core.data.edits import load_edits, save_edits
from finetune_core.data.recent import remember
from tests.pages.harness import button, labels, open_page, press, words


@pytest.fixture(autouse=True)
def readable(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))


@pytest.fixture
def folder(image_folder, tmp_path):
    return image_folder(tmp_path / "images", {"red": 14, "blue": 14})


def opened(folder, view="Findings", page="dataset"):
    return open_page(page, data=remember(str(folder)), state={"dataset_view": view})


def tick(at, sample, key="browse"):
    at.checkbox(key=f"choose-{key}-{sample}").check().run()
    assert not at.exception


def darkened(folder, *names):
    """Images that are nearly black, each darker than the one before."""
    random = np.random.default_rng(0)
    for number, name in enumerate(names):
        Image.fromarray(random.integers(0, 38 - 3 * number, (32, 40), np.uint8)).save(folder / name)


def test_classes_with_similar_names_are_relabelled_pair_by_pair_only(image_folder, tmp_path):
    folder = image_folder(
        tmp_path / "images", {"weasel": 12, "weasels": 14, "rose": 12, "roses": 13}
    )
    at = opened(folder)
    assert "Relabel 12 images of weasel as weasels" in labels(at)
    assert "Relabel 12 images of rose as roses" in labels(at)
    assert not [label for label in labels(at) if "all" in label.lower()]
    press(at, "Relabel 12 images of rose as roses")
    edit = load_edits(folder)[-1]
    assert (edit.action, edit.to, len(edit.paths)) == ("relabel", "roses", 12)
    assert {path.split("/")[0] for path in edit.paths} == {"rose"}


def test_possible_leakage_is_a_warning_and_moves_selected_images_only(image_folder, tmp_path):
    folder = image_folder(
        tmp_path / "images", {"train/red": 14, "train/blue": 14, "val/red": 4, "val/blue": 4}
    )
    for number in range(3):
        with Image.open(folder / f"train/red/00{number}.png") as image:
            image.point(lambda value: value * 0.9).save(folder / f"val/red/copy{number}.png")
    at = opened(folder)
    assert "Possible leakage" in words(at)
    assert not [label for label in labels(at) if label.startswith("Move")]
    tick(at, "val/red/copy1.png", "finding-near_leakage")
    press(at, "Move to the other split the 1 selected")
    assert load_edits(folder) == (
        Edit(action="move", paths=("val/red/copy1.png",), to="train", kind="near_leakage"),
    )


def test_exact_copies_across_splits_keep_their_one_click(image_folder, tmp_path):
    folder = image_folder(
        tmp_path / "images", {"train/red": 14, "train/blue": 14, "val/red": 4, "val/blue": 4}
    )
    for number in range(3):
        shutil.copy(folder / f"train/red/00{number}.png", folder / f"val/red/copy{number}.png")
    press(opened(folder), "Exclude all 3")
    assert load_edits(folder)[0].paths == tuple(f"train/red/00{number}.png" for number in range(3))


def test_a_guess_is_acted_on_beyond_a_threshold_only_when_its_border_was_shown(folder):
    darkened(folder, "red/a.png", "red/b.png", "red/c.png", "red/d.png")
    at = opened(folder)
    assert "Possibly too dark: 4" in words(at)
    assert not [label for label in labels(at) if label.startswith("Exclude")]
    at.slider(key="several-dark").set_value(2).run()
    assert "First ones excluded" in words(at)
    press(at, "Exclude these 2")
    assert load_edits(folder)[0].paths == ("red/d.png", "red/c.png")


def test_a_selection_that_a_filter_hides_is_not_changed(folder):
    at = opened(folder, "Images")
    tick(at, "red/000.png")
    tick(at, "blue/000.png")
    assert "Exclude 2 images" in labels(at)
    next(box for box in at.selectbox if box.label == "Class").select_index(1).run()
    assert "Exclude 1 image" in labels(at)
    press(at, "Exclude 1 image")
    assert load_edits(folder)[0].paths == ("blue/000.png",)
    next(box for box in at.selectbox if box.label == "Class").select_index(0).run()
    assert "Exclude 1 image" in labels(at)  # what was hidden is selected still, and on show again


def test_a_selection_on_another_page_is_shown(folder):
    at = opened(folder, "Images")
    tick(at, "red/000.png")
    at.session_state["browse"] = 2
    at.run()
    assert "Selected on other pages:" in words(at)
    assert at.checkbox(key="choose-browse-red/000.png").value
    at.checkbox(key="choose-browse-red/000.png").uncheck().run()
    assert "Selected on other pages:" not in words(at)


def test_all_that_are_shown_can_be_selected_and_cleared(folder):
    at = press(opened(folder, "Images"), "Select all shown")
    assert "Exclude 24 images" in labels(at)  # of 28: those on the first page
    press(at, "Clear selection")
    assert not [label for label in labels(at) if label.startswith("Exclude")]


def test_every_change_can_be_undone_right_after_it(folder):
    save_edits(folder, [Edit(action="exclude", paths=("red/005.png",))])
    at = opened(folder, "Images")
    assert "undo-last" not in [button.key for button in at.button]
    tick(at, "red/000.png")
    press(at, "Exclude 1 image")
    assert [toast.value.startswith("1 image excluded") for toast in at.toast] == [True]
    at.button(key="undo-last").click().run()
    assert [edit.paths for edit in load_edits(folder)] == [("red/005.png",)]
    assert "undo-last" not in [button.key for button in at.button]
    assert not at.toast


def test_leaving_a_finding_as_it_is_can_be_undone_right_after_it(folder):
    shutil.copy(folder / "red" / "000.png", folder / "red" / "copy.png")
    at = press(opened(folder), "Leave as it is")
    assert load_edits(folder)[0].action == "ignore"
    at.button(key="undo-last").click().run()
    assert load_edits(folder) == ()


def test_a_single_class_cannot_be_trained_and_the_page_says_why(image_folder, tmp_path):
    at = opened(image_folder(tmp_path / "images", {"red": 12}), page="configure")
    start = button(at, "Start training")
    assert start.disabled
    assert "images\\: “red”" in words(at)


def test_no_comparison_is_started_on_a_single_class_and_the_page_says_why(image_folder, tmp_path):
    at = opened(image_folder(tmp_path / "images", {"red": 12}), page="compare")
    assert not [button for button in at.button if button.label.startswith("Start")]
    assert "images\\: “red”" in words(at)


def test_asking_for_the_manifest_does_not_redraw_the_page_which_would_let_go_of_the_file(folder):
    at = opened(folder, "Classes and splits")
    assert [one.proto.ignore_rerun for one in at.get("download_button")] == [True]


@pytest.mark.parametrize(
    "view",
    ["Findings", "Images", "Classes and splits", "Map", "Linear probe by layer", "Preprocessing"],
)
def test_every_view_has_one_primary_button(folder, view):
    at = opened(folder, view)
    assert [one.label for one in at.button if one.proto.type == "primary"] == [
        "Configure the training"
    ]
    assert ("Analyze with embeddings" in labels(at)) == (
        view in ("Findings", "Map", "Linear probe by layer")
    )


def renaming(at, name, to):
    at.selectbox(key="rename-class").select(name).run()
    at.text_input(key=f"rename-to-{name}").set_value(to)
    at.button(key="rename").click().run()
    assert not at.exception
    return at


def split_of(folder):
    return load_dataset(folder, edits=load_edits(folder)).by_id["split"].to_dict()


def test_a_class_is_renamed_and_no_image_changes_its_split(folder):
    before = split_of(folder)
    at = renaming(opened(folder, "Classes and splits"), "red", "crimson")
    assert at.selectbox(key="rename-class").options == ["blue", "crimson"]
    assert split_of(folder) == before
    at.button(key="undo-last").click().run()
    assert at.selectbox(key="rename-class").options == ["blue", "red"]


def test_a_class_renamed_to_another_ones_name_is_merged_and_the_page_says_so_before(
    image_folder, tmp_path
):
    folder = image_folder(tmp_path / "images", {"red": 14, "blue": 14, "green": 12})
    before = split_of(folder)
    at = opened(folder, "Classes and splits")
    at.selectbox(key="rename-class").select("red").run()
    at.text_input(key="rename-to-red").set_value("blue").run()
    assert at.button(key="rename").label == "Merge into blue"
    assert "14 images of red join the 14 of blue" in words(at)
    at.button(key="rename").click().run()
    assert at.selectbox(key="rename-class").options == ["blue", "green"]
    assert split_of(folder) == before
    at.button(key="undo-last").click().run()
    assert at.selectbox(key="rename-class").options == ["blue", "green", "red"]


def test_a_name_that_no_class_can_have_is_said(folder):
    at = renaming(opened(folder, "Classes and splits"), "red", "x" * 1001)
    assert "cannot be renamed" in words(at)
    assert load_edits(folder) == ()


def test_a_pair_of_copies_with_different_labels_is_shown_once_and_either_can_be_selected(folder):
    shutil.copy(folder / "red/003.png", folder / "blue/copy.png")
    at = opened(folder)
    start = "choose-finding-conflicting_labels-"
    assert [one.key for one in at.checkbox if one.key.startswith(start)] == [
        f"{start}blue/copy.png",
        f"{start}red/003.png",
    ]
    assert len(at.get("image")) == 2
    tick(at, "blue/copy.png", "finding-conflicting_labels")
    press(at, "Exclude the 1 selected")
    assert load_edits(folder)[0].paths == ("blue/copy.png",)


def test_what_is_selected_in_one_data_set_is_not_selected_in_another(
    folder, image_folder, tmp_path
):
    other = image_folder(tmp_path / "others", {"red": 14, "blue": 14})
    at = opened(folder, "Images")
    tick(at, "red/000.png")
    at.session_state["data_id"] = remember(str(other))
    at.run()
    assert not at.checkbox(key="choose-browse-red/000.png").value
    at.session_state["data_id"] = remember(str(folder))
    at.run()
    assert at.checkbox(key="choose-browse-red/000.png").value


def test_filters_stay_while_another_tab_is_looked_at(folder):
    at = opened(folder, "Images")
    next(box for box in at.selectbox if box.label == "Class").select("red").run()
    at.session_state["dataset_view"] = "Classes and splits"
    at.run()
    at.session_state["dataset_view"] = "Images"
    at.run()
    assert next(box for box in at.selectbox if box.label == "Class").value == "red"


def test_a_button_of_a_change_undoes_that_one_wherever_it_has_moved(folder):
    edits = [Edit(action="exclude", paths=(f"red/00{number}.png",)) for number in range(3)]
    save_edits(folder, edits)
    at = opened(folder)
    # nothing is drawn in a box that is closed
    assert not [button for button in at.button if button.label == "Undo"]
    at.session_state["changes_box"] = True
    at.run()
    first, second, third = (button for button in at.button if button.label == "Undo")
    first.click().run()
    assert [button.key for button in at.button if button.label == "Undo"] == [second.key, third.key]
    at.button(key=third.key).click().run()
    assert load_edits(folder) == (edits[1],)


def test_of_many_changes_the_latest_are_listed_and_the_others_on_further_pages(folder):
    edits = [Edit(action="ignore", paths=(f"{number}",), kind="dark") for number in range(50)]
    save_edits(folder, edits)
    at = opened(folder)
    at.session_state["changes_box"] = True
    at.run()
    undo = [button for button in at.button if button.label == "Undo"]
    assert len(undo) == 20
    undo[0].click().run()
    assert load_edits(folder) == tuple(edits[:-1])
    at.session_state["changes-page"] = 3
    at.run()
    last = [button for button in at.button if button.label == "Undo"]
    assert len(last) == 9
    last[-1].click().run()
    assert load_edits(folder) == tuple(edits[1:-1])


def test_acting_on_all_and_on_the_selected_are_two_buttons(image_folder, tmp_path):
    folder = image_folder(
        tmp_path / "images", {"train/red": 14, "train/blue": 14, "val/red": 4, "val/blue": 4}
    )
    for number in range(2):
        shutil.copy(folder / f"train/red/00{number}.png", folder / f"val/red/copy{number}.png")
    at = opened(folder)
    assert at.button(key="act-all-leakage").label == "Exclude all 2"
    tick(at, "train/red/001.png", "finding-leakage")
    assert at.button(key="act-selected-leakage").label == "Exclude the 1 selected"
    assert "act-all-leakage" not in [button.key for button in at.button]


def test_folders_are_not_walked_behind_a_closed_box(folder):
    at = opened(folder)
    assert not [box for box in at.selectbox if box.label == "Open a subfolder"]
    at.session_state[f"source-{folder}"] = True
    at.run()
    assert [box for box in at.selectbox if box.label == "Open a subfolder"]
