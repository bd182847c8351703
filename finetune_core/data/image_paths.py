"""Paths of the images in a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import pandas as pd


class ImagePaths(Sequence[Path]):
    """The files of images. Each path is made on access, because a million of them take 0.3 GB."""

    def __init__(self, root: Path, ids: pd.Series) -> None:
        self._root, self._ids = root, ids.array

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> Path: ...

    @overload
    def __getitem__(self, at: slice) -> "ImagePaths": ...

    def __getitem__(self, at: int | slice) -> "Path | ImagePaths":
        if isinstance(at, slice):
            return ImagePaths(self._root, pd.Series(self._ids[at]))
        return self._root / str(self._ids[at])
