"""The tables of predictions that runs are compared by: of their own images, of another data set, or of their own images made worse."""

from collections.abc import Collection, Hashable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from finetune_core.evaluation.single_run.corruptions import Corrupted
from finetune_core.evaluation.single_run.robustness_files import (
    corrupted_predictions,
    robustness_changed,
)
from finetune_core.evaluation.single_run.shift_files import (
    read_shift,
    shift_changed,
    shifted_predictions,
)
from finetune_core.runs.store import Run
from finetune_core.training.predictions import load_predictions, predictions_changed

# the fingerprint of another data set; own images made worse; None: a run's own images
Images = str | Corrupted | None


class Key(NamedTuple):
    """Which table of a run, as it is now: of the same ``version``, it is the same table.

    Attributes:
        labels: only images of these classes; of all when None.
    """

    run_dir: Path
    version: Hashable
    classes: int
    images: Images
    labels: tuple[int, ...] | None = None


def key_of(run: Run, images: Images, classes: Collection[str] | None = None) -> Key:
    """Return which table of predictions is meant.

    Args:
        classes: names of those whose images count; all when None.

    Raises:
        RunError: when the run has not predicted that data set as it is now.
    """
    version: Hashable = predictions_changed(run.run_dir)
    if isinstance(images, Corrupted):
        version = version, robustness_changed(run.run_dir, images.split)
    elif images:
        read_shift(run, images)
        version = shift_changed(run, images)
    names = run.started["classes"]
    labels = None
    if classes is not None:
        labels = tuple(label for label, name in enumerate(names) if name in classes)
    return Key(run.run_dir, version, len(names), images, labels)


@lru_cache(maxsize=64)
def table_of(key: Key) -> pd.DataFrame:
    """``id, split, label, logits``, by id; of other images than the run's own, all of the split ``SHIFTED``.

    Raises:
        RunError: when there is none, or it is damaged.
    """
    if key.labels is not None:
        table = table_of(key._replace(labels=None))
        return table[table["label"].isin(key.labels)].reset_index(drop=True)
    run_dir, _, classes, images, _ = key
    if isinstance(images, Corrupted):
        return corrupted_predictions(run_dir, images, classes)
    if images:
        return shifted_predictions(run_dir, images, classes)
    return load_predictions(run_dir, classes).sort_values("id", ignore_index=True)
