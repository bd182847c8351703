import json

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app


def thaw(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_export_and_predict_from_what_was_exported(run, colours, tmp_path):
    done = thaw(
        "export", run.run_dir, "--format", "safetensors", "--output", tmp_path / "out", "--json"
    )
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["files"] == ["README.md", "model.json", "model.safetensors", "predict.py"]
    assert result["checked"]["identical"]
    images = sorted(colours.glob("red/*.png"))[:3]
    of_run = json.loads(thaw("predict", run.run_dir, *images, "--json").stdout)
    of_export = json.loads(thaw("predict", result["folder"], *images, "--json").stdout)
    assert of_export["predictions"] == of_run["predictions"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tflite"], "there are safetensors, onnx"),
        (["--format", "card", "--output", "."], "is not empty"),
    ],
)
def test_wrong_requests_end_with_status_2_in_words(run, arguments, words):
    done = thaw("export", run.run_dir, *arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
