"""Deterministic, stratified splits: which images train, which validate, which are kept for the final test."""

import hashlib

import numpy as np
import pandas as pd

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
FOLDER_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "testing": TEST,
}


def assign_splits(ids: pd.Series, labels: pd.Series, val_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """A split name for every image, stratified by label.

    Within a class, images are ordered by a hash of (seed, id), so the result depends on neither the order of the files
    nor the machine. A class keeps at least one training image; from three images on it has a validation image, from four
    on a test image (where a test share is asked for).

    Args:
        ids: sample ids, ``[n]`` of str.
        labels: ``[n]``, any hashable.
        val_fraction, test_fraction: shares of each class.
        seed: another number gives another split.

    Returns:
        ``[n]`` of ``"train" | "val" | "test"``.
    """
    order = ids.map(lambda sample: hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=8).hexdigest())
    split = np.full(len(ids), TRAIN, dtype=object)
    for rows in order.groupby(labels.to_numpy()).groups.values():
        rows = order.loc[rows].sort_values().index.to_numpy()
        n_val = _share(len(rows), val_fraction, from_count=3)
        n_test = min(_share(len(rows), test_fraction, from_count=4), len(rows) - n_val - 1)
        split[rows[:n_val]] = VAL
        split[rows[n_val : n_val + n_test]] = TEST
    return split


def _share(count: int, fraction: float, from_count: int) -> int:
    if fraction == 0 or count < from_count:
        return 0
    return max(1, min(round(count * fraction), count - 2))
