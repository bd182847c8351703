"""What the readers of ZIP and TAR share: bytes in pieces, and decompression that makes no more than one at a time."""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

Pieces = Iterator[bytes | memoryview]

PIECE = 1 << 20  # bytes that are held at a time
PACKED_PIECE = 1 << 16  # bytes that go into a decompressor at a time


class Image(NamedTuple):
    """An image in an archive: its path below the folder, with "/", and what it holds."""

    path: str
    content: Pieces


class Inflater:
    """zlib's decompressor with the interface of bz2's and lzma's."""

    def __init__(self, window: int) -> None:
        self._zlib = zlib.decompressobj(window)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, most: int) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, most)
        self.needs_input = len(piece) < most
        return piece


def all_of(file: BinaryIO, step: int = PIECE) -> Iterator[bytes]:
    """A file from where it is to its end."""
    return iter(partial(file.read, step), b"")


def decompressed(packed: Iterator[bytes], compression: Callable[[], Any]) -> Iterator[bytes]:
    """What compressed streams, one after the other, hold.

    Args:
        packed: the streams, in pieces that need not end where those do.
        compression: makes a decompressor.
    """
    decompressor = compression()
    for piece in packed:
        if decompressor.eof:
            piece = piece.lstrip(b"\0")  # padding between streams
        while piece or not (decompressor.eof or decompressor.needs_input):
            if decompressor.eof:
                decompressor = compression()
            yield decompressor.decompress(piece, PIECE)
            piece = decompressor.unused_data.lstrip(b"\0") if decompressor.eof else b""
    if not decompressor.eof:
        raise EOFError("it ends too early")
