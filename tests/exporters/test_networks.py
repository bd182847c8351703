"""Exported files return the run's predictions, with and without Thaw, and state their accuracy."""

import ast
import csv
import functools
import json
import os
import re
import runpy
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune_core.config import Edit
from finetune_core.errors import ExportError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.exporters import formats, measure
from finetune_core.exporters.formats import FORMATS, export_in_steps, export_run
from finetune_core.exporters.graphs import BATCHES, TOLERANCE, compare
from finetune_core.exporters.tensors import load_export
from finetune_core.formatting import format_percent
from finetune_core.runs.store import summarize_run
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.predictions import load_predictions
from finetune_core.work import finish
from tests.exporters.conftest import colours, train_shared

NETWORK_FORMATS = [name for name, form in FORMATS.items() if form.has_network]

# Runs predict.py as a program, and prints which libraries it imported.
ALONE = """
import runpy, sys
script, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print([name for name in ("torch", "timm", "finetune_core", "onnxruntime") if sys.modules.get(name)])
"""


@pytest.fixture(scope="module")
def bf16_run(native_bf16):
    """A run trained in bf16, with some wrong labels."""
    wrong = tuple(f"red/{number:03d}.png" for number in range(7))
    edits = (Edit(action="relabel", paths=wrong, to="blue"),)
    return train_shared(precision="bf16", test_fraction=0.4, edits=edits, epochs=4)


@pytest.fixture(scope="module")
def export_once(bf16_run, tmp_path_factory):
    """``export_once(format)`` exports the run once per format."""
    base = tmp_path_factory.mktemp("exports")
    return functools.cache(lambda name: export_run(bf16_run, name, base / name))


@pytest.fixture(scope="module")
def inputs(bf16_run):
    """The table of predictions, and the network inputs of its images."""
    table = load_predictions(bf16_run.run_dir)
    info = load_predictor(bf16_run).network.info
    images = [network_input(colours() / name, info, 32).tensor for name in table["id"]]
    return table, torch.stack(images)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One image of each kind that is decoded differently."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "alpha.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(folder / "16bit.png")
    Image.fromarray(noise[..., 0].astype(np.float32) / 7 - 3).save(folder / "float.tif")
    Image.fromarray(noise[..., :3]).convert("P").save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = Image.fromarray(noise[:8, :8, :3]).resize((300, 200), Image.Resampling.BICUBIC)
    smooth.save(folder / "turned.jpg", exif=exif)
    return [*sorted(folder.iterdir()), colours() / "red" / "008.png"]


def compute_logits(folder, images):
    """Run an exported file, without Thaw if possible."""
    if (folder / "model.onnx").exists():
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        return session.run(["logits"], {"image": images.numpy()})[0]
    if (folder / "model.pt2").exists():
        return torch.export.load(folder / "model.pt2").module()(images).detach().numpy()
    with torch.no_grad():
        return load_export(folder).network.model(images).numpy()


def check_script(folder, run, table):
    ast.parse((folder / "train.py").read_text())
    rows = {row["path"]: row for row in csv.DictReader((folder / "split.csv").open())}
    assert len(rows) == sum(run.started["counts"].values())
    found = [(rows[name]["split"], rows[name]["label"]) for name in table["id"]]
    classes = run.started["classes"]
    assert found == [
        (split, classes[label]) for split, label in zip(table["split"], table["label"], strict=True)
    ]


def check_card(folder, run, _):
    outcome = ModelCard.load(folder / "README.md").data.eval_results
    accuracy = next(one.metric_value for one in outcome if one.metric_type == "accuracy")
    assert accuracy == round(evaluation(run).accuracy, 4)


def check_events(folder, run, _):
    curve = EventAccumulator(str(folder / "validation")).Reload().Scalars("epoch/accuracy")
    assert [point.value for point in curve] == pytest.approx(
        [row["val_accuracy"] for row in run.history.epochs]
    )


# checks of formats without a network
CHECKS = {"script": check_script, "card": check_card, "tensorboard": check_events}


