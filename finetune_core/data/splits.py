"""Deterministic, stratified splits into training, validation and test images.

A split stays the same when files are added.
"""

import hashlib
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
# The images of another data set, which are evaluated as if they were a split.
SHIFTED = "shifted"
FOLDER_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "training_set": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "validation_set": VAL,
    "test": TEST,
    "testing": TEST,
    "test_set": TEST,
}


def assign_splits(
    ids: pd.Series,
    labels: pd.Series,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    units: np.ndarray | None = None,
    known: Mapping[str, str] | pd.Series | None = None,
) -> np.ndarray:
    """Assign a split to every image, stratified by label.

    Within a class, units are ordered by a hash of (seed, id of their first image), so the result
    depends on neither the order of the files nor the machine. A class keeps at least one training
    image. With three images or more it has a validation image, with four or more a test image (if a
    test share is wanted), as far as its units allow.

    Args:
        ids: sample ids, ``[n]`` of str.
        labels: ``[n]``, any hashable.
        val_fraction: validation share of each class.
        test_fraction: test share of each class.
        seed: another number gives another split.
        units: int ``[n]``: images of the same number stay in one split; a unit counts for the class
            of most of its images.
        known: id -> split of images that had a split before and keep it; if those of a unit
            disagree, new images join the majority.

    Returns:
        ``[n]`` of ``"train" | "val" | "test"``.
    """
    table = pd.DataFrame({"id": ids.to_numpy(), "label": labels.to_numpy()})
    table["unit"] = np.arange(len(table)) if units is None else units
    table["known"] = table["id"].map({} if known is None else known).astype("object")
    table = table.sort_values("id", kind="stable")
    grouped = _build_units(table, seed)
    chosen: dict[int, str] = {}
    for _, rows in grouped.groupby("label", sort=False):
        chosen |= _split_class(rows, val_fraction, test_fraction)
    split = table["known"].fillna(table["unit"].map(chosen))
    return split.sort_index().to_numpy(dtype=object)


def extract_groups(ids: pd.Series, pattern: str) -> pd.Series:
    """Extract the part of each image's name that matches ``{group}``; empty without a match.

    ``*`` stands for any characters but ``/``. Without a ``/`` the pattern is matched against the
    file's name, else against its whole path: ``{group}_*`` finds ``patient7`` in
    ``cats/patient7_02.png``.

    Args:
        ids: paths of the images.
        pattern: a pattern with one ``{group}`` (``RunConfig`` checks it).
    """
    parts = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split("{group}"))
    expression = "([^/]+?)".join(parts)
    names = ids if "/" in pattern else ids.str.rsplit("/", n=1).str[-1]
    return names.str.extract(f"^{expression}$", expand=False).fillna("")


def _build_units(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return one row per unit, in hashed order, with ``label``, ``size`` and ``known``.

    ``known`` is the split of most of the unit's known images, or missing.
    """
    first = table.drop_duplicates("unit").set_index("unit")
    order = first["id"].map(
        lambda sample: hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=8).hexdigest()
    )
    units = pd.DataFrame({"order": order, "size": table["unit"].value_counts()})
    units["label"] = _most_frequent(table, "label")
    units["known"] = (
        _most_frequent(table.dropna(subset="known"), "known").astype("object").reindex(units.index)
    )
    return units.sort_values("order", kind="stable")


def _most_frequent(table: pd.DataFrame, column: str) -> pd.Series:
    """Return for each unit the value of most of its images; of equals the first."""
    counts = table.groupby(["unit", column], sort=False).size().reset_index(name="images")
    counts = counts.sort_values("images", ascending=False, kind="stable").drop_duplicates("unit")
    return counts.set_index("unit")[column]


def _split_class(units: pd.DataFrame, val_fraction: float, test_fraction: float) -> dict[int, str]:
    """Assign the units of one class to splits.

    A unit is added to a split if its images bring the share closer to the wanted one.
    """
    total = int(units["size"].sum())
    wanted = {VAL: _count_share(total, val_fraction, from_count=3)}
    wanted[TEST] = min(
        _count_share(total, test_fraction, from_count=4), max(0, total - wanted[VAL] - 1)
    )
    have = {name: int(units.loc[units["known"] == name, "size"].sum()) for name in SPLITS}
    chosen = {}
    fresh = 0
    for unit, size, known in zip(units.index, units["size"], units["known"], strict=True):
        fits = (name for name in (VAL, TEST) if 2 * (wanted[name] - have[name]) > size)
        chosen[unit] = known if isinstance(known, str) else next(fits, TRAIN)
        if not isinstance(known, str):
            have[chosen[unit]] += size
            fresh += 1
    return _fill_empty_splits(units, chosen, wanted, have) if fresh else chosen


def _fill_empty_splits(
    units: pd.DataFrame, chosen: dict[int, str], wanted: dict[str, int], have: dict[str, int]
) -> dict[int, str]:
    """Fill empty training and validation splits of one class.

    The smallest new unit that can be spared moves to the empty split.
    """
    for name in (TRAIN, VAL):
        if have[name] or (name == VAL and not wanted[VAL]):
            continue
        training = sum(split == TRAIN for split in chosen.values())
        spare = units[units["known"].isna()]
        spare = spare[
            [
                chosen[unit] != name and (chosen[unit] != TRAIN or training > 1)
                for unit in spare.index
            ]
        ]
        if len(spare):
            smallest, size = spare.index[int(spare["size"].argmin())], int(spare["size"].min())
            have[chosen[smallest]] -= size
            have[name] += size
            chosen[smallest] = name
    return chosen


def _count_share(count: int, fraction: float, from_count: int) -> int:
    if fraction == 0 or count < from_count:
        return 0
    return max(1, min(round(count * fraction), count - 2))
