"""Networks of timm are exported and read back, whatever their head and their size of image."""

import json

import pytest
import torch

from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.runs.store import summary
from tests.timm_kinds import ONE_OF_EACH, SIDE


@pytest.mark.parametrize("backbone", ONE_OF_EACH)
def test_an_export_of_a_timm_network_answers_as_the_run_does(train, colours, tmp_path, backbone):
    run = train(
        colours, tmp_path / "runs", backbone=backbone, weights="none", image_size=SIDE, epochs=1
    )
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = load_predictor(run).network.model(images)
    folder = export_run(run, "safetensors", tmp_path / "safetensors").folder
    assert torch.equal(load_export(folder).network.model(images), expected)
    assert json.loads((folder / "model.json").read_text())["network"]["library"] == "timm"


@pytest.mark.train
@pytest.mark.parametrize("backbone", ONE_OF_EACH)
def test_a_timm_network_goes_to_onnx(train, colours, tmp_path, backbone):
    import onnxruntime

    run = train(
        colours, tmp_path / "runs", backbone=backbone, weights="none", image_size=SIDE, epochs=1
    )
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(
        export_run(run, "onnx", tmp_path / "onnx").folder / "model.onnx"
    )
    (logits,) = session.run(["logits"], {"image": images.numpy()})
    expected = load_predictor(run).network.model(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.train
def test_the_example_beside_an_export_rebuilds_the_network_without_thaw(
    train, colours, tmp_path, elsewhere
):
    run = train(
        colours,
        tmp_path / "runs",
        backbone="timm/test_vit2",
        weights="none",
        image_size=SIDE,
        epochs=1,
    )
    folder = export_run(run, "safetensors", tmp_path / "export").folder
    image = colours / "red" / "003.png"
    found = json.loads(elsewhere(folder / "predict.py", image))
    predictor = load_predictor(run)
    probabilities = predictor.probabilities([image])[0]
    assert found["class"] == predictor.classes[probabilities.argmax()]
    assert found["probability"] == pytest.approx(probabilities.max(), abs=1e-5)


@pytest.mark.train
def test_the_script_of_a_run_on_a_timm_network_repeats_it_without_thaw(
    train, colours, tmp_path, elsewhere
):
    run = train(
        colours, tmp_path / "runs", backbone="timm/test_vit2", weights="none", image_size=SIDE
    )
    folder = export_run(run, "script", tmp_path / "script").folder
    printed = elsewhere(folder / "train.py", colours, "--out", tmp_path / "model.pt")
    assert f"best validation accuracy {summary(run)['val_accuracy']:.4f}" in printed
