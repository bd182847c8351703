"""An archive, or files from a browser -> an image folder of Thaw's own; hostile until shown otherwise.

Archives are read here and not by ``zipfile`` and ``tarfile``: those hold whole tables in memory, take headers at their word,
decompress bzip2 and LZMA without bound, and search extended headers in quadratic time (CVE-2024-6232).
"""

import bz2
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import time
import unicodedata
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.names import is_noise, safe_path, shown
from finetune_core.errors import DataError
from finetune_core.paths import data_dir
from finetune_core.words import number, size

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass(frozen=True)
class Limits:
    """What one import may take.

    Attributes:
        total_bytes: extracted, in all.
        entries: names, and likewise files and folders that they stand for.
        ratio: extracted bytes over packed bytes; judged once more than ``ratio_from_bytes`` are extracted.
        file_bytes: of one image.
        depth: folders above a file.
    """

    total_bytes: int = 50_000_000_000
    entries: int = 1_000_000
    ratio: int = 200
    ratio_from_bytes: int = 50_000_000
    file_bytes: int = 500_000_000
    depth: int = 16


LIMITS = Limits()

Item = TypeVar("Item")
Pieces = Iterator[bytes | memoryview]

_PIECE = 1 << 20  # bytes that are held at a time
_PACKED_PIECE = 1 << 16  # bytes that go into a decompressor at a time
_XZ_MEMORY = 256 << 20  # bytes; four times what `xz -9` asks for
_SILENT_PIECES = 64  # that may come out of few packed bytes before whoever waits hears something
_SPARE = 100_000_000  # bytes of the disk that are left to everyone else
_STAGING = ".staging-"
_STAGING_SECONDS = 24 * 3600

# Whatever the decompressors, struct and TarInfo raise on bytes that are not what they should be.
_DAMAGE = (EOFError, OSError, ValueError, struct.error, zlib.error, lzma.LZMAError, tarfile.HeaderError)


def is_archive(name: str) -> bool:
    """Whether a file of that name is an archive that Thaw unpacks."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def import_archive(source: Path | BinaryIO, name: str, limits: Limits = LIMITS) -> Generator[tuple[int, int], None, Path]:
    """Unpack the images of a ZIP or TAR archive into a folder whose name holds the archive's own and its content's hash.

    All of it or nothing: it is unpacked beside, then renamed. An archive that was imported before is not unpacked again.

    Args:
        source: the archive; an open file must be able to seek, and stays open.
        name: what the person calls it.
        limits: what it may take.

    Yields:
        (packed bytes read, packed bytes in all), now and then; the first number stays 0 while the archive is hashed.

    Returns:
        The folder.

    Raises:
        DataError: when it is damaged, holds no image, or anything in it is not a plain file or folder below one folder.
    """
    with _importing(name), _opened(source) as file:
        digest = hashlib.sha256()
        file.seek(0, os.SEEK_END)
        packed = file.tell()
        file.seek(0)
        for piece in _checked(_all_of(file)):
            digest.update(piece)
            yield 0, packed
        folder = _folder(name, digest.hexdigest())
        if not folder.is_dir():
            with _staging() as staging:
                told, step = 0, min(_PIECE, packed // 100)
                for count, _ in enumerate(_unpack(file, packed, staging, limits)):
                    if file.tell() > told + step or count % _SILENT_PIECES == 0:
                        told = file.tell()
                        yield told, packed
                _settle(staging, folder)
        yield packed, packed
        return folder


def import_files(
    files: Iterable[tuple[str, BinaryIO]], name: str, total: int, limits: Limits = LIMITS
) -> Generator[tuple[int, int], None, Path]:
    """Write the images of a folder that was chosen in a browser into a folder of Thaw's own, all of them or none.

    Args:
        files: (path below what was chosen, content); the paths are trusted no more than an archive's.
        name: of the folder that was chosen.
        total: how many files there are.
        limits: what they may take.

    Yields:
        (files done, ``total``).

    Returns:
        The folder; the same for the same names and contents in any order.

    Raises:
        DataError: when there is no image among them, or a file could not lie below one folder.
    """
    with _importing(name), _staging() as staging:
        names, budget = _Names(limits), _Budget(limits)
        lines = []
        for done, (relative, file) in enumerate(files, start=1):
            path = names.admit(relative)
            if path:
                digest = hashlib.sha256()
                for _ in _write(_Image(path, _hashed(budget.spend(_all_of(file)), digest)), staging, limits):
                    continue
                lines.append(f"{digest.hexdigest()} {path}\n")
            yield done, total
        folder = _folder(name, hashlib.sha256("".join(sorted(lines)).encode()).hexdigest())
        _settle(staging, folder)
        return folder


@dataclass(frozen=True)
class _Image:
    path: str  # below the folder, with "/"
    content: Pieces


class _Names:
    """The names given so far: together they have to be possible on any file system, also one that ignores case."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._entries = 0
        self._known: dict[str, str] = {}  # path as a lenient file system compares it -> as given; a folder's ends with "/"

    def admit(self, name: str, is_folder: bool = False) -> str | None:
        """Check a name; returns where below the folder it goes, or None when it is no image's.

        Raises:
            DataError: when it is not safe, when another name is in its way, or when there are too many.
        """
        parts = safe_path(name, self._limits.depth)
        is_folder = is_folder or name.endswith(("/", "\\")) or not parts
        for end in range(1, len(parts) + is_folder):
            self._claim("/".join(parts[:end]) + "/", name)
        path = "/".join(parts)
        if not is_folder:
            self._claim(path, name)
        self._entries += 1
        if max(self._entries, len(self._known)) > self._limits.entries:
            raise _too_many(self._limits)
        return None if is_folder or not _is_image(parts) else path

    def _claim(self, path: str, name: str) -> None:
        key = unicodedata.normalize("NFC", path.removesuffix("/")).casefold()
        known = self._known.get(key)
        if known is None:
            self._known[key] = path
        elif known != path or not path.endswith("/"):
            raise DataError(f"“{shown(name)}” {_clash(known, path)}. Rename it or leave it out, then try again.")


