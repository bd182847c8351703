"""A config -> everything the loop needs: data decoded, network built, strategy worked out, device chosen."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.pixels import Pixels, decode_pixels, stored_side
from finetune_core.data.splits import SPLITS, TRAIN, VAL
from finetune_core.errors import ConfigError, DataError, FinetuneError
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import Network, build_network, check_image_size, network_stages
from finetune_core.models.weights import PRETRAINED, download
from finetune_core.training.batches import augmented, epoch_batches, evaluated, in_order, normalised, prefetched, sample_keys
from finetune_core.training.device import Device, choose_device
from finetune_core.training.events import Event, ImagesSkipped, Progress
from finetune_core.training.strategies import Strategy, plan

EVENT_SECONDS = 0.2  # progress more often than this helps nobody
_EXAMPLES = 20

Value = TypeVar("Value")


@dataclass(frozen=True)
class Job:
    """A run that is ready to start.

    Attributes:
        keys: uint64 a row of the data set's table, from its sample id.
        labels: int64 a row.
        rows: split -> row numbers of its readable images.
    """

    config: RunConfig
    dataset: Dataset
    network: Network
    strategy: Strategy
    device: Device
    pixels: Pixels
    keys: np.ndarray
    labels: np.ndarray
    rows: dict[str, np.ndarray]

    def training_batches(self, epoch: int) -> list[np.ndarray]:
        """Row numbers, batch by batch, of an epoch counted from 1."""
        return epoch_batches(self.rows[TRAIN], self.keys, self.config.batch_size, self.config.seed, epoch)

    def training_images(self, batches: list[np.ndarray], epoch: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(row numbers, normalised float32 ``[n, 3, size, size]`` on the device) for each batch."""

        def make(rows: np.ndarray) -> torch.Tensor:
            images = augmented(
                self.pixels.batch(rows),
                self.config.augmentation,
                self.keys[rows],
                self.config.seed,
                epoch,
                self.config.image_size,
            )
            return self._normalised(images)

        return self._on_device(prefetched(make, batches))

    def evaluation_images(self, split: str) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """The same for a split's images, in the table's order and without augmentation."""

        def make(rows: np.ndarray) -> torch.Tensor:
            return self._normalised(evaluated(self.pixels.batch(rows), self.config.image_size))

        return self._on_device(prefetched(make, in_order(self.rows[split], max(32, self.config.batch_size))))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        images = normalised(images, self.network.info.mean, self.network.info.std)
        return images.pin_memory() if self.device.kind == "cuda" else images

    def _on_device(self, batches: Iterator[tuple[np.ndarray, torch.Tensor]]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for rows, images in batches:
            yield rows, images.to(self.device.torch_device, non_blocking=True)


def check_config(config: RunConfig) -> None:
    """Everything that can be known to be wrong before any work is done.

    Raises:
        ConfigError: all problems at once.
    """
    problems: dict[str, str] = {}

    def attempt(field: str, check: object, *arguments: object) -> None:
        try:
            check(*arguments)  # type: ignore[operator]
        except ConfigError as error:
            problems.update(error.problems)
        except FinetuneError as error:
            problems[field] = str(error)

    if not Path(config.data).is_dir():
        problems["data"] = f"there is no folder {config.data}"
    attempt("device", choose_device, config.device, config.precision)
    attempt("backbone", backbone_info, config.backbone)
    if "backbone" not in problems:
        attempt("strategy", lambda: plan(config, network_stages(config.backbone)))
        attempt("image_size", check_image_size, config.backbone, config.image_size)
    if config.weights not in (PRETRAINED, "none") and not Path(config.weights).expanduser().is_file():
        problems["weights"] = f"there is no file {config.weights}"
    if problems:
        raise ConfigError(problems)


def prepare(config: RunConfig) -> Generator[Event, None, Job]:
    """Do what comes before the first step, saying how far it is.

    Raises:
        FinetuneError: when the data, the weights or a setting cannot be used.
    """
    check_config(config)
    dataset = yield from _reported(
        "index",
        index_dataset(
            config.data,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            split_seed=config.split_seed,
        ),
    )
    info = backbone_info(config.backbone)
    if config.weights == PRETRAINED and not info.ready:
        yield from _reported("download", download(info))
    device = choose_device(config.device, config.precision)
    network = build_network(config.backbone, config.weights, len(dataset.classes), config.seed)
    network.model.to(device.torch_device, memory_format=torch.channels_last)
    paths = dataset.paths(dataset.table)
    pixels = yield from _reported("decode", decode_pixels(paths, stored_side(config.image_size)))
    if pixels.failed:
        yield ImagesSkipped(len(pixels.failed), list(pixels.failed.values())[:_EXAMPLES])
    usable = ~np.isin(np.arange(len(paths)), list(pixels.failed))
    split = dataset.table["split"].to_numpy()
    rows = {name: np.flatnonzero(usable & (split == name)) for name in SPLITS}
    for name in (TRAIN, VAL):
        if not len(rows[name]):
            raise DataError(f"None of the {name} images in {config.data} can be decoded.")
    return Job(
        config,
        dataset,
        network,
        plan(config, network.stages),
        device,
        pixels,
        sample_keys(dataset.table["id"]),
        dataset.table["label"].to_numpy(),
        rows,
    )


def _reported(phase: str, work: Generator[tuple[int, int | None], None, Value]) -> Generator[Event, None, Value]:
    """Turn a worker's (done, total) into events, not too many of them, and hand its result on."""
    spoken = 0.0
    while True:
        try:
            done, total = next(work)
        except StopIteration as finished:
            return finished.value
        if done == total or time.monotonic() - spoken >= EVENT_SECONDS:
            spoken = time.monotonic()
            yield Progress(phase, done, total or 0)
