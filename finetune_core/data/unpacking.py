"""What the readers of ZIP and TAR share: images, and bytes in pieces."""

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

Pieces = Iterator[bytes | memoryview]

PIECE = 1 << 20  # bytes that are held at a time


class Image(NamedTuple):
    """An image in an archive: its path below the folder, with "/", and what it holds."""

    path: str
    content: Pieces


def all_of(file: BinaryIO) -> Iterator[bytes]:
    """A file from where it is to its end."""
    return iter(partial(file.read, PIECE), b"")