class _Budget:
    """Counts what has come out against what may, whatever any header says."""

    def __init__(self, limits: Limits, packed: int | None = None) -> None:
        self._limits = limits
        self._packed = packed
        self._spent = 0

    def spend(self, pieces: Pieces) -> Pieces:
        """The pieces, each counted before it is handed on."""
        for piece in pieces:
            self.foresee(len(piece))
            self._spent += len(piece)
            yield piece

    def foresee(self, more: int) -> None:
        """Refuse what would be too much, before it is there.

        Raises:
            DataError: when that many more bytes are too many in all, for the archive's size, or for the disk.
        """
        limits, total = self._limits, self._spent + more
        if total > limits.total_bytes:
            raise DataError(f"it holds more than {size(limits.total_bytes)}. Split it.")
        if self._packed is not None and limits.ratio_from_bytes < total and limits.ratio * self._packed < total:
            raise DataError(
                f"it unpacks to more than {limits.ratio} times its size, as no photos do. Unpack it yourself, and look."
            )
        free = shutil.disk_usage(data_dir()).free
        if free < more + _SPARE:
            raise DataError(f"only {size(free)} of the disk with {data_dir()} are free, too few to go on. Make room there.")


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
        """The next whole block of a TAR; the padding before it is dropped."""
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


class _Inflater:
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


_GZIP_WINDOW, _RAW_WINDOW = 31, -15  # as zlib wants to be told
_TAR_COMPRESSIONS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": partial(_Inflater, _GZIP_WINDOW),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _XZ_MEMORY),
}
_STORED = 0
_ZIP_COMPRESSIONS: dict[int, Callable[[], Any]] = {8: partial(_Inflater, _RAW_WINDOW), 12: bz2.BZ2Decompressor}


# --- Around an import ------------------------------------------------------------------------------------------------------