@pytest.mark.journey
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_opens_again_and_answers_as_the_run(format, export_once, bf16_run, inputs):
    table, images = inputs
    result = export_once(format)
    assert all((result.folder / file).is_file() for file in result.files)
    if not FORMATS[format].has_network:
        CHECKS[format](result.folder, bf16_run, table)
        return
    logits, found = np.stack(table["logits"]), compute_logits(result.folder, images)
    assert np.abs(found - logits).max() <= 1e-4 * max(1, np.abs(logits).max())
    assert (found.argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("format", NETWORK_FORMATS)
def test_card_and_sidecar_state_the_files_accuracy_and_no_local_path(
    format, bf16_run, export_once, inputs
):
    table, images = inputs
    tested = (table["split"] == "test").to_numpy()
    folder = export_once(format).folder
    found = compute_logits(folder, images[torch.tensor(tested)]).argmax(1)
    accuracy = float((found == table["label"][tested]).mean())
    assert 0.3 < accuracy < 1
    sidecar, text = (folder / "model.json").read_text(), (folder / "README.md").read_text()
    result = json.loads(sidecar)
    metrics = result["metrics"]
    assert (metrics["accuracy"], metrics["images"]) == (accuracy, tested.sum())
    assert metrics["labels_as_in_the_run"] == tested.sum()
    assert metrics["measured_on"].startswith("model.")
    check_card(folder, bf16_run, None)
    assert f"test accuracy {format_percent(accuracy)} on {tested.sum()} images" in text
    assert "Evaluated with the exported file" in text
    assert str(colours().parent) not in sidecar + text
    assert result["run"]["settings"]["data"] == colours().name
    assert result["preprocessing"]["resize_to"] == 34
    assert len(result["hashes"]["backbone_weights"]) == 16


def test_onnx_takes_any_batch_and_carries_what_it_needs(export_once):
    result = export_once("onnx")
    assert result.checked["batches"] == list(BATCHES)
    assert result.checked["largest_difference"] <= result.checked["tolerance"] == TOLERANCE
    model = onnx.load(result.folder / "model.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    sidecar = json.loads((result.folder / "model.json").read_text())
    for name in ("classes", "preprocessing", "metrics"):
        assert json.loads(metadata[name]) == sidecar[name]
    assert sidecar["classes"] == ['a "b", |c|', "blue", "red"]
    assert "logits" in metadata["output"]


def test_a_graph_that_answers_otherwise_at_any_batch_size_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2)).eval()

    def answer(images):
        return model(images).detach().numpy()

    assert compare(model, 8, "it", answer)["largest_difference"] == 0
    for wrong in (
        lambda images: answer(images) + 0.01,
        lambda images: answer(images)[:, :1],
        lambda images: answer(images) * np.nan,
        lambda images: answer(images) + 0.01 * (len(images) == BATCHES[-1]),
    ):
        with pytest.raises(ExportError, match="exported network differ"):
            compare(model, 8, "it", wrong)


def test_safetensors_come_back_into_thaw_bit_for_bit(export_once, bf16_run, pictures):
    before, after = load_predictor(bf16_run), load_export(export_once("safetensors").folder)
    state = after.network.model.state_dict()
    for name, tensor in before.network.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert (after.classes, after.image_size) == (before.classes, 32)
    assert after.network.stages == before.network.stages
    np.testing.assert_array_equal(after.predict_proba(pictures), before.predict_proba(pictures))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("format", "libraries"),
    [("onnx", ["onnxruntime"]), ("torch_export", ["torch"]), ("safetensors", ["torch", "timm"])],
)
def test_the_example_names_images_as_thaw_does_without_thaw(
    export_once, format, libraries, bf16_run, pictures, run_without_thaw
):
    script = export_once(format).folder / "predict.py"
    *lines, used = run_without_thaw("-c", ALONE, script, *pictures).splitlines()
    assert used == str(libraries)
    predictor = load_predictor(bf16_run)
    expected = predictor.predict_proba(pictures)
    result = [json.loads(line) for line in lines]
    assert [row["class"] for row in result] == [predictor.classes[row.argmax()] for row in expected]
    np.testing.assert_allclose([row["probability"] for row in result], expected.max(1), atol=1e-4)


def test_the_example_leaves_out_what_is_no_image_and_waits_for_nothing(
    export_once, pictures, tmp_path, monkeypatch, capsys
):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "text.png").write_text("no image")
    bad = [str(tmp_path / f"{name}.png") for name in ("fifo", "text", "gone")]
    script, good = export_once("safetensors").folder / "predict.py", str(pictures[-1])
    monkeypatch.setattr(sys, "argv", ["predict.py", *bad, good])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [good]
    assert [line.split(" cannot be read")[0] for line in err.splitlines()] == bad


def test_the_table_of_predictions_holds_what_predict_answers(bf16_run, inputs):
    table, _ = inputs
    logits = np.stack(table["logits"]).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answered = load_predictor(bf16_run).predict_proba([colours() / name for name in table["id"]])
    np.testing.assert_allclose(answered, expected, atol=1e-4)


