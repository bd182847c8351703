"""Predict: single images with their reasons, neighbours, archives, and the presentation."""

import csv
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune_core.evaluation.prediction.neighbours import (
    Encoder,
    compute_neighbourhood,
    make_encoder,
    neighbours_mtime,
)
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.work import finish
from tests.factories import NASTY
from tests.pages.harness import button_labels, open_page, page_text, press, unescaped_text


def image_of(run, name):
    return Path(run.config.data, name).read_bytes()


def checkerboard():
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(255 * np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((16, 16))))).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def give(at, *images):
    at.file_uploader(key="images").set_value(
        [(name, content, "image/png") for name, content in images]
    )
    at.run()


@pytest.mark.train
def test_an_image_is_named_with_its_reasons_and_a_broken_one_does_no_harm(runs):
    at = open_page("predict", run=runs[0].run_id)
    assert any(f"?present=1&run={runs[0].run_id}" in code.value for code in at.code)
    red = image_of(runs[0], "red/000.png")
    give(at, (f"{NASTY}.png", red), ("broken.png", b"hello"))
    text = page_text(at)
    probability = load_predictor(runs[0]).predict_proba([red])[0]
    classes = runs[0].history.started["classes"]
    best = f"## {classes[probability.argmax()]} · {100 * probability.max():.1f} %"
    assert best in unescaped_text(at)
    assert len(at.get("image")) == 2, "the network input, and Grad-CAM"
    assert len(at.get("plotly_chart")) == 1
    assert any("broken" in error.value for error in at.error)
    assert NASTY not in text
    assert "A network always predicts one of its classes" in text


@pytest.mark.train
def test_neighbours_stand_beside_an_image_and_strangers_are_flagged(
    runs, hold_back, wait_until_finished
):
    gate = hold_back("pages.shared.evaluation.prediction.compute_neighbourhood")
    at = open_page("predict", run=runs[0].run_id)
    press(at, "Show nearest training images")
    give(at, ("000.png", image_of(runs[0], "blue/000.png")))
    assert "## " in page_text(at), "an upload does not wait, and does not end what is computed"
    assert "Stop" in button_labels(at)
    assert neighbours_mtime(runs[0]) == 0
    gate.set()
    wait_until_finished(at)
    assert neighbours_mtime(runs[0])
    assert "Show nearest training images" not in button_labels(at)
    assert "Nearest training images" in page_text(at)
    assert len(at.get("image")) == 6
    assert "Unlike anything" not in page_text(at)
    give(at, ("board.png", checkerboard()))
    assert "Unlike anything in training" in page_text(at)
    again = open_page("predict", run=runs[0].run_id)
    give(again, ("000.png", image_of(runs[0], "blue/000.png")))
    assert "Nearest training images" in page_text(again), "it is kept for the next time"


@pytest.mark.train
def test_images_that_were_predicted_are_not_predicted_again(runs, monkeypatch):
    finish(compute_neighbourhood(runs[0], make_encoder(load_predictor(runs[0]))))
    computed = []
    for kind, name in ((Predictor, "predict_proba"), (Encoder, "encode_image")):
        real = getattr(kind, name)
        monkeypatch.setattr(
            kind, name, lambda *args, real=real, name=name: computed.append(name) or real(*args)
        )
    at = open_page("predict", run=runs[0].run_id)
    give(at, ("000.png", image_of(runs[0], "blue/000.png")))
    assert sorted(computed) == ["encode_image", "predict_proba"]
    at.run()
    assert len(computed) == 2
    give(
        at,
        ("another name.png", image_of(runs[0], "blue/000.png")),
        ("001.png", image_of(runs[0], "blue/001.png")),
    )
    assert len(computed) == 4, "one image was new"
    assert len([one for one in at.markdown if one.value.startswith("## ")]) == 2


@pytest.mark.train
def test_two_runs_say_what_they_think_of_the_same_image(runs, wait_until_finished):
    at = open_page("predict", run=runs[0].run_id, beside=runs[1].run_id)
    press(at, "Show nearest training images")
    wait_until_finished(at)
    give(at, ("000.png", image_of(runs[0], "red/000.png")))
    assert len(at.get("plotly_chart")) == 2
    # what each network sees, Grad-CAM, and four training images
    assert len(at.get("image")) == 2 * (2 + 4)
    assert "last block" in unescaped_text(at)
    assert "feature extraction" in unescaped_text(at)


