"""Dataset: findings and selections, galleries after the analysis, classes and splits."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune_core.config import Edit
from finetune_core.data.dataset import load_dataset
from finetune_core.data.edits import load_edits, save_edits
from finetune_core.data.recent import remember_source
from tests.factories import NASTY, image_folder
from tests.pages.harness import (
    address,
    button,
    button_labels,
    open_page,
    page_text,
    press,
    primary_labels,
    unescaped_text,
    widget_keys,
)

WRONG = ("red/003.png", "red/007.png", "red/011.png", "red/015.png")
SPLIT = {"train/red": 14, "train/blue": 14, "val/red": 4, "val/blue": 4}


@pytest.fixture
def make_folder(tmp_path, monkeypatch):
    """Make an image folder that pages may read and tests may change: ``make_folder(**layout)``."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    return lambda layout, name="images": image_folder(tmp_path / name, layout)


@pytest.fixture
def folder(make_folder):
    return make_folder({"red": 14, "blue": 14})


def open_view(folder, view=None, page="dataset", review=""):
    """Open a page on a folder, with a view, and the details of a kind of finding."""
    at = open_page(
        page, data=remember_source(str(folder)), state={"dataset_view": view} if view else None
    )
    if review:
        at.button(key=f"review-{review}").click().run()
    return at


def tick(at, sample, key="browse"):
    at.checkbox(key=f"choose-{key}-{sample}").check().run()


def select_box(at, label):
    return next(one for one in at.selectbox if one.label == label)


def acts(at, verb):
    return [label for label in button_labels(at) if label.startswith(verb)]


def excluded(folder):
    return [edit.paths for edit in load_edits(folder)]


def darken(folder, *names):
    """Write images that are nearly black, each darker than the one before."""
    random = np.random.default_rng(0)
    for number, name in enumerate(names):
        Image.fromarray(random.integers(0, 38 - 3 * number, (32, 40), np.uint8)).save(folder / name)


@pytest.mark.fuzz
def test_the_sample_is_shown_once_it_is_taken():
    at = open_page("dataset")
    assert "images ·" not in page_text(at)
    press(at, "Use the sample")
    assert at.query_params["data"] == "digits"
    facts = "1,797 images · 10 classes · 1,259 training, 269 validation, 269 test · 64 × 64 pixels"
    assert facts in page_text(at)
    assert len(at.get("image")) == 12
    at.session_state["dataset_view"] = "Images"
    at.run()
    assert len(at.get("image")) == 12 + 24


def test_what_is_wrong_with_a_folder_is_named(make_folder):
    folder = make_folder({"red": 12, NASTY: 12})
    (folder / "red" / "text.jpg").write_text("hello")
    victim = folder / "red" / "000.png"
    victim.write_bytes(victim.read_bytes()[:1500])
    at = open_view(folder)
    assert "text\\.jpg is not an image" in page_text(at)
    assert "damaged or cut short" in page_text(at)
    assert NASTY not in page_text(at)


def test_classes_with_similar_names_are_relabelled_pair_by_pair_only(make_folder):
    folder = make_folder({"weasel": 12, "weasels": 14, "rose": 12, "roses": 13})
    at = open_view(folder, review="similar_class_names")
    assert "Relabel 12 images of weasel as weasels" in button_labels(at)
    assert not [label for label in button_labels(at) if "all" in label.lower()]
    press(at, "Relabel 12 images of rose as roses")
    edit = load_edits(folder)[-1]
    assert (edit.action, edit.to, len(edit.paths)) == ("relabel", "roses", 12)
    assert {path.split("/")[0] for path in edit.paths} == {"rose"}


