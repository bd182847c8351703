"""Sections of Compare about the networks: layer diagnostics and disagreements."""

from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.evaluation.comparison.disagree import find_disagreements
from finetune_core.evaluation.comparison.layer_diagnostics import load_layers
from finetune_core.runs.store import RunStore
from tests.answers import answer_rightly
from tests.factories import NASTY, image_folder, tiny_config, train
from tests.pages.harness import page_text, read_metrics


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Copy two runs into the app's own folder. Only the second is right, on all images."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 14, NASTY: 14})
    # Probes need ten validation images.
    usual = {"epochs": 1, "val_fraction": 0.4}
    found = [
        train(tiny_config(folder, strategy=strategy, **usual), paths.runs_dir())
        for strategy in ("feature_extraction", "full")
    ]
    for run in found:
        answer_rightly(run, run.config.strategy == "full")
    return found


def sections():
    from pages.shared.evaluation.diagnostics import draw_disagreements, draw_layer_diagnostics
    from pages.shared.runs.backend import store

    compared = sorted(store().list_runs(), key=lambda run: run.config.strategy)
    draw_layer_diagnostics(compared)
    draw_disagreements(compared)


def drawn(**state):
    at = AppTest.from_function(sections, default_timeout=300)
    for key, value in state.items():
        at.session_state[key] = value
    at.run()
    return at


@pytest.mark.train
def test_layers_are_measured_when_asked_for_and_stay_whatever_is_pressed_meanwhile(
    two, hold_back, wait_until_finished
):
    at = drawn()
    assert "Which stage to thaw next" not in page_text(at)
    gate = hold_back("pages.shared.evaluation.diagnostics.measure_layers")
    at.button(key="measure-layers").click().run()
    at.run()
    assert at.button(key="measure-layers").disabled
    gate.set()
    wait_until_finished(at)
    assert all(load_layers(run) for run in two)
    for view in (at, drawn()):
        assert "Which stage to thaw next" in page_text(view)
        assert len(view.get("plotly_chart")) == 5
        assert not [button for button in view.button if button.label.startswith("Measure")]
        assert "Feature extraction" in page_text(view)


@pytest.mark.train
def test_images_that_only_one_gets_right_are_shown_and_one_that_is_gone_is_named(two):
    found = find_disagreements(*RunStore(paths.runs_dir()).list_runs())
    [more] = [table for table in (found.only_a, found.only_b) if len(table)]
    at = drawn(disagree_box=True)
    assert sorted(read_metrics(at).values()) == sorted(["0", "0", "0", str(len(more))])
    shown = min(4, len(more))
    assert len(at.get("image")) == 3 * shown
    assert NASTY not in page_text(at)
    Path(two[0].config.data, more["id"].iloc[0]).unlink()
    st.cache_data.clear()
    st.cache_resource.clear()
    at = drawn(disagree_box=True)
    assert len(at.error) == 2
    assert len(at.get("image")) == 3 * (shown - 1)
