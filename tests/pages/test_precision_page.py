"""The Evaluate and Train pages say in which precision numbers were computed, and have those of a stopped run computed in fp32."""

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.training.events import EpochEnded
from tests.pages.harness import button, open_page


@pytest.fixture
def stopped(native_bf16, image_folder, home, monkeypatch, tmp_path):
    """A run that was stopped while it trained in bf16."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 12, "blue": 12})
    settings = {
        "data": str(folder),
        "image_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "precision": "bf16",
    }
    reservation = create_run(make_config(settings), paths.runs_dir())
    for event in execute(reservation):
        if isinstance(event, EpochEnded):
            request_stop(reservation.run_dir)
    return reservation.run_dir


def test_one_click_evaluates_a_stopped_run_in_fp32(stopped, finished):
    at = open_page("evaluate", run=stopped.name)
    assert any("Computed in bf16" in warning.value for warning in at.warning)
    button(at, "Evaluate in fp32").click().run()
    at = finished(at)
    assert not any("Computed in bf16" in warning.value for warning in at.warning)
    assert not [button for button in at.button if button.label == "Evaluate in fp32"]


def test_the_train_page_says_that_live_numbers_are_in_bf16(stopped):
    captions = [caption.value for caption in open_page("train", run=stopped.name).caption]
    assert any("metrics of each epoch are computed in bf16" in caption for caption in captions)