def test_every_place_says_the_same_number(bf16_run, inputs):
    table, _ = inputs
    row, end = summarize_run(bf16_run), bf16_run.history.end
    right = np.stack(table["logits"]).argmax(1) == table["label"].to_numpy()
    for split in ("test", "val"):
        accuracies = [
            row[f"{split}_accuracy"],
            end[f"{split}_accuracy"],
            evaluation(bf16_run, split).accuracy,
        ]
        assert accuracies == [right[table["split"] == split].mean()] * 3
    assert (row["precision"], row["evaluation_precision"]) == ("bf16", "fp32")
    best = bf16_run.history.epochs[end["best_epoch"] - 1]
    assert row["live_val_accuracy"] == best["val_accuracy"]


def test_a_file_that_answers_otherwise_is_stated_as_it_is(bf16_run, tmp_path, monkeypatch):
    """The card states the worth of the file where that names the first class for some images."""
    original = measure.compute_outputs

    def spoil_answers(*arguments):
        logits = yield from original(*arguments)
        logits[logits.argmax(1) > 0] = [9, 0, 0]
        return logits

    monkeypatch.setattr(measure, "compute_outputs", spoil_answers)
    folder = export_run(bf16_run, "safetensors", tmp_path / "out").folder
    result = json.loads((folder / "model.json").read_text())["metrics"]
    assert result["accuracy"] < result["run"]["accuracy"] == evaluation(bf16_run).accuracy
    assert result["labels_as_in_the_run"] < result["images"]
    expected_text = (
        f"test accuracy {format_percent(result['accuracy'])} on {result['images']} images"
    )
    assert expected_text in (folder / "README.md").read_text()


@pytest.mark.parametrize("why", ["moved", "outside", "changed"])
def test_without_the_images_the_runs_own_numbers_are_given_as_such(bf16_run, tmp_path, why):
    data, roots = tmp_path / "images", [tmp_path] if why == "outside" else []
    run = replace(bf16_run, config=bf16_run.config.model_copy(update={"data": str(data)}))
    if why == "outside":
        run = bf16_run
    elif why == "changed":
        shutil.copytree(colours(), data)
        (data / "red" / "003.png").unlink()
    finish(export_in_steps(run, "safetensors", tmp_path / "out", roots))
    text = (tmp_path / "out" / "model.json").read_text()
    result = json.loads(text)["metrics"]
    assert result["measured_on"] is None
    assert result["accuracy"] == result["run"]["accuracy"] == evaluation(bf16_run).accuracy
    card = re.sub(r"\\(.)", r"\1", (tmp_path / "out" / "README.md").read_text())
    expected_text = (
        f"was not evaluated: {result['not_measured_because']}. The numbers are the run's own"
    )
    assert f"{expected_text}, computed in fp32." in card
    assert str(data.parent) not in text + card


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_what_to_install(run, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    expected_text = f"{library}, which is not installed: python -m pip install"
    with pytest.raises(ExportError, match=expected_text):
        export_run(run, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "function", "expected_text"),
    [
        ("torch_export", "torch.export.export", r"torch.export \(RuntimeError: This is step 2/3"),
        ("onnx", "torch.onnx.export", r"ONNX \(ValueError: Cannot view a tensor\)\. Export it as"),
    ],
)
def test_a_network_that_cannot_be_traced_says_the_first_reason(
    run, tmp_path, monkeypatch, format, function, expected_text
):
    def fail(*_, **__):
        cause = ValueError("Cannot view a tensor\nwith these strides")
        error = RuntimeError("This is step 2/3\nand a page more")
        raise error from (cause if format == "onnx" else None)

    monkeypatch.setattr(function, fail)
    with pytest.raises(
        ExportError, match=f"timm/test_resnet cannot be exported with {expected_text}"
    ):
        export_run(run, format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_damaged_export_is_refused(export_once, tmp_path):
    folder = shutil.copytree(export_once("safetensors").folder, tmp_path / "copy")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ExportError, match="its hash is not"):
        load_export(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="holds no model"):
        load_export(folder)
    header = '{"kind": "thaw-export", "version": '
    for text in ("{", "[]", header + "2}", header + "1}"):
        (folder / "model.json").write_text(text)
        with pytest.raises(ExportError):
            load_export(folder)


def test_an_earlier_export_in_the_runs_folder_is_replaced_and_no_other_folder_is(run, tmp_path):
    first = export_run(run, "card")
    (first.folder / "old").touch()
    assert export_run(run, "card").files == ("README.md",)
    assert {folder.name for folder in first.folder.parent.iterdir()} <= set(FORMATS)
    assert formats.find_export(run, "card") == first.folder
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ExportError, match="is not empty"):
        export_run(run, "card", tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"
