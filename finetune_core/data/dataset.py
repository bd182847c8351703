"""The data set: one table of images with labels and splits, made from a folder or manifest.

The person's edits are applied to the table, and the findings go with it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune_core.config import Edit, NearDuplicates
from finetune_core.data import splits
from finetune_core.data.checks import (
    find_class_problems,
    find_copy_problems,
    find_file_problems,
    find_image_problems,
)
from finetune_core.data.duplicates import merge_groups
from finetune_core.data.edits import apply_edits, collect_labelled_paths
from finetune_core.data.entry import entry_folder, read_table, write_table
from finetune_core.data.findings import Finding
from finetune_core.data.image_paths import ImagePaths
from finetune_core.data.index import read_index
from finetune_core.data.listing import Listing, extend_listing, list_data
from finetune_core.errors import DataError
from finetune_core.formatting import pluralize
from finetune_core.work import Work, finish

_COLUMNS = [
    "id",
    "label",
    "class",
    "split",
    "group",
    "near",
    "closeness",
    "content",
    "bytes",
    "width",
    "height",
    "mode",
    "format",
]
_SEEN = ["frames", "brightness", "low", "high", "contrast", "sharpness"]


@dataclass(frozen=True)
class Dataset:
    """An indexed, split data set.

    Attributes:
        root: the folder that ids are relative to.
        classes: class names; a label is an index into them.
        table: one row per usable image. ``id`` (path below root, with ``/``), ``label`` (int),
            ``class``, ``split``, ``group`` (empty: none), ``near`` (equal for near-duplicates),
            ``closeness`` (to the nearest of them; 1: equal), ``content`` (uint64 hash of the file),
            ``bytes``, ``width``, ``height`` (pixels, as shown), ``mode``, ``format``, ``frames``,
            and the light and sharpness of ``ImageStats``.
        findings: what was left out, and what may be wrong.
        given_splits: whether the data name their validation images themselves.
        edits: the edits that were applied.
    """

    root: Path
    classes: tuple[str, ...]
    table: pd.DataFrame
    findings: tuple[Finding, ...]
    given_splits: bool
    edits: tuple[Edit, ...] = ()

    def get_paths(self, rows: pd.DataFrame) -> ImagePaths:
        """Return the paths of some rows of the table."""
        return ImagePaths(self.root, rows["id"])

    def count_images(self) -> pd.DataFrame:
        """Return the number of images per class (rows) and split (columns, only those in use)."""
        counts = pd.crosstab(self.table["label"], self.table["split"])
        counts = counts.reindex(index=range(len(self.classes)), fill_value=0)
        counts = counts[[split for split in splits.SPLITS if split in counts.columns]]
        counts.index = pd.Index(self.classes, name="class")
        counts.columns.name = None
        return counts

    @cached_property
    def split_counts(self) -> dict[str, int]:
        """Images per split, only those in use."""
        return {
            str(split): int(count) for split, count in self.table["split"].value_counts().items()
        }

    def to_manifest(self) -> pd.DataFrame:
        """Return the data set as a manifest that Thaw reads: ``path, label, split, group``."""
        table = self.table[["id", "class", "split", "group"]].rename(
            columns={"id": "path", "class": "label"}
        )
        return table.drop(columns="group") if (table["group"] == "").all() else table

    @cached_property
    def by_id(self) -> pd.DataFrame:
        """The table, indexed by id."""
        return self.table.set_index("id")

    @property
    def unreadable(self) -> list[str]:
        """Reasons why files that are not readable images were left out, as text."""
        left_out = (
            finding
            for finding in self.findings
            if finding.kind in ("damaged", "unreadable", "empty_file", "missing_file")
        )
        return [finding.notes[path] for finding in left_out for path in finding.paths]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all images with their labels and splits.

        The hash changes if an image is added, removed, changed, relabelled or moved to another
        split.
        """
        return compute_fingerprint(self.table)


