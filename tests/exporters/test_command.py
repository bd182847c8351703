import json

import pytest
import torch
from typer.testing import CliRunner

from finetune_core.__main__ import app
from tests.exporters.conftest import colours


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_export_and_predict_from_what_was_exported(run, tmp_path):
    done = invoke(
        "export", run.run_dir, "--format", "safetensors", "--output", tmp_path / "out", "--json"
    )
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["files"] == ["README.md", "model.json", "model.safetensors", "predict.py"]
    assert result["checked"]["identical"]
    images = sorted(colours().glob("red/*.png"))[:3]
    of_run = json.loads(invoke("predict", run.run_dir, *images, "--json").stdout)
    of_export = json.loads(invoke("predict", result["folder"], *images, "--json").stdout)
    assert of_export["predictions"] == of_run["predictions"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tflite"], "there are safetensors, onnx"),
        (["--format", "card", "--output", "."], "is not empty"),
    ],
)
def test_wrong_requests_end_with_status_2_in_words(run, arguments, words):
    done = invoke("export", run.run_dir, *arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def exhaust_memory(*_, **__):
    bytearray(1 << 60)


def exhaust_memory_in_exporter(*_, **__):
    try:
        torch.empty(1 << 60)
    except RuntimeError as error:
        raise torch.onnx.OnnxExporterError("Failed to export the model.") from error


@pytest.mark.train
@pytest.mark.parametrize(
    ("function", "memory", "format"),
    [
        ("torch.onnx.export", exhaust_memory, "onnx"),
        ("torch.onnx.export", exhaust_memory_in_exporter, "onnx"),
        ("onnx.save", exhaust_memory, "onnx"),
        ("torch.export.export", exhaust_memory, "torch_export"),
    ],
)
def test_an_export_without_memory_says_so_and_leaves_nothing(
    run, tmp_path, monkeypatch, function, memory, format
):
    monkeypatch.setattr(function, memory)
    done = invoke("export", run.run_dir, "--format", format, "--output", tmp_path / "out")
    assert done.stderr.startswith("There is not enough memory")
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())
