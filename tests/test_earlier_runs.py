"""Runs of an earlier version, one finished and one killed, can be opened, used and continued."""

import json
import shutil
from pathlib import Path

import pytest

from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.runs.record import execute, reopen_run
from finetune_core.runs.store import RunStore
from finetune_core.training.events import RunFinished, RunResumed
from finetune_core.training.prediction_history import load_prediction_history

KEPT = Path(__file__).parent / "earlier_run"


@pytest.fixture
def runs(tmp_path):
    """Return two runs, finished and interrupted, whose images lie in a folder of this test."""
    shutil.copytree(KEPT / "images", tmp_path / "images")
    for kept in sorted(KEPT.glob("2026*")):
        run_dir = tmp_path / "runs" / kept.name
        shutil.copytree(kept, run_dir)
        config = json.loads((run_dir / "config.json").read_text())
        (run_dir / "config.json").write_text(
            json.dumps(config | {"data": str(tmp_path / "images")})
        )
    store = RunStore(tmp_path / "runs")
    assert not store.list_damaged()
    return sorted(store.list_runs(), key=lambda run: run.run_id)


def test_they_open_as_they_ended(runs):
    assert [run.status for run in runs] == ["finished", "interrupted"]
    assert [len(load_prediction_history(run.run_dir).predicted) for run in runs] == [2, 7]
    assert evaluation(runs[0]).accuracy == runs[0].history.end["test_accuracy"]


def test_their_network_predicts(runs):
    image = next((KEPT / "images" / "7").iterdir())
    probabilities = load_predictor(runs[0]).predict_proba([image])
    assert probabilities.shape == (1, 3)
    assert probabilities.argmax() == 2


@pytest.mark.train
def test_the_one_that_was_killed_goes_on_where_it_was(runs):
    events = list(execute(reopen_run(runs[1].run_dir)))
    assert next(event for event in events if isinstance(event, RunResumed)).epoch == 8
    assert isinstance(events[-1], RunFinished)
    assert len(load_prediction_history(runs[1].run_dir).predicted) == 8
