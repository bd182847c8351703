"""What is exported answers as the run does: in Thaw, in onnxruntime alone, in plain torch."""

import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from finetune_core.errors import ExportError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters import formats, graphs
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from tests.exporters.network_formats import NETWORK_FORMATS

# Runs predict.py as a program, and says which libraries it took.
ALONE = """
import runpy, sys
script, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print([name for name in ("torch", "timm", "finetune_core", "onnxruntime") if sys.modules.get(name)])
"""


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """``exported(format)``: made once."""
    base = tmp_path_factory.mktemp("exports")
    return functools.cache(lambda name: export_run(run, name, base / name))


@pytest.fixture(scope="module")
def pictures(colours, tmp_path_factory):
    """One of each kind that is decoded in a way of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "alpha.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(folder / "16bit.png")
    Image.fromarray(noise[..., 0].astype(np.float32) / 7 - 3).save(folder / "float.tif")
    Image.fromarray(noise[..., :3]).convert("P").save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = Image.fromarray(noise[:8, :8, :3]).resize((300, 200), Image.Resampling.BICUBIC)
    smooth.save(folder / "turned.jpg", exif=exif)
    return [*sorted(folder.iterdir()), colours / "red" / "005.png"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("format", "libraries"),
    [("onnx", ["onnxruntime"]), ("torch_export", ["torch"]), ("safetensors", ["torch", "timm"])],
)
def test_the_example_names_images_as_thaw_does_without_thaw(
    exported, format, libraries, run, pictures, elsewhere
):
    *lines, used = elsewhere(
        "-c", ALONE, exported(format).folder / "predict.py", *pictures
    ).splitlines()
    assert used == str(libraries)
    predictor = load_predictor(run)
    expected = predictor.probabilities(pictures)
    result = [json.loads(line) for line in lines]
    assert [row["class"] for row in result] == [predictor.classes[row.argmax()] for row in expected]
    np.testing.assert_allclose([row["probability"] for row in result], expected.max(1), atol=1e-4)


@pytest.mark.processes
def test_the_example_leaves_out_what_is_no_image_and_waits_for_nothing(
    exported, pictures, tmp_path
):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "text.png").write_text("no image")
    bad = [tmp_path / "fifo.png", tmp_path / "text.png", tmp_path / "gone.png"]
    command = [sys.executable, exported("safetensors").folder / "predict.py", *bad, pictures[-1]]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [str(pictures[-1])]
    assert [line.split(" cannot be read")[0] for line in done.stderr.splitlines()] == [
        *map(str, bad)
    ]


def test_safetensors_come_back_into_thaw_bit_for_bit(exported, run, pictures):
    before, after = load_predictor(run), load_export(exported("safetensors").folder)
    state = after.network.model.state_dict()
    assert all(
        torch.equal(tensor, state[name])
        for name, tensor in before.network.model.state_dict().items()
    )
    assert (after.classes, after.image_size, after.network.stages) == (
        before.classes,
        32,
        before.network.stages,
    )
    np.testing.assert_array_equal(after.probabilities(pictures), before.probabilities(pictures))


@pytest.mark.processes
def test_onnx_takes_any_batch_and_carries_what_it_needs(exported):
    result = exported("onnx")
    assert result.checked["batches"][0] == 1
    assert len(result.checked["batches"]) > 1
    assert result.checked["largest_difference"] <= result.checked["tolerance"] == 1e-4
    model = onnx.load(result.folder / "model.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ['a "b", |c|', "blue", "red"]
    assert json.loads(metadata["preprocessing"])["mean"] == [0.5] * 3
    assert "logits" in metadata["output"]


@pytest.mark.parametrize("format", NETWORK_FORMATS)
def test_the_sidecar_names_no_place_on_this_machine(exported, colours, format):
    folder = exported(format).folder
    result = json.loads((folder / "model.json").read_text())
    assert result["run"]["settings"]["data"] == "colours"
    assert (
        str(colours.parent)
        not in (folder / "model.json").read_text() + (folder / "README.md").read_text()
    )
    assert result["preprocessing"]["resize_to"] == 37
    assert len(result["hashes"]["backbone_weights"]) == 16


@pytest.mark.processes
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_an_export_that_answers_otherwise_is_refused_and_leaves_nothing(
    run, format, tmp_path, monkeypatch
):
    answered = torch.nn.Module.__call__

    def other(module, *inputs, **named):
        """The network as it is asked in the comparison: with another answer than when it was traced."""
        output = answered(module, *inputs, **named)
        return output + 0.01 if type(module).__name__ == "EfficientNet" else output

    compare = graphs.compare

    def compare_with_another(*arguments):
        monkeypatch.setattr(torch.nn.Module, "__call__", other)
        return compare(*arguments)

    monkeypatch.setattr(graphs, "compare", compare_with_another)
    with pytest.raises(ExportError, match="exported network differ"):
        export_run(run, format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_what_to_install(run, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ExportError, match=f"{library}, which is not installed: python -m pip install"
    ):
        export_run(run, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_traced_says_so(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("data-dependent branching\nand a page more")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(
        ExportError,
        match=r"efficientnet_lite0 cannot be exported with torch.export \(RuntimeError: data",
    ):
        export_run(run, "torch_export", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_damaged_export_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported("safetensors").folder, tmp_path / "copy")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ExportError, match="its hash is not"):
        load_export(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="holds no model"):
        load_export(folder)
    for text in (
        "{",
        "[]",
        '{"kind": "thaw-export", "version": 2}',
        '{"kind": "thaw-export", "version": 1}',
    ):
        (folder / "model.json").write_text(text)
        with pytest.raises(ExportError):
            load_export(folder)


def test_an_earlier_export_in_the_runs_folder_is_replaced_and_no_other_folder_is(run, tmp_path):
    first = export_run(run, "card")
    (first.folder / "old").touch()
    assert export_run(run, "card").files == ("README.md",)
    assert {folder.name for folder in first.folder.parent.iterdir()} <= set(formats.FORMATS)
    assert formats.finished_export(run, "card") == first.folder
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ExportError, match="is not empty"):
        export_run(run, "card", tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_network_that_cannot_be_exported_says_the_exporters_own_reason(
    run, tmp_path, monkeypatch
):
    def fails(*_, **__):
        try:
            raise ValueError("Cannot view a tensor\nwith these strides")
        except ValueError as error:
            raise RuntimeError("This is step 2/3 of exporting the model") from error

    monkeypatch.setattr("torch.onnx.export", fails)
    with pytest.raises(
        ExportError,
        match=r"cannot be exported with ONNX \(ValueError: Cannot view a tensor\)\. Export it as",
    ):
        export_run(run, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())
