"""The tab *Flips at test time* on Evaluate."""

import shutil

import pytest

from finetune_core import paths
from finetune_core.evaluation.comparison.tta import augmented
from finetune_core.runs.store import RunStore
from tests.pages.harness import button, open_page, press, unescaped


@pytest.fixture
def run(trained_once, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained_once.data.parent))
    shutil.copytree(trained_once.last_block, paths.runs_dir() / trained_once.last_block.name)
    return RunStore(paths.runs_dir()).run(trained_once.last_block.name)


def test_flips_are_measured_at_a_click_and_shown_again(run, finished):
    at = open_page("evaluate", run=run.run_id, state={"evaluate_view": "Flips at test time"})
    assert "It was not trained on mirror images" in unescaped(at)
    press(at, "Evaluate with flips")
    finished(at)
    words = [one.in_words() for one in augmented(run)]
    assert len(words) == 2
    again = open_page("evaluate", run=run.run_id, state={"evaluate_view": "Flips at test time"})
    for page in (at, again):
        assert all(one in unescaped(page) for one in words)
        assert button(page, "Measure again")