def compute_fingerprint(table: pd.DataFrame) -> str:
    """Return 16 hexadecimal digits of ``id, class, split, content``, for any order of the rows."""
    rows = table[["id", "class", "split", "content"]].sort_values("id")
    hashed = pd.util.hash_pandas_object(
        rows.astype({"id": "str", "class": "str", "split": "str"}), index=False
    )
    return hashlib.sha256(hashed.to_numpy().tobytes()).hexdigest()[:16]


def load_dataset(data: str | Path, **settings: Any) -> Dataset:
    """Load a data set: ``index_dataset`` without progress."""
    return finish(index_dataset(data, **settings))


def index_dataset(
    data: str | Path,
    *,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    groups: str = "",
    near_duplicates: NearDuplicates = "together",
    edits: Sequence[Edit] = (),
    roots: Sequence[Path] = (),
) -> Work[Dataset]:
    """Index ``train/<class>/…`` with optional ``val/`` and ``test/``, ``<class>/…``, or a manifest.

    Every file is read once, in threads. Files that cannot be decoded are left out, and a finding
    names them.

    Args:
        data: folder or manifest.
        val_fraction: as for ``assign_splits``; used if the data have no splits.
        test_fraction: as for ``assign_splits``; used if the data have no splits.
        split_seed: the seed of ``assign_splits``; used if the data have no splits.
        groups: a pattern for file names (see ``extract_groups``); a manifest's own groups take
            precedence.
        near_duplicates: whether a split that Thaw makes keeps near-duplicates together.
        edits: the edits to apply.
        roots: if given, files outside these folders are left out.

    Yields:
        Steps that count files, then images compared.

    Returns:
        The data set.

    Raises:
        DataError: if there is no such folder, or nothing to train on.
    """
    seen = yield from index_data(data, roots, edits=edits)
    return assemble_dataset(
        data,
        seen,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        groups=groups,
        near_duplicates=near_duplicates,
        edits=edits,
    )


@dataclass(frozen=True)
class IndexedData:
    """Listing and index of a folder or manifest, before it is split and edited.

    Images that edits label are rows without a class.

    Attributes:
        listing: the files.
        rows: one row per file (see ``read_index``).
    """

    listing: Listing
    rows: pd.DataFrame

    def has_labelled(self, edits: Sequence[Edit]) -> bool:
        """Return whether every image that the edits label was looked for."""
        return self.listing.added.issuperset(collect_labelled_paths(edits))


def index_data(
    data: str | Path,
    roots: Sequence[Path] = (),
    *,
    thumbs: bool = False,
    edits: Sequence[Edit] = (),
) -> Work[IndexedData]:
    """Index a folder or manifest. This is the first, slow half of ``index_dataset``.

    Args:
        data: folder or manifest.
        roots: as for ``index_dataset``.
        thumbs: whether to return the thumbnails of the images, too.
        edits: the images that these edits label are indexed, too.
    """
    listing = extend_listing(list_data(data, roots), list(collect_labelled_paths(edits)), roots)
    rows = yield from read_index(data, listing, thumbs=thumbs)
    return IndexedData(listing, rows)


def assemble_dataset(
    data: str | Path,
    seen: IndexedData,
    *,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    groups: str,
    near_duplicates: NearDuplicates,
    edits: Sequence[Edit],
) -> Dataset:
    """Split, edit and check the images. This is the second, quick half of ``index_dataset``.

    Args:
        data: folder or manifest.
        seen: the result of ``index_data``.
        val_fraction: as for ``index_dataset``.
        test_fraction: as for ``index_dataset``.
        split_seed: as for ``index_dataset``.
        groups: as for ``index_dataset``.
        near_duplicates: as for ``index_dataset``.
        edits: as for ``index_dataset``.
    """
    listing, rows = seen.listing, seen.rows
    broken = rows[rows["problem"] != ""]
    table = rows[rows["problem"] == ""].drop(columns="problem")
    own = table["class"] != ""  # images that edits label are not part of the split
    if not own.any():
        raise DataError(
            f"None of the {len(broken)} image files in {data} can be read; the first: "
            f"{broken['reason'].iloc[0]}"
        )
    given = bool((table["split"] == splits.VAL).any())
    if groups:
        table["group"] = table["group"].where(
            table["group"] != "", splits.extract_groups(table["id"], groups)
        )
    rule = (val_fraction, test_fraction, split_seed, groups, near_duplicates)
    table.loc[own, "split"] = (
        table.loc[own, "split"].replace("", splits.TRAIN)
        if given
        else _split_images(data, table[own], rule)
    )
    table = apply_edits(table, edits)
    if table.empty:
        raise DataError("Every image of this data set is excluded. Undo some of the changes.")
    classes = tuple(sorted(table["class"].unique()))
    table["label"] = (
        table["class"].map({name: index for index, name in enumerate(classes)}).astype("int64")
    )
    table = table[[*_COLUMNS, *_SEEN]].sort_values("id", ignore_index=True)
    _check_usable(data, table, near_duplicates == "together")
    return Dataset(
        listing.root,
        classes,
        table,
        tuple(_collect_findings(listing, broken, table, classes)),
        given,
        tuple(edits),
    )


