"""Decoded images as uint8 squares, which every epoch and every later run reads again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import torch

from finetune_core.data.decode import BILINEAR, CROP, Resize, read_square
from finetune_core.data.rowcache import CACHE, Lookup
from finetune_core.data.threads import map_adaptively, map_in_threads
from finetune_core.errors import ImageError
from finetune_core.work import Step, Work

USUAL_CROP = 0.875  # of the resized square
_BATCH = 64


@dataclass(frozen=True)
class Pixels:
    """Decoded images by index.

    Attributes:
        paths: one file per index.
        resize: the way in which images became squares.
        kept: the cached squares; None if they fit nowhere: then every read decodes again.
        failed: index -> why it could not be read.
        decoded: the number of images that were read, successfully or not.
        lost: index -> why it can no longer be read; grows while ``load_readable`` is used.
    """

    paths: Sequence[Path]
    resize: Resize
    kept: Lookup | None
    failed: dict[int, str]
    decoded: int
    lost: dict[int, str] = field(default_factory=dict)

    def load_readable(self, indices: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """Return those indices that can still be read, and their squares as in ``batch``.

        Indices that can no longer be read are added to ``lost``.
        """
        held = self._lookup_batch(indices)
        if held is not None:
            return indices, held.permute(0, 3, 1, 2)
        found = []
        for index, square in map_in_threads(
            lambda index: _try_read_square(self.paths[index], self.resize), indices
        ):
            if isinstance(square, str):
                self.lost[int(index)] = square
            else:
                found.append((index, square))
        squares = self._stack([square for _, square in found])
        return np.array([index for index, _ in found], dtype=int), squares.permute(0, 3, 1, 2)

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        """Return squares as uint8 ``[n, 3, side, side]``, in channels_last order.

        Raises:
            ImageError: if a file that could be read before no longer can.
        """
        squares = self._lookup_batch(indices)
        if squares is None:
            read = map_in_threads(
                lambda index: read_square(self.paths[index], self.resize), indices
            )
            squares = self._stack([square for _, square in read])
        return squares.permute(0, 3, 1, 2)

    def _stack(self, squares: list[np.ndarray]) -> torch.Tensor:
        """Stack squares to uint8 ``[n, side, side, 3]``; ``n`` may be 0."""
        side = self.resize.side
        stacked = np.stack(squares) if squares else np.empty((0, side, side, 3), np.uint8)
        return torch.from_numpy(stacked)

    def _lookup_batch(self, indices: np.ndarray) -> torch.Tensor | None:
        """Return the cached squares, or None unless all of them are cached."""
        return self.kept.batch(indices) if self.kept and self.kept.has_rows(indices) else None


def compute_resize_size(image_size: int, crop: float = USUAL_CROP) -> int:
    """Return the side of the cached square for a network input of ``image_size``.

    The input is ``crop`` of the square: torchvision resizes to 256 for 224.
    """
    return max(image_size, round(image_size / crop))


def decode_pixels(
    paths: Sequence[Path],
    keys: np.ndarray,
    wanted: np.ndarray,
    resize: Resize,
) -> Work[Pixels]:
    """Decode, in threads, the images that no run has decoded yet.

    Args:
        paths: the files, ``[n]``.
        keys: a hash of the content of each file, ``[n]``.
        wanted: indices of the images that are needed, int ``[m]``.
        resize: the way in which images become squares.

    Yields:
        Steps that count images.

    Returns:
        The pixels. Wanted images that could not be read are in ``failed``.
    """
    # Another version of Pillow may decode or resize differently.
    name = f"pixels-{resize.side}-{_name_suffix(resize)}{PIL.__version__}"
    CACHE.refresh(name)
    asked, wanted = wanted, wanted[CACHE.get_table(name).find_missing(keys[wanted])]
    failed: dict[int, str] = {}
    if len(wanted):
        batches = _decode_batches(paths, wanted, resize, failed)
        where = yield from CACHE.fill(name, keys[wanted], batches)
        if where is None:
            failed.clear()
            for done, (index, square) in enumerate(
                map_in_threads(lambda i: _try_read_square(paths[i], resize), wanted), start=1
            ):
                if isinstance(square, str):
                    failed[int(index)] = square
                yield Step(done, len(wanted))
            return Pixels(paths, resize, None, failed, len(wanted))
    table = CACHE.get_table(name)
    # On a tight disk new rows may have evicted older ones.
    if table.find_missing(keys[np.setdiff1d(asked, list(failed))]).any():
        return Pixels(paths, resize, None, failed, len(wanted))
    return Pixels(paths, resize, table.lookup(keys), failed, len(wanted))


def _name_suffix(resize: Resize) -> str:
    """Return the part of a table's name that stands for an unusual interpolation or fit."""
    interpolation = "" if resize.interpolation == BILINEAR else f"{resize.interpolation}-"
    return interpolation + ("" if resize.fit == CROP else f"{resize.fit}-")


def _decode_batches(
    paths: Sequence[Path], wanted: np.ndarray, resize: Resize, failed: dict[int, str]
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield (positions in ``wanted``, squares) in batches; add unreadable files to ``failed``."""
    positions: list[int] = []
    squares: list[np.ndarray] = []
    for position, (index, square) in enumerate(
        map_adaptively(lambda i: _try_read_square(paths[i], resize), wanted)
    ):
        if isinstance(square, str):
            failed[int(index)] = square
        else:
            positions.append(position)
            squares.append(square)
        if len(squares) == _BATCH or (squares and position == len(wanted) - 1):
            yield np.array(positions), torch.from_numpy(np.stack(squares))
            positions, squares = [], []


def _try_read_square(path: Path, resize: Resize) -> np.ndarray | str:
    try:
        return read_square(path, resize)
    except ImageError as error:
        return str(error)
