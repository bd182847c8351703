"""Input settings of a network are part of all of its exports."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune_core.errors import ExportError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from tests.exporters.conftest import SGD, colours, train_shared
from tests.exporters.test_script import TORCHVISION
from tests.factories import tiny_config, trained_run

INPUT = {"mean": (0.1, 0.2, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}


@pytest.fixture
def other_input():
    return train_shared(**TORCHVISION, **INPUT, strategy="full", crop_pct=0.5)


@pytest.mark.train
def test_weights_come_back_with_them_in_thaw_and_in_the_program_beside_them(other_input, tmp_path):
    images = sorted((colours() / "red").iterdir())[:3]
    folder = export_run(other_input, "safetensors", tmp_path / "export").folder
    described = json.loads((folder / "model.json").read_text())
    steps = described["preprocessing"]
    wanted = {name: list(one) if name != "interpolation" else one for name, one in INPUT.items()}
    assert steps == steps | wanted | {"resize_to": 64, "centre_crop_to": 32}
    expected = load_predictor(other_input).predict_proba(images)
    np.testing.assert_allclose(load_export(folder).predict_proba(images), expected, atol=1e-6)
    program = runpy.run_path(str(folder / "predict.py"))
    pixels = np.stack([program["preprocess"](image, steps) for image in images])
    answers = np.exp(program["load"](described)(pixels))
    np.testing.assert_allclose(answers / answers.sum(1, keepdims=True), expected, atol=1e-5)
    for wrong in (
        {"resize_to": 16},
        {"std": [0, 1, 1]},
        {"mean": [0.5]},
        {"interpolation": "magic"},
    ):
        damaged = described | {"preprocessing": steps | wrong}
        (folder / "model.json").write_text(json.dumps(damaged))
        with pytest.raises(ExportError, match=r"model\.json"):
            load_export(folder)


@pytest.mark.train
def test_the_script_repeats_the_run_with_them(other_input, repeat):
    repeat(other_input)


@pytest.fixture
def padded_run(tmp_path):
    data = tmp_path / "long"
    for name, shade in {"dark": 40, "bright": 200}.items():
        (data / name).mkdir(parents=True)
        for number in range(12):
            ramp = np.linspace(0, shade + number, 60).astype(np.uint8)
            image = np.repeat(ramp[None, :, None], 25, axis=0).repeat(3, axis=2)
            Image.fromarray(image).save(data / name / f"{number:03}.png")
    return trained_run(tiny_config(data, **SGD | TORCHVISION, strategy="full", fit="pad"))


@pytest.mark.train
def test_padded_images_are_padded_in_exports_too(padded_run, repeat, tmp_path):
    images = sorted((Path(padded_run.config.data) / "dark").iterdir())[:3]
    folder = export_run(padded_run, "safetensors", tmp_path / "export").folder
    described = json.loads((folder / "model.json").read_text())
    expected = load_predictor(padded_run).predict_proba(images)
    np.testing.assert_allclose(load_export(folder).predict_proba(images), expected, atol=1e-6)
    program = runpy.run_path(str(folder / "predict.py"))
    pixels = np.stack(
        [program["preprocess"](image, described["preprocessing"]) for image in images]
    )
    answers = np.exp(program["load"](described)(pixels))
    np.testing.assert_allclose(answers / answers.sum(1, keepdims=True), expected, atol=1e-5)
    card = (export_run(padded_run, "card", tmp_path / "card").folder / "README.md").read_text()
    assert "the longer side resized to resize_to pixels" in card
    repeat(padded_run, padded_run.config.data)


def test_the_card_states_them(other_input, tmp_path):
    text = (export_run(other_input, "card", tmp_path / "card").folder / "README.md").read_text()
    assert "(resize_to 64, bicubic); centre crop to 32 pixels" in text
    assert "mean 0.1, 0.2, 0.3, standard deviation 0.2, 0.3, 0.4." in text
