"""The index: what is known of every file of a data set. Kept as Parquet in the app's own folder; only new and changed files are
looked at again (by size and time of change)."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core.data.closeness import gray_squares
from finetune_core.data.duplicates import near_sets
from finetune_core.data.entry import entry_folder, read_table, write_table
from finetune_core.data.image_stats import Look, look_at
from finetune_core.data.listing import Listing
from finetune_core.data.threads import in_threads
from finetune_core.files import Stamp, stamp
from finetune_core.work import Step, Work

_FILE = "index.parquet"
_IDENTITY = ["id", "bytes", "changed"]
_SEEN = [field.name for field in fields(Look)]
_COLUMNS = [*_IDENTITY, *_SEEN, "near", "closeness"]
_TYPES = dict.fromkeys(("bytes", "changed", "near", "width", "height", "frames"), "int64") | {
    "content": "uint64",
    "closeness": "float64",
}
_UNKNOWN = -1  # the near set of a file that was not compared yet


def read_index(data: str | Path, listing: Listing) -> Work[pd.DataFrame]:
    """Know every listed file, looking at those that are new or have changed. What was seen is kept, also when it is broken off.

    Yields:
        Steps that count files looked at, then images compared.

    Returns:
        The listing's rows with the fields of a ``Look``, ``near``: images of the same number are near-duplicates, and ``closeness``:
        of each to the nearest of those (see ``near_sets``).
    """
    file = entry_folder(data) / _FILE
    known = _known(file)
    position = _positions(known, listing.files)
    fresh = np.flatnonzero(position < 0)
    looks: list[Look] = []
    kept = known[_COLUMNS].iloc[position[position >= 0]]
    if (kept["problem"] == "").sum() < (known["problem"] == "").sum():
        kept = kept.assign(near=_UNKNOWN)
    near = None
    try:
        for look in _looked_at(listing, fresh):
            looks.append(look)
            yield Step(len(looks), len(fresh))
        near = yield from _near(_joined(kept, listing.files.iloc[fresh], looks), listing.root)
    finally:
        rows = _joined(kept, listing.files.iloc[fresh[: len(looks)]], looks)
        if near is not None:
            rows["near"], rows["closeness"] = near
        if not rows.equals(known):
            write_table(file, rows)
    seen = rows.drop(columns=["bytes", "changed"])
    return listing.files.merge(seen, on="id", how="left", validate="one_to_one")


def known_images(data: str | Path) -> pd.DataFrame:
    """What was seen of each image of a data set when it was last looked at (the fields of a ``Look``), by id; empty if never."""
    known = _known(entry_folder(data) / _FILE)
    return known[known["problem"] == ""].drop_duplicates("id").set_index("id")[["bytes", *_SEEN]]


def index_changed(data: str | Path) -> Stamp | None:
    """Changes when ``known_images`` does."""
    return stamp(entry_folder(data) / _FILE)


def _near(rows: pd.DataFrame, root: Path) -> Work[tuple[np.ndarray, np.ndarray]]:
    """The near sets and how close: as they are known, unless an image came or went."""
    usable = (rows["problem"] == "").to_numpy()
    near, closeness = rows["near"].to_numpy(copy=True), rows["closeness"].to_numpy(copy=True)
    if (near[usable] == _UNKNOWN).any():
        images = rows[usable]

        def squares(positions: np.ndarray, side: int) -> Iterator[np.ndarray | None]:
            return gray_squares([root / sample for sample in images["id"].iloc[positions]], side)

        comparing = near_sets(images["thumb"], images["content"].to_numpy(np.uint64), squares)
        near[usable], closeness[usable] = yield from comparing
    return near, closeness


def _known(file: Path) -> pd.DataFrame:
    table = read_table(file)
    if table is None or set(_COLUMNS) - set(table.columns):
        return _joined(pd.DataFrame(columns=_COLUMNS), pd.DataFrame(columns=_IDENTITY), [])
    return table


def _positions(known: pd.DataFrame, files: pd.DataFrame) -> np.ndarray:
    """For each listed file its row in what is known; -1 where it is new or has changed."""
    position: np.ndarray = pd.Index(known["id"]).get_indexer(files["id"])
    if len(known):
        # What could not be opened may be by now, without another time of change.
        opened = ((known["content"] != 0) | (known["problem"] == "empty_file")).to_numpy()
        same = (known["bytes"].to_numpy()[position] == files["bytes"].to_numpy()) & (
            known["changed"].to_numpy()[position] == files["changed"].to_numpy()
        )
        position = np.where(same & opened[position] & (files["bytes"].to_numpy() >= 0), position, -1)
    return position


def _looked_at(listing: Listing, rows: np.ndarray) -> Generator[Look, None, None]:
    paths = [listing.root / sample for sample in listing.files["id"].iloc[rows]]
    with closing(in_threads(partial(look_at), paths)) as looking:
        for _, look in looking:
            yield look


def _joined(kept: pd.DataFrame, files: pd.DataFrame, looks: list[Look]) -> pd.DataFrame:
    seen = pd.DataFrame([asdict(look) for look in looks], columns=_SEEN, index=files.index)
    fresh = pd.concat([files[_IDENTITY], seen], axis=1).assign(near=_UNKNOWN, closeness=0.0)
    # Each by itself: pandas joins int64 and uint64 to float64, which cannot hold a hash.
    parts = [part.astype(_TYPES) for part in (kept, fresh) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else fresh.astype(_TYPES)
