"""Tables of predictions that runs are compared by.

They are of the runs' own images, of another data set, or of corrupted copies of their own images.
"""

from collections.abc import Collection, Hashable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from finetune_core.evaluation.single_run.corruptions import CorruptedSplit
from finetune_core.evaluation.single_run.robustness_files import (
    load_corrupted_predictions,
    robustness_stamp,
)
from finetune_core.evaluation.single_run.shift_files import (
    load_shifted_predictions,
    read_shift,
    shift_stamp,
)
from finetune_core.runs.store import Run
from finetune_core.training.predictions import load_predictions, predictions_mtime

# The fingerprint of another data set, a corruption of a run's own images, or None for its own
# images.
Images = str | CorruptedSplit | None


class Key(NamedTuple):
    """Key of a table of predictions: equal keys, ``version`` included, mean the same table.

    Attributes:
        run_dir: the run directory.
        version: changes with the stored predictions.
        classes: number of classes of the run.
        images: the images that were predicted.
        labels: restricts the table to images of these classes; None for all.
    """

    run_dir: Path
    version: Hashable
    classes: int
    images: Images
    labels: tuple[int, ...] | None = None


def make_key(run: Run, images: Images, classes: Collection[str] | None = None) -> Key:
    """Return the key of a table of predictions.

    Args:
        run: the run.
        images: the images that were predicted.
        classes: names of the classes whose images count; all if None.

    Raises:
        RunError: if the run has not predicted that data set in its current state.
    """
    version: Hashable = predictions_mtime(run.run_dir)
    if isinstance(images, CorruptedSplit):
        version = version, robustness_stamp(run.run_dir, images.split)
    elif images:
        read_shift(run, images)
        version = shift_stamp(run, images)
    names = run.started["classes"]
    labels = None
    if classes is not None:
        labels = tuple(label for label, name in enumerate(names) if name in classes)
    return Key(run.run_dir, version, len(names), images, labels)


@lru_cache(maxsize=64)
def load_table(key: Key) -> pd.DataFrame:
    """Return ``id, split, label, logits``, sorted by id.

    The split of other images than the run's own is ``SHIFTED``.

    Raises:
        RunError: if there is no table, or it is damaged.
    """
    if key.labels is not None:
        table = load_table(key._replace(labels=None))
        return table[table["label"].isin(key.labels)].reset_index(drop=True)
    run_dir, _, classes, images, _ = key
    if isinstance(images, CorruptedSplit):
        return load_corrupted_predictions(run_dir, images, classes)
    if images:
        return load_shifted_predictions(run_dir, images, classes)
    return load_predictions(run_dir, classes).sort_values("id", ignore_index=True)
