"""Exports of a LoRA run hold merged weights under the backbone's own names."""

import pytest
import torch

from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.models.network import network_stages
from finetune_core.training.checkpoints.files import load_tensors
from finetune_core.training.checkpoints.networks import build_initial_network
from tests.exporters.conftest import SGD, colours, train_shared
from tests.factories import TINY_BACKBONE, tiny_config, train

LORA = {"strategy": "lora", "lora_from": "layer3", "learning_rate": 0.1}


def train_lora():
    return train_shared(**LORA, lora_rank=4)


def list_matrix_names():
    stages = {stage.name: stage for stage in network_stages(TINY_BACKBONE, 3)}
    return [name for stage in ("layer3", "layer4") for name in stages[stage].matrices]


@pytest.mark.train
def test_exports_answer_as_the_run_does(tmp_path):
    """All formats export the model of ``load_predictor``; ``test_networks.py`` tests the others."""
    run = train_lora()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = load_predictor(run).network
    exported = load_export(export_run(run, "safetensors", tmp_path / "out").folder).network.model
    assert exported.state_dict().keys() == network.pretrained.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(exported(images), network.model(images))
    changed = {
        name
        for name, start in network.pretrained.named_parameters()
        if not torch.equal(exported.get_parameter(name), start)
    }
    assert changed & set(list_matrix_names())


@pytest.mark.train
def test_a_run_that_starts_from_it_begins_with_what_was_learned(tmp_path):
    parent = train_lora()
    started = LORA | {"lora_rank": 2, "from_run": str(parent.run_dir)}
    started |= {"backbone": TINY_BACKBONE, "epochs": 1}
    child = train(tiny_config(colours(), **SGD | started), tmp_path)
    start = build_initial_network(
        child.config, child.started["classes"], child.run_dir
    ).network.pretrained
    learned, ours = (load_predictor(one).network.model for one in (parent, child))
    tensors, _ = load_tensors(child.run_dir, "best")
    assert {len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A")} == {2}
    for name in list_matrix_names():
        assert torch.equal(start.get_parameter(name), learned.get_parameter(name))
        change = (ours.get_parameter(name) - start.get_parameter(name)).detach().flatten(1).double()
        assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 2, name
