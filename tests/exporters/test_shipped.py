"""What is evaluated is what is shipped: a run that trained in bf16 has the same labels and accuracy in its table of predictions, in
*Predict*, and in every exported file, and the card and ``model.json`` say what the file itself is worth."""

import functools
import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits

from finetune_core.config import make_config
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.exporters import measure
from finetune_core.exporters.formats import export_run, exporting
from finetune_core.exporters.tensors import load_export
from finetune_core.formatting import percent
from finetune_core.models.catalogue import backbone_info
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore, summary
from finetune_core.training.predictions import load_predictions
from finetune_core.training.preview import network_input
from tests.exporters.network_formats import NETWORK_FORMATS

SIZE = 32


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Few handwritten digits of four classes: hard enough at this size that some are named wrong."""
    folder, given = tmp_path_factory.mktemp("few") / "digits", load_digits()
    for label in (1, 3, 8, 9):
        (folder / str(label)).mkdir(parents=True)
        for number in np.flatnonzero(given.target == label)[:60]:
            pixels = np.uint8(given.images[number] * 255 / 16)
            Image.fromarray(pixels).resize((SIZE, SIZE)).save(
                folder / str(label) / f"{number:04d}.png"
            )
    return folder


@pytest.fixture(scope="module")
def bf16_run(native_bf16, home_of_shared_fixtures, digits, tmp_path_factory):
    settings = {
        "data": str(digits),
        "precision": "bf16",
        "image_size": SIZE,
        "epochs": 2,
        "batch_size": 16,
    }
    runs = tmp_path_factory.mktemp("runs")
    reservation = create_run(
        make_config(settings | {"learning_rate": 1e-3, "test_fraction": 0.3, "strategy": "full"}),
        runs,
    )
    list(execute(reservation))
    return RunStore(runs).run(reservation.run_dir.name)


@pytest.fixture(scope="module")
def inputs(bf16_run, digits):
    """The table of predictions, and its images as a network takes them."""
    table = load_predictions(bf16_run.run_dir)
    return table, torch.stack(
        [
            network_input(digits / name, backbone_info("efficientnet_lite0"), SIZE).tensor
            for name in table["id"]
        ]
    )


@pytest.fixture(scope="module")
def exported(bf16_run, tmp_path_factory):
    """``exported(format)``: the folder, made once."""
    folder = tmp_path_factory.mktemp("exports")
    return functools.cache(lambda name: export_run(bf16_run, name, folder / name).folder)


def logits_of(folder, images):
    """What an exported file answers, asked without Thaw's help where that is possible."""
    if (folder / "model.onnx").exists():
        return onnxruntime.InferenceSession(folder / "model.onnx").run(
            ["logits"], {"image": images.numpy()}
        )[0]
    if (folder / "model.pt2").exists():
        return torch.export.load(folder / "model.pt2").module()(images).detach().numpy()
    with torch.no_grad():
        return load_export(folder).network.model(images).numpy()


@pytest.mark.train
def test_the_table_of_predictions_holds_what_predict_answers(bf16_run, digits, inputs):
    table, _ = inputs
    logits = np.stack(table["logits"]).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answered = load_predictor(bf16_run).probabilities([digits / name for name in table["id"]])
    np.testing.assert_allclose(answered, expected, atol=1e-4)
    assert (answered.argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("format", NETWORK_FORMATS)
def test_every_exported_file_gives_the_labels_of_the_table(exported, inputs, format):
    table, images = inputs
    logits, found = np.stack(table["logits"]), logits_of(exported(format), images)
    assert np.abs(found - logits).max() <= 1e-4 * max(1, np.abs(logits).max())
    assert (found.argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("format", NETWORK_FORMATS)
def test_card_and_sidecar_state_the_accuracy_of_the_file(bf16_run, exported, inputs, format):
    table, images = inputs
    tested = (table["split"] == "test").to_numpy()
    found = logits_of(exported(format), images[torch.tensor(tested)]).argmax(1)
    accuracy = float((found == table["label"][tested]).mean())
    assert 0.3 < accuracy < 1
    result = json.loads((exported(format) / "model.json").read_text())["metrics"]
    assert (result["accuracy"], result["images"]) == (accuracy, tested.sum())
    assert result["labels_as_in_the_run"] == tested.sum()
    assert result["measured_on"].startswith("model.")
    text = (exported(format) / "README.md").read_text()
    card = {one.metric_type: one.metric_value for one in ModelCard(text).data.eval_results}
    assert card["accuracy"] == round(accuracy, 4)
    assert f"accuracy {percent(accuracy)} on {tested.sum()} test images" in text
    assert "Evaluated with the exported file" in text


def test_every_place_says_the_same_number(bf16_run, inputs):
    table, _ = inputs
    tested = (table["split"] == "test").to_numpy()
    right = np.stack(table["logits"]).argmax(1) == table["label"].to_numpy()
    row, end = summary(bf16_run), bf16_run.history.end
    assert (
        row["test_accuracy"]
        == end["test_accuracy"]
        == evaluation(bf16_run).accuracy
        == right[tested].mean()
    )
    assert (
        row["val_accuracy"]
        == end["val_accuracy"]
        == evaluation(bf16_run, "val").accuracy
        == right[~tested].mean()
    )
    assert (row["precision"], row["evaluation_precision"]) == ("bf16", "fp32")
    best = bf16_run.history.epochs[end["best_epoch"] - 1]
    assert row["live_val_accuracy"] == best["val_accuracy"]


def test_a_file_that_answers_otherwise_is_stated_as_it_is(bf16_run, tmp_path, monkeypatch):
    """Of a file that names the first class for every second image, the card says what that is worth."""
    asked = measure.answers

    def spoilt(*arguments):
        logits = yield from asked(*arguments)
        logits[::2] = [9, 0, 0, 0]
        return logits

    monkeypatch.setattr(measure, "answers", spoilt)
    folder = export_run(bf16_run, "safetensors", tmp_path / "out").folder
    result = json.loads((folder / "model.json").read_text())["metrics"]
    assert result["accuracy"] < result["run"]["accuracy"] == evaluation(bf16_run).accuracy
    assert result["labels_as_in_the_run"] < result["images"]
    assert (
        f"accuracy {percent(result['accuracy'])} on {result['images']} test images"
        in (folder / "README.md").read_text()
    )


@pytest.mark.parametrize("why", ["moved", "outside", "changed"])
def test_without_the_images_the_run_s_own_numbers_are_given_as_such(
    bf16_run, digits, tmp_path, why
):
    roots = [tmp_path] if why == "outside" else []
    picture = next(digits.rglob("*.png"))
    kept = picture.read_bytes()
    if why == "moved":
        digits.rename(tmp_path / "elsewhere")
    elif why == "changed":
        picture.unlink()
    try:
        for _ in exporting(bf16_run, "safetensors", tmp_path / "out", roots):
            pass
    finally:
        if why == "moved":
            (tmp_path / "elsewhere").rename(digits)
        picture.write_bytes(kept)
    text = (tmp_path / "out" / "model.json").read_text()
    result = json.loads(text)["metrics"]
    assert result["measured_on"] is None
    assert result["accuracy"] == result["run"]["accuracy"] == evaluation(bf16_run).accuracy
    card = re.sub(r"\\(.)", r"\1", (tmp_path / "out" / "README.md").read_text())
    assert (
        f"was not evaluated: {result['not_measured_because']}. The numbers are the run's own, computed in fp32."
        in card
    )
    assert str(digits.parent) not in text + card
