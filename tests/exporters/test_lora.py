"""What is exported of a run with LoRA, and what starts from it, has merged weights under the backbone's own names."""

import numpy as np
import onnxruntime
import pytest
import torch

from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.models.network import network_stages
from finetune_core.training.checkpoints import load_tensors
from finetune_core.training.networks import beginning_of

LORA = {"strategy": "lora", "lora_rank": 4, "lora_from": "block6"}


@pytest.fixture(scope="module")
def low_rank(colours, train, tmp_path_factory):
    run = train(colours, tmp_path_factory.mktemp("low-rank"), **LORA)
    assert run.status == "finished"
    return run


def test_exports_answer_as_the_run_does(low_rank, tmp_path):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = load_predictor(low_rank).network
    with torch.no_grad():
        wanted = network.model(images)
        assert not torch.equal(
            network.model.get_parameter("conv_head.weight"),
            network.pretrained.get_parameter("conv_head.weight"),
        )
        exported = load_export(
            export_run(low_rank, "safetensors", tmp_path / "tensors").folder
        ).network.model
        assert torch.equal(exported(images), wanted)
    assert exported.state_dict().keys() == network.model.state_dict().keys()
    folder = export_run(low_rank, "onnx", tmp_path / "onnx").folder
    session = onnxruntime.InferenceSession(next(folder.glob("*.onnx")))
    (answer, *_) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(answer, wanted, atol=1e-4)


def test_a_run_that_starts_from_it_begins_with_what_was_learned(low_rank, colours, train, tmp_path):
    child = train(
        colours,
        tmp_path / "runs",
        **LORA | {"lora_rank": 2},
        from_run=str(low_rank.run_dir),
        epochs=1,
    )
    assert child.status == "finished"
    start = beginning_of(child.config, child.started["classes"], child.run_dir).network.pretrained
    learned = load_predictor(low_rank).network.model
    names = [
        name for stage in network_stages("efficientnet_lite0", 3)[6:-1] for name in stage.matrices
    ]
    assert all(
        torch.equal(start.get_parameter(name), learned.get_parameter(name)) for name in names
    )
    tensors, _ = load_tensors(child.run_dir, "best")
    assert {len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A")} == {2}
    ours = load_predictor(child).network.model
    for name in names:
        change = (ours.get_parameter(name) - start.get_parameter(name)).detach().flatten(1).double()
        assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 2, name
