"""Reader of ZIP archives.

``zipfile`` reads the directory and the entries. This module first checks where they lie.
``zipfile`` alone lets pass, each a case in the tests:

- a directory of any length, read at once
- a directory that names too few or too many entries, or of which only a part is there
- bytes after the archive's end
- entries that overlap (a warning at most)
- an entry whose own header has another method or is encrypted
- less content than an entry names
- a comment with the signature of an end record, which is taken for the end
"""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from finetune_core.data.limits import Budget, Names
from finetune_core.data.names import escape_name
from finetune_core.data.unpacking import PIECE, ArchivedImage
from finetune_core.errors import DataError
from finetune_core.formatting import format_bytes

SIGNATURES = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")  # first bytes of a ZIP archive

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_LONGEST_DIRECTORY = 128 << 20  # bytes; about a million entries
_ENCRYPTED = 0x2041  # flags: encrypted, strongly encrypted, masked headers
_UTF_8 = 0x800
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
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


def read_images(file: BinaryIO, names: Names, budget: Budget) -> Iterator[ArchivedImage | None]:
    """Yield the images of an archive, one after the other, and None for each other entry.

    The content of an image has to be read before the next one is asked for.
    """
    directory = _find_directory(file)
    members = sorted(
        _read_members(file, directory, names), key=lambda member: member.info.header_offset
    )
    budget.check_space(sum(member.info.file_size for member in members if member.path))
    free_from = 0
    for info, raw, path in members:
        if not free_from <= info.header_offset <= directory.start - _LOCAL.size:
            raise ValueError("its entries overlap")
        start = _find_content(file, info, raw)
        free_from = start + info.compress_size
        if free_from > directory.start:
            raise ValueError("its entries overlap")
        yield ArchivedImage(path, budget.spend(_read_content(file, start, info))) if path else None


class _Directory(NamedTuple):
    start: int
    span: int
    entries: int


class _Member(NamedTuple):
    info: zipfile.ZipInfo
    raw: bytes
    path: str | None


def _find_directory(file: BinaryIO) -> _Directory:
    file.seek(0, os.SEEK_END)
    tail_start = max(0, file.tell() - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = _find_end_record(tail)
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
    return _Directory(offset, span, entries)


def _find_end_record(tail: bytes) -> int:
    """Return the position of the last end record whose comment ends the file."""
    at = len(tail) - _END.size + 1
    while at > 0:
        at = tail.rfind(b"PK\5\6", 0, at + 3)  # starts before the last match
        if at >= 0 and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            return at
    raise EOFError("its directory is missing")


def _read_members(file: BinaryIO, directory: _Directory, names: Names) -> Iterator[_Member]:
    for info in _read_infos(file, directory, names):
        raw = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF_8 else "cp437")
        name, mode = _decode_name(raw, info.orig_filename), info.external_attr >> 16
        path = names.admit(
            name, stat.S_ISDIR(mode), _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        )
        if info.flag_bits & _ENCRYPTED:
            raise DataError(
                f"“{escape_name(name)}” is encrypted. Pack it again without a password."
            )
        if info.compress_type not in _METHODS:
            raise DataError(
                f"“{escape_name(name)}” is packed by method {info.compress_type}, which Thaw "
                "does not read. Pack it again as usual."
            )
        yield _Member(info, raw, path)


def _read_infos(file: BinaryIO, directory: _Directory, names: Names) -> list[zipfile.ZipInfo]:
    """Return the entries of the directory.

    ``zipfile`` gets the directory alone, so it reads the one that was found, and no more entries
    than allowed.
    """
    names.check_count(directory.entries)
    if directory.span > _LONGEST_DIRECTORY:
        raise DataError(f"its directory takes {format_bytes(directory.span)}. Split it.")
    file.seek(directory.start)
    content = file.read(directory.span)
    names.check_count(content.count(b"PK\1\2"))
    end = _END.pack(b"PK\5\6", 0, 0, 0, 0, directory.span, 0, 0)
    try:
        infos = zipfile.ZipFile(io.BytesIO(content + end)).infolist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"“{escape_name(repr(error.object)[2:-1])}” is not valid Unicode. "
            "Rename it or leave it out, then try again."
        ) from None
    # Some programs write the number modulo 2**16.
    if len(infos) % 0x10000 != directory.entries % 0x10000:
        raise ValueError("its directory is not complete")
    return infos


def _decode_name(raw: bytes, name: str) -> str:
    """Decode a name as UTF-8, else as DOS did. Some programs do not set the flag for UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return name


def _find_content(file: BinaryIO, info: zipfile.ZipInfo, raw: bytes) -> int:
    file.seek(info.header_offset)
    signature, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(
        file.read(_LOCAL.size)
    )
    same = method == info.compress_type and file.read(name_length) == raw
    if signature != b"PK\3\4" or flags & _ENCRYPTED or not same:
        raise ValueError("an entry is not what its directory says")
    return info.header_offset + _LOCAL.size + int(name_length) + int(extra_length)


def _read_content(file: BinaryIO, start: int, info: zipfile.ZipInfo) -> Iterator[bytes]:
    file.seek(start)
    content = zipfile.ZipExtFile(file, "r", info)
    count = 0
    while piece := content.read(PIECE):
        count += len(piece)
        yield piece
    if count < info.file_size:
        raise ValueError("an entry is smaller than it says")
