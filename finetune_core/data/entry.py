"""The app's own folder for one data set: its index, its splits, and the changes made to it.

Nothing is written into the user's data.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from finetune_core import paths
from finetune_core.config import make_config, read_config, setting_names
from finetune_core.config.metadata import SPLIT
from finetune_core.errors import ConfigError, DataError
from finetune_core.files import open_regular, replace_atomically, write_bytes

_SPLIT = "split.json"


def entries_folder() -> Path:
    """Return the folder that holds the entries of all data sets."""
    return paths.home() / "datasets"


def entry_folder(data: str | Path) -> Path:
    """Return the folder of all that Thaw stores about a folder or manifest. It may not exist."""
    path = Path(data).expanduser().resolve()
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return entries_folder() / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', path.name)[:40]}-{digest}"


def unlabelled_folder(root: str | Path) -> Path:
    """Return the folder of unlabelled images that were uploaded or recorded for a data set.

    The folder may not exist. It lies in the app's own data folder, which a server may always read.

    Args:
        root: the folder that the ids of the data set are relative to.
    """
    return paths.data_dir() / ".unlabelled" / entry_folder(root).name


def load_split(data: str | Path) -> dict[str, Any]:
    """Load how a person wants a data set to be split, as arguments of ``index_dataset``.

    The defaults are returned if nobody has changed them.

    Raises:
        DataError: if the file is damaged. Falling back to the defaults would silently change the
            split.
    """
    file = entry_folder(data) / _SPLIT
    if not file.exists():
        return make_config({"data": str(data)}).split_settings
    try:
        stored = read_config(file)
        return make_config(
            {name: stored[name] for name in setting_names(SPLIT) if name in stored}
            | {"data": str(data)}
        ).split_settings
    except ConfigError as error:
        raise DataError(
            f"How this data set is split, in {file}, cannot be read: {error}. "
            "Repair or delete that file."
        ) from None


def save_split(data: str | Path, settings: Mapping[str, Any]) -> None:
    """Save how a person wants a data set to be split.

    Raises:
        DataError: if the settings cannot be written.
    """
    file = entry_folder(data) / _SPLIT
    try:
        write_bytes(file, json.dumps(dict(settings), indent=1).encode())
    except OSError as error:
        raise DataError(f"The split's settings cannot be kept in {file}: {error}.") from None


def read_table(file: Path, columns: list[str] | None = None) -> pd.DataFrame | None:
    """Read a Parquet file of the entry, or some of its columns.

    Returns:
        The table; None if the file is missing or damaged, because every such file can be made
        again.
    """
    try:
        with open(open_regular(file, follow=True), "rb") as opened:
            return pd.read_parquet(opened, columns=columns, page_checksum_verification=True)
    except Exception:  # on damaged bytes the reader raises nearly anything
        return None


def write_table(file: Path, table: pd.DataFrame) -> None:
    """Write a Parquet file of the entry.

    Errors are ignored: where nothing can be written, Thaw works without the file.
    """
    with suppress(OSError), replace_atomically(file) as opened:
        table.to_parquet(opened, index=False, write_page_checksum=True)
