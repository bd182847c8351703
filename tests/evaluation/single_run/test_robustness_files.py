"""Stored predictions of corrupted images are untrusted input: damaged ones do not count."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_core.errors import RunError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit, list_corruptions
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.robustness_files import (
    load_corrupted_predictions,
    load_robustness,
)
from finetune_core.runs.store import read_run
from finetune_core.work import finish
from tests.evaluation.single_run.test_damaged_results import (
    SOME_TABLES,
    TABLES,
    remove,
    replace_column,
    write_table,
)

NOISE = CorruptedSplit("test", "noise", 3)


@pytest.fixture(scope="module")
def measured(trained_runs, tmp_path_factory):
    (run_dir,) = trained_runs.copied(tmp_path_factory.mktemp("measured"), "last_block")
    finish(measure_robustness(read_run(run_dir), "test"))
    return run_dir


@pytest.fixture
def stored(measured, tmp_path):
    """Return (run, file)."""
    run = read_run(shutil.copytree(measured, tmp_path / "run"))
    return run, run.run_dir / "robustness-test.parquet"


@pytest.mark.train
def test_the_predictions_are_those_behind_the_accuracies_and_the_clean_ones_those_of_the_run(
    stored,
):
    run, _ = stored
    rows = load_robustness(run, "test").rows.set_index(["corruption", "severity"])["accuracy"]
    for which in list_corruptions("test"):
        table = load_corrupted_predictions(run.run_dir, which, 3)
        right = np.stack(table["logits"]).argmax(1) == table["label"]
        assert right.mean() == pytest.approx(rows[which.corruption, which.severity])
        assert set(table["split"]) == {"shifted"}
    own = evaluation(run, "test").predictions.set_index("id")["probabilities"]
    clean = load_corrupted_predictions(run.run_dir, CorruptedSplit("test", "none", 0), 3)
    logits = np.stack(clean["logits"]).astype(float)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, np.stack(own[clean["id"]]), atol=1e-5)
    assert not np.allclose(
        logits, np.stack(load_corrupted_predictions(run.run_dir, NOISE, 3)["logits"]), atol=0.1
    )


def test_nothing_is_predicted_to_read_them(stored, monkeypatch):
    run, _ = stored
    monkeypatch.setattr(
        "finetune_core.evaluation.single_run.robustness.load_predictor",
        lambda *_: pytest.fail("asked again"),
    )
    assert load_robustness(run, "test").predicted
    assert load_predictor  # what measuring would call


DAMAGE = {name: TABLES[name] for name in SOME_TABLES} | {
    "a way too few": lambda table: table.filter(pa.compute.not_equal(table["split"], "noise-3")),
    "other images in one way": lambda table: table.slice(1),
    "an unknown way": replace_column(
        "split", lambda ways: pa.array([one.replace("noise", "fog") for one in ways.to_pylist()])
    ),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_does_not_count(stored, change):
    run, file = stored
    table = pq.read_table(file)
    facts = {b"thaw.robustness": table.schema.metadata[b"thaw.robustness"]}
    file.write_bytes(write_table(change(table).replace_schema_metadata(facts)))
    assert load_robustness(run, "test") is None
    with pytest.raises(RunError, match=r"robustness-test\.parquet is damaged"):
        load_corrupted_predictions(run.run_dir, NOISE, 3)


def test_what_is_of_an_earlier_state_of_the_run_does_not_count(stored):
    run, _ = stored
    os.utime(run.run_dir / "predictions.parquet", ns=(1, 1))
    assert load_robustness(run, "test") is None
    with pytest.raises(RunError, match="earlier state"):
        load_corrupted_predictions(run.run_dir, NOISE, 3)


@pytest.mark.train
def test_no_link_is_followed_and_no_fifo_waited_for(stored, measured):
    run, file = stored
    file.unlink()
    for place in (
        lambda: file.symlink_to(measured / file.name),
        lambda: os.mkfifo(file),
        file.mkdir,
    ):
        place()
        assert load_robustness(run, "test") is None
        with pytest.raises(RunError, match=r"robustness-test\.parquet is a"):
            load_corrupted_predictions(run.run_dir, NOISE, 3)
        if place == file.mkdir:
            with pytest.raises(RunError, match="cannot be kept"):
                finish(measure_robustness(run, "test"))
        remove(file)
