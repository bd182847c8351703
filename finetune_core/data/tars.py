"""TAR archives, compressed or not, read from one end to the other."""

import bz2
import lzma
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from finetune_core.data.limits import Budget, Names
from finetune_core.data.unpacking import PACKED_PIECE, PIECE, Image, Inflater, Pieces, all_of, decompressed
from finetune_core.errors import DataError
from finetune_core.formatting import size

_GZIP_WINDOW = 31  # as zlib wants to be told
_XZ_MEMORY = 256 << 20  # bytes; four times what `xz -9` asks for
_COMPRESSIONS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": partial(Inflater, _GZIP_WINDOW),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _XZ_MEMORY),
}
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


def images(file: BinaryIO, names: Names, budget: Budget) -> Iterator[Image | None]:
    """The images of an archive, to be taken one after the other; None stands for anything else that was gone through."""
    stream = _Stream(budget.spend(_unpacked(file)))
    for header in _headers(stream):
        yield None
        if header is None:
            continue
        path = names.admit(header.name, header.isdir(), _KINDS.get(header.type, "of an unknown kind"))
        content = stream.pieces(0 if header.isdir() else header.size)
        if path:
            yield Image(path, content)
        for _ in content:
            yield None
    for piece in stream.rest():
        if bytes(piece).strip(b"\0"):
            raise DataError("something follows after its end: another archive, perhaps. Pack everything into one again.")
        yield None


class _Stream:
    """Bytes that come in pieces, taken off the front in the sizes that are asked for."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._held = memoryview(b"")
        self._at = 0

    def pieces(self, count: int) -> Pieces:
        while count:
            self._fill()
            piece, self._held = self._held[:count], self._held[count:]
            self._at += len(piece)
            count -= len(piece)
            yield piece

    def take(self, count: int) -> bytes:
        return b"".join(self.pieces(count))

    def block(self) -> bytes:
        """The next whole block; the padding before it is dropped."""
        self.take(-self._at % tarfile.BLOCKSIZE)
        return self.take(tarfile.BLOCKSIZE)

    def rest(self) -> Pieces:
        yield self._held
        yield from self._pieces

    def _fill(self) -> None:
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                raise EOFError("it ends too early")
            self._held = memoryview(piece)


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    head = file.read(max(map(len, _COMPRESSIONS)))
    file.seek(0)
    for magic, compression in _COMPRESSIONS.items():
        if head.startswith(magic):
            return decompressed(all_of(file, PACKED_PIECE), compression)
    return all_of(file)


def _headers(stream: _Stream) -> Iterator[tarfile.TarInfo | None]:
    """Each member's header, what extends it worked in; None stands for an extension. Content is for the taker to take."""
    for_all: dict[str, bytes] = {}
    for_next: dict[str, bytes] = {}
    while any(block := stream.block()):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.size < 0:
            raise ValueError("a negative size")
        if header.type in (*_PAX_TYPES, *_GNU_TYPES):
            if header.size > _LONGEST_EXTENSION:
                raise DataError(f"it has a header of {size(header.size)}. Pack it again without extended attributes.")
            extension = _extension(header.type, stream.take(header.size))
            (for_all if header.type == tarfile.XGLTYPE else for_next).update(extension)
            yield None
        else:
            yield _extended(header, for_all | for_next)
            for_next = {}


def _extension(kind: bytes, content: bytes) -> dict[str, bytes]:
    if kind in _PAX_TYPES:
        return dict(_pax_records(content))
    return {"path": content.rstrip(b"\0")} if kind == tarfile.GNUTYPE_LONGNAME else {}


def _pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What matters of ``<length> <keyword>=<value>\\n…``; the length is that of the whole record."""
    at = 0
    while at < len(content):
        digits = content[at : at + 8].partition(b" ")[0]
        end = at + int(digits) if digits.isdigit() else 0
        keyword, _, value = content[at + len(digits) + 1 : end].partition(b"=")
        if not value.endswith(b"\n") or end > len(content) or (keyword == b"size" and not value[:-1].isdigit()):
            raise ValueError("a garbled header")
        if keyword in (b"path", b"size"):
            yield keyword.decode(), value[:-1]
        elif keyword.startswith(b"GNU.sparse."):
            yield "sparse", value
        at = end


def _extended(header: tarfile.TarInfo, extension: dict[str, bytes]) -> tarfile.TarInfo:
    if "path" in extension:
        header.name = extension["path"].decode("utf-8", "surrogateescape")
    if "size" in extension:
        header.size = int(extension["size"])
    if "sparse" in extension:
        header.type = tarfile.GNUTYPE_SPARSE
    return header
