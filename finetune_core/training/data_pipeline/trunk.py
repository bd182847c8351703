"""The frozen trunk, whose output is computed once per image.

It is kept and shared by every epoch and every run.
"""

import hashlib
import time
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from finetune_core.config import RunConfig
from finetune_core.data.decode import BILINEAR, CROP
from finetune_core.data.pixels import USUAL_CROP
from finetune_core.data.rowcache import CACHE, Lookup, Where
from finetune_core.models.catalogue import BackboneInfo
from finetune_core.models.network import Network
from finetune_core.models.partition import Segments, trace
from finetune_core.training.compile.compiler import Compiler, Part
from finetune_core.training.data_pipeline.feeding import Feed, forward_batch_size, stream_outputs
from finetune_core.training.devices.device import Device
from finetune_core.training.strategies.catalogue import count_epochs
from finetune_core.work import Work, with_subject

_EPOCHS_PER_VIEW = 4
# Versions of the libraries that compute the activations.
_VERSIONS = tuple(version(library) for library in ("torch", "torchvision", "timm", "pillow"))


@dataclass(frozen=True)
class CachedTrunk:
    """Activations in place of images, and the tail in place of the network.

    Attributes:
        plain: Activations of every image, unaugmented, by row of the data set.
        views: Activations of the training images, one lookup per view.
    """

    tail: nn.Module
    plain: Lookup
    views: tuple[Lookup, ...]

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The activations that are held."""
        return self.plain, *self.views

    def load_readable(
        self, rows: np.ndarray, version: int | None
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Return all of the rows and their activations.

        They are those of the unaugmented images where ``version`` is None or there are no views.
        """
        lookup = self.plain if version is None or not self.views else self.views[version]
        return rows, lookup.batch(rows)

    def finish(self, loaded: torch.Tensor, rows: np.ndarray, version: int | None) -> torch.Tensor:
        """Return the tail's input, which is what was loaded and is on the device now."""
        return loaded

    def with_lookups(self, lookups: list[Lookup]) -> "CachedTrunk":
        """Return this trunk with ``lookups`` in place of the present ones."""
        return replace(self, plain=lookups[0], views=tuple(lookups[1:]))


