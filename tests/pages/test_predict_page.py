"""Predict, run by Streamlit's own test harness over a real run."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.evaluation.predict import load_predictor
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore

ROOT = Path(__file__).resolve().parent.parent.parent
NASTY = '<b>x$1$"[a](b)'


@pytest.fixture
def runs(image_folder, tmp_path, monkeypatch):
    """Two runs on the same images, in the app's own folder."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 30, "blue": 30, NASTY: 30})
    usual = {"data": str(folder), "image_size": 32, "epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}
    for strategy in ("last_block", "feature_extraction"):
        list(execute(create_run(make_config(usual | {"strategy": strategy}), paths.runs_dir())))
    st.cache_resource.clear()
    st.cache_data.clear()
    yield RunStore(paths.runs_dir()).runs()
    st.cache_resource.clear()
    st.cache_data.clear()


def opened(**query):
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    for key, value in query.items():
        at.query_params[key] = value
    at.switch_page("pages/predict.py").run()
    assert not at.exception
    return at


def words(at):
    kinds = ("title", "markdown", "caption", "info", "warning", "error")
    return "\n".join(element.value for kind in kinds for element in at.get(kind))


def image_of(run, name):
    return Path(run.config.data, name).read_bytes()


def checkerboard():
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(255 * np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((16, 16))))).save(buffer, "PNG")
    return buffer.getvalue()


def give(at, *images):
    at.file_uploader(key="images").set_value([(name, content, "image/png") for name, content in images])
    at.run()
    assert not at.exception


def press(at, label):
    next(button for button in at.button if button.label == label).click()
    at.run()
    assert not at.exception


def test_an_image_is_named_with_its_reasons_and_a_broken_one_does_no_harm(runs):
    at = opened(run=runs[0].run_id)
    assert "This network knows 3 classes" in words(at)
    assert NASTY not in words(at)
    red = image_of(runs[0], "red/000.png")
    give(at, (f"{NASTY}.png", red), ("broken.png", b"hello"))
    told = words(at)
    probability = load_predictor(runs[0]).probabilities([red])[0]
    classes = runs[0].history.started["classes"]
    assert f"## {classes[probability.argmax()]} · {100 * probability.max():.1f} %" in told.replace("\\", "")
    assert len(at.get("image")) == 2, "as the network sees it, and what speaks for it"
    assert len(at.get("plotly_chart")) == 1
    assert any("broken" in error.value for error in at.error)
    assert NASTY not in told
    assert "A network always names one of its classes" in told


def test_known_training_images_stand_beside_a_new_one_and_strangers_are_told(runs):
    at = opened(run=runs[0].run_id)
    press(at, "Show training images like it, too")
    assert "Show training images like it, too" not in [button.label for button in at.button]
    give(at, ("000.png", image_of(runs[0], "blue/000.png")))
    assert "Most like it in training" in words(at)
    assert len(at.get("image")) == 6
    assert "Unlike anything" not in words(at)
    give(at, ("board.png", checkerboard()))
    assert "Unlike anything in training" in words(at)
    assert "Most like it in training" in words(opened_again(runs[0])), "it is kept for the next time"


def opened_again(run):
    at = opened(run=run.run_id)
    give(at, ("000.png", image_of(run, "blue/000.png")))
    return at


def test_two_runs_say_what_they_think_of_the_same_image(runs):
    at = opened(run=runs[0].run_id, beside=runs[1].run_id)
    press(at, "Show training images like it, too")
    give(at, ("000.png", image_of(runs[0], "red/000.png")))
    assert len(at.get("plotly_chart")) == 2
    assert len(at.get("image")) == 2 * (2 + 4), "the images that each network sees, and four of training"
    for strategy in ("last block", "feature extraction"):
        assert strategy in words(at).replace("\\", "")


def test_an_archive_becomes_a_table(runs, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(3):
            archive.writestr(f"new/{number}.png", image_of(runs[0], f"red/00{number}.png"))
        archive.writestr("new/broken.png", b"hello")
    made = []
    monkeypatch.setattr("pages.shared.naming.st.download_button", lambda *args, **_: made.append(args))
    at = opened(run=runs[0].run_id)
    at.session_state["input_kind"] = "many"
    at.run()
    at.file_uploader(key="archive").set_value(("new.zip", packed.getvalue(), "application/zip"))
    at.run()
    press(at, "Name them")
    assert "**3 images named**, 1 could not be read." in words(at)
    label, content, name, _ = made[-1]
    assert (label, name) == ("Download CSV", "new-named.csv")
    rows = list(csv.DictReader(io.StringIO(content().decode(), newline="")))
    assert [row["file"] for row in rows] == ["new/0.png", "new/1.png", "new/2.png", "new/broken.png"]
    assert all(row["class"] for row in rows[:3])
    assert rows[3]["problem"]


def test_an_archive_that_is_none_is_refused_in_words(runs):
    at = opened(run=runs[0].run_id)
    at.session_state["input_kind"] = "many"
    at.run()
    at.file_uploader(key="archive").set_value(("new.zip", b"hello", "application/zip"))
    at.run()
    press(at, "Name them")
    assert any("new" in error.value and "was not read" in error.value for error in at.error)


def test_a_presentation_is_one_clean_page(runs):
    at = opened(run=runs[0].run_id, present="1")
    assert not at.button
    assert not at.selectbox
    assert not at.get("page_link")
    assert len(at.title) == 1
    assert "This network knows 3 classes" in words(at)
    give(at, ("000.png", image_of(runs[0], "red/000.png")))
    assert "## " in words(at)
    assert len(at.get("image")) == 2
    gone = opened(run="nowhere", present="1")
    assert "no such network" in words(gone)
    assert not gone.file_uploader


def test_the_page_hands_out_the_address_of_the_presentation(runs):
    at = opened(run=runs[0].run_id)
    assert any(f"?present=1&run={runs[0].run_id}" in code.value for code in at.code)
