import numpy as np
import pytest

from finetune_core.config import make_config
from finetune_core.errors import ImageError, RunError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.metrics import evaluate
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore
from finetune_core.training.predictions import load_predictions


@pytest.fixture
def run(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 12, "blue": 12})
    settings = {"data": str(folder), "image_size": 32, "epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"}
    reservation = create_run(make_config(settings), tmp_path / "runs")
    list(execute(reservation))
    return RunStore(tmp_path / "runs").run(reservation.run_dir.name)


def test_a_reloaded_network_says_what_the_run_said(run, tmp_path):
    result = evaluate(load_predictions(run.run_dir), ("blue", "red"))
    files = [tmp_path / "images" / name for name in result.predictions["id"]]
    predictor = load_predictor(run)
    np.testing.assert_allclose(
        predictor.probabilities(files), np.stack(result.predictions["probabilities"]), rtol=1e-4, atol=1e-6
    )
    assert predictor.classes == ("blue", "red")


def test_uploaded_bytes_are_treated_like_files(run, tmp_path):
    file = next((tmp_path / "images" / "red").iterdir())
    predictor = load_predictor(run)
    np.testing.assert_array_equal(predictor.probabilities([file]), predictor.probabilities([file.read_bytes()]))


def test_what_is_no_image_is_refused(run):
    with pytest.raises(ImageError):
        load_predictor(run).probabilities([b"hello"])


def test_other_backbone_weights_than_the_runs_are_refused(run, monkeypatch):
    monkeypatch.setattr("finetune_core.models.network.load_weights", lambda *_: "another hash")
    from finetune_core.models import network

    network._held.cache_clear()
    with pytest.raises(RunError, match="are not those"):
        load_predictor(run)
    network._held.cache_clear()
