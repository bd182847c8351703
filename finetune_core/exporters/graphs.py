"""ONNX and torch.export programs, each read back and compared with the original network."""

import importlib
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune_core.errors import ExportError, OutOfMemory, is_out_of_memory_in_network
from finetune_core.exporters.catalogue import FORMATS
from finetune_core.exporters.measure import Measurement, measure
from finetune_core.exporters.sidecar import SIDECAR, describe_network, write_sidecar
from finetune_core.exporters.source import Source
from finetune_core.training.data_pipeline.answers import OutputFunction
from finetune_core.work import Step, Work

ONNX, PROGRAM = FORMATS["onnx"].file, FORMATS["torch_export"].file
BATCHES = (1, 2, 5)  # traced with 2; the other sizes show that the batch is dynamic
TOLERANCE = 1e-4  # largest difference of two logits, as a share of the largest logit
_MAX_ONNX_BYTES = 2**31 - 1  # limit of one protobuf message


def write_onnx(source: Source, folder: Path) -> Work[tuple[dict[str, Any], Measurement]]:
    """Write ``model.onnx`` with a dynamic batch, and ``model.json``.

    The ONNX file holds its description in ``metadata_props``.

    Returns:
        The result of ``compare``, and the measurement of the file.

    Raises:
        ExportError: if a library is missing, the network cannot be converted, or the outputs of
            onnxruntime differ from those of the network.
    """
    yield Step(0, None, "export")
    backbone, model, sidecar = (
        source.run.config.backbone,
        source.network.model,
        describe_network(source),
    )
    proto = convert_to_onnx(backbone, model, source.image_size)
    answer = save_onnx(backbone, proto, folder / ONNX)
    measured = yield from measure(source, f"{ONNX}, run with onnxruntime", answer)
    sidecar |= {"metrics": measured.to_json()}
    for key, value in _format_metadata(sidecar).items():
        proto.metadata_props.add(key=key, value=value)
    checked = compare(
        model, source.image_size, "onnxruntime", save_onnx(backbone, proto, folder / ONNX)
    )
    write_sidecar(folder, sidecar | {"checked": checked}, folder / ONNX)
    return checked, measured


