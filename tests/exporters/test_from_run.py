"""Exports of a run that started from another run: complete without it, and with its lineage."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.models.catalogue import PACKAGED
from tests.exporters.conftest import SGD, colours, train_shared
from tests.factories import copy_run, shared_images, tiny_config, train


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """A run whose parent is deleted."""
    base = tmp_path_factory.mktemp("lineage")
    original = train_shared(backbone=PACKAGED)
    parent = copy_run(original.run_dir, base / "parents")
    started = {"from_run": str(parent), "strategy": "last_block", "epochs": 1, "seed": 1}
    made = train(tiny_config(colours(), backbone=PACKAGED, **SGD | started), base / "runs")
    shutil.rmtree(parent)
    return made, original.run_id


@pytest.mark.train
def test_a_network_is_read_back_and_names_its_lineage(child, tmp_path):
    run, parent = child
    folder = export_run(run, "safetensors", tmp_path / "export").folder
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = [one.network.model(images) for one in (load_export(folder), load_predictor(run))]
    assert torch.equal(*answers)
    described = json.loads((folder / "model.json").read_text())["run"]
    assert described["lineage"][0]["run"] == described["settings"]["from_run"] == parent


def test_the_card_tells_what_it_started_from_and_whose_weights_are_in_it(child, tmp_path):
    run, parent = child
    text = (export_run(run, "card", tmp_path / "card").folder / "README.md").read_text()
    assert "pretrained on ImageNet, fine-tuned in 1 run before, fine-tuned with Thaw" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| Lineage |"))
    assert parent.replace("-", r"\-").replace("_", r"\_") in row
    assert "best epoch" in row
    assert "The pretrained weights (the package efficientnet" in text
    assert str(run.run_dir.parent.parent) not in text
    assert ModelCard(text).data.library_name == "timm"


@pytest.mark.train
@pytest.mark.parametrize("classes", ["the same", "others"])
def test_the_script_repeats_it_from_the_weights_beside_it(classes, child, tmp_path, repeat):
    data, (run, _) = colours(), child
    if classes == "others":
        data = shared_images(red=14, green=14)
        started = {"from_run": str(run.run_dir), "strategy": "feature_extraction"}
        started["initial_head"] = "probe"
        run = train(tiny_config(data, backbone=PACKAGED, **SGD | started), tmp_path / "runs")
        assert not run.started["head_kept"]
    file, *_ = repeat(run, data)
    names = {one.name for one in file.parent.iterdir()}
    assert names == {"train.py", "split.csv", "start.safetensors"}
