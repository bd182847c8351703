"""Export of a run's whole network as safetensors, and its import."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from typing_extensions import TypedDict

from finetune_core.errors import ConfigError, ExportError, WeightsError
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.exporters.catalogue import FORMATS
from finetune_core.exporters.measure import Measurement, measure
from finetune_core.exporters.sidecar import (
    SIDECAR,
    describe_network,
    hash_file,
    read_sidecar,
    write_sidecar,
)
from finetune_core.exporters.source import Source
from finetune_core.files import describe_problem, open_regular, path_exists, write_bytes
from finetune_core.models.catalogue import BackboneInfo, backbone_info, create
from finetune_core.models.ensemble import build_ensemble
from finetune_core.models.network import Network, head_paths, network_stages, truncate_after
from finetune_core.models.stages import Stage, replace_head
from finetune_core.models.weights import load_state_tensors
from finetune_core.randomness import use_seed
from finetune_core.training.checkpoints.files import check_tensors
from finetune_core.training.devices.device import choose_device
from finetune_core.training.evaluation import compute_logits
from finetune_core.training.events import Classes, Name
from finetune_core.work import Step, Work

WEIGHTS = FORMATS["safetensors"].file


_ChannelValues = Annotated[
    list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)
]


class _Member(TypedDict):
    """One network of an ensemble."""

    backbone: Name
    features_from: NotRequired[Name | None]
    mean: _ChannelValues
    std: _ChannelValues


class _Architecture(TypedDict):
    backbone: Name
    features_from: NotRequired[Name | None]
    members: NotRequired[Annotated[list[_Member], Field(min_length=1, max_length=1000)]]


class _Preprocessing(TypedDict):
    centre_crop_to: Annotated[int, Field(ge=32, le=1024)]
    resize_to: Annotated[int, Field(ge=32, le=4096)]
    interpolation: NotRequired[Literal["bilinear", "bicubic"]]
    fit: NotRequired[Literal["crop", "pad"]]
    mean: _ChannelValues
    std: _ChannelValues


class _Sidecar(TypedDict):
    """The part of ``model.json`` that prediction needs."""

    network: _Architecture
    classes: Classes
    preprocessing: _Preprocessing
    hashes: Annotated[dict[Name, Name], Field(max_length=1000)]


_SIDECAR = TypeAdapter(_Sidecar)


def write_safetensors(source: Source, folder: Path) -> Work[tuple[dict[str, Any], Measurement]]:
    """Write ``model.safetensors``, with all tensors, and ``model.json``.

    Returns:
        The number of tensors read back identically, and the measurement of the file.
    """
    yield Step(0, None, "export")
    state = source.network.model.state_dict()
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    sidecar = describe_network(source)
    write_sidecar(folder, sidecar, folder / WEIGHTS)
    exported = load_export(folder)
    again = exported.network.model.state_dict()
    if not all(torch.equal(tensor, again[name].cpu()) for name, tensor in state.items()):
        raise AssertionError("the exported tensors are not the network's")
    measured = yield from measure(
        source,
        f"{WEIGHTS}, run with PyTorch",
        lambda images: compute_logits(exported.network.model, images, exported.device),
    )
    write_sidecar(folder, sidecar | {"metrics": measured.to_json()}, folder / WEIGHTS)
    return {"tensors": len(tensors), "identical": True}, measured


def is_export(folder: Path) -> bool:
    """Return whether a directory holds an exported network rather than a run."""
    return path_exists(folder / SIDECAR)


def load_export(folder: Path) -> Predictor:
    """Load an exported network for prediction.

    Its ``network.pretrained`` is the network itself, because an export does not hold the backbone
    before fine-tuning.

    Raises:
        ExportError: if the directory is no safetensors export, its file is damaged, or its files do
            not belong together.
    """
    try:
        sidecar = _SIDECAR.validate_python(read_sidecar(folder), strict=True)
        classes, size = tuple(sidecar["classes"]), sidecar["preprocessing"]["centre_crop_to"]
        expected = sidecar["hashes"].get(WEIGHTS)
        network = _build_network(sidecar, len(classes), size)
    except (ValueError, KeyError, ConfigError, WeightsError) as error:
        raise ExportError(f"{folder}: {describe_problem(folder / SIDECAR, error)}.") from None
    _load_weights(network.model, folder / WEIGHTS, expected)
    device = choose_device("cpu", "fp32")
    device.move_module(network.model.eval())
    return Predictor(network, classes, device, size)


def _build_network(sidecar: _Sidecar, classes: int, size: int) -> Network:
    """Build the network that a ``model.json`` describes, without its weights.

    Raises:
        ValueError, KeyError, ConfigError, WeightsError: if the network cannot be built.
    """
    architecture, steps, backbone_hash = (
        sidecar["network"],
        sidecar["preprocessing"],
        sidecar["hashes"]["backbone_weights"],
    )

    def build_one(name: str, last: str | None, steps: _Preprocessing) -> Network:
        info = _apply_preprocessing(backbone_info(name), steps)
        model, heads, stages = _create_empty(name, classes, size, last)
        return Network(model, model, stages, heads, backbone_hash, info, size, last)

    if "members" not in architecture:
        return build_one(architecture["backbone"], architecture.get("features_from"), steps)
    return build_ensemble(
        [
            build_one(
                each["backbone"],
                each.get("features_from"),
                {**steps, "mean": each["mean"], "std": each["std"]},
            )
            for each in architecture["members"]
        ]
    )


def _apply_preprocessing(info: BackboneInfo, steps: _Preprocessing) -> BackboneInfo:
    """Return a backbone's info with the preprocessing of ``model.json``.

    Raises:
        ValueError: if the preprocessing is impossible.
    """
    size, side = steps["centre_crop_to"], steps["resize_to"]
    if side < size or not all(steps["std"]):
        raise ValueError(
            "its preprocessing cuts more out of an image than is there, or divides by 0"
        )
    interpolation = steps.get("interpolation", info.interpolation)
    return replace(
        info,
        mean=tuple(steps["mean"]),
        std=tuple(steps["std"]),
        crop=size / side,
        interpolation=interpolation,
        fit=steps.get("fit", info.fit),
    )


def _create_empty(
    name: str, classes: int, size: int, last: str | None
) -> tuple[torch.nn.Module, tuple[str, ...], tuple[Stage, ...]]:
    """Create a network, its heads and its stages, without loading weights.

    Raises:
        ConfigError: if the network cannot end after stage ``last``.
    """
    with use_seed(0):
        model = create(name, size)
    heads, stages = head_paths(name, size), network_stages(name, classes, size)
    if last is not None:
        model, stages = truncate_after(name, model, stages, last, classes, size)
        return model, heads[:1], stages
    for head in heads:
        replace_head(model, head, classes)
    return model, heads, stages


def _load_weights(model: torch.nn.Module, file: Path, expected: str | None) -> None:
    """Load the weights of an exported file into a network.

    Raises:
        ExportError: if the file does not hold this network or has another hash.
    """
    try:
        # safetensors opens the file by name, and would wait for a FIFO.
        os.close(open_regular(file))
        with safe_open(file, "pt") as opened:
            check_tensors(opened, model.state_dict())
            if hash_file(file) != expected:
                raise ExportError(
                    f"{file} is damaged, or belongs to another {SIDECAR}: its hash is not the "
                    "one written there."
                )
            load_state_tensors(model, {key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118  no mapping
    except FileNotFoundError:
        raise ExportError(
            f"{file.parent} holds no {WEIGHTS}: Thaw reads exports of the format safetensors."
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise ExportError(
            f"{file} does not hold this network: {describe_problem(file, error)}."
        ) from None
