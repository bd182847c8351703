"""Evaluation in fp32 on request of a run that was stopped while it trained in bf16."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from scipy.special import softmax
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation_precision, precision_note
from finetune_core.evaluation.single_run.fp32 import can_evaluate_in_fp32, evaluate_in_fp32
from finetune_core.runs import locks
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.events import EpochEnded
from finetune_core.training.predictions import load_predictions
from tests.factories import copy_run, shared_images, tiny_config


@pytest.fixture(scope="module")
def stopped_once(native_bf16, home_of_shared_fixtures, tmp_path_factory):
    """Return a run that trained in bf16 and was stopped after its first epoch."""
    data = shared_images(red=12, blue=12, green=12)
    reservation = create_run(tiny_config(data, precision="bf16"), tmp_path_factory.mktemp("runs"))
    for event in execute(reservation):
        if isinstance(event, EpochEnded):
            request_stop(reservation.run_dir)
    return reservation.run_dir


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """Return ``stopped()``, which reads a copy of the run in its current state."""
    copy = copy_run(stopped_once, tmp_path / "runs")
    return lambda: RunStore(copy.parent).get_run(copy.name)


@pytest.mark.train
def test_it_then_holds_the_fp32_answers_of_its_best_epoch_and_still_goes_on(stopped):
    run = stopped()
    found = (run.status, evaluation_precision(run), can_evaluate_in_fp32(run))
    assert found == ("stopped", "bf16", True)
    done = CliRunner().invoke(app, ["evaluate", str(run.run_dir), "--fp32", "--json"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    run = stopped()
    assert result["precision"] == evaluation_precision(run) == "fp32"
    assert (precision_note(run), can_evaluate_in_fp32(run)) == ("", False)
    table = load_predictions(run.run_dir)
    logits = np.stack(table["logits"]).astype(float)
    images = [Path(run.config.data, name) for name in table["id"]]
    expected = load_predictor(run).predict_proba(images)
    np.testing.assert_allclose(softmax(logits, axis=1), expected, atol=1e-5)
    assert result["accuracy"] == (expected.argmax(1) == table["label"]).mean()
    list(execute(reopen_run(run.run_dir)))
    run = stopped()
    assert run.history.end["evaluation_precision"] == evaluation_precision(run) == "fp32"
    assert set(load_predictions(run.run_dir)["split"]) == {"val", "test"}


def test_it_is_refused_where_its_images_may_not_be_read_have_changed_or_it_goes_on(
    stopped, tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0)
    run = stopped()
    before = (run.run_dir / "predictions.parquet").read_bytes()
    with pytest.raises(FinetuneError, match="THAW_DATA_ROOTS"):
        list(evaluate_in_fp32(run, [tmp_path / "elsewhere"]))
    with FileLock(run.run_dir / "lock"), pytest.raises(RunError, match="is going on"):
        list(evaluate_in_fp32(run))
    fewer = shutil.copytree(run.config.data, tmp_path / "fewer")
    next(fewer.rglob("*.png")).unlink()
    changed = replace(run, config=run.config.model_copy(update={"data": str(fewer)}))
    with pytest.raises(RunError, match="have changed"):
        list(evaluate_in_fp32(changed))
    assert (run.run_dir / "predictions.parquet").read_bytes() == before
