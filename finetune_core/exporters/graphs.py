"""A run's network as a program: ONNX and torch.export. Each is read back and compared with the network before it is kept."""

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

from finetune_core.errors import ExportError, OutOfMemory, ran_out
from finetune_core.exporters.catalogue import FORMATS
from finetune_core.exporters.measure import Measured, measure
from finetune_core.exporters.sidecar import SIDECAR, describe_network, write_sidecar
from finetune_core.exporters.source import Source
from finetune_core.training.answers import Answer
from finetune_core.work import Step, Work

ONNX, PROGRAM = FORMATS["onnx"].file, FORMATS["torch_export"].file
BATCHES = (1, 2, 5)  # traced with 2: any other shows that the batch is dynamic
TOLERANCE = 1e-4  # largest difference of two logits, as a share of the largest logit
_LARGEST_ONNX = 2**31 - 1  # bytes: what one protobuf message may hold


def write_onnx(source: Source, folder: Path) -> Work[tuple[dict[str, Any], Measured]]:
    """``model.onnx`` with a dynamic batch, described in its ``metadata_props``, and ``model.json``; returns what was checked and
    measured.

    Raises:
        ExportError: when a library is missing, the network cannot be converted, or onnxruntime answers otherwise than the network.
    """
    yield Step(0, None, "export")
    backbone, model, sidecar = (
        source.run.config.backbone,
        source.network.model,
        describe_network(source),
    )
    proto = onnx_model(backbone, model, source.image_size)
    answer = saved_onnx(backbone, proto, folder / ONNX)
    measured = yield from measure(source, f"{ONNX}, run with onnxruntime", answer)
    sidecar |= {"metrics": measured.to_json()}
    for key, value in _metadata(sidecar).items():
        proto.metadata_props.add(key=key, value=value)
    checked = compare(
        model, source.image_size, "onnxruntime", saved_onnx(backbone, proto, folder / ONNX)
    )
    write_sidecar(folder, sidecar | {"checked": checked}, folder / ONNX)
    return checked, measured


def onnx_model(backbone: str, model: nn.Module, image_size: int) -> Any:
    """A network as an ONNX message: ``image`` float32 [n, 3, image_size, image_size] -> ``logits`` [n, classes].

    Raises:
        ExportError: when a library is missing, or the network cannot be converted.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        _needed(library)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if held >= _LARGEST_ONNX:
        raise ExportError(
            f"{backbone} is too large for one ONNX file (2 GB). Export it as safetensors."
        )
    # Attention's other kernels lay their outputs out otherwise than what the exporter puts in their place, which it then cannot reshape.
    with _in_words(backbone, "ONNX"), sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            model,
            (_images(2, image_size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None  # with ``dynamo``
        return program.model_proto


def saved_onnx(backbone: str, proto: Any, file: Path) -> Answer:
    """Write an ONNX message; returns what answers as onnxruntime does with that file.

    Raises:
        ExportError: when a library is missing, or onnxruntime cannot read it.
    """
    onnx, runtime = _needed("onnx"), _needed("onnxruntime")
    with _in_words(backbone, "ONNX"):
        onnx.save(proto, file)
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return _answer(
        backbone,
        "onnxruntime",
        lambda images: session.run(["logits"], {"image": images.contiguous().numpy()})[0],
    )


def write_program(source: Source, folder: Path) -> Work[tuple[dict[str, Any], Measured]]:
    """``model.pt2``, a torch.export program with a dynamic batch that holds its ``model.json``; returns what was checked and
    measured.

    Raises:
        ExportError: when the network cannot be exported, or the program answers otherwise than the network.
    """
    yield Step(0, None, "export")
    backbone, sidecar = source.run.config.backbone, describe_network(source)
    with _in_words(backbone, "torch.export"):
        program = torch.export.export(
            source.network.model,
            (_images(2, source.image_size),),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
        torch.export.save(program, folder / PROGRAM)
        answer = _program_answer(backbone, folder / PROGRAM)
    measured = yield from measure(source, f"{PROGRAM}, run with torch.export", answer)
    sidecar |= {"metrics": measured.to_json()}
    with _in_words(backbone, "torch.export"):
        torch.export.save(program, folder / PROGRAM, extra_files={SIDECAR: json.dumps(sidecar)})
        answer = _program_answer(backbone, folder / PROGRAM)
    checked = compare(source.network.model, source.image_size, "torch.export", answer)
    write_sidecar(folder, sidecar | {"checked": checked}, folder / PROGRAM)
    return checked, measured


def _program_answer(backbone: str, file: Path) -> Answer:
    module = torch.export.load(file).module()
    return _answer(backbone, "torch.export", lambda images: module(images).detach().numpy())


def _answer(backbone: str, name: str, answer: Answer) -> Answer:
    """The same, with what goes wrong in words."""

    def answered(images: torch.Tensor) -> np.ndarray:
        try:
            return answer(images)
        except Exception as error:  # each runtime has errors of its own
            raise _failed(backbone, name, error) from None

    return answered


def compare(model: nn.Module, image_size: int, name: str, answer: Answer) -> dict[str, Any]:
    """Ask a network and its export the same, at several batch sizes.

    Args:
        name: of what runs the export.

    Raises:
        ExportError: when it answers otherwise.
    """
    worst = 0.0
    for count in BATCHES:
        images = _images(count, image_size)
        with torch.no_grad():
            expected = model(images).numpy()
        found = answer(images)
        same = found.shape == expected.shape
        difference = (
            float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
            if same
            else math.inf
        )
        if not difference <= TOLERANCE:
            raise ExportError(
                f"The outputs of the exported network differ from those of the trained one: at batch size {count}, {name} differs by "
                f"{difference:.2g} of the largest logit (allowed: {TOLERANCE:g}). Nothing was kept; export it as safetensors."
            )
        worst = max(worst, difference)
    return {
        "with": name,
        "batches": list(BATCHES),
        "largest_difference": worst,
        "tolerance": TOLERANCE,
    }


def _images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def _metadata(sidecar: dict[str, Any]) -> dict[str, str]:
    return {
        name: json.dumps(sidecar[name]) if not isinstance(sidecar[name], str) else sidecar[name]
        for name in ("classes", "preprocessing", "output", "metrics", "hashes", "run")
    }


def _needed(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ExportError(
            f"ONNX needs the package {library}, which is not installed: python -m pip install onnx onnxscript onnxruntime"
        ) from None


def _failed(backbone: str, name: str, error: Exception) -> ExportError | OutOfMemory:
    causes: list[BaseException] = [error]  # exporters wrap what happened in what they were doing
    while cause := causes[-1].__cause__:
        causes.append(cause)
    # onnxruntime has errors of its own types.
    if any(ran_out(one) or ran_out(RuntimeError(str(one))) for one in causes):
        return OutOfMemory()
    first = causes[-1]
    lines = str(first).strip().splitlines() or [""]
    return ExportError(
        f"{backbone} cannot be exported with {name} ({type(first).__name__}: {lines[0][:200]}). "
        "Export it as safetensors instead."
    )


@contextmanager
def _in_words(backbone: str, name: str) -> Iterator[None]:
    """Exporters raise nearly anything, warn of their own future, and log what only their authors can use."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise _failed(backbone, name, error) from None
    finally:
        logging.disable(disabled)
