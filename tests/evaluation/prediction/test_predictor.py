from pathlib import Path

import numpy as np
import pytest

from finetune_core.errors import ImageError, RunError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.metrics import evaluate
from finetune_core.runs.store import read_run
from finetune_core.training.predictions import load_predictions
from tests.factories import NASTY


@pytest.fixture
def run(trained_runs):
    return read_run(trained_runs.last_block)


def test_a_reloaded_network_says_what_the_run_said(run):
    classes = (NASTY, "blue", "red")
    result = evaluate(load_predictions(run.run_dir), classes)
    files = [Path(run.config.data, name) for name in result.predictions["id"]]
    predictor = load_predictor(run)
    found = predictor.predict_proba(files)
    expected = np.stack(result.predictions["probabilities"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert predictor.classes == classes
    # uploaded bytes are treated like files
    uploaded = predictor.predict_proba([files[0].read_bytes()])
    np.testing.assert_array_equal(uploaded, predictor.predict_proba(files[:1]))
    with pytest.raises(ImageError):
        predictor.predict_proba([b"hello"])


def test_other_backbone_weights_than_the_runs_are_refused(run, monkeypatch):
    monkeypatch.setattr("finetune_core.models.network.load_weights", lambda *_: "another hash")
    from finetune_core.models import network

    network._load_source.cache_clear()
    with pytest.raises(RunError, match="are not those"):
        load_predictor(run)
    network._load_source.cache_clear()
