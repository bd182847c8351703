"""A run -> the images that it was trained and validated with: their files, or found and decoded again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.listing import holds, image_root
from finetune_core.data.pixels import Pixels, decode_pixels
from finetune_core.data.sources import check_roots
from finetune_core.data.splits import TRAIN
from finetune_core.errors import DataError, RunError
from finetune_core.models.catalogue import input_info
from finetune_core.runs.store import Run
from finetune_core.training.batches import sample_keys, subset
from finetune_core.work import Work, in_phase


@dataclass(frozen=True)
class RunImages:
    """Some of a run's images.

    Attributes:
        dataset: the data set as it stands now.
        pixels: decoded, by row of its table.
        rows: split -> rows, in order.
        unchanged: whether the data set is still the one that the run was given.
    """

    dataset: Dataset
    pixels: Pixels
    rows: dict[str, np.ndarray]
    unchanged: bool


def run_image(run: Run, sample: str, roots: Sequence[Path] = ()) -> Path:
    """The file of one of a run's images, as ``data_image`` finds it.

    Raises:
        DataError: when it may not be read.
    """
    return data_image(run.config.data, sample, roots)


def data_image(data: str, sample: str, roots: Sequence[Path] = ()) -> Path:
    """The file of an image. All that shows or reads single images that a run's folder names gets them here: what that says is input.

    Args:
        data: the folder or manifest of its data set.
        sample: its id.
        roots: when given, an image that lies elsewhere is refused, links followed.

    Raises:
        DataError: when it may not be read.
    """
    root = image_root(data)
    file = root / sample
    if roots:
        check_roots(data, roots)
        check_roots(file, roots)
    if not holds(root, roots)(file):
        raise DataError(f"The image {sample} does not lie in its data set's folder.")
    return file


def run_images(run: Run, most: Mapping[str, int], roots: Sequence[Path] = ()) -> Work[RunImages]:
    """Find and decode a run's images, a seeded sample of each split where there are more.

    Args:
        most: split -> how many images of it at most; other splits are left out.
        roots: when given, images that lie elsewhere are refused.

    Yields:
        Steps of the phases ``index`` and ``decode``.

    Raises:
        DataError: when they may not be read, or are not there.
        RunError: when none of a split's images can be decoded.
    """
    config = run.config
    if roots:
        check_roots(config.data, roots)
    indexing = index_dataset(config.data, **config.split_settings, edits=config.edits, roots=roots)
    dataset = yield from in_phase("index", indexing)
    table = dataset.table
    rows = {split: np.flatnonzero(table["split"] == split) for split in most}
    if TRAIN in rows:
        keys = sample_keys(table["id"])
        rows[TRAIN] = subset(
            rows[TRAIN], table["label"].to_numpy(), keys, config.train_fraction, config.seed
        )
    rows = {split: _sample(found, most[split]) for split, found in rows.items()}
    wanted = np.sort(np.concatenate(list(rows.values())))
    keys = table["content"].to_numpy(np.uint64)
    info = input_info(config)
    decoding = decode_pixels(dataset.paths(table), keys, wanted, info.resize(config.image_size))
    pixels = yield from in_phase("decode", decoding)
    rows = {split: np.setdiff1d(found, list(pixels.failed)) for split, found in rows.items()}
    for split, found in rows.items():
        if not len(found):
            raise RunError(f"None of the {split} images of {run.run_id} can be read any more.")
    return RunImages(
        dataset, pixels, rows, dataset.fingerprint == (run.history.started or {}).get("fingerprint")
    )


def _sample(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
