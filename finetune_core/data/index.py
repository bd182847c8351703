"""The index: facts about every file of a data set, as Parquet in the app's own folder.

Only files that are new or have changed (by size and modification time) are read again.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from finetune_core.data.closeness import load_gray_squares
from finetune_core.data.duplicates import find_near_duplicates
from finetune_core.data.entry import entry_folder, read_table, write_table
from finetune_core.data.image_stats import ImageStats, measure_image
from finetune_core.data.listing import Listing
from finetune_core.data.threads import map_adaptively
from finetune_core.files import Stamp, file_stamp
from finetune_core.work import Step, Work

_FILE = "index.parquet"
_IDENTITY = ["id", "bytes", "changed"]
_SEEN = [field.name for field in fields(ImageStats)]
_THUMB = "thumb"  # two thirds of the index: read only if images are to be compared
_COLUMNS = [*_IDENTITY, *_SEEN, "near", "closeness"]
_FACTS = [name for name in _COLUMNS if name != _THUMB]
_TYPES: dict[str, Any] = dict.fromkeys(
    ("bytes", "changed", "near", "width", "height", "frames"), "int64"
) | {"content": "uint64", "closeness": "float64", _THUMB: pd.ArrowDtype(pyarrow.large_binary())}
_AT_ONCE = 10_000  # statistics held as objects
_UNKNOWN = -1  # near-duplicate set of a file that was not compared yet


def read_index(data: str | Path, listing: Listing, *, thumbs: bool = False) -> Work[pd.DataFrame]:
    """Read the index, and update it for the files that are new or have changed.

    The index is written even if the update is cancelled.

    Args:
        data: folder or manifest of the data set.
        listing: the files of the data set.
        thumbs: whether to return the thumbnails, too.

    Yields:
        Steps that count files read, then images compared.

    Returns:
        The listing's rows with the fields of an ``ImageStats``, and two more columns: ``near``,
        equal for near-duplicates, and ``closeness``, of each image to the nearest of its
        near-duplicates (see ``find_near_duplicates``).
    """
    file = entry_folder(data) / _FILE
    columns = _COLUMNS if thumbs else _FACTS
    known = _load_known(file, columns)
    position = _match_rows(known, listing.files)
    if len(known) != len(position) or (position < 0).any() or _is_uncompared(known).any():
        del known
        known, position = yield from _update_index(file, listing, columns)
    seen = known.drop(columns=_IDENTITY).iloc[position].reset_index(drop=True)
    return pd.concat([listing.files, seen], axis=1)


def _update_index(
    file: Path, listing: Listing, columns: list[str]
) -> Work[tuple[pd.DataFrame, np.ndarray]]:
    """Update the index.

    Returns:
        The new index, and the row in it of each listed file.
    """
    known = _load_known(file, _COLUMNS)
    position = _match_rows(known, listing.files)
    fresh = np.flatnonzero(position < 0)
    looks = _StatsTables()
    kept = known.iloc[position[position >= 0]]
    if (kept["problem"] == "").sum() < (known["problem"] == "").sum():
        kept = kept.assign(near=_UNKNOWN)
    rows = kept
    try:
        try:
            for look in _measure_files(listing, fresh):
                looks.add(look)
                yield Step(len(looks), len(fresh))
        finally:
            rows = _join_rows(kept, listing.files.iloc[fresh[: len(looks)]], looks.table())
        rows["near"], rows["closeness"] = yield from _find_near(rows, listing.root)
    finally:
        if not rows.equals(known):
            write_table(file, rows)
    return rows[columns], np.argsort(np.concatenate([np.flatnonzero(position >= 0), fresh]))


class _StatsTables:
    """Statistics collected so far, in tables.

    Tables take a third of the memory of as many objects.
    """

    def __init__(self) -> None:
        self._tables: list[pd.DataFrame] = []
        self._latest: list[ImageStats] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, look: ImageStats) -> None:
        """Add the statistics of one image file."""
        self._latest.append(look)
        self._count += 1
        if len(self._latest) == _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        columns = {name: [getattr(look, name) for look in self._latest] for name in _SEEN}
        self._tables.append(_cast_columns(pd.DataFrame(columns)))
        self._latest = []

    def table(self) -> pd.DataFrame:
        """Return one row per image file, in order."""
        if self._latest or not self._tables:
            self._flush()
        return pd.concat(self._tables, ignore_index=True)


def load_known_images(data: str | Path) -> pd.DataFrame:
    """Return the statistics of each indexed image by id, as fields of an ``ImageStats``.

    The table is empty if the data set was never indexed.
    """
    known = _load_known(entry_folder(data) / _FILE, _FACTS)
    return (
        known[known["problem"] == ""]
        .drop_duplicates("id")
        .set_index("id")[["bytes", *(name for name in _SEEN if name != _THUMB)]]
    )


def index_stamp(data: str | Path) -> Stamp | None:
    """Return a stamp of the index file, which changes when ``load_known_images`` does."""
    return file_stamp(entry_folder(data) / _FILE)


def _is_uncompared(rows: pd.DataFrame) -> pd.Series:
    """Return which rows are images that were not yet compared with the others, boolean."""
    uncompared: pd.Series = (rows["problem"] == "") & (rows["near"] == _UNKNOWN)
    return uncompared


def _find_near(rows: pd.DataFrame, root: Path) -> Work[tuple[np.ndarray, np.ndarray]]:
    """Return near-duplicate sets and closeness, computed again if an image came or went."""
    near, closeness = rows["near"].to_numpy(copy=True), rows["closeness"].to_numpy(copy=True)
    if _is_uncompared(rows).any():
        usable = (rows["problem"] == "").to_numpy()
        images = rows.loc[usable, ["id", "content", _THUMB]]

        def squares(positions: np.ndarray, side: int) -> Iterator[np.ndarray | None]:
            return load_gray_squares(
                [root / sample for sample in images["id"].iloc[positions]], side
            )

        comparing = find_near_duplicates(
            images[_THUMB], images["content"].to_numpy(np.uint64), squares
        )
        near[usable], closeness[usable] = yield from comparing
    return near, closeness


def _load_known(file: Path, columns: list[str]) -> pd.DataFrame:
    table = read_table(file, columns)
    if table is None or set(columns) - set(table.columns):
        return _cast_columns(pd.DataFrame(columns=columns))
    return _cast_columns(table)


def _cast_columns(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype({name: kind for name, kind in _TYPES.items() if name in table.columns})


def _match_rows(known: pd.DataFrame, files: pd.DataFrame) -> np.ndarray:
    """Return the row in the index of each listed file; -1 if the file is new or has changed."""
    position: np.ndarray = pd.Index(known["id"]).get_indexer(files["id"])
    if len(known):
        # A file that could not be opened may be readable now, with the same modification time.
        opened = ((known["content"] != 0) | (known["problem"] == "empty_file")).to_numpy()
        same = (known["bytes"].to_numpy()[position] == files["bytes"].to_numpy()) & (
            known["changed"].to_numpy()[position] == files["changed"].to_numpy()
        )
        position = np.where(
            same & opened[position] & (files["bytes"].to_numpy() >= 0), position, -1
        )
    return position


def _measure_files(listing: Listing, rows: np.ndarray) -> Generator[ImageStats, None, None]:
    paths = (listing.root / sample for sample in listing.files["id"].iloc[rows])
    with closing(map_adaptively(partial(measure_image), paths)) as looking:
        for _, look in looking:
            yield look


def _join_rows(kept: pd.DataFrame, files: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    fresh = pd.concat([files[_IDENTITY].reset_index(drop=True), seen], axis=1).assign(
        near=_UNKNOWN, closeness=0.0
    )
    # Cast before: pandas joins int64 and uint64 to float64, which cannot hold a hash.
    parts = [_cast_columns(part) for part in (kept, fresh) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else _cast_columns(fresh)