def convert_to_onnx(backbone: str, model: nn.Module, image_size: int) -> Any:
    """Convert a network to an ONNX message.

    The input is ``image``, float32 ``[n, 3, image_size, image_size]``. The output is ``logits``,
    ``[n, classes]``.

    Raises:
        ExportError: if a library is missing or the network cannot be converted.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        _import_library(library)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if held >= _MAX_ONNX_BYTES:
        raise ExportError(
            f"{backbone} is too large for one ONNX file (2 GB). Export it as safetensors."
        )
    # The exporter replaces attention kernels. The outputs of all kernels but MATH have another
    # memory layout than the replacement, which then cannot be reshaped.
    with _translate_errors(backbone, "ONNX"), sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            model,
            (_make_images(2, image_size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None  # with ``dynamo``
        return program.model_proto


def save_onnx(backbone: str, proto: Any, file: Path) -> OutputFunction:
    """Write an ONNX message and return a function that runs the file with onnxruntime.

    Raises:
        ExportError: if a library is missing or onnxruntime cannot read the file.
    """
    onnx, runtime = _import_library("onnx"), _import_library("onnxruntime")
    with _translate_errors(backbone, "ONNX"):
        onnx.save(proto, file)
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return _wrap_runtime(
        backbone,
        "onnxruntime",
        lambda images: session.run(["logits"], {"image": images.contiguous().numpy()})[0],
    )


def write_program(source: Source, folder: Path) -> Work[tuple[dict[str, Any], Measurement]]:
    """Write ``model.pt2``, a torch.export program with a dynamic batch, and ``model.json``.

    The program holds a copy of its ``model.json``.

    Returns:
        The result of ``compare``, and the measurement of the file.

    Raises:
        ExportError: if the network cannot be exported, or the outputs of the program differ from
            those of the network.
    """
    yield Step(0, None, "export")
    backbone, sidecar = source.run.config.backbone, describe_network(source)
    with _translate_errors(backbone, "torch.export"):
        program = torch.export.export(
            source.network.model,
            (_make_images(2, source.image_size),),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
        torch.export.save(program, folder / PROGRAM)
        answer = _load_program(backbone, folder / PROGRAM)
    measured = yield from measure(source, f"{PROGRAM}, run with torch.export", answer)
    sidecar |= {"metrics": measured.to_json()}
    with _translate_errors(backbone, "torch.export"):
        torch.export.save(program, folder / PROGRAM, extra_files={SIDECAR: json.dumps(sidecar)})
        answer = _load_program(backbone, folder / PROGRAM)
    checked = compare(source.network.model, source.image_size, "torch.export", answer)
    write_sidecar(folder, sidecar | {"checked": checked}, folder / PROGRAM)
    return checked, measured


def _load_program(backbone: str, file: Path) -> OutputFunction:
    module = torch.export.load(file).module()
    return _wrap_runtime(backbone, "torch.export", lambda images: module(images).detach().numpy())


def _wrap_runtime(backbone: str, name: str, answer: OutputFunction) -> OutputFunction:
    """Return ``answer`` with errors of its runtime turned into ours."""

    def run(images: torch.Tensor) -> np.ndarray:
        try:
            return answer(images)
        except Exception as error:  # each runtime has errors of its own
            raise _make_error(backbone, name, error) from None

    return run


def compare(model: nn.Module, image_size: int, name: str, answer: OutputFunction) -> dict[str, Any]:
    """Compare the outputs of a network and its export at several batch sizes.

    Args:
        model: the original network.
        image_size: in pixels.
        name: name of the runtime that runs the export.
        answer: function that runs the export.

    Returns:
        Runtime, batch sizes, largest difference as a share of the largest logit, and tolerance.

    Raises:
        ExportError: if a difference exceeds ``TOLERANCE``.
    """
    worst = 0.0
    for count in BATCHES:
        images = _make_images(count, image_size)
        with torch.no_grad():
            expected = model(images).numpy()
        outputs = answer(images)
        has_same_shape = outputs.shape == expected.shape
        difference = (
            float(np.abs(outputs - expected).max() / max(1.0, np.abs(expected).max()))
            if has_same_shape
            else math.inf
        )
        if not difference <= TOLERANCE:
            raise ExportError(
                "The outputs of the exported network differ from those of the trained one: at "
                f"batch size {count}, {name} differs by {difference:.2g} of the largest logit "
                f"(allowed: {TOLERANCE:g}). Nothing was kept; export it as safetensors."
            )
        worst = max(worst, difference)
    return {
        "with": name,
        "batches": list(BATCHES),
        "largest_difference": worst,
        "tolerance": TOLERANCE,
    }


def _make_images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def _format_metadata(sidecar: dict[str, Any]) -> dict[str, str]:
    return {
        name: json.dumps(sidecar[name]) if not isinstance(sidecar[name], str) else sidecar[name]
        for name in ("classes", "preprocessing", "output", "metrics", "hashes", "run")
    }


def _import_library(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ExportError(
            f"ONNX needs the package {library}, which is not installed: python -m pip install "
            "onnx onnxscript onnxruntime"
        ) from None


def _make_error(backbone: str, name: str, error: Exception) -> ExportError | OutOfMemory:
    # Exporters wrap the first error in errors about the step they were at.
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    # onnxruntime raises its own error types when memory runs out.
    if any(
        is_out_of_memory_in_network(one) or is_out_of_memory_in_network(RuntimeError(str(one)))
        for one in causes
    ):
        return OutOfMemory()
    first = causes[-1]
    lines = str(first).strip().splitlines() or [""]
    return ExportError(
        f"{backbone} cannot be exported with {name} ({type(first).__name__}: {lines[0][:200]}). "
        "Export it as safetensors instead."
    )


@contextmanager
def _translate_errors(backbone: str, name: str) -> Iterator[None]:
    """Raise every error as one of ours, and silence warnings and logs.

    Exporters raise nearly any exception, warn about their own future, and log for their authors.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise _make_error(backbone, name, error) from None
    finally:
        logging.disable(disabled)
