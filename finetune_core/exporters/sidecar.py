"""``model.json``: what a program needs besides the weights.

The file is written beside every exported network. ``model.onnx`` and ``model.pt2`` hold a copy.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_core.data.decode import CROP, PAD, PADDING
from finetune_core.errors import ExportError
from finetune_core.exporters.source import Source, get_shareable_settings
from finetune_core.files import describe_problem, read_regular, write_bytes
from finetune_core.models.catalogue import BackboneInfo, build_recipe
from finetune_core.models.network import Network

SIDECAR = "model.json"
_KIND, _VERSION = "thaw-export", 1
_MAX_BYTES = 2**24  # bytes
_RESIZE_TEXTS = {
    CROP: "the centre square, resized to resize_to pixels: Pillow's ImageOps.fit, by interpolation",
    PAD: "the longer side resized to resize_to pixels by interpolation, centred on a square of the "
    "colour padding",
}


def describe_network(source: Source) -> dict[str, Any]:
    """Describe classes, preprocessing, structure and hashes of a run's network as JSON values."""
    network = source.network
    return {
        "kind": _KIND,
        "version": _VERSION,
        "classes": list(source.classes),
        "preprocessing": describe_preprocessing(network.info, source.image_size),
        "output": "logits: one number per class; softmax turns them into probabilities",
        "network": _describe_structure(network, source.image_size),
        "hashes": {
            "backbone_weights": network.weights_hash,
            "data": (source.run.history.started or {}).get("fingerprint", ""),
        },
        "run": {
            "id": source.run.run_id,
            "epoch": source.epoch,
            "lineage": list((source.run.history.started or {}).get("lineage", ())),
            "settings": get_shareable_settings(source.run),
        },
        "software": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }


def _describe_structure(network: Network, image_size: int) -> dict[str, Any]:
    """Describe how to rebuild a network.

    An ensemble is described as the list of its networks, each with its own normalisation.
    """
    if network.members:
        members = [
            {
                **_describe_structure(one, image_size),
                "mean": list(one.info.mean),
                "std": list(one.info.std),
            }
            for one in network.members
        ]
        return {"backbone": network.info.name, "members": members}
    return {
        "backbone": network.info.name,
        **build_recipe(network.info.name, image_size),
        "heads": list(network.heads),
        **({"features_from": network.features_from} if network.features_from else {}),
    }


def describe_preprocessing(info: BackboneInfo, image_size: int) -> dict[str, Any]:
    """Describe, step by step, how an image becomes the network's input.

    The steps are those of ``read_square``, ``center_crop`` and ``normalize``.
    """
    return {
        "decode": "upright by EXIF, 8-bit RGB, transparency on white; "
        "16-bit gray by its top 8 bits; the first frame of an animation",
        "jpeg_draft": "a JPEG may be decoded at a smaller scale that is at least resize_to: "
        "Pillow's draft('RGB', (resize_to, resize_to))",
        "resize_to": info.compute_resize_size(image_size),
        "resize": _RESIZE_TEXTS[info.fit],
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
    """Write ``model.json``, with the hash of its file of weights."""
    if weights:
        sidecar = sidecar | {"hashes": sidecar["hashes"] | {weights.name: hash_file(weights)}}
    write_bytes(folder / SIDECAR, json.dumps(sidecar, indent=2).encode())


def read_sidecar(folder: Path) -> dict[str, Any]:
    """Read the ``model.json`` of an exported directory.

    Raises:
        ExportError: if there is none, or it is of another kind or format version.
    """
    file = folder / SIDECAR
    try:
        sidecar = json.loads(read_regular(file, _MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{file} cannot be read: {describe_problem(file, error)}.") from None
    if not isinstance(sidecar, dict) or (sidecar.get("kind"), sidecar.get("version")) != (
        _KIND,
        _VERSION,
    ):
        raise ExportError(f"{file} was not written by this version of Thaw.")
    return sidecar


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
