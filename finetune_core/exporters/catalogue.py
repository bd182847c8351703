"""The export formats: title, purpose and the function that writes each."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        title: name of the format.
        help: purpose of the format, in one or two sentences.
        writer: ``module:function``, imported when the format is first written. The function takes a
            ``Source`` (with ``events``, the ``Run``) and a directory, and returns the checks that
            were made. The writer of a network is ``Work`` that returns the checks and the
            measurement of the file.
        file: name of the file that holds the network. A model card and an example are written
            beside such a file. Empty if the format holds no network.
        usage: how to load ``file``, for the model card. ``{size}`` stands for the image size.
        events: whether the export is made from the run's events, even while the run trains.
            Otherwise the export is made from the run's network and settings.
        apart: whether the app exports in a subprocess, because tracing changes torch's global
            state.
    """

    title: str
    help: str
    writer: str
    file: str = ""
    usage: str = ""
    events: bool = False
    apart: bool = False

    @property
    def has_network(self) -> bool:
        """True if the format holds the network."""
        return bool(self.file)

    def load_writer(self) -> Callable[[Any, Path], Any]:
        """Import and return the function that writes the format."""
        module, _, function = self.writer.partition(":")
        writer: Callable[[Any, Path], Any] = getattr(import_module(module), function)
        return writer


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        "Weights",
        "All weights as safetensors, which cannot run code, with classes and preprocessing "
        "beside them. Thaw reads it back.",
        "finetune_core.exporters.tensors:write_safetensors",
        file="model.safetensors",
        usage="`model.safetensors` holds every tensor, `model.json` the classes and the "
        "preprocessing. Thaw reads the folder back "
        "(`python -m finetune_core predict FOLDER IMAGE…`).",
    ),
    "onnx": Format(
        "ONNX",
        "The network as a program that runs nearly everywhere without PyTorch; checked "
        "against the original in onnxruntime.",
        "finetune_core.exporters.graphs:write_onnx",
        file="model.onnx",
        usage="`model.onnx` takes `image`, float32 `[batch, 3, {size}, {size}]` with any batch "
        "size, and gives `logits`; classes and "
        "preprocessing are in its metadata and in `model.json`.",
        apart=True,
    ),
    "torch_export": Format(
        "torch.export",
        "The network as a PyTorch program that needs no model code; checked against the original.",
        "finetune_core.exporters.graphs:write_program",
        file="model.pt2",
        usage="`torch.export.load('model.pt2').module()` takes float32 `[batch, 3, {size}, "
        "{size}]` with any batch size, and gives "
        "logits; classes and preprocessing are in `model.json`.",
        apart=True,
    ),
    "script": Format(
        "Training script",
        "One plain PyTorch file that repeats this run without Thaw, with the split beside it. "
        "Good to read, to learn from, and to change.",
        "finetune_core.exporters.script:write_script",
    ),
    "card": Format(
        "Model card",
        "What a reader has to know: data, recipe, results with intervals, limits, licences. "
        "In Hugging Face's format.",
        "finetune_core.exporters.card:write_card",
    ),
    "tensorboard": Format(
        "TensorBoard",
        "This run's curves by step, epoch and stage, as event files. To look at them: "
        "tensorboard --logdir FOLDER.",
        "finetune_core.exporters.tensorboard:write_events",
        events=True,
    ),
}