@pytest.mark.train
def test_possible_leakage_is_a_warning_and_moves_selected_images_only(make_folder):
    folder = make_folder(SPLIT)
    for number in range(3):
        with Image.open(folder / f"train/red/00{number}.png") as image:
            image.point(lambda value: value * 0.9).save(folder / f"val/red/copy{number}.png")
    at = open_view(folder, review="near_leakage")
    assert "Possible leakage" in page_text(at)
    assert not acts(at, "Move")
    tick(at, "val/red/copy1.png", "finding-near_leakage")
    press(at, "Move to the other split the 1 selected")
    assert load_edits(folder) == (
        Edit(action="move", paths=("val/red/copy1.png",), to="train", kind="near_leakage"),
    )


@pytest.mark.train
def test_exact_copies_across_splits_are_excluded_all_at_once_or_those_selected(make_folder):
    folder = make_folder(SPLIT)
    for number in range(3):
        shutil.copy(folder / f"train/red/00{number}.png", folder / f"val/red/copy{number}.png")
    at = open_view(folder, review="leakage")
    assert at.button(key="act-all-leakage").label == "Exclude all 3"
    tick(at, "train/red/001.png", "finding-leakage")
    assert at.button(key="act-selected-leakage").label == "Exclude the 1 selected"
    assert "act-all-leakage" not in widget_keys(at)
    at.checkbox(key="choose-finding-leakage-train/red/001.png").uncheck().run()
    press(at, "Exclude all 3")
    assert excluded(folder) == [tuple(f"train/red/00{number}.png" for number in range(3))]


def test_a_guess_is_acted_on_beyond_a_threshold_only_when_its_border_was_shown(folder):
    darken(folder, "red/a.png", "red/b.png", "red/c.png", "red/d.png")
    at = open_view(folder)
    assert ":orange-badge[:material/warning: 4]" in page_text(at)
    assert "Possibly too dark" not in page_text(at), "details are drawn on request"
    at.button(key="review-dark").click().run()
    assert "Possibly too dark" in page_text(at)
    assert not acts(at, "Exclude")
    at.slider(key="several-dark").set_value(2).run()
    assert "First ones excluded" in page_text(at)
    press(at, "Exclude these 2")
    assert excluded(folder) == [("red/d.png", "red/c.png")]


@pytest.mark.train
def test_a_selection_that_a_filter_hides_is_not_changed_and_comes_back(folder):
    at = open_view(folder, "Images")
    tick(at, "red/000.png")
    tick(at, "blue/000.png")
    assert acts(at, "Exclude") == ["Exclude 2 images"]
    select_box(at, "Class").select("blue").run()
    press(at, "Exclude 1 image")
    assert excluded(folder) == [("blue/000.png",)]
    # Filters stay while another tab is open.
    for view in ("Classes and splits", "Images"):
        at.session_state["dataset_view"] = view
        at.run()
    assert select_box(at, "Class").value == "blue"
    select_box(at, "Class").select_index(0).run()
    assert acts(at, "Exclude") == ["Exclude 1 image"]


@pytest.mark.train
def test_a_selection_on_another_page_is_shown_and_all_shown_can_be_selected(folder):
    at = open_view(folder, "Images")
    tick(at, "red/000.png")
    at.session_state["browse"] = 2
    at.run()
    assert "Selected on other pages:" in page_text(at)
    at.checkbox(key="choose-browse-red/000.png").uncheck().run()
    assert "Selected on other pages:" not in page_text(at)
    at.session_state["browse"] = 1
    at.run()
    press(at, "Select all shown")
    assert "Exclude 24 images" in button_labels(at)  # of 28: those on the first page
    press(at, "Clear selection")
    assert not acts(at, "Exclude")


@pytest.mark.train
def test_what_is_selected_in_one_data_set_is_not_selected_in_another(folder, make_folder):
    other = make_folder({"red": 14, "blue": 14}, "others")
    at = open_view(folder, "Images")
    tick(at, "red/000.png")
    for data, selected in ((other, False), (folder, True)):
        at.session_state["data_id"] = remember_source(str(data))
        at.run()
        assert at.checkbox(key="choose-browse-red/000.png").value == selected