def choose_num_views(config: RunConfig, cut: int) -> int | None:
    """Return how many augmented versions of an image the run goes through.

    0 means a fresh version each epoch, None no augmentation. The number follows from the config
    alone: with or without the cache, and however much memory is free, a run trains on the same
    images.
    """
    if config.augmentation == "none" or not count_epochs(config):
        return None
    if config.views is not None:
        return config.views
    if config.mixup or config.cutmix:
        return 0
    return 0 if cut == 0 else -(-config.epochs // _EPOCHS_PER_VIEW)


def why_uncached(config: RunConfig, cut: int) -> str:
    """Return why a run does without the cache. Empty when it does not."""
    if config.cache == "off":
        return "switched off for this run"
    if cut == 0:
        return "the first stage trains, so nothing is frozen before it"
    if (config.mixup or config.cutmix) and count_epochs(config):
        return "mixup and cutmix make new images in every step"
    if choose_num_views(config, cut) == 0:
        return "every epoch augments the images afresh"
    return ""


@dataclass(frozen=True)
class TrunkTables:
    """Names of the cache's tables for one frozen trunk.

    A name depends on everything that the trunk's output depends on, but the image.
    """

    network: Network
    device: Device
    image_size: int

    def get_name(self, cut: int, view: str = "") -> str:
        """Return the name of the table with the output at a cut.

        Args:
            cut: Index of the first stage after the trunk.
            view: Name of the augmented version. Empty without augmentation.
        """
        info = self.network.info
        # A network that ends there pools. In all other cases the output is that of the whole
        # network.
        suffix = (
            ("pooled",)
            if self.network.features_from and cut == len(self.network.stages) - 1
            else ()
        )
        parts = (
            self.network.weights_hash,
            info.name,
            info.mean,
            info.std,
            self.image_size,
            self.device.kind,
            *_make_resize_key(info),
        )
        digest = hashlib.sha256(
            repr((*parts, self.device.precision, view, _VERSIONS, *suffix)).encode()
        ).hexdigest()[:16]
        return f"trunk-{digest}-{cut}"

    def find_missing(self, cut: int, keys: np.ndarray, view: str = "") -> np.ndarray:
        """Return which keys have no row in the cache now, boolean ``[n]``."""
        name = self.get_name(cut, view)
        CACHE.refresh(name)
        return CACHE.get_table(name).find_missing(keys)

    def seconds_per_row(self, cut: int) -> float | None:
        """Return the time of one image from pixels to this cut.

        It is None where the time was not measured.
        """
        return CACHE.get_table(self.get_name(cut)).seconds_per_row


def _make_resize_key(info: BackboneInfo) -> tuple[float | str, ...]:
    """Return how images are cut and resized, where it is not the usual way.

    What was cached before there was another way is still good.
    """
    if info.fit != CROP:
        return info.crop, info.interpolation, info.fit
    usual = (info.crop, info.interpolation) == (USUAL_CROP, BILINEAR)
    return () if usual else (info.crop, info.interpolation)


def split_network(network: Network) -> Segments:
    """Trace a network.

    Raises:
        SplitError: If it cannot be cut, and has to train uncached.
    """
    return trace(network.model.eval(), network.stages, network.image_size)


def why_eager(config: RunConfig, device: Device) -> str:
    """Return why a run's trunk is not to be compiled. Empty where it may be."""
    if config.compile == "off":
        return "switched off for this run"
    return "in fp32 a run is exact to the bit" if device.precision == "fp32" else ""


def make_trunk_compiler(device: Device, images: int, why_not: str) -> Compiler:
    """Return the compiler of a trunk for ``fill_trunk``.

    Args:
        device: The device that computes.
        images: Number of images that will go through the trunk.
        why_not: Why nothing is to be compiled, as text. Empty where compiling is allowed.
    """
    return Compiler(device, images, forward_batch_size(device), why_not)


def find_missing(
    tables: TrunkTables, cut: int, keys: np.ndarray, wanted: np.ndarray, view: str = ""
) -> np.ndarray:
    """Return the wanted images whose output is not cached."""
    rows: np.ndarray = wanted[tables.find_missing(cut, keys[wanted], view)]
    return rows


def fill_trunk(
    tables: TrunkTables,
    segments: Segments,
    cut: int,
    keys: np.ndarray,
    wanted: np.ndarray,
    images: Feed,
    compiler: Compiler,
    view: str = "",
) -> Work[tuple[Lookup | None, float]]:
    """Compute the trunk's output for the wanted images and cache it.

    Each image starts from the nearest shallower cut that is cached, else from pixels.

    Args:
        tables: Names of the cache's tables for the trunk.
        segments: The traced network.
        cut: Index of the first stage after the trunk.
        keys: uint64 ``[n]``, from the images' contents.
        wanted: Indices into ``keys``.
        images: The network's input, by index.
        compiler: Compiler of the trunk, or of its part from a shallower cut on.
        view: Name of the augmented version. Empty without augmentation.

    Yields:
        Steps that count images. Their subject is the first stage that these go through.

    Returns:
        The rows by index, or None where there is no space; and the seconds spent on those that were
        not cached before.
    """
    name, elapsed = tables.get_name(cut, view), 0.0
    missing = find_missing(tables, cut, keys, wanted, view)
    for start, rows, shallower in _find_sources(tables, cut, keys, missing, view):
        start_time = time.monotonic()
        label = f"{tables.network.info.name} {start or 0}-{cut}"
        part = Part(segments.part(start, cut).eval(), label, lambda: tables.network.weights_hash)
        batches = stream_outputs(
            compiler.forward(part),
            tables.device,
            rows,
            Feed(shallower.batch) if shallower else images,
            # In fp32 a row is equal to the bit, whichever run has computed it.
            pad=tables.device.precision == "fp32",
        )
        filling = CACHE.fill(name, keys[rows], batches)
        stage = tables.network.stages[start or 0].name
        where: Where | None = yield from with_subject(stage, filling)
        seconds = time.monotonic() - start_time
        elapsed += seconds
        if where is None:
            return None, elapsed
        # With few images, starting takes most of the time.
        if start is None and 2 * len(rows) >= len(wanted):
            CACHE.get_table(name).seconds_per_row = seconds / len(rows)
    table = CACHE.get_table(name)
    # On a full disk the new rows may have displaced earlier ones.
    if table.find_missing(keys[wanted]).any():
        return None, elapsed
    return table.lookup(keys), elapsed


def find_uncached(
    tables: TrunkTables, cut: int, keys: np.ndarray, wanted: np.ndarray, view: str = ""
) -> np.ndarray:
    """Return the wanted images whose pixels are needed.

    Their output is cached neither at this cut nor at a shallower one.
    """
    missing = find_missing(tables, cut, keys, wanted, view)
    return next(
        (
            rows
            for start, rows, _ in _find_sources(tables, cut, keys, missing, view)
            if start is None
        ),
        missing[:0],
    )


def _find_sources(
    tables: TrunkTables, cut: int, keys: np.ndarray, missing: np.ndarray, view: str
) -> list[tuple[int | None, np.ndarray, Lookup | None]]:
    """Return where the needed rows come from.

    These are (cut, rows, the cache's rows there) for each shallower cut that has some, the nearest
    first, and (None, rows, None) for those that come from pixels. A lookup keeps what it found,
    also when the cache drops it meanwhile.
    """
    sources: list[tuple[int | None, np.ndarray, Lookup | None]] = []
    for shallower in range(cut - 1, 0, -1):
        table = CACHE.get_table(tables.get_name(shallower, view))
        lookup = table.lookup(keys)
        is_missing = lookup.missing[missing]
        if not is_missing.all():
            sources.append((shallower, missing[~is_missing], lookup))
            missing = missing[is_missing]
    return [*sources, (None, missing, None)] if len(missing) else sources
