"""Images that a run was trained and validated on: their files, or decoded again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.listing import image_root, make_containment_check
from finetune_core.data.pixels import Pixels, decode_pixels
from finetune_core.data.sources import check_roots
from finetune_core.data.splits import TRAIN
from finetune_core.errors import DataError, RunError
from finetune_core.models.catalogue import backbone_info_for
from finetune_core.runs.store import Run
from finetune_core.training.data_pipeline.batches import sample_keys, take_subset
from finetune_core.work import Work, with_phase


@dataclass(frozen=True)
class RunImages:
    """Some of a run's images.

    Attributes:
        dataset: the data set in its current state.
        pixels: decoded images, by row of the data set's table.
        rows: split -> rows, in ascending order.
        unchanged: True if the data set still has the fingerprint that the run recorded.
    """

    dataset: Dataset
    pixels: Pixels
    rows: dict[str, np.ndarray]
    unchanged: bool


def resolve_run_image(run: Run, sample: str, roots: Sequence[Path] = ()) -> Path:
    """Return the file of one of a run's images, found by ``resolve_image``.

    Raises:
        DataError: if the file may not be read.
    """
    return resolve_image(run.config.data, sample, roots)


def resolve_image(data: str, sample: str, roots: Sequence[Path] = ()) -> Path:
    """Return the file of an image.

    All code that shows or reads single images named by a run directory calls this function, because
    the names in a run directory are untrusted input.

    Args:
        data: the folder or manifest of the data set.
        sample: id of the image.
        roots: if given, an image outside of these folders is refused. Links are followed.

    Raises:
        DataError: if the file may not be read.
    """
    root = image_root(data)
    file = root / sample
    if roots:
        check_roots(data, roots)
        check_roots(file, roots)
    if not make_containment_check(root, roots)(file):
        raise DataError(f"The image {sample} does not lie in its data set's folder.")
    return file


def load_run_images(
    run: Run, most: Mapping[str, int], roots: Sequence[Path] = ()
) -> Work[RunImages]:
    """Find and decode a run's images, or a seeded sample of each split that has too many.

    Args:
        run: the run.
        most: split -> maximum number of images; other splits are left out.
        roots: if given, images outside of these folders are refused.

    Yields:
        Steps of the phases ``index`` and ``decode``.

    Raises:
        DataError: if the images may not be read, or are missing.
        RunError: if none of a split's images can be decoded.
    """
    config = run.config
    if roots:
        check_roots(config.data, roots)
    indexing = index_dataset(config.data, **config.split_settings, edits=config.edits, roots=roots)
    dataset = yield from with_phase("index", indexing)
    table = dataset.table
    rows = {split: np.flatnonzero(table["split"] == split) for split in most}
    if TRAIN in rows:
        keys = sample_keys(table["id"])
        rows[TRAIN] = take_subset(
            rows[TRAIN], table["label"].to_numpy(), keys, config.train_fraction, config.seed
        )
    rows = {split: _sample_rows(split_rows, most[split]) for split, split_rows in rows.items()}
    all_rows = np.sort(np.concatenate(list(rows.values())))
    keys = table["content"].to_numpy(np.uint64)
    info = backbone_info_for(config)
    decoding = decode_pixels(
        dataset.get_paths(table), keys, all_rows, info.get_resize(config.image_size)
    )
    pixels = yield from with_phase("decode", decoding)
    rows = {
        split: np.setdiff1d(split_rows, list(pixels.failed)) for split, split_rows in rows.items()
    }
    for split, split_rows in rows.items():
        if not len(split_rows):
            raise RunError(f"None of the {split} images of {run.run_id} can be read any more.")
    return RunImages(
        dataset, pixels, rows, dataset.fingerprint == (run.history.started or {}).get("fingerprint")
    )


def _sample_rows(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