@pytest.mark.train
def test_the_latest_change_can_be_undone_right_after_it(folder):
    save_edits(folder, [Edit(action="exclude", paths=("red/005.png",))])
    at = open_view(folder, "Images")
    assert "undo-last" not in widget_keys(at)
    tick(at, "red/000.png")
    press(at, "Exclude 1 image")
    assert [toast.value.startswith("1 image excluded") for toast in at.toast] == [True]
    at.button(key="undo-last").click().run()
    assert excluded(folder) == [("red/005.png",)]
    assert "undo-last" not in widget_keys(at)
    assert not at.toast


def test_dismissing_a_finding_can_be_undone_right_after_it(folder):
    shutil.copy(folder / "red" / "000.png", folder / "red" / "copy.png")
    at = press(open_view(folder, review="exact_duplicates"), "Dismiss")
    assert load_edits(folder)[0].action == "ignore"
    at.button(key="undo-last").click().run()
    assert load_edits(folder) == ()


def undo_buttons(at):
    return [one for one in at.button if one.label == "Undo"]


@pytest.mark.train
def test_a_button_of_a_change_undoes_that_one_wherever_it_has_moved(folder):
    edits = [Edit(action="exclude", paths=(f"red/00{number}.png",)) for number in range(3)]
    save_edits(folder, edits)
    at = open_view(folder)
    assert not undo_buttons(at), "nothing is drawn in a box that is closed"
    at.session_state["changes_box"] = True
    at.run()
    first, second, third = undo_buttons(at)
    first.click().run()
    assert [one.key for one in undo_buttons(at)] == [second.key, third.key]
    at.button(key=third.key).click().run()
    assert load_edits(folder) == (edits[1],)


@pytest.mark.train
def test_of_many_changes_the_latest_are_listed_and_the_others_on_further_pages(folder):
    edits = [Edit(action="ignore", paths=(f"{number}",), kind="dark") for number in range(50)]
    save_edits(folder, edits)
    at = open_view(folder)
    at.session_state["changes_box"] = True
    at.run()
    assert len(undo_buttons(at)) == 20
    undo_buttons(at)[0].click().run()
    assert load_edits(folder) == tuple(edits[:-1])
    at.session_state["changes-page"] = 3
    at.run()
    assert len(undo_buttons(at)) == 9
    undo_buttons(at)[-1].click().run()
    assert load_edits(folder) == tuple(edits[1:-1])


def test_nothing_is_trained_on_a_single_class_and_the_page_says_why(make_folder):
    folder = make_folder({"red": 12})
    at = open_view(folder, page="configure")
    assert button(at, "Start training").disabled
    assert "images\\: “red”" in page_text(at)
    at = open_view(folder, page="compare")
    assert not acts(at, "Start")
    assert "images\\: “red”" in page_text(at)


@pytest.mark.parametrize(
    "view",
    [None, "Images", "Classes and splits", "Map", "Linear probe by layer", "Preprocessing"],
)
def test_every_view_has_one_primary_button(folder, view):
    at = open_view(folder, view)
    assert primary_labels(at) == ["Compare layers"]
    needs_analysis = view in ("Map", "Linear probe by layer")
    assert ("Compute features" in button_labels(at)) == needs_analysis
    if view == "Classes and splits":
        # Drawing the page anew would let go of the file.
        assert [one.proto.ignore_rerun for one in at.get("download_button")] == [True]
    if view == "Preprocessing":
        assert [alt.rpartition(", ")[2] for alt in alts(at)[12:14]] == [
            "the whole image",
            "network input",
        ]


def rename(at, name, to):
    at.selectbox(key="rename-class").select(name).run()
    at.text_input(key=f"rename-to-{name}").set_value(to).run()
    return at.button(key="rename").label


def split_of(folder):
    return load_dataset(folder, edits=load_edits(folder)).by_id["split"].to_dict()


