"""A run's whole network as safetensors, and the way back into Thaw."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from finetune_core.errors import ConfigError, ExportError
from finetune_core.evaluation.predict import Predictor
from finetune_core.export.measure import Measured, Steps, measure
from finetune_core.export.sidecar import SIDECAR, describe_network, file_hash, read_sidecar, write_sidecar
from finetune_core.export.source import Source
from finetune_core.files import write_bytes
from finetune_core.models.catalogue import backbone_info, create
from finetune_core.models.network import Network, head_path, network_stages
from finetune_core.models.stages import replace_head
from finetune_core.randomness import seeded
from finetune_core.training.device import choose_device
from finetune_core.training.evaluation import logits_of

WEIGHTS = "model.safetensors"


def write_safetensors(source: Source, folder: Path) -> Generator[Steps, None, tuple[dict[str, Any], Measured]]:
    """``model.safetensors`` (every tensor, frozen ones too) and ``model.json``; returns what was checked and measured."""
    yield "export", 0, 0
    state = source.network.model.state_dict()
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    told = describe_network(source)
    write_sidecar(folder, told, folder / WEIGHTS)
    exported = load_export(folder)
    again = exported.network.model.state_dict()
    if not all(torch.equal(tensor, again[name].cpu()) for name, tensor in state.items()):
        raise AssertionError("the exported tensors are not the network's")
    measured = yield from measure(
        source, f"{WEIGHTS}, run with PyTorch", lambda images: logits_of(exported.network.model, images, exported.device)
    )
    write_sidecar(folder, told | {"metrics": measured.to_json()}, folder / WEIGHTS)
    return {"tensors": len(tensors), "identical": True}, measured


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported network rather than a run."""
    return (folder / SIDECAR).is_file()


def load_export(folder: Path) -> Predictor:
    """An exported network, ready for images. Its ``network.pretrained`` is the network itself: an export does not carry the
    backbone that it came from.

    Raises:
        ExportError: when the folder is no safetensors export, its file is damaged, or its parts do not belong together.
    """
    told = read_sidecar(folder)
    try:
        name, classes, size = told["network"]["backbone"], tuple(told["classes"]), told["preprocessing"]["centre_crop_to"]
        expected, backbone_hash = told["hashes"].get(WEIGHTS), told["hashes"]["backbone_weights"]
        info = backbone_info(name)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ExportError(f"{folder / SIDECAR} is damaged: {type(error).__name__}: {error}") from None
    file = folder / WEIGHTS
    if not file.is_file():
        raise ExportError(f"{folder} holds no {WEIGHTS}: Thaw reads exports of the format safetensors.")
    if file_hash(file) != expected:
        raise ExportError(f"{file} is damaged, or belongs to another {SIDECAR}: its hash is not the one written there.")
    with seeded(0):
        model = create(name)
    head = head_path(name)
    replace_head(model, head, len(classes))
    _fill(model, file)
    device = choose_device("auto", "fp32")
    model.eval().to(device.torch_device, memory_format=torch.channels_last)
    network = Network(model, model, network_stages(name, len(classes)), head, backbone_hash, info)
    return Predictor(network, classes, device, size)


def _fill(model: torch.nn.Module, file: Path) -> None:
    try:
        tensors: Mapping[str, torch.Tensor] = load_file(file)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ExportError(f"{file} does not hold this network: {str(error).splitlines()[0]}") from None
