"""ZIP archives, read by their directory, which has to agree with every entry."""

import bz2
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from finetune_core.data.limits import Budget, Names
from finetune_core.data.names import printable_name
from finetune_core.data.unpacking import PACKED_PIECE, PIECE, Image, Inflater, decompressed
from finetune_core.errors import DataError

SIGNATURES = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")  # with which a ZIP archive may begin

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_ENCRYPTED = 0x2041  # flags: encrypted, strongly encrypted, masked headers
_UTF_8 = 0x800
_IN_EXTRA_FIELD = 0xFFFFFFFF
_ZIP_64_FIELD = 1
_STORED = 0
_RAW_WINDOW = -15  # as zlib wants to be told
_COMPRESSIONS: dict[int, Callable[[], Any]] = {8: partial(Inflater, _RAW_WINDOW), 12: bz2.BZ2Decompressor}
_KINDS = {
    0: "",
    stat.S_IFREG: "",
    stat.S_IFDIR: "",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def images(file: BinaryIO, names: Names, budget: Budget) -> Iterator[Image | None]:
    """The images of an archive, to be taken one after the other; None stands for anything else that was gone through."""
    directory = _find_directory(file)
    names.foresee(directory.entries)
    members = sorted(_members(file, directory, names), key=lambda member: member.offset)
    if len(members) % 0x10000 != directory.entries % 0x10000:  # above that, some programs lose the upper digits
        raise ValueError("its directory is not complete")
    budget.foresee(sum(member.size for member in members if member.path))
    free_from = 0
    for member in members:
        if not free_from <= member.offset <= directory.start - _LOCAL.size:
            raise ValueError("its entries overlap")
        start = _start_of_content(file, member)
        free_from = start + member.packed
        if free_from > directory.start:
            raise ValueError("its entries overlap")
        yield Image(member.path, budget.spend(_content(file, start, member))) if member.path else None


class _Directory(NamedTuple):
    start: int
    end: int
    entries: int


class _Member(NamedTuple):
    offset: int
    name: bytes
    path: str | None
    compression: int
    crc: int
    packed: int
    size: int


def _find_directory(file: BinaryIO) -> _Directory:
    file.seek(0, os.SEEK_END)
    tail_start = max(0, file.tell() - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = _end_record(tail)
    _, disk, _, here, entries, span, offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    wide = _END_64.size + _LOCATOR_64.size
    file.seek(max(0, end - wide))
    before = file.read(min(wide, end))
    if before[-_LOCATOR_64.size :].startswith(b"PK\6\7"):
        signature, _, _, _, disk, _, here, entries, span, offset = _END_64.unpack_from(before)
        end -= wide
        if signature != b"PK\6\6":
            raise ValueError("its directory is missing")
    if disk or here != entries:
        raise ValueError("it is one part of several")
    if offset + span != end:
        raise ValueError("its directory is not where it says")
    return _Directory(offset, end, entries)


def _end_record(tail: bytes) -> int:
    """Where the last record begins whose comment ends the file."""
    at = len(tail) - _END.size + 1
    while at > 0:
        at = tail.rfind(b"PK\5\6", 0, at + 3)  # begins before what was found last
        if at >= 0 and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            return at
    raise EOFError("its directory is missing")


def _members(file: BinaryIO, directory: _Directory, names: Names) -> Iterator[_Member]:
    file.seek(directory.start)
    at = directory.start
    while at < directory.end:
        fields = _CENTRAL.unpack(_exactly(file, _CENTRAL.size))
        signature, _, _, flags, compression, _, _, crc, packed, size, *lengths, _, _, attributes, offset = fields
        if signature != b"PK\1\2":
            raise ValueError("its directory is garbled")
        raw, extra, _ = (_exactly(file, length) for length in lengths)
        at += _CENTRAL.size + sum(lengths)
        name, mode = _name(raw, flags), attributes >> 16
        path = names.admit(name, stat.S_ISDIR(mode), _KINDS.get(stat.S_IFMT(mode), "of an unknown kind"))
        if flags & _ENCRYPTED:
            raise DataError(f"“{printable_name(name)}” is encrypted. Pack it again without a password.")
        if compression != _STORED and compression not in _COMPRESSIONS:
            raise DataError(
                f"“{printable_name(name)}” is packed by method {compression}, which Thaw cannot undo. Pack it again as usual."
            )
        size, packed, offset = _wide(extra, size, packed, offset)
        yield _Member(offset, raw, path, compression, crc, packed, size)
    if at != directory.end:
        raise ValueError("its directory is garbled")


def _name(raw: bytes, flags: int) -> str:
    """UTF-8 where it is said to be or can be (some programs do not say so), else what DOS had."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape") if flags & _UTF_8 else raw.decode("cp437")


def _wide(extra: bytes, *values: int) -> list[int]:
    """The values that need more than 32 bits, taken from the extra field that then holds them."""
    at = 0
    while at + 4 <= len(extra):
        field, length = struct.unpack_from("<2H", extra, at)
        if field == _ZIP_64_FIELD:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(wide, value) if value == _IN_EXTRA_FIELD else value for value in values]
        at += 4 + length
    return list(values)


def _start_of_content(file: BinaryIO, member: _Member) -> int:
    file.seek(member.offset)
    signature, _, flags, compression, *_, name_length, extra_length = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    same = compression == member.compression and _exactly(file, name_length) == member.name
    if signature != b"PK\3\4" or flags & _ENCRYPTED or not same:
        raise ValueError("an entry is not what its directory says")
    return member.offset + _LOCAL.size + name_length + extra_length


def _content(file: BinaryIO, start: int, member: _Member) -> Iterator[bytes]:
    file.seek(start)
    if member.compression == _STORED or not member.packed:
        pieces = _next(file, member.packed, PIECE)
    else:
        pieces = decompressed(_next(file, member.packed, PACKED_PIECE), _COMPRESSIONS[member.compression])
    count = crc = 0
    for piece in pieces:
        count += len(piece)
        crc = zlib.crc32(piece, crc)
        if count > member.size:
            raise ValueError("an entry is larger than it says")
        yield piece
    if count < member.size or crc != member.crc:
        raise ValueError("an entry is not what its checksum says")


def _next(file: BinaryIO, count: int, step: int) -> Iterator[bytes]:
    """The next bytes of a file, in pieces."""
    while count:
        piece = _exactly(file, min(step, count))
        count -= len(piece)
        yield piece


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError("it ends too early")
    return content
