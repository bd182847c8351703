"""Pooled features of each image at every stage of a pretrained network.

They are computed in one pass, and kept in the activation cache.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from finetune_core.data.dataset import Dataset
from finetune_core.data.decode import CROP
from finetune_core.data.pixels import Pixels, decode_pixels
from finetune_core.data.rowcache import CACHE
from finetune_core.errors import DataError
from finetune_core.models.catalogue import with_image_fit
from finetune_core.models.network import Network, build_network, check_image_size
from finetune_core.models.partition import SplitError
from finetune_core.models.truncated import Pooling, choose_pooling, pool
from finetune_core.models.weights import PRETRAINED
from finetune_core.training.compile.compiler import Compiler, Part
from finetune_core.training.data_pipeline.batches import split_batches
from finetune_core.training.data_pipeline.feeding import (
    forward_batch_size,
    load_batches,
    stream_outputs,
)
from finetune_core.training.data_pipeline.training_images import validation_feed
from finetune_core.training.data_pipeline.trunk import TrunkTables, split_network
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.work import Work, with_phase

_BATCH = 32
_USUAL_SIZE = 224  # pixels
_KEPT_AT_ONCE = 1024  # images per write, so that an interrupted pass loses little


@dataclass(frozen=True)
class Features:
    """Pooled features of the images of a data set.

    Attributes:
        rows: int ``[n]``: row numbers of the data set's table; images that could not be decoded
            again are missing.
        stages: names, from the input to the last one before the head.
        by_stage: float32 ``[n, d]`` for each stage.
    """

    rows: np.ndarray
    stages: tuple[str, ...]
    by_stage: tuple[np.ndarray, ...]

    @property
    def final(self) -> np.ndarray:
        """The features that the head would see."""
        return self.by_stage[-1]


def compute_features(
    dataset: Dataset, backbone: str, image_size: int, fit: str = CROP
) -> Work[Features]:
    """Run every image once through a pretrained backbone, on an idle GPU if there is one.

    Features of known images come from the cache.

    Args:
        dataset: the data set.
        backbone: name of the network.
        image_size: side of the images in pixels.
        fit: how images become squares: ``crop`` or ``pad``.

    Yields:
        Steps of the phases ``decode`` and ``features`` that count images.

    Raises:
        FinetuneError: if the weights are not on this machine, the size does not fit, or there is no
            room for the features.
    """
    check_image_size(backbone, image_size)
    return (
        yield from run_on_idle_device(
            partial(_compute_features, dataset, backbone, image_size, fit)
        )
    )


def _compute_features(
    dataset: Dataset, backbone: str, image_size: int, fit: str, device: Device
) -> Work[Features]:
    network = build_network(backbone, PRETRAINED, len(dataset.classes), 0, image_size)
    network = replace(network, info=with_image_fit(network.info, fit))
    pooled, stages = pool_stages(network)
    device.move_module(pooled)
    keys = dataset.table["content"].to_numpy(np.uint64)
    name = _table_name(network, device, image_size)
    unique_rows = np.unique(keys, return_index=True)[1]
    needed = unique_rows[CACHE.get_table(name).find_missing(keys[unique_rows])]
    paths = dataset.get_paths(dataset.table)
    decoding = decode_pixels(paths, keys, needed, network.info.get_resize(image_size))
    pixels = yield from with_phase("decode", decoding)
    needed = np.setdiff1d(needed, list(pixels.failed))
    with Compiler(device, len(needed), forward_batch_size(device)) as compiler:
        feed = validation_feed(pixels, network.info, image_size, device)
        forward = compiler.forward(Part(pooled, f"{backbone} pooled", lambda: network.weights_hash))
        for start in range(0, len(needed), _KEPT_AT_ONCE):
            batch = needed[start : start + _KEPT_AT_ONCE]
            batches = stream_outputs(lambda images: forward(images).float(), device, batch, feed)
            filling = CACHE.fill(name, keys[batch], batches)
            if (yield from with_phase("features", filling, start, len(needed))) is None:
                break
    table = CACHE.get_table(name)
    # Also checked at the end, because later blocks may have evicted earlier ones.
    if table.find_missing(keys[np.setdiff1d(unique_rows, list(pixels.failed))]).any():
        raise DataError(
            "There is no room for the features of these images. Make room on the disk, or let "
            "THAW_CACHE_DISK_GB allow more."
        )
    rows = np.flatnonzero(~table.find_missing(keys))
    if not len(rows):
        raise DataError("None of the images could be decoded.")
    values = table.lookup(keys).batch(rows).numpy()
    return Features(rows, stages, tuple(np.split(values, np.cumsum(pooled.widths)[:-1], axis=1)))


class PooledStages(nn.Module):
    """A network's stages in sequence. The output is the pooled output of every stage.

    The outputs are one vector per image and stage, side by side: ``[n, sum d]``.
    """

    def __init__(self, network: Network, parts: Sequence[nn.Module], last: Sequence[int]) -> None:
        """Initialise the pooling of each part by a forward pass of an empty image.

        Args:
            network: the network.
            parts: its stages, some of them joined.
            last: the index of the last stage in each part.
        """
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.pooling: list[Pooling] = []
        self.widths: list[int] = []
        side = network.image_size or _USUAL_SIZE
        with torch.no_grad():
            images = torch.zeros(1, 3, side, side)
            for part, stage in zip(parts, last, strict=True):
                images = part(images)
                self.pooling.append(
                    choose_pooling(network.model, network.stages, stage, images.shape)
                )
                self.widths.append(pool(images, *self.pooling[-1]).shape[1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pooled output of each stage, side by side: ``[n, sum d]``."""
        pooled = []
        for part, pooling in zip(self.parts, self.pooling, strict=True):
            images = part(images)
            pooled.append(pool(images, *pooling).float())
        return torch.cat(pooled, dim=1)


def pool_stages(network: Network) -> tuple[PooledStages, tuple[str, ...]]:
    """Cut a network at every stage boundary where it can be cut, without its head.

    Returns:
        The stages, and their names.

    Raises:
        DataError: if it cannot be cut anywhere.
    """
    try:
        segments = split_network(network)
        cuts = [
            stage
            for stage in range(1, len(network.stages))
            if segments.boundaries[stage - 1] is not None
        ]
        parts = [segments.part(start, end) for start, end in zip([None, *cuts], cuts, strict=False)]
    except SplitError as error:
        raise DataError(
            f"{network.info.name} cannot be analyzed: {error}. Choose another backbone."
        ) from None
    if not parts:
        raise DataError(
            f"{network.info.name} cannot be cut between its stages. Choose another backbone."
        )
    pooled = PooledStages(
        network, [part.eval() for part in parts], [cut - 1 for cut in cuts]
    ).eval()
    return pooled, tuple(network.stages[cut - 1].name for cut in cuts)


def iterate_inputs(
    network: Network, pixels: Pixels, rows: np.ndarray, image_size: int, device: Device
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield (rows, images) in batches, preprocessed as in validation.

    The images are ``[n, 3, s, s]`` on the device. The next batch is prepared meanwhile.
    """
    feed = validation_feed(pixels, network.info, image_size, device)
    for batch, loaded in load_batches(
        lambda some: (some, feed.load(some)), split_batches(rows, _BATCH), device
    ):
        yield batch, feed.finish(loaded, batch)


def _table_name(network: Network, device: Device, image_size: int) -> str:
    """Return the name of the cache's table for these weights, this size and this arithmetic."""
    trunk = TrunkTables(network, device, image_size).get_name(len(network.stages), "vectors")
    return f"features-{hashlib.sha256(trunk.encode()).hexdigest()[:16]}"
