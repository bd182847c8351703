"""What is exported of a run that started from another one: it needs neither the other run nor Thaw, and says where it comes from."""

import json
import runpy
import shutil
import sys

import pytest
import torch
from huggingface_hub import ModelCard

from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from tests.exporters.test_script import metrics_in, same


@pytest.fixture(scope="module")
def child(run, train, colours, tmp_path_factory):
    """A run whose parent is gone."""
    base = tmp_path_factory.mktemp("lineage")
    parent = shutil.copytree(run.run_dir, base / "parents" / run.run_id)
    made = train(
        colours, base / "runs", from_run=str(parent), strategy="last_block", epochs=1, seed=1
    )
    shutil.rmtree(parent)
    return made


def test_a_network_is_read_back_and_names_its_lineage(child, run, tmp_path):
    folder = export_run(child, "safetensors", tmp_path / "export").folder
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        load_export(folder).network.model(images), load_predictor(child).network.model(images)
    )
    described = json.loads((folder / "model.json").read_text())["run"]
    assert described["lineage"][0]["run"] == described["settings"]["from_run"] == run.run_id


def test_the_card_tells_what_it_started_from_and_whose_weights_are_in_it(child, run, tmp_path):
    text = (export_run(child, "card", tmp_path / "card").folder / "README.md").read_text()
    assert "pretrained on ImageNet, fine-tuned in 1 run before, fine-tuned with Thaw" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| Lineage |"))
    assert run.run_id.replace("-", r"\-").replace("_", r"\_") in row
    assert "best epoch" in row
    assert "The pretrained weights (the package efficientnet" in text
    assert str(child.run_dir.parent.parent) not in text
    assert ModelCard(text).data.library_name == "timm"


@pytest.mark.parametrize("classes", ["the same", "others"])
def test_the_script_repeats_it_from_the_weights_beside_it(
    classes, child, train, image_folder, colours, tmp_path, monkeypatch, capsys
):
    data, run = colours, child
    if classes == "others":
        data = image_folder(tmp_path / "others", {"red": 14, "green": 14})
        run = train(
            data,
            tmp_path / "runs",
            from_run=str(child.run_dir),
            strategy="feature_extraction",
            epochs=2,
        )
        assert not run.started["head_kept"]
    folder = export_run(run, "script", tmp_path / "script").folder
    assert {file.name for file in folder.iterdir()} == {
        "train.py",
        "split.csv",
        "start.safetensors",
    }
    monkeypatch.setattr(sys, "argv", ["train.py", str(data), "--out", str(tmp_path / "model.pt")])
    runpy.run_path(str(folder / "train.py"), run_name="__main__")
    output, tested = metrics_in(capsys.readouterr().out)
    same(output, run)
    assert tested == pytest.approx(run.history.end["test_accuracy"], abs=0.01)
