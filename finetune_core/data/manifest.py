"""Manifests: CSV or Parquet tables with path, label and optional split and group of each image."""

import csv
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet

from finetune_core.data import splits
from finetune_core.data.names import escape_name
from finetune_core.errors import DataError

_SUFFIXES = (".csv", ".tsv", ".parquet")
_NAMES = {
    "id": ("path", "file", "filename", "file_name", "filepath", "image", "id"),
    "class": ("label", "class", "class_name", "target", "category"),
    "split": ("split", "set", "subset"),
    "group": ("group",),
}
_SHOWN = 5
_MOST_NAMED = 20  # columns in a message
# pandas takes milliseconds per column, and longer if many have the same name: 60,000 took 90 s.
_MOST_COLUMNS = 1000
_LONGEST = 32_767  # characters; no system allows a longer path


def is_manifest(path: Path) -> bool:
    """Return whether a file is a manifest by its name."""
    return path.suffix.lower() in _SUFFIXES


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest as ``id``, ``class``, ``split`` and ``group``, all str.

    An id is relative to the manifest's folder if the image lies in it, else absolute. Columns are
    found by name, in upper or lower case: path (file, filename, image, …), label (class, target,
    category), split (train, val, test and their common synonyms), group.

    Raises:
        DataError: if the manifest cannot be read, or a row cannot be used. The message names all
            problems at once.
    """
    raw = _read_table(path)
    columns = {str(name).strip().lower(): name for name in raw.columns}
    chosen = {
        ours: next((columns[name] for name in names if name in columns), None)
        for ours, names in _NAMES.items()
    }
    missing = [
        theirs for ours, theirs in (("id", "path"), ("class", "label")) if chosen[ours] is None
    ]
    if missing:
        found = ", ".join(escape_name(str(name)) for name in raw.columns[:_MOST_NAMED]) + (
            ", …" if len(raw.columns) > _MOST_NAMED else ""
        )
        raise DataError(
            f"{path.name} needs columns path and label; there is none for {' and '.join(missing)} "
            f"among: {found}."
        )
    if raw.empty:
        raise DataError(f"{path.name} has no rows.")
    _check_not_nested(path, raw[[name for name in chosen.values() if name is not None]])
    table = pd.DataFrame(
        {ours: _to_text(raw[name]) if name is not None else "" for ours, name in chosen.items()},
        index=raw.index,
    )
    table["split"] = _map_values(table["split"], str.lower).map(splits.FOLDER_NAMES | {"": ""})
    table["id"] = _map_values(table["id"], lambda name: _to_id(name, path.parent))
    _check_rows(path, table)
    return table.drop_duplicates("id", ignore_index=True).astype("str")


def read_other_columns(path: Path) -> pd.DataFrame:
    """Read the columns of a manifest that Thaw does not use, as str by ``id``.

    The columns keep their own names.

    Raises:
        DataError: if the manifest cannot be read, or has no path column any more.
    """
    raw = _read_table(path)
    columns = {str(name).strip().lower(): name for name in raw.columns}
    taken = [
        next((columns[name] for name in names if name in columns), None)
        for names in _NAMES.values()
    ]
    if taken[0] is None:
        raise DataError(f"{path.name} has no column path any more.")
    rest = [name for name in raw.columns if name not in taken]
    ids = _map_values(_to_text(raw[taken[0]]), lambda name: _to_id(name, path.parent))
    first = ~ids.duplicated()
    table = pd.DataFrame(
        {str(name): _to_text(raw[name])[first] for name in rest}, index=raw.index[first]
    )
    return table.set_index(pd.Index(ids[first], name="id"))


def _check_rows(path: Path, table: pd.DataFrame) -> None:
    wrong = {
        "without a path": table["id"] == "",
        "without a label": table["class"] == "",
        "with a split other than train, val or test": table["split"].isna(),
        "that give an image twice, with different labels or splits": _is_contradicting(table),
        "with a name that is not valid Unicode or holds a zero byte": ~_map_values(
            table["id"], _is_valid_name
        ).astype(bool),
        f"with a path, label or group of more than {_LONGEST:,} characters": _max_lengths(
            table[["id", "class", "group"]]
        )
        > _LONGEST,
    }
    problems = []
    for what, rows in wrong.items():
        lines = [str(number + 2) for number in table.index[rows]]
        if lines:
            some = ", ".join(lines[:_SHOWN]) + (
                f" and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
            )
            problems.append(f"rows {what}: {some}")
    if problems:
        raise DataError(
            f"{path.name} cannot be used; {'; '.join(problems)} (the heading is row 1)."
        )


def _check_num_columns(path: Path, columns: int) -> None:
    if columns > _MOST_COLUMNS:
        raise DataError(
            f"{path.name} has {columns:,} columns; a manifest has at most {_MOST_COLUMNS:,}. "
            "Leave out those that say nothing of the images."
        )


def _check_not_nested(path: Path, chosen: pd.DataFrame) -> None:
    nested = [str(name) for name in chosen.columns if _is_nested(chosen[name])]
    if nested:
        raise DataError(
            f"{path.name} holds lists or records in {' and '.join(map(escape_name, nested))}; "
            "Thaw needs one name per row there. Write their file names to a column path, their "
            "classes to a column label."
        )


def _is_nested(column: pd.Series) -> bool:
    """Return whether a column of Parquet contains lists, structs or maps."""
    return column.dtype == object and any(
        issubclass(kind, np.ndarray | list | dict) for kind in set(map(type, column))
    )


def _max_lengths(names: pd.DataFrame) -> pd.Series:
    return pd.concat([names[name].str.len() for name in names.columns], axis=1).max(axis=1)


def _is_contradicting(table: pd.DataFrame) -> pd.Series:
    distinct = table.fillna({"split": "?"}).drop_duplicates(["id", "class", "split"])
    return table["id"].isin(distinct.loc[distinct["id"].duplicated(keep=False), "id"])


def _is_valid_name(name: str) -> bool:
    return "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            _check_num_columns(path, len(pyarrow.parquet.read_schema(path).names))
            table = pyarrow.parquet.read_table(path)
            table.validate(full=True)  # Arrow itself lets text pass that is not UTF-8
            read: pd.DataFrame = table.to_pandas(ignore_metadata=True)
            return read
        separator = "\t" if path.suffix.lower() == ".tsv" else _detect_separator(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            _check_num_columns(path, len(next(csv.reader(file, delimiter=separator), [])))
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            sep=separator,
            encoding="utf-8-sig",
            skip_blank_lines=False,  # blank lines count in the row numbers of messages
        )
    except DataError:
        raise
    except Exception as error:  # the parsers raise nearly anything on a file that is no table
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as a table: {reason}") from None
    # pandas takes surplus values for row labels.
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(
            f"{path.name}: its rows hold more values than the heading. "
            "Put values with a comma in them in quotes."
        )
    return table[((table != "") & table.notna()).any(axis=1)]


def _detect_separator(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        heading = file.readline()
    # Column names may contain spaces if another character separates them.
    for separators in (",;\t|", " "):
        with suppress(csv.Error):
            return csv.Sniffer().sniff(heading, separators).delimiter
    return ","  # a single column


def _to_text(column: pd.Series) -> pd.Series:
    """Return values as text: a missing one is empty, and 3.0 is 3 in a column of whole numbers."""
    if (
        pd.api.types.is_float_dtype(column)
        and (column.dropna() % 1 == 0).all()
        and (column.dropna().abs() < 2**53).all()
    ):
        column = column.astype("Int64")
    return _map_values(
        column.astype("object").where(column.notna(), ""), lambda value: str(value).strip()
    )


def _map_values(column: pd.Series, change: Callable[[Any], Any]) -> pd.Series:
    """Apply a function once to each different value: a manifest may name a file a million times."""
    if _is_nested(column):  # lists and records have no hash
        return column.map(change).astype(object)
    codes, values = pd.factorize(column)
    changed = np.fromiter(map(change, values), dtype=object, count=len(values))
    return pd.Series(changed[codes], index=column.index, dtype=object)


def _to_id(name: str, folder: Path) -> str:
    """Return a path as an id.

    The id is normalised and has ``/``. It is relative if the path lies in the folder, else
    absolute.
    """
    if not name or "\0" in name:
        return name
    path = Path(os.path.normpath(folder / name.replace("\\", "/")))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
