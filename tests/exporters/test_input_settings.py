"""What is set for a network's input goes with everything that is exported."""

import json
import runpy
import sys

import numpy as np
import pytest

from finetune_core.errors import ExportError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from tests.exporters.test_script import SMALL, metrics_in, same

OTHER = {
    "mean": (0.1, 0.2, 0.3),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 0.5,
    "interpolation": "bicubic",
}


@pytest.fixture(scope="module")
def other_input(train, colours, tmp_path_factory):
    return train(colours, tmp_path_factory.mktemp("runs"), **SMALL, strategy="full", **OTHER)


@pytest.fixture
def images(colours):
    return sorted((colours / "red").iterdir())[:3]


def check_preprocessing(steps):
    assert (steps["mean"], steps["std"]) == ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert (steps["resize_to"], steps["centre_crop_to"], steps["interpolation"]) == (
        64,
        32,
        "bicubic",
    )


def test_safetensors_are_read_back_with_them(other_input, images, tmp_path):
    folder = export_run(other_input, "safetensors", tmp_path / "export").folder
    check_preprocessing(json.loads((folder / "model.json").read_text())["preprocessing"])
    expected = load_predictor(other_input).probabilities(images)
    np.testing.assert_allclose(load_export(folder).probabilities(images), expected, atol=1e-6)
    described = json.loads((folder / "model.json").read_text())
    for wrong in (
        {"resize_to": 16},
        {"std": [0, 1, 1]},
        {"mean": [0.5]},
        {"interpolation": "magic"},
    ):
        (folder / "model.json").write_text(
            json.dumps(described | {"preprocessing": described["preprocessing"] | wrong})
        )
        with pytest.raises(ExportError, match=r"model\.json"):
            load_export(folder)


def test_the_program_beside_an_export_prepares_images_so(other_input, images, tmp_path):
    folder = export_run(other_input, "safetensors", tmp_path / "export").folder
    program = runpy.run_path(str(folder / "predict.py"))
    described = json.loads((folder / "model.json").read_text())
    pixels = np.stack(
        [program["preprocess"](image, described["preprocessing"]) for image in images]
    )
    answers = program["load"](described)(pixels)
    shares = np.exp(answers) / np.exp(answers).sum(1, keepdims=True)
    np.testing.assert_allclose(shares, load_predictor(other_input).probabilities(images), atol=1e-5)


def test_onnx_carries_them(other_input, tmp_path):
    import onnxruntime

    folder = export_run(other_input, "onnx", tmp_path / "onnx").folder
    metadata = (
        onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
    )
    check_preprocessing(json.loads(metadata["preprocessing"]))


def test_the_script_repeats_the_run_with_them(other_input, colours, tmp_path, monkeypatch, capsys):
    folder = export_run(other_input, "script", tmp_path / "script").folder
    monkeypatch.setattr(
        sys, "argv", ["train.py", str(colours), "--out", str(tmp_path / "model.pt")]
    )
    runpy.run_path(str(folder / "train.py"), run_name="__main__")
    output, _ = metrics_in(capsys.readouterr().out)
    same(output, other_input)


def test_the_card_states_them(other_input, tmp_path):
    text = (export_run(other_input, "card", tmp_path / "card").folder / "README.md").read_text()
    assert "(resize_to 64, bicubic); centre crop to 32 pixels" in text
    assert "mean 0.1, 0.2, 0.3, standard deviation 0.2, 0.3, 0.4." in text
