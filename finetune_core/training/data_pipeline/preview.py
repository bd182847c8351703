"""Images as the network sees them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from finetune_core.config import Augmentation
from finetune_core.data.decode import PAD, read_scaled, read_square
from finetune_core.models.catalogue import BackboneInfo
from finetune_core.training.data_pipeline.batches import (
    augment,
    center_crop,
    normalize,
    sample_keys,
)


@dataclass(frozen=True)
class NetworkInput:
    """An image as it is fed to a network.

    Attributes:
        tensor: float32 ``[3, size, size]``, normalised.
        image: The tensor turned back into an image, uint8 ``[size, size, 3]``.
    """

    tensor: torch.Tensor
    image: np.ndarray

    @property
    def low(self) -> float:
        """Smallest value of the tensor."""
        return float(self.tensor.min())

    @property
    def high(self) -> float:
        """Largest value of the tensor."""
        return float(self.tensor.max())


def network_input(image: Path | bytes, info: BackboneInfo, image_size: int) -> NetworkInput:
    """Preprocess an image as validation does for this backbone.

    Raises:
        ImageError: If it cannot be read.
    """
    decoded = read_square(image, info.get_resize(image_size))
    square = torch.from_numpy(decoded.copy()).permute(2, 0, 1)[None]
    tensor = normalize(center_crop(square, image_size), info.mean, info.std)[0]
    mean, std = torch.tensor(info.mean)[:, None, None], torch.tensor(info.std)[:, None, None]
    pixels = ((tensor * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return NetworkInput(tensor, pixels.permute(1, 2, 0).numpy())


def draw_crop(
    image: Path | bytes, info: BackboneInfo, image_size: int, longer_side: int
) -> Image.Image:
    """Draw the whole image with a frame around the part of it that the network sees.

    Raises:
        ImageError: If it cannot be read.
    """
    picture = read_scaled(image, longer_side)
    whole = max(picture.size) if info.fit == PAD else min(picture.size)
    side = whole * image_size / info.compute_resize_size(image_size)
    left, top = (max(0.0, (length - side) / 2) for length in picture.size)
    right, bottom = (
        round(length - edge) - 1 for length, edge in zip(picture.size, (left, top), strict=True)
    )
    frame = (round(left), round(top), right, bottom)
    draw = ImageDraw.Draw(picture)
    # Dark below light: one of the two is visible on any picture.
    draw.rectangle(frame, outline="black", width=4)
    draw.rectangle(frame, outline="white", width=2)
    return picture


def make_augmented_versions(
    image: Path,
    sample: str,
    kind: Augmentation,
    seed: int,
    count: int,
    info: BackboneInfo,
    image_size: int,
) -> list[np.ndarray]:
    """Return the first ``count`` versions of an image that a run with this seed trains on.

    Args:
        image: The image file.
        sample: Id of the image in the data set, from which the run draws its augmentation.
        kind: The augmentation.
        seed: Seed of the run.
        count: Number of versions.
        info: The backbone, which determines how the image becomes a square.
        image_size: Side of the versions, pixels.

    Returns:
        uint8 ``[image_size, image_size, 3]`` each.

    Raises:
        ImageError: If the image cannot be read.
    """
    decoded = read_square(image, info.get_resize(image_size))
    square = torch.from_numpy(decoded.copy()).permute(2, 0, 1)[None]
    keys = sample_keys([sample])
    versions = [
        augment(square, kind, keys, seed, version, image_size)[0] for version in range(count)
    ]
    return [version.permute(1, 2, 0).numpy() for version in versions]