@pytest.mark.train
@pytest.mark.parametrize(
    ("to", "label", "left"),
    [
        ("crimson", "Rename", ["blue", "crimson", "green"]),
        ("blue", "Merge into blue", ["blue", "green"]),
    ],
)
def test_a_class_is_renamed_or_merged_and_no_image_changes_its_split(make_folder, to, label, left):
    folder = make_folder({"red": 14, "blue": 14, "green": 12})
    before = split_of(folder)
    at = open_view(folder, "Classes and splits")
    assert rename(at, "red", to) == label
    assert ("14 images of red join the 14 of blue" in page_text(at)) == (to == "blue")
    at.button(key="rename").click().run()
    assert at.selectbox(key="rename-class").options == left
    assert split_of(folder) == before
    at.button(key="undo-last").click().run()
    assert at.selectbox(key="rename-class").options == ["blue", "green", "red"]


def test_images_are_relabelled_once_a_class_is_chosen(folder):
    at = open_view(folder, "Images")
    tick(at, "red/000.png")
    assert at.selectbox(key="browse-class").value is None
    assert button(at, "Relabel").disabled
    at.selectbox(key="browse-class").select("blue").run()
    press(at, "Relabel")
    (edit,) = load_edits(folder)
    assert (edit.action, edit.paths, edit.to) == ("relabel", ("red/000.png",), "blue")
    tick(at, "red/001.png")
    assert at.selectbox(key="browse-class").value is None


def test_what_is_mere_information_is_folded_and_last(folder):
    with Image.open(folder / "red/000.png") as image:
        image.convert("RGBA").transpose(Image.Transpose.ROTATE_180).save(folder / "red/glass.png")
    at = open_view(folder)
    assert "review-transparent" not in widget_keys(at)
    at.session_state[f"notes-{remember_source(str(folder))}"] = True
    at.run()
    assert "review-transparent" in widget_keys(at)


def test_long_images_can_be_padded_and_the_form_says_so_for_this_data_only(folder):
    Image.new("RGB", (200, 20), "red").save(folder / "red/strip.png")
    at = open_view(folder)
    at.session_state["settings_for"] = "another"
    at.button(key="review-extreme_aspect").click().run()
    press(at, "Pad to square")
    assert "Images are padded to squares." in unescaped_text(at)
    assert "pad-to-square" not in widget_keys(at)
    assert at.session_state["form_fit"] == "pad"
    assert at.session_state["settings_for"] == str(folder)


def test_an_image_opens_large_under_its_file_name(folder):
    at = open_view(folder)
    at.button(key="open-examples-red/000.png").click().run()
    assert alts(at)[-1] == "red/000.png, class red"
    assert len(alts(at)) == 12 + 1


def test_a_name_that_no_class_can_have_is_said(folder):
    at = open_view(folder, "Classes and splits")
    rename(at, "red", "x" * 1001)
    at.button(key="rename").click().run()
    assert "cannot be renamed" in page_text(at)
    assert load_edits(folder) == ()


def test_a_pair_of_copies_with_different_labels_is_shown_once(folder):
    shutil.copy(folder / "red/003.png", folder / "blue/copy.png")
    at = open_view(folder, review="conflicting_labels")
    assert boxes(at, "finding-conflicting_labels") == ["blue/copy.png", "red/003.png"]
    assert len(at.get("image")) == 12 + 2
    tick(at, "blue/copy.png", "finding-conflicting_labels")
    press(at, "Exclude the 1 selected")
    assert excluded(folder) == [("blue/copy.png",)]


def test_folders_are_not_walked_behind_a_closed_box(folder):
    at = open_view(folder)
    assert not [box for box in at.selectbox if box.label == "Open a subfolder"]
    at.session_state[f"source-{folder}"] = True
    at.run()
    assert [box for box in at.selectbox if box.label == "Open a subfolder"]


@pytest.fixture
def mislabelled_folder(make_folder):
    """Label four red images as blue."""
    folder = make_folder({"red": 30, "blue": 30})
    save_edits(folder, [Edit(action="relabel", paths=WRONG, to="blue")])
    return folder


def boxes(at, key):
    """Return the ids of the images that can be selected, in drawing order."""
    start = f"choose-{key}-"
    return [one.key.removeprefix(start) for one in at.checkbox if one.key.startswith(start)]


