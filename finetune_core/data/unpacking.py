"""Images and pieces of bytes, as the readers of ZIP and TAR archives share them."""

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

Pieces = Iterator[bytes | memoryview]

PIECE = 1 << 20  # bytes held in memory at a time


class ArchivedImage(NamedTuple):
    """An image in an archive: its path below the folder, with ``/``, and its content."""

    path: str
    content: Pieces


def read_pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a file in pieces."""
    return iter(partial(file.read, PIECE), b"")