@contextmanager
def _importing(name: str) -> Iterator[None]:
    """Says what was refused. Reading has its own errors, so an OSError that arrives here is one of writing."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{shown(name)} was not imported: {error}") from None
    except OSError as error:
        raise DataError(
            f"{shown(name)} was not imported: {data_dir()} cannot be written to ({error.strerror}). "
            "Make room there, or set THAW_HOME to another folder."
        ) from None


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    if not isinstance(source, Path):
        yield source
        return
    try:
        if not source.is_file():
            raise DataError("there is no such file. Choose it again.")
        file = source.open("rb")
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror}). Choose it again.") from None
    with file:
        yield file


def _checked(items: Iterator[Item]) -> Iterator[Item]:
    """The one place where damage gets its words."""
    try:
        yield from items
    except _DAMAGE as error:
        raise DataError(
            f"it is damaged, cut short, or no ZIP or TAR archive at all ({shown(str(error))}). Download or pack it again."
        ) from None


@contextmanager
def _staging() -> Iterator[Path]:
    """A folder beside the final one, gone at the end unless it was renamed."""
    data_dir().mkdir(parents=True, exist_ok=True)
    for left in data_dir().glob(f"{_STAGING}*"):
        with suppress(FileNotFoundError):  # another process sweeps, too
            if time.time() - left.lstat().st_mtime > _STAGING_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=data_dir()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(staging: Path, folder: Path) -> None:
    if not any(staging.iterdir()):
        raise DataError(f"it holds no image. Thaw reads {', '.join(sorted(EXTENSIONS))}.")
    staging.chmod(0o755)
    try:
        os.rename(staging, folder)
    except OSError:
        if not folder.is_dir():  # not merely another import of the same that was first
            raise


def _folder(name: str, digest: str) -> Path:
    base = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if base.lower().endswith(suffix)), "")
    base = unicodedata.normalize("NFC", base[: len(base) - len(suffix)])
    stem = re.sub(r"[^\w.-]+", "-", base).strip("-.")[:60].rstrip("-.")
    return data_dir() / f"{stem or 'images'}-{digest[:8]}"


def _unpack(file: BinaryIO, packed: int, folder: Path, limits: Limits) -> Iterator[None]:
    for image in _checked(_images(file, packed, limits)):
        yield
        if image:
            yield from _write(image, folder, limits)


def _write(image: _Image, folder: Path, limits: Limits) -> Iterator[None]:
    path = folder / image.path
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("xb") as file:
        for piece in _checked(image.content):
            written += len(piece)
            if written > limits.file_bytes:
                raise DataError(
                    f"“{shown(image.path)}” is larger than {size(limits.file_bytes)}. Leave it out, then try again."
                )
            file.write(piece)
            yield
    path.chmod(0o644)


def _hashed(pieces: Pieces, digest: Any) -> Pieces:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _all_of(file: BinaryIO, step: int = _PIECE) -> Iterator[bytes]:
    return iter(partial(file.read, step), b"")


def _is_image(parts: tuple[str, ...]) -> bool:
    return os.path.splitext(parts[-1])[1].lower() in EXTENSIONS and not any(is_noise(part) for part in parts)


def _clash(known: str, path: str) -> str:
    if known == path:
        return "is there twice"
    if known.removesuffix("/") == path.removesuffix("/"):
        return "is both a file and a folder"
    return f"differs from “{shown(known)}” only in case or in how accents are stored, which many systems do not tell apart"


def _too_many(limits: Limits) -> DataError:
    return DataError(f"it holds more than {number(limits.entries)} files and folders. Split it.")


def _no_plain_file(name: str, kind: str) -> DataError:
    return DataError(f"“{shown(name)}” is {kind}, not a plain file. Leave it out, then try again.")


def _images(file: BinaryIO, packed: int, limits: Limits) -> Iterator[_Image | None]:
    """The images of an archive, to be taken one after the other; None stands for anything else that was gone through."""
    names, budget = _Names(limits), _Budget(limits, packed)
    file.seek(0)
    head = file.read(8)
    if head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        yield from _zip_images(file, packed, limits, names, budget)
        return
    file.seek(0)
    compression = next((make for magic, make in _TAR_COMPRESSIONS.items() if head.startswith(magic)), None)
    pieces = _decompressed(_all_of(file, _PACKED_PIECE), compression) if compression else _all_of(file)
    yield from _tar_images(_Stream(budget.spend(pieces)), names)


def _decompressed(packed: Iterator[bytes], compression: Callable[[], Any]) -> Iterator[bytes]:
    """What compressed streams, one after the other, hold; never more than a piece at a time."""
    decompressor = compression()
    for piece in packed:
        if decompressor.eof:
            piece = piece.lstrip(b"\0")  # padding between streams
        while piece or not (decompressor.eof or decompressor.needs_input):
            if decompressor.eof:
                decompressor = compression()
            yield decompressor.decompress(piece, _PIECE)
            piece = decompressor.unused_data.lstrip(b"\0") if decompressor.eof else b""
    if not decompressor.eof:
        raise EOFError("it ends too early")


# --- ZIP -------------------------------------------------------------------------------------------------------------------

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
_ZIP_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class _ZipMember(NamedTuple):
    offset: int
    name: bytes
    path: str | None
    compression: int
    crc: int
    packed: int
    size: int


class _ZipDirectory(NamedTuple):
    start: int
    end: int
    entries: int


def _zip_images(file: BinaryIO, length: int, limits: Limits, names: _Names, budget: _Budget) -> Iterator[_Image | None]:
    directory = _find_zip_directory(file, length)
    if directory.entries > limits.entries:
        raise _too_many(limits)
    members = sorted(_zip_members(file, directory, names), key=lambda member: member.offset)
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
        yield _Image(member.path, budget.spend(_zip_content(file, start, member))) if member.path else None


def _find_zip_directory(file: BinaryIO, length: int) -> _ZipDirectory:
    start = max(0, length - _END.size - _LONGEST_COMMENT)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    while at >= 0 and _END.unpack_from(tail, at)[-1] != len(tail) - at - _END.size:  # its comment ends the file
        at = tail.rfind(b"PK\5\6", 0, at + 3)
    if at < 0:
        raise EOFError("its directory is missing")
    _, disk, _, here, entries, span, offset, _ = _END.unpack_from(tail, at)
    end = start + at
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
    return _ZipDirectory(offset, end, entries)


def _zip_members(file: BinaryIO, directory: _ZipDirectory, names: _Names) -> Iterator[_ZipMember]:
    file.seek(directory.start)
    at = directory.start
    while at < directory.end:
        fields = _CENTRAL.unpack(_exactly(file, _CENTRAL.size))
        signature, _, _, flags, compression, _, _, crc, packed, unpacked, *lengths, _, _, attributes, offset = fields
        if signature != b"PK\1\2":
            raise ValueError("its directory is garbled")
        raw, extra, _ = (_exactly(file, length) for length in lengths)
        at += _CENTRAL.size + sum(lengths)
        name, mode = _zip_name(raw, flags), attributes >> 16
        path = names.admit(name, stat.S_ISDIR(mode))
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_plain_file(name, _ZIP_KINDS.get(stat.S_IFMT(mode), "of an unknown kind"))
        if flags & _ENCRYPTED:
            raise DataError(f"“{shown(name)}” is encrypted. Pack it again without a password.")
        if compression != _STORED and compression not in _ZIP_COMPRESSIONS:
            raise DataError(
                f"“{shown(name)}” is packed by method {compression}, which Thaw cannot undo. Pack it again as usual."
            )
        unpacked, packed, offset = _wide(extra, unpacked, packed, offset)
        yield _ZipMember(offset, raw, path, compression, crc, packed, unpacked)
    if at != directory.end:
        raise ValueError("its directory is garbled")


def _zip_name(raw: bytes, flags: int) -> str:
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


def _start_of_content(file: BinaryIO, member: _ZipMember) -> int:
    file.seek(member.offset)
    signature, _, flags, compression, *_, name_length, extra_length = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    same = compression == member.compression and _exactly(file, name_length) == member.name
    if signature != b"PK\3\4" or flags & _ENCRYPTED or not same:
        raise ValueError("an entry is not what its directory says")
    return member.offset + _LOCAL.size + name_length + extra_length


def _zip_content(file: BinaryIO, start: int, member: _ZipMember) -> Iterator[bytes]:
    file.seek(start)
    if member.compression == _STORED or not member.packed:
        pieces = _part_of(file, member.packed, _PIECE)
    else:
        pieces = _decompressed(_part_of(file, member.packed, _PACKED_PIECE), _ZIP_COMPRESSIONS[member.compression])
    count = crc = 0
    for piece in pieces:
        count += len(piece)
        crc = zlib.crc32(piece, crc)
        if count > member.size:
            raise ValueError("an entry is larger than it says")
        yield piece
    if count < member.size or crc != member.crc:
        raise ValueError("an entry is not what its checksum says")


def _part_of(file: BinaryIO, count: int, step: int) -> Iterator[bytes]:
    while count:
        piece = _exactly(file, min(step, count))
        count -= len(piece)
        yield piece


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError("it ends too early")
    return content


# --- TAR -------------------------------------------------------------------------------------------------------------------

_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_TAR_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_GNU_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_LONGEST_EXTENSION = _PIECE


def _tar_images(stream: _Stream, names: _Names) -> Iterator[_Image | None]:
    for header in _tar_headers(stream):
        yield None
        if header is None:
            continue
        path = names.admit(header.name, header.isdir())
        if header.type not in _PLAIN and not header.isdir():
            raise _no_plain_file(header.name, _TAR_KINDS.get(header.type, "of an unknown kind"))
        content = stream.pieces(0 if header.isdir() else header.size)
        if path:
            yield _Image(path, content)
        for _ in content:
            yield None
    for piece in stream.rest():
        if bytes(piece).strip(b"\0"):
            raise DataError("something follows after its end: another archive, perhaps. Pack everything into one again.")
        yield None


def _tar_headers(stream: _Stream) -> Iterator[tarfile.TarInfo | None]:
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