@pytest.fixture
def classify_archive(runs, monkeypatch, wait_until_finished):
    """Classify an archive of three images and a broken one.

    Returns:
        The page, and the rows of its CSV.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(3):
            archive.writestr(f"new/{number}.png", image_of(runs[0], f"red/00{number}.png"))
        archive.writestr("new/broken.png", b"hello")
    made = []
    monkeypatch.setattr(
        "pages.shared.evaluation.prediction.st.download_button",
        lambda *args, **_: made.append(args),
    )

    def name_all(button, meanwhile=lambda at: None, **query):
        at = open_page("predict", **query)
        at.session_state["input_kind"] = "many"
        at.run()
        at.file_uploader(key="archive").set_value(("new.zip", packed.getvalue(), "application/zip"))
        at.run()
        press(at, button)
        meanwhile(at)
        wait_until_finished(at)
        label, content, name, _ = made[-1]
        assert (label, name) == ("Download CSV", "new-predictions.csv")
        return at, list(csv.DictReader(io.StringIO(content().decode(), newline="")))

    return name_all


@pytest.mark.train
def test_an_archive_is_named_by_every_chosen_run(runs, classify_archive):
    at, rows = classify_archive(
        "Classify with 2 networks", run=runs[0].run_id, beside=runs[1].run_id
    )
    titles = ["Last block", "Feature extraction"]
    paths_of = [image_of(runs[0], f"red/00{number}.png") for number in range(3)]
    predicted = []
    for run, title in zip(runs, titles, strict=True):
        network = load_predictor(run)
        predicted.append([network.classes[at] for at in network.predict_proba(paths_of).argmax(1)])
        assert [row[f"class, {title}"] for row in rows] == [*predicted[-1], ""]
        assert rows[3][f"problem, {title}"]
        assert list(at.dataframe[0].value[f"Class, {title}"]) == [*predicted[-1], ""]
    agree = sum(a == b for a, b in zip(*predicted, strict=True))
    [counts] = [one.value for one in at.markdown if "images classified" in one.value]
    # images, networks, agreements, unreadable ones
    assert re.findall(r"\d+", counts) == ["3", "2", str(agree), "1"]


@pytest.mark.train
def test_an_archive_becomes_a_table_whatever_is_pressed_meanwhile(
    runs, hold_back, classify_archive
):
    gate = hold_back("pages.shared.evaluation.prediction.predict_images")

    def press_on(at):
        at.selectbox(key="run_box").set_value(runs[0].run_id).run()
        assert at.button(key="classify").disabled
        assert "Stop" in button_labels(at)
        gate.set()

    at, rows = classify_archive("Classify", press_on, run=runs[0].run_id)
    assert "**3 images classified**, 1 could not be read." in page_text(at)
    files = [f"new/{name}.png" for name in (0, 1, 2, "broken")]
    assert [row["file"] for row in rows] == files
    assert all(row["class"] for row in rows[:3])
    assert rows[3]["problem"]
    assert list(at.dataframe[0].value) == ["File", "Class", "Confidence", "Note"]


@pytest.mark.train
def test_neighbours_that_become_known_meanwhile_do_not_end_the_classification(
    runs, hold_back, classify_archive, wait_until_finished
):
    gate = hold_back("pages.shared.evaluation.prediction.predict_images")

    def another_session(at):
        finish(compute_neighbourhood(runs[0], make_encoder(load_predictor(runs[0]))))
        at.run()
        gate.set()

    at, rows = classify_archive("Classify", another_session, run=runs[0].run_id)
    assert "**3 images classified**" in page_text(at)
    assert {row["unlike"] for row in rows} == {""}
    press(at, "Classify again")
    wait_until_finished(at)
    assert not [label for label in button_labels(at) if label.startswith("Classify")]


@pytest.mark.train
def test_an_archive_that_is_none_is_refused_in_words(runs, wait_until_finished):
    at = open_page("predict", run=runs[0].run_id)
    at.session_state["input_kind"] = "many"
    at.run()
    at.file_uploader(key="archive").set_value(("new.zip", b"hello", "application/zip"))
    at.run()
    press(at, "Classify")
    wait_until_finished(at)
    assert any("new" in error.value and "was not read" in error.value for error in at.error)


@pytest.mark.train
def test_a_presentation_is_one_clean_page_that_shows_all_it_was_given(runs):
    at = open_page("predict", run=runs[0].run_id, present="1")
    assert not at.button
    assert not at.selectbox
    assert not at.get("page_link")
    assert len(at.title) == 1
    assert "This network distinguishes 3 classes" in page_text(at)
    give(at, ("000.png", image_of(runs[0], "red/000.png")))
    assert "## " in page_text(at)
    assert len(at.get("image")) == 2
    give(at, *((f"{number}.png", image_of(runs[0], f"red/00{number}.png")) for number in range(3)))
    names = [one for one in unescaped_text(at).splitlines() if one.endswith(".png**")]
    assert names == ["**2.png**", "**1.png**", "**0.png**"]
    assert len(at.get("image")) == 6
    gone = open_page("predict", run="nowhere", present="1")
    assert "Network not found" in page_text(gone)
    assert not gone.file_uploader
