"""The galleries of the Dataset page once the images were analyzed: sorted by confidence, and similar images."""

import re

import pytest

from finetune_core.config import Edit
from finetune_core.data.edits import load_edits, save_edits
from finetune_core.data.recent import remember
from tests.pages.harness import open_page, press, words

WRONG = ("red/003.png", "red/007.png", "red/011.png", "red/015.png")


@pytest.fixture
def opened(image_folder, tmp_path, monkeypatch, finished):
    """Four images of red are labelled blue; ``opened(view)``: analyzed, unless ``analyzed=False``."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 30, "blue": 30})
    save_edits(folder, [Edit(action="relabel", paths=WRONG, to="blue")])

    def show(view, *, analyzed=True):
        at = open_page(
            "dataset",
            data=remember(str(folder)),
            form={"image_size": 32},
            state={"dataset_view": "Findings"},
        )
        if analyzed:
            press(at, "Analyze with embeddings")
            finished(at)
        at.session_state["dataset_view"] = view
        at.run()
        assert not at.exception
        return at

    show.folder = folder
    return show


def boxes(at, key):
    """Ids of the images that can be selected, in the order drawn."""
    start = f"choose-{key}-"
    return [one.key.removeprefix(start) for one in at.checkbox if one.key.startswith(start)]


def labels(at, key):
    return [one.label for one in at.checkbox if one.key.startswith(f"choose-{key}-")]


def alts(at):
    return [one.alt for element in at.get("image") for one in element.proto.imgs]


def sorting(at):
    return next(one for one in at.selectbox if one.label == "Sort by")


def test_images_are_sorted_by_confidence_in_their_label(opened):
    at = opened("Images")
    sorting(at).select("unsure").run()
    assert set(boxes(at, "browse")[:4]) == set(WRONG)
    assert all("predicted red" in label for label in labels(at, "browse")[:4])
    sorting(at).select("sure").run()
    assert not set(boxes(at, "browse")) & set(WRONG)
    sorting(at).select("name").run()
    assert boxes(at, "browse") == sorted(boxes(at, "browse"))


def test_before_the_analysis_there_is_no_confidence_to_sort_by(opened):
    assert sorting(opened("Images", analyzed=False)).options == ["Class, in turn", "Name"]


def test_possible_label_errors_are_sorted_by_confidence_and_confirmed_case_by_case(opened):
    at = opened("Findings")
    found = boxes(at, "finding-label_errors")
    assert len(found) >= 2
    assert set(found) <= set(WRONG)
    at.segmented_control(key="order-label_errors").set_value("confidence").run()
    assert not at.exception
    assert sorted(boxes(at, "finding-label_errors")) == sorted(found)
    confidences = [
        float(re.search(r"\(([\d.]+) %\)", label.replace("\\", ""))[1])
        for label in labels(at, "finding-label_errors")
    ]
    assert confidences == sorted(confidences, reverse=True)
    assert not [one.label for one in at.button if one.label.startswith("Relabel all")]
    assert len(load_edits(opened.folder)) == 1


def test_images_similar_to_a_selected_one_are_shown_with_class_and_distance(opened):
    at = opened("Images")
    at.checkbox(key="choose-browse-red/000.png").check().run()
    assert "Similar to red/000" in words(at).replace("\\", "")
    near = alts(at)[-8:]  # below the gallery, where they do not move what was clicked
    assert len([alt for alt in alts(at) if alt.startswith("Similar image ")]) == 8
    assert all(alt.startswith("Similar image red/") and "distance 0." in alt for alt in near)


def test_of_several_selected_images_one_is_chosen(opened):
    at = opened("Images")
    for sample in ("blue/000.png", "red/000.png"):
        at.checkbox(key=f"choose-browse-{sample}").check().run()
    assert not [alt for alt in alts(at) if alt.startswith("Similar image ")]
    at.selectbox(key="similar-to-browse").select("blue/000.png").run()
    assert all(
        alt.startswith("Similar image blue/")
        for alt in alts(at)
        if alt.startswith("Similar image ")
    )
    assert len([alt for alt in alts(at) if alt.startswith("Similar image ")]) == 8


def test_before_the_analysis_the_page_says_how_to_see_similar_images(opened):
    at = opened("Images", analyzed=False)
    at.checkbox(key="choose-browse-red/000.png").check().run()
    assert "Similar images are shown after *Analyze with embeddings*" in words(at)


def test_the_original_is_beside_the_networks_input(opened):
    shown = alts(opened("Preprocessing", analyzed=False))
    assert shown[0].endswith(", the whole image")
    assert shown[1].endswith(", network input")
