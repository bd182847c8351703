"""Damaged predictions and checkpoints: a run refuses them by name, before it reads much."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from finetune_core.errors import RunError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run
from finetune_core.training import events
from finetune_core.training.checkpoints.files import load_tensors
from finetune_core.training.predictions import load_predictions, predictions_mtime
from finetune_core.training.prepare import prepare
from finetune_core.training.step.optimizers import make_optimizer
from finetune_core.training.training_state import restore_training_state
from finetune_core.work import finish
from tests.factories import shared_images, tiny_config, trained_run

# layer4 stays frozen between two that train, so that the checkpoint holds frozen tensors.
SETTINGS = {"strategy": "custom", "stage_rates": {"layer3": 0.1, "head": 1.0}, "batch_size": 8}


def make_config():
    return tiny_config(shared_images(red=10, blue=10, green=10), **SETTINGS)


@pytest.fixture(scope="module")
def finished(home_of_shared_fixtures):
    return trained_run(make_config()).run_dir


@pytest.fixture(scope="module")
def stopped(home_of_shared_fixtures, tmp_path_factory):
    """Return the directory of a run that was stopped in its second epoch."""
    reservation = create_run(make_config(), tmp_path_factory.mktemp("stopped"))
    for event in execute(reservation):
        if isinstance(event, events.StepEnded) and event.epoch == 2:
            request_stop(reservation.run_dir)
    return reservation.run_dir


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def remove(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def write_table(table, **options):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def replace_column(name, values):
    def change(table):
        at = table.schema.names.index(name)
        return table.set_column(at, name, values(table[name]) if callable(values) else values)

    return change


def change_logits(change):
    def apply(values):
        matrix = np.stack(values.to_numpy()).copy()
        return pa.array(list(change(matrix)))

    return replace_column("logits", apply)


def set_first(value):
    def change(matrix):
        matrix[0, 0] = value
        return matrix

    return change


TABLES = {
    "no rows": lambda table: table.slice(0, 0),
    "no labels": lambda table: table.drop_columns("label"),
    "labels that are texts": replace_column(
        "label", lambda labels: pa.array([str(one) for one in labels])
    ),
    "a label that is no class": replace_column(
        "label", lambda labels: pa.array([99, *labels.to_pylist()[1:]])
    ),
    "a negative label": replace_column(
        "label", lambda labels: pa.array([-1, *labels.to_pylist()[1:]])
    ),
    "a label that is missing": replace_column(
        "label", lambda labels: pa.array([None, *labels.to_pylist()[1:]])
    ),
    "an unknown split": replace_column("split", lambda splits: pa.array(["train"] * len(splits))),
    "an image twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "an image elsewhere": replace_column(
        "id", lambda ids: pa.array(["../../secret.png", *ids.to_pylist()[1:]])
    ),
    "a name without end": replace_column(
        "id", lambda ids: pa.array(["x" * 100_000, *ids.to_pylist()[1:]])
    ),
    "numbers for names": replace_column("id", lambda ids: pa.array(range(len(ids)))),
    "a logit too few": change_logits(lambda matrix: matrix[:, 1:]),
    "a logit too many": change_logits(lambda matrix: np.hstack([matrix, matrix[:, :1]])),
    "rows of different lengths": replace_column(
        "logits", lambda rows: pa.array([[1.0] * 4, [1.0] * 2, *rows.to_pylist()[2:]])
    ),
    "logits that are texts": replace_column(
        "logits", lambda rows: pa.array([["a", "b", "c"]] * len(rows))
    ),
    "one number for logits": replace_column("logits", lambda rows: pa.array([1.0] * len(rows))),
    "no number": change_logits(set_first(np.nan)),
    "infinity": change_logits(set_first(np.inf)),
    "another table": lambda _: pa.table({"a": [1]}),
}
# one for each step of the check, for files that hold such a table too
SOME_TABLES = ("no rows", "a negative label", "a logit too few", "no number", "another table")


@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_a_table_that_holds_no_predictions_of_this_run_is_refused(run_dir, change):
    file = run_dir / "predictions.parquet"
    file.write_bytes(write_table(change(pq.read_table(file))))
    with pytest.raises(RunError, match=r"predictions\.parquet is damaged"):
        evaluation(read_run(run_dir))


def test_a_table_that_would_become_enormous_is_refused_before_it_is_read(run_dir, monkeypatch):
    file = run_dir / "predictions.parquet"
    table, rows = pq.read_table(file), 400_000
    many = pa.table(
        {name: table[name].take(pa.array(np.zeros(rows, int))) for name in table.schema.names}
    )
    file.write_bytes(write_table(many, compression="zstd"))
    assert file.stat().st_size < 1e6
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(RunError, match="compressed in another way"):
        load_predictions(run_dir)
    monkeypatch.setattr("finetune_core.training.predictions._MOST_LOGITS", 1_000_000)
    file.write_bytes(write_table(many))
    with pytest.raises(RunError, match="1200000 logits"):
        load_predictions(run_dir)


def test_a_flipped_bit_in_the_numbers_is_found(run_dir):
    file = run_dir / "predictions.parquet"
    content = bytearray(file.read_bytes())
    place = pq.ParquetFile(file).metadata.row_group(0).column(3).data_page_offset
    content[place + 60] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        load_predictions(run_dir)


def test_predictions_are_read_through_no_link_and_wait_for_no_fifo(run_dir, finished):
    file = run_dir / "predictions.parquet"
    file.unlink()
    for place in (
        lambda: file.symlink_to(finished / file.name),
        lambda: os.mkfifo(file),
        file.mkdir,
    ):
        place()
        assert predictions_mtime(run_dir) == 0
        with pytest.raises(RunError, match=r"predictions\.parquet is a"):
            load_predictions(run_dir)
        remove(file)


def test_a_table_of_an_earlier_version_is_read_as_before(run_dir):
    file = run_dir / "predictions.parquet"
    now = load_predictions(run_dir, 3)
    pd.read_parquet(file).to_parquet(file, index=False)
    assert load_predictions(run_dir, 3).equals(now)
    assert now["logits"][0].dtype == np.float32


def rewrite_checkpoint(path, change_tensors=lambda tensors: None, **info):
    """Change a checkpoint in place."""
    tensors, _ = load_tensors(path.parent, path.stem)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    result = json.loads(header["__metadata__"]["info"])
    change_tensors(tensors)
    save_file(tensors, path, {"info": json.dumps(result | info)})


def change_frozen(tensors):
    name = "layer4.0.conv1.weight"
    tensors[name] = tensors[name] + 1e-4


def change_first(change):
    def apply(tensors):
        key = next(key for key, tensor in tensors.items() if tensor.ndim > 1)
        tensors[key] = change(tensors[key])

    return apply


TENSORS = {
    "none": (lambda tensors: tensors.clear(), "are missing"),
    "one too few": (lambda tensors: tensors.pop(next(iter(tensors))), "1 tensor of"),
    "one too many": (lambda tensors: tensors.update(extra=torch.zeros(3)), "do not belong there"),
    "of a stage before the cut": (
        lambda tensors: tensors.update({"conv1.0.weight": torch.zeros(32, 3, 3, 3)}),
        "do not belong there",
    ),
    "of another shape": (change_first(lambda tensor: tensor[:1].clone()), "another shape"),
    "of another type": (change_first(lambda tensor: tensor.half()), "another shape or type"),
    "not finite": (change_first(lambda tensor: torch.full_like(tensor, torch.nan)), "not finite"),
    "frozen ones that were changed": (change_frozen, "is frozen in this run"),
}


@pytest.mark.parametrize(("change", "words"), TENSORS.values(), ids=TENSORS)
def test_a_checkpoint_with_other_tensors_than_the_run_trains_is_refused(run_dir, change, words):
    rewrite_checkpoint(run_dir / "best.safetensors", change)
    with pytest.raises(RunError, match=words):
        load_predictor(read_run(run_dir))


WRONG = {
    "classes": [["blue", "green"], "blue", [1, 2, 3], ["cat", "dog", "cow"]],
    "backbone": ["resnet18"],
    "epoch": [-1, 10**30, "two"],
    "fingerprint": ["other"],
    "weights_hash": [None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_checkpoint_that_says_it_is_of_another_run_is_refused(run_dir, name, value):
    rewrite_checkpoint(run_dir / "best.safetensors", **{name: value})
    with pytest.raises(RunError, match=r"best\.safetensors is damaged"):
        load_predictor(read_run(run_dir))


def test_a_checkpoint_without_words_of_itself_or_with_too_deep_ones_is_refused(run_dir):
    file = run_dir / "best.safetensors"
    tensors, _ = load_tensors(run_dir, "best")
    for result in ({}, {"info": "["}, {"info": '{"epoch": ' + "[" * 100_000}, {"other": "x"}):
        save_file(tensors, file, result)
        with pytest.raises(RunError, match=r"best\.safetensors is damaged"):
            load_predictor(read_run(run_dir))
    for place in (lambda: os.mkfifo(file), lambda: file.symlink_to(run_dir / "last.safetensors")):
        file.unlink()
        place()
        with pytest.raises(RunError, match=r"best\.safetensors is a"):
            load_predictor(read_run(run_dir))


def test_an_undamaged_run_predicts_as_before(run_dir):
    run = read_run(run_dir)
    result = evaluation(run)
    files = [Path(run.config.data, name) for name in result.predictions["id"]]
    expected = np.stack(result.predictions["probabilities"])
    found = load_predictor(run).predict_proba(files)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def change_state(**changes):
    def change(path):
        _, info = load_tensors(path.parent, "last")
        rewrite_checkpoint(path, training_state=info.training_state | changes)

    return change


def change_tensors_of(change):
    return lambda path: rewrite_checkpoint(path, change)


def resize_optimizer(shape):
    def change(tensors):
        key = next(
            key for key, tensor in tensors.items() if key.endswith("/exp_avg") and tensor.ndim > 1
        )
        tensors[key] = torch.zeros(shape)

    return change


LASTS = {
    "no tensors": change_tensors_of(lambda tensors: tensors.clear()),
    "no average was kept": change_tensors_of(
        lambda tensors: tensors.update({"average/fc.bias": torch.zeros(3)})
    ),
    "the optimizer's of another shape": change_tensors_of(resize_optimizer(3)),
    "half of the optimizer's": change_tensors_of(
        lambda tensors: tensors.pop("optimizer/0/exp_avg")
    ),
    "of a parameter that is not there": change_tensors_of(
        lambda tensors: tensors.update({"optimizer/9999/step": torch.tensor(1.0)})
    ),
    "of no parameter": change_tensors_of(
        lambda tensors: tensors.update({"optimizer/a/b/c": torch.tensor(1.0)})
    ),
    "frozen ones that were changed": change_tensors_of(change_frozen),
    "no position": lambda path: rewrite_checkpoint(path, training_state={}),
    "beyond the end": change_state(epoch=9),
    "a step that is not there": change_state(step=1000),
    "a step of another kind": change_state(step="two"),
    "no number": change_state(best_accuracy=float("nan")),
    "no count": change_state(metrics=None),
    "a count of other classes": change_state(
        metrics={"images": [1], "predicted": [1], "hits": [1], "loss_sum": 1.0}
    ),
    "a best epoch to come": change_state(best_epoch=2),
}


@pytest.fixture(scope="module")
def job(stopped):
    """Return the job that the stopped run would resume with, and its optimizer."""
    config = read_run(stopped).config
    job = finish(prepare(config))
    return job, make_optimizer(config, job.strategy, job.network.stages, job.network.model)


@pytest.mark.parametrize("damage", LASTS.values(), ids=LASTS)
def test_a_run_does_not_go_on_from_a_checkpoint_that_is_not_its_own(job, stopped, tmp_path, damage):
    shutil.copy(stopped / "last.safetensors", tmp_path)
    damage(tmp_path / "last.safetensors")
    model = job[0].network.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RunError, match=r"last\.safetensors"):
        restore_training_state(*job, None, None, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_run_whose_checkpoint_is_damaged_fails_in_words_and_keeps_its_best_epoch(
    stopped, tmp_path
):
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    os.truncate(run_dir / "last.safetensors", 1000)
    with pytest.raises(RunError, match=r"last\.safetensors"):
        list(execute(reopen_run(run_dir)))
    run = read_run(run_dir)
    assert (run.status, run.history.end["traceback"]) == ("failed", "")
    assert evaluation(run).images > 0