def _collect_findings(
    listing: Listing, broken: pd.DataFrame, table: pd.DataFrame, classes: tuple[str, ...]
) -> list[Finding]:
    return [
        *find_file_problems(broken, listing.notes),
        *find_copy_problems(table),
        *find_class_problems(table, classes),
        *find_image_problems(table),
    ]


def _split_images(
    data: str | Path, table: pd.DataFrame, rule: tuple[float, float, int, str, str]
) -> pd.Series:
    """Return the split of each image.

    Images that this rule split before keep their split, so new files move none of them.
    """
    val_fraction, test_fraction, seed, _, near_duplicates = rule
    split = table["split"].replace("", splits.TRAIN).astype("object")
    # The data name their training images, so no test share is wanted.
    apart = bool((table["split"] != "").any())
    training = table[split == splits.TRAIN]
    file = (
        entry_folder(data)
        / f"split-{hashlib.sha256(repr((*rule, apart)).encode()).hexdigest()[:12]}.parquet"
    )
    before = read_table(file)
    known = (
        pd.Series(dtype="object")
        if before is None
        else before.drop_duplicates("id").set_index("id")["split"]
    )
    kept = known.reindex(training["id"])
    groups = training["group"].where(training["group"] != "").to_numpy()
    # Split a group again if its images were not in one split before.
    kept = kept.mask(kept.groupby(groups).transform("nunique") > 1)
    if kept.notna().all():
        split.loc[training.index] = kept.to_numpy(dtype=object)
        return split
    # New images join their group first, then their near-duplicates.
    kept = kept.fillna(kept.groupby(groups).transform("first"))
    assigned = splits.assign_splits(
        training["id"],
        training["class"],
        val_fraction,
        0.0 if apart else test_fraction,
        seed,
        assign_units(training, near_duplicates == "together"),
        kept,
    )
    split.loc[training.index] = assigned
    write_table(file, pd.DataFrame({"id": training["id"].to_numpy(), "split": assigned}))
    return split


def assign_units(table: pd.DataFrame, near: bool = True) -> np.ndarray:
    """Return the number of each image's unit, int ``[n]``: a split keeps a unit on one side.

    A unit holds the images of a group, and near-duplicates if ``near``.
    """
    groups = np.where(table["group"] != "", pd.factorize(table["group"])[0], -1)
    return merge_groups(groups, table["near"].to_numpy()) if near else merge_groups(groups)


def _check_usable(data: str | Path, table: pd.DataFrame, near: bool) -> None:
    counts = table["split"].value_counts()
    if not counts.get(splits.TRAIN, 0):
        raise DataError(f"There is no training image in {data} that can be used.")
    if not counts.get(splits.VAL, 0):
        of_class = pd.Series(assign_units(table, near)).groupby(table["class"])
        if of_class.size().max() >= 3 and of_class.nunique().max() == 1:
            raise DataError(
                f"Every class of {data} is one group, or nothing but near-duplicates, which are "
                "kept together: none can be set aside for validation. "
                "Name smaller groups, choose near_duplicates=apart, or add a val/ folder."
            )
        raise DataError(
            f"{data} has too few images ({pluralize(len(table), 'image')}) to set any aside for "
            "validation: give each class at least three, or add a val/ folder."
        )
