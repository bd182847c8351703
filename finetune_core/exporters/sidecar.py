"""``model.json``: all that a program needs beside the weights. It is written next to every exported network, and into it."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_core.data.decode import CROP, PAD, PADDING
from finetune_core.errors import ExportError
from finetune_core.exporters.source import Source, shared_settings
from finetune_core.files import problem_with, read_regular, write_bytes
from finetune_core.models.catalogue import BackboneInfo, build_recipe
from finetune_core.models.network import Network

SIDECAR = "model.json"
_KIND, _VERSION = "thaw-export", 1
_LARGEST = 2**24  # bytes
_RESIZED = {
    CROP: "the centre square, resized to resize_to pixels: Pillow's ImageOps.fit, by interpolation",
    PAD: "the longer side resized to resize_to pixels by interpolation, centred on a square of the "
    "colour padding",
}


def describe_network(source: Source) -> dict[str, Any]:
    """Classes, preprocessing, structure and hashes of a run's network, as plain JSON values."""
    network = source.network
    return {
        "kind": _KIND,
        "version": _VERSION,
        "classes": list(source.classes),
        "preprocessing": preprocessing(network.info, source.image_size),
        "output": "logits: one number per class; softmax turns them into probabilities",
        "network": _structure(network, source.image_size),
        "hashes": {
            "backbone_weights": network.weights_hash,
            "data": (source.run.history.started or {}).get("fingerprint", ""),
        },
        "run": {
            "id": source.run.run_id,
            "epoch": source.epoch,
            "lineage": list((source.run.history.started or {}).get("lineage", ())),
            "settings": shared_settings(source.run),
        },
        "software": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }


def _structure(network: Network, image_size: int) -> dict[str, Any]:
    """What builds a network again; of an ensemble, each of its networks, with the normalisation that it was trained with."""
    if network.members:
        members = [
            {**_structure(one, image_size), "mean": list(one.info.mean), "std": list(one.info.std)}
            for one in network.members
        ]
        return {"backbone": network.info.name, "members": members}
    return {
        "backbone": network.info.name,
        **build_recipe(network.info.name, image_size),
        "heads": list(network.heads),
        **({"features_from": network.features_from} if network.features_from else {}),
    }


def preprocessing(info: BackboneInfo, image_size: int) -> dict[str, Any]:
    """How an image becomes the network's input, step by step: what ``read_square``, ``evaluated`` and ``normalised`` do."""
    return {
        "decode": "upright by EXIF, 8-bit RGB, transparency on white; 16-bit gray by its top 8 bits; the first frame of an animation",
        "jpeg_draft": "a JPEG may be decoded at a smaller scale that is at least resize_to: Pillow's draft('RGB', (resize_to, resize_to))",
        "resize_to": info.stored_side(image_size),
        "resize": _RESIZED[info.fit],
        "interpolation": info.interpolation,
        "fit": info.fit,
        "padding": list(PADDING),
        "centre_crop_to": image_size,
        "scale": "divided by 255",
        "mean": list(info.mean),
        "std": list(info.std),
        "input": f"float32 [batch, 3, {image_size}, {image_size}], RGB, (pixel - mean) / std",
    }


def write_sidecar(folder: Path, sidecar: dict[str, Any], weights: Path | None = None) -> None:
    """Write ``model.json``, with the hash of the file of weights that it belongs to."""
    if weights:
        sidecar = sidecar | {"hashes": sidecar["hashes"] | {weights.name: file_hash(weights)}}
    write_bytes(folder / SIDECAR, json.dumps(sidecar, indent=2).encode())


def read_sidecar(folder: Path) -> dict[str, Any]:
    """The ``model.json`` of an exported folder.

    Raises:
        ExportError: when there is none, or it is not one of Thaw's.
    """
    file = folder / SIDECAR
    try:
        sidecar = json.loads(read_regular(file, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{file} cannot be read: {problem_with(file, error)}.") from None
    if not isinstance(sidecar, dict) or (sidecar.get("kind"), sidecar.get("version")) != (
        _KIND,
        _VERSION,
    ):
        raise ExportError(f"{file} was not written by this version of Thaw.")
    return sidecar


def file_hash(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
