"""Networks of all kinds of heads and image sizes are exported and read back."""

import onnxruntime
import pytest
import torch

from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from tests.exporters.conftest import train_shared
from tests.timm_kinds import KINDS, SIDE


def select_kinds(*kinds):
    """Return all kinds as parameters. Only ``kinds`` are tested in CI."""
    return [
        pytest.param(
            name, id=kind, marks=pytest.mark.train if kind in kinds else pytest.mark.exhaustive
        )
        for kind, name in KINDS.items()
    ]


def train_and_predict(backbone):
    """Return a run of the network, some images, and their logits."""
    run = train_shared(backbone=backbone, weights="none", image_size=SIDE, epochs=1)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return run, images, load_predictor(run).network.model(images)


@pytest.mark.parametrize("backbone", select_kinds("ViT with registers", "two heads"))
def test_safetensors_of_a_timm_network_answer_as_the_run_does(tmp_path, backbone):
    run, images, expected = train_and_predict(backbone)
    folder = export_run(run, "safetensors", tmp_path / "export").folder
    assert torch.equal(load_export(folder).network.model(images), expected)


# A convolutional network without attention goes through ONNX in ``test_networks.py``.
@pytest.mark.parametrize("backbone", select_kinds("plain ViT", "ConvNeXt"))
def test_onnx_of_a_timm_network_answers_as_the_run_does(tmp_path, backbone):
    run, images, expected = train_and_predict(backbone)
    file = export_run(run, "onnx", tmp_path / "onnx").folder / "model.onnx"
    (logits,) = onnxruntime.InferenceSession(file).run(["logits"], {"image": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-3)
