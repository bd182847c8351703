"""Notes on predictions that were not computed in fp32, wherever they are evaluated."""

import pyarrow.parquet as pq
import pytest

from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.single_run.evaluate import (
    evaluation,
    evaluation_precision,
    precision_note,
)

RIGHT = [True, False] * 20


def test_a_run_that_stopped_in_bf16_says_so(make_run):
    run = make_run(RIGHT, precision="bf16", status="stopped")
    assert evaluation_precision(run) == "bf16"
    assert precision_note(run).startswith("Computed in bf16, as the run trained.")


def test_a_run_in_fp32_has_nothing_to_say(make_run):
    assert precision_note(make_run(RIGHT)) == ""


def test_comparing_a_run_that_stopped_in_bf16_with_finished_ones_is_noted(make_run):
    full = {"strategy": "full"}
    runs = [make_run(RIGHT), make_run(RIGHT, precision="bf16", status="stopped", **full)]
    (note,) = [note for note in compare_runs(runs).notes if "bf16" in note]
    assert "Full fine-tuning" in note
    assert "seed 0 (bf16)" in note
    assert note.count("seed") == 1
    finished = [make_run(RIGHT), make_run(RIGHT, **full)]
    assert not [note for note in compare_runs(finished).notes if "bf16" in note]


@pytest.mark.parametrize(("precision", "noted"), [("bf16", True), ("fp32", False), (None, False)])
def test_predictions_of_an_earlier_version_are_in_the_precision_of_the_run(
    make_run, precision, noted
):
    run = make_run(RIGHT)
    file = run.run_dir / "predictions.parquet"
    table = pq.read_table(file)
    metadata = {
        key: value for key, value in table.schema.metadata.items() if not key.startswith(b"thaw")
    }
    pq.write_table(table.replace_schema_metadata(metadata), file)
    run.history.started["precision"] = precision
    assert evaluation_precision(run) == precision
    assert bool(precision_note(run)) == noted
    assert evaluation(run).accuracy == 0.5