def box_labels(at, key):
    return [one.label for one in at.checkbox if one.key.startswith(f"choose-{key}-")]


def alts(at):
    return [one.alt for element in at.get("image") for one in element.proto.imgs]


def similar(at):
    """Return the alternative texts of similar images, which stand below the gallery."""
    found = [alt for alt in alts(at) if alt.startswith("Similar image ")]
    assert found == alts(at)[len(alts(at)) - len(found) :]
    return found


@pytest.mark.train
def test_the_analysis_sorts_images_by_confidence_and_finds_similar_ones(
    mislabelled_folder, wait_until_finished
):
    at = open_view(mislabelled_folder, "Images")
    assert select_box(at, "Sort by").options == ["Class, in turn", "Name"]
    tick(at, "red/000.png")
    assert "Similar images are shown after *Compare layers*" in page_text(at)
    at.checkbox(key="choose-browse-red/000.png").uncheck().run()
    at.session_state["form_image_size"] = 32
    at.run()
    press(at, "Compare layers")
    assert at.session_state["dataset_view"] == "Linear probe by layer"
    wait_until_finished(at)
    at.button(key="review-label_errors").click().run()

    found = boxes(at, "finding-label_errors")
    assert len(found) >= 2
    assert set(found) <= set(WRONG)
    at.segmented_control(key="order-label_errors").set_value("confidence").run()
    assert sorted(boxes(at, "finding-label_errors")) == sorted(found)
    shown = [label.replace("\\", "") for label in box_labels(at, "finding-label_errors")]
    confidences = [float(re.search(r"\(([\d.]+) %\)", label)[1]) for label in shown]
    assert confidences == sorted(confidences, reverse=True)
    assert not acts(at, "Relabel all")
    assert len(load_edits(mislabelled_folder)) == 1

    at.session_state["dataset_view"] = "Images"
    at.run()
    select_box(at, "Sort by").select("unsure").run()
    assert set(boxes(at, "browse")[:4]) == set(WRONG)
    assert all("predicted red" in label for label in box_labels(at, "browse")[:4])
    select_box(at, "Sort by").select("sure").run()
    assert not set(boxes(at, "browse")) & set(WRONG)
    select_box(at, "Sort by").select("name").run()
    assert boxes(at, "browse") == sorted(boxes(at, "browse"))

    select_box(at, "Sort by").select_index(0).run()
    tick(at, "red/000.png")
    assert "Similar to red/000" in unescaped_text(at)
    assert len(similar(at)) == 8
    assert all(alt.startswith("Similar image red/") for alt in similar(at))
    assert all("distance 0." in alt for alt in similar(at))
    tick(at, "blue/000.png")
    assert similar(at) == []
    at.selectbox(key="similar-to-browse").select("blue/000.png").run()
    assert len(similar(at)) == 8
    assert all(alt.startswith("Similar image blue/") for alt in similar(at))


@pytest.mark.train
def test_a_long_analysis_goes_on_whatever_is_pressed_and_is_kept(
    folder, hold_back, wait_until_finished
):
    gate = hold_back("pages.shared.data.analysis.inspect_deeply")
    at = open_view(folder)
    at.session_state["form_image_size"] = 32
    press(at, "Compare layers")
    at.switch_page("pages/runs.py").run()
    at.switch_page("pages/dataset.py").run()
    assert "Compute features" not in button_labels(at)
    assert "Stop" in button_labels(at)
    gate.set()
    wait_until_finished(at)
    assert not {"Compute features", "Stop"} & set(button_labels(at))
    assert primary_labels(at) == ["Configure the training"]
    text = "are not known for the data set as it is now. Press *Compare layers* again"
    assert text not in page_text(at)
    save_edits(folder, [Edit(action="exclude", paths=("red/000.png",))])
    at.run()
    assert text in page_text(at)
    assert primary_labels(at) == ["Compare layers"]
    assert address(at)["data"] == remember_source(str(folder))
