"""Images decoded once, to uint8 squares that every epoch reads again."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch

from finetune_core.data.decode import read_square
from finetune_core.data.threads import in_threads
from finetune_core.errors import ImageError

_MEMORY_SHARE = 0.4  # of what is free


@dataclass(frozen=True)
class Pixels:
    """Decoded images by index.

    Attributes:
        paths: one file an index.
        side: of the square, pixels.
        array: uint8 ``[n, side, side, 3]``; None where it would not fit into memory: then every read decodes again.
        failed: index -> why it could not be read.
    """

    paths: Sequence[Path]
    side: int
    array: np.ndarray | None
    failed: dict[int, str] = field(default_factory=dict)

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 ``[n, 3, side, side]``, in channels_last order.

        Raises:
            ImageError: when a file that could be read before no longer can.
        """
        if self.array is not None:
            squares = self.array[indices]
        else:
            squares = np.stack([square for _, square in in_threads(lambda i: read_square(self.paths[i], self.side), indices)])
        return torch.from_numpy(squares).permute(0, 3, 1, 2)


def stored_side(image_size: int) -> int:
    """Side of the square that is kept for a network input of ``image_size``: torchvision resizes to 256 for 224."""
    return round(image_size * 256 / 224)


def decode_pixels(paths: Sequence[Path], side: int) -> Generator[tuple[int, int], None, Pixels]:
    """Decode every image, in threads.

    Yields:
        (images done, images in all).

    Returns:
        The pixels; images that could not be read are in ``failed``.
    """
    shape = (len(paths), side, side, 3)
    fits = np.prod(shape, dtype=np.int64) <= _MEMORY_SHARE * psutil.virtual_memory().available
    array = np.empty(shape, np.uint8) if fits else None
    failed: dict[int, str] = {}

    def decode(index: int) -> str | None:
        try:
            square = read_square(paths[index], side)
        except ImageError as error:
            return str(error)
        if array is not None:
            array[index] = square
        return None

    for done, (index, error) in enumerate(in_threads(decode, range(len(paths))), start=1):
        if error:
            failed[index] = error
        yield done, len(paths)
    return Pixels(paths, side, array, failed)
