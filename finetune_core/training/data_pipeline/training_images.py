"""Decoded images as a network takes them, augmented or not."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from finetune_core.config import RunConfig
from finetune_core.data.pixels import Pixels
from finetune_core.data.rowcache import Lookup
from finetune_core.models.catalogue import BackboneInfo
from finetune_core.training.data_pipeline.batches import augment, center_crop, normalize
from finetune_core.training.data_pipeline.feeding import Feed
from finetune_core.training.devices.device import Device


def validation_feed(pixels: Pixels, info: BackboneInfo, image_size: int, device: Device) -> Feed:
    """Return decoded images as validation sees them.

    To a GPU they travel as uint8, a quarter of the bytes, and are normalised there.
    """

    def make_inputs(squares: torch.Tensor) -> torch.Tensor:
        return normalize(center_crop(squares, image_size), info.mean, info.std, device.layout)

    if device.is_gpu:
        return Feed(pixels.batch, lambda squares, rows: make_inputs(squares))
    return Feed(lambda rows: make_inputs(pixels.batch(rows)))


@dataclass(frozen=True)
class TrainingImages:
    """Decoded images by row, as the network takes them.

    These are float32 ``[n, 3, size, size]``, normalised, in the device's layout. To a GPU they
    travel as uint8, a quarter of the bytes, to be cropped, augmented and normalised there. On a
    processor that is done as they are loaded, in a thread beside the one that computes.
    """

    pixels: Pixels
    device: Device
    config: RunConfig
    info: BackboneInfo
    keys: np.ndarray

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The decoded images that are held."""
        return (self.pixels.kept,) if self.pixels.kept else ()

    def with_lookups(self, lookups: list[Lookup]) -> "TrainingImages":
        """Return these images with ``lookups`` in place of the present ones."""
        return replace(self, pixels=replace(self.pixels, kept=lookups[0] if lookups else None))

    def feed(self, version: int | None) -> Feed:
        """Return the images as validation sees them, or a version of them as training does.

        The same version is always the same. Loading raises an ImageError for an image that can no
        longer be read.
        """
        return Feed(
            lambda rows: self._load(rows, self.pixels.batch(rows), version),
            lambda squares, rows: self.finish(squares, rows, version),
        )

    def load_readable(
        self, rows: np.ndarray, version: int | None
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Return the rows whose file can still be read, and what is sent to the device for them."""
        left, squares = self.pixels.load_readable(rows)
        return left, self._load(left, squares, version)

    def finish(self, loaded: torch.Tensor, rows: np.ndarray, version: int | None) -> torch.Tensor:
        """Return the network's input, given what was loaded and is on the device now."""
        return (
            self._make_inputs(rows, loaded, version) if self.device.is_gpu and len(rows) else loaded
        )

    def _load(self, rows: np.ndarray, squares: torch.Tensor, version: int | None) -> torch.Tensor:
        return squares if self.device.is_gpu else self._make_inputs(rows, squares, version)

    def _make_inputs(
        self, rows: np.ndarray, squares: torch.Tensor, version: int | None
    ) -> torch.Tensor:
        config, size = self.config, self.config.image_size
        if version is None:
            images = center_crop(squares, size)
        else:
            images = augment(
                squares, config.augmentation, self.keys[rows], config.seed, version, size
            )
        return normalize(images, self.info.mean, self.info.std, self.device.layout)
