"""The app's own folder for one data set: its index, its splits, the changes made to it. Nothing is written into the user's data."""

import hashlib
import io
import re
from contextlib import suppress
from pathlib import Path

import pandas as pd

from finetune_core import paths
from finetune_core.files import write_bytes


def entry_folder(data: str | Path) -> Path:
    """Where what Thaw knows of a folder or manifest is kept; there or not."""
    path = Path(data).expanduser().resolve()
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return paths.home() / "datasets" / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', path.name)[:40]}-{digest}"


def read_table(file: Path) -> pd.DataFrame | None:
    """A Parquet file of the entry; None where there is none, or it is damaged: it can always be made again."""
    try:
        return pd.read_parquet(file, page_checksum_verification=True)
    except Exception:  # on damaged bytes the reader raises nearly anything
        return None


def write_table(file: Path, table: pd.DataFrame) -> None:
    """Keep a table; where nothing can be written, Thaw works without."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, write_page_checksum=True)
    with suppress(OSError):
        write_bytes(file, buffer.getvalue())
