"""A run's network as a program: ONNX and torch.export. Each is read back and compared with the network before it is kept."""

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_core.errors import ExportError
from finetune_core.export.sidecar import SIDECAR, describe_network, write_sidecar
from finetune_core.export.source import Source

ONNX, PROGRAM = "model.onnx", "model.pt2"
BATCHES = (1, 2, 5)  # traced with 2: any other shows that the batch is dynamic
TOLERANCE = 1e-4  # largest difference of two logits, as a share of the largest logit
_LARGEST_ONNX = 2**31 - 1  # bytes: what one protobuf message may hold


def write_onnx(source: Source, folder: Path) -> dict[str, Any]:
    """``model.onnx`` with a dynamic batch, described in its ``metadata_props``, and ``model.json``; returns what was checked.

    Raises:
        ExportError: when a library is missing, the network cannot be converted, or onnxruntime answers otherwise than the network.
    """
    onnx, runtime = _needed("onnx"), _needed("onnxruntime")
    _needed("onnxscript")
    model, told = source.network.model, describe_network(source)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if held >= _LARGEST_ONNX:
        raise ExportError(f"{source.run.config.backbone} is too large for one ONNX file (2 GB). Export it as safetensors.")
    with _in_words(source, "ONNX"):
        program = torch.onnx.export(
            model,
            (_images(2, source.image_size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
        proto = program.model_proto
        for key, value in _metadata(told).items():
            proto.metadata_props.add(key=key, value=value)
        onnx.save(proto, folder / ONNX)
        session = runtime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    checked = _compare(source, "onnxruntime", lambda images: session.run(["logits"], {"image": images.numpy()})[0])
    write_sidecar(folder, told | {"checked": checked}, folder / ONNX)
    return checked


def write_program(source: Source, folder: Path) -> dict[str, Any]:
    """``model.pt2``, a torch.export program with a dynamic batch that holds its ``model.json``; returns what was checked.

    Raises:
        ExportError: when the network cannot be exported, or the program answers otherwise than the network.
    """
    told = describe_network(source)
    with _in_words(source, "torch.export"):
        program = torch.export.export(
            source.network.model,
            (_images(2, source.image_size),),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
        torch.export.save(program, folder / PROGRAM, extra_files={SIDECAR: json.dumps(told)})
        again = torch.export.load(folder / PROGRAM).module()
    checked = _compare(source, "torch.export", lambda images: again(images).detach().numpy())
    write_sidecar(folder, told | {"checked": checked}, folder / PROGRAM)
    return checked


def _compare(source: Source, name: str, answer: Callable[[torch.Tensor], np.ndarray]) -> dict[str, Any]:
    """Ask the network and its export the same, at several batch sizes."""
    worst = 0.0
    for count in BATCHES:
        images = _images(count, source.image_size)
        with torch.no_grad():
            expected = source.network.model(images).numpy()
        try:
            found = answer(images)
        except Exception as error:  # each runtime has errors of its own
            raise _failed(source, name, error) from None
        difference = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
        if found.shape != expected.shape or not difference <= TOLERANCE:
            raise ExportError(
                f"The exported network does not answer as the trained one does: at batch size {count}, {name} differs by "
                f"{difference:.2g} of the largest logit (allowed: {TOLERANCE:g}). Nothing was kept; export it as safetensors."
            )
        worst = max(worst, difference)
    return {"with": name, "batches": list(BATCHES), "largest_difference": worst, "tolerance": TOLERANCE}


def _images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def _metadata(told: dict[str, Any]) -> dict[str, str]:
    return {
        name: json.dumps(told[name]) if not isinstance(told[name], str) else told[name]
        for name in ("classes", "preprocessing", "output", "metrics", "hashes", "run")
    }


def _needed(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ExportError(
            f"ONNX needs the package {library}, which is not installed: python -m pip install onnx onnxscript onnxruntime"
        ) from None


def _failed(source: Source, name: str, error: Exception) -> ExportError:
    lines = str(error).strip().splitlines() or [""]
    return ExportError(
        f"{source.run.config.backbone} cannot be exported with {name} ({type(error).__name__}: {lines[0][:200]}). "
        "Export it as safetensors instead."
    )


@contextmanager
def _in_words(source: Source, name: str) -> Iterator[None]:
    """Exporters raise nearly anything, warn of their own future, and log what only their authors can use."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise _failed(source, name, error) from None
    finally:
        logging.disable(disabled)
