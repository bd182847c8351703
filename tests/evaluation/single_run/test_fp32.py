"""A run that was stopped while it trained in bf16 can be evaluated in fp32 on request."""

import json
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.config import make_config
from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation_precision, precision_note
from finetune_core.evaluation.single_run.fp32 import can_be_evaluated, evaluate_in_fp32
from finetune_core.runs import locks
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.events import EpochEnded
from finetune_core.training.predictions import load_predictions


@pytest.fixture
def stopped(native_bf16, image_folder, tmp_path):
    """``stopped()``: the run as it stands now."""
    folder = image_folder(tmp_path / "images", {"red": 12, "blue": 12, "green": 12})
    settings = {
        "data": str(folder),
        "image_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "precision": "bf16",
    }
    reservation = create_run(make_config(settings), tmp_path / "runs")
    for event in execute(reservation):
        if isinstance(event, EpochEnded):
            request_stop(reservation.run_dir)
    return lambda: RunStore(tmp_path / "runs").run(reservation.run_dir.name)


def test_it_then_holds_the_fp32_answers_of_its_best_epoch_and_still_goes_on(stopped):
    run = stopped()
    assert (run.status, evaluation_precision(run), can_be_evaluated(run)) == (
        "stopped",
        "bf16",
        True,
    )
    done = CliRunner().invoke(app, ["evaluate", str(run.run_dir), "--fp32", "--json"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    run = stopped()
    assert result["precision"] == evaluation_precision(run) == "fp32"
    assert (precision_note(run), can_be_evaluated(run)) == ("", False)
    table = load_predictions(run.run_dir)
    logits = np.stack(table["logits"]).astype(float)
    expected = load_predictor(run).probabilities(
        [Path(run.config.data, name) for name in table["id"]]
    )
    np.testing.assert_allclose(
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True), expected, atol=1e-5
    )
    assert result["accuracy"] == (expected.argmax(1) == table["label"]).mean()
    list(execute(reopen_run(run.run_dir)))
    assert (
        stopped().history.end["evaluation_precision"] == evaluation_precision(stopped()) == "fp32"
    )
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
    next(Path(run.config.data).rglob("*.png")).unlink()
    with pytest.raises(RunError, match="have changed"):
        list(evaluate_in_fp32(run))
    assert (run.run_dir / "predictions.parquet").read_bytes() == before
