"""Reader of TAR archives, compressed or not, from one end to the other.

``tarfile`` parses the header blocks, but does not read the archive. Even where CVE-2024-6232 is
fixed (3.13.5), ``tarfile.open`` fails cases of the tests:

- a damaged header, or a cut before the last block, ends the archive silently
- a size that is no number is 0
- extended headers may be of any length and depth, and global ones are never dropped
- a name ends at a NUL
- bzip2 and xz are unpacked without bound, and of several compressed streams only the first

Before the fix (3.11.7), garbled extended headers are skipped, too, and searching them takes
quadratic time.
"""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from finetune_core.data.limits import Budget, Names
from finetune_core.data.unpacking import PIECE, ArchivedImage, Pieces, read_pieces
from finetune_core.errors import DataError
from finetune_core.formatting import format_bytes

_XZ_MEMORY = 256 << 20  # bytes; four times what `xz -9` needs
_MOST_SILENT = 16_000_000  # packed bytes in a row that unpack to nothing
_XZ_PIECE = 1 << 16  # packed bytes per call of the decompressor
_KINDS = {
    tarfile.REGTYPE: "",
    tarfile.AREGTYPE: "",
    tarfile.CONTTYPE: "",
    tarfile.DIRTYPE: "",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_GNU_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_LONGEST_EXTENSION = PIECE


def read_images(file: BinaryIO, names: Names, budget: Budget) -> Iterator[ArchivedImage | None]:
    """Yield the images of an archive, one after the other, and None for everything else.

    The content of an image has to be read before the next one is asked for.
    """
    stream = _Stream(budget.spend(_decompress(file)))
    for header in _read_headers(stream):
        yield None
        if header is None:
            continue
        path = names.admit(
            header.name, header.isdir(), _KINDS.get(header.type, "of an unknown kind")
        )
        content = stream.pieces(0 if header.isdir() else header.size)
        if path:
            yield ArchivedImage(path, content)
        for _ in content:
            yield None
    for piece in stream.rest():
        if bytes(piece).strip(b"\0"):
            raise DataError(
                "something follows after its end: another archive, perhaps. "
                "Pack everything into one again."
            )
        yield None


class _Stream:
    """A stream of bytes that arrive in pieces and are read in the sizes that are asked for."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._held = memoryview(b"")
        self._at = 0

    def pieces(self, count: int) -> Pieces:
        """Yield the next ``count`` bytes in pieces."""
        while count:
            self._fill()
            piece, self._held = self._held[:count], self._held[count:]
            self._at += len(piece)
            count -= len(piece)
            yield piece

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        return b"".join(self.pieces(count))

    def block(self) -> bytes:
        """Skip the padding, and return the next whole block."""
        self.take(-self._at % tarfile.BLOCKSIZE)
        return self.take(tarfile.BLOCKSIZE)

    def rest(self) -> Pieces:
        """Yield the rest of the stream in pieces."""
        yield self._held
        yield from self._pieces

    def _fill(self) -> None:
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                raise EOFError("it ends too early")
            self._held = memoryview(piece)


class _Packed:
    """A compressed file, as its decompressor reads it.

    Attributes:
        silent: bytes read since the decompressor last returned any. It skips padding and empty
            streams within one call, during which nobody can cancel the import.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.silent = 0

    def read(self, count: int = -1) -> bytes:
        """Read packed bytes.

        Raises:
            DataError: if too many bytes in a row unpacked to nothing.
        """
        piece = self._file.read(count)
        self.silent += len(piece)
        if self.silent > _MOST_SILENT:
            raise DataError(
                f"more than {format_bytes(_MOST_SILENT)} of padding or empty streams lie in it. "
                "Pack it again."
            )
        return piece


class _Xz:
    """A replacement of ``lzma.open`` with a memory limit: a few bytes may ask for 4 GiB."""

    def __init__(self, file: _Packed) -> None:
        self._file = file
        self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)

    def read(self, count: int) -> bytes:
        """Return at most ``count`` unpacked bytes; none at the end."""
        piece = packed = b""
        while not piece:
            if self._xz.eof:
                packed = self._next_stream()
                if not packed:
                    break
                self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
            elif self._xz.needs_input:
                packed = self._file.read(_XZ_PIECE)
                if not packed:
                    raise EOFError("it ends too early")
            piece, packed = self._xz.decompress(packed, count), b""
        return piece

    def _next_stream(self) -> bytes:
        """Return the first bytes of the next stream, after the padding."""
        packed = self._xz.unused_data.lstrip(b"\0")
        while not packed and (more := self._file.read(_XZ_PIECE)):
            packed = more.lstrip(b"\0")
        return packed


_COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": _Xz,
}


def _decompress(file: BinaryIO) -> Pieces:
    file.seek(0)
    head = file.read(max(map(len, _COMPRESSIONS)))
    file.seek(0)
    unpack = next(
        (unpack for magic, unpack in _COMPRESSIONS.items() if head.startswith(magic)), None
    )
    if unpack is None:
        yield from read_pieces(file)
        return
    packed = _Packed(file)
    for piece in read_pieces(unpack(packed)):
        packed.silent = 0
        yield piece


def _read_headers(stream: _Stream) -> Iterator[tarfile.TarInfo | None]:
    """Yield each member's header with its extensions applied, and None for each extension header.

    The caller reads the content of a member from the stream before it asks for the next header.
    """
    for_all: dict[str, bytes] = {}
    for_next: dict[str, bytes] = {}
    while any(block := stream.block()):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.size < 0:
            raise ValueError("a negative size")
        if header.type in (*_PAX_TYPES, *_GNU_TYPES):
            if header.size > _LONGEST_EXTENSION:
                raise DataError(
                    f"it has a header of {format_bytes(header.size)}. Pack it again without "
                    "extended attributes."
                )
            extension = _parse_extension(header.type, stream.take(header.size))
            (for_all if header.type == tarfile.XGLTYPE else for_next).update(extension)
            yield None
        else:
            yield _apply_extension(header, for_all | for_next)
            for_next = {}


def _parse_extension(kind: bytes, content: bytes) -> dict[str, bytes]:
    if kind in _PAX_TYPES:
        return dict(_parse_pax_records(content))
    return {"path": content.rstrip(b"\0")} if kind == tarfile.GNUTYPE_LONGNAME else {}


def _parse_pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    r"""Yield the relevant records of ``<length> <keyword>=<value>\n…``.

    The length is that of the whole record.
    """
    at = 0
    while at < len(content):
        digits = content[at : at + 8].partition(b" ")[0]
        end = at + int(digits) if digits.isdigit() else 0
        keyword, _, value = content[at + len(digits) + 1 : end].partition(b"=")
        if (
            not value.endswith(b"\n")
            or end > len(content)
            or (keyword == b"size" and not value[:-1].isdigit())
        ):
            raise ValueError("a garbled header")
        if keyword in (b"path", b"size"):
            yield keyword.decode(), value[:-1]
        elif keyword.startswith(b"GNU.sparse."):
            yield "sparse", value
        at = end


def _apply_extension(header: tarfile.TarInfo, extension: dict[str, bytes]) -> tarfile.TarInfo:
    if "path" in extension:
        header.name = extension["path"].decode("utf-8", "surrogateescape")
    if "size" in extension:
        header.size = int(extension["size"])
    if "sparse" in extension:
        header.type = tarfile.GNUTYPE_SPARSE
    return header
