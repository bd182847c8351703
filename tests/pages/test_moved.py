"""The sections of Compare that look into the networks, over real runs."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.evaluation.comparison.disagree import disagreement
from finetune_core.evaluation.comparison.layer_diagnostics import known_layers
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore
from tests.pages.harness import words

NASTY = '<b>x$1$"[a](b)'


@pytest.fixture
def runs(image_folder, tmp_path, monkeypatch):
    """One that has hardly learned, and one that has, in the app's own folder."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 40, "blue": 40, NASTY: 40})
    usual = {
        "data": str(folder),
        "image_size": 32,
        "batch_size": 16,
        "precision": "fp32",
        "seed": 2,
    }
    for settings in (
        {"strategy": "feature_extraction", "epochs": 1, "learning_rate": 1e-5},
        {"epochs": 2, "learning_rate": 1e-3},
    ):
        list(execute(create_run(make_config(usual | settings), paths.runs_dir())))
    return sorted(RunStore(paths.runs_dir()).runs(), key=lambda run: run.config.epochs)


def sections():
    from pages.shared.evaluation.diagnostics import disagreements, what_moved
    from pages.shared.runs.backend import store

    compared = sorted(store().runs(), key=lambda run: run.config.epochs)
    what_moved(compared)
    disagreements(compared)


@pytest.mark.train
def test_what_moved_is_measured_when_asked_for_and_stays_whatever_is_pressed_meanwhile(
    runs, held_back, finished
):
    at = AppTest.from_function(sections, default_timeout=300).run()
    assert not at.exception
    assert "Which stage to thaw next" not in words(at)
    gate = held_back("pages.shared.evaluation.diagnostics.measure_layers")
    at.button(key="measure-layers").click().run()
    at.run()
    assert at.button(key="measure-layers").disabled
    gate.set()
    finished(at)
    assert all(known_layers(run) for run in runs)
    again = AppTest.from_function(sections, default_timeout=300).run()
    for view in (at, again):
        assert "Which stage to thaw next" in words(view)
        assert len(view.get("plotly_chart")) == 5
        assert not [button for button in view.button if button.label.startswith("Measure")]
    assert "Feature extraction" in words(again)


@pytest.mark.train
def test_images_that_only_one_gets_right_are_shown_with_what_both_looked_at(runs):
    found = disagreement(*runs)
    more = max((found.only_a, found.only_b), key=len)
    assert len(more), "the second run has learned more"
    at = AppTest.from_function(sections, default_timeout=300)
    at.session_state["disagree_box"] = True
    at.run()
    assert not at.exception
    result = {metric.label: metric.value for metric in at.metric}
    assert list(result.values()) == [
        str(n) for n in (found.both, len(found.only_a), len(found.only_b), found.neither)
    ]
    assert len(at.get("image")) == 3 * min(4, len(more))
    assert NASTY not in words(at)


def test_an_image_that_is_gone_is_named_and_the_others_are_still_shown(runs):
    found = disagreement(*runs)
    more = max((found.only_a, found.only_b), key=len)
    gone = Path(runs[0].config.data, more["id"].iloc[0])
    gone.unlink()
    at = AppTest.from_function(sections, default_timeout=300)
    at.session_state["disagree_box"] = True
    at.run()
    assert not at.exception
    assert len(at.error) == 2
    assert len(at.get("image")) == 3 * (min(4, len(more)) - 1)
