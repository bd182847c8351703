"""An archive, or files from a browser -> an image folder of Thaw's own; hostile until shown otherwise.

``zips`` and ``tars`` read archives: ``zipfile`` and ``tarfile``, and around them what those let pass.
"""

import hashlib
import lzma
import os
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from finetune_core.data import tars, zips
from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.limits import LIMITS, Budget, Limits, Names
from finetune_core.data.names import printable_name
from finetune_core.data.unpacking import PIECE, Image, Pieces, all_of
from finetune_core.errors import DataError
from finetune_core.files import settle, staging_folder
from finetune_core.formatting import size
from finetune_core.paths import data_dir
from finetune_core.work import Step, Work

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_STAGING = "unpacking"
_SILENT_PIECES = 64  # that may come out of few packed bytes before whoever waits hears something

# What the decompressors, struct, zipfile and TarInfo raise on bytes that are not what they should be.
_DAMAGE = (
    *(EOFError, OSError, ValueError, NotImplementedError, struct.error),
    *(zlib.error, lzma.LZMAError, tarfile.HeaderError, zipfile.BadZipFile),
)

Item = TypeVar("Item")


def is_archive(name: str) -> bool:
    """Whether a file of that name is an archive that Thaw unpacks."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def import_archive(
    source: Path | BinaryIO, name: str, limits: Limits = LIMITS, parent: Path | None = None
) -> Work[Path]:
    """Unpack the images of a ZIP or TAR archive into a folder whose name holds the archive's own and its content's hash.

    All of it or nothing: it is unpacked beside, then renamed. An archive that was imported before is not unpacked again.

    Args:
        source: the archive; an open file must be able to seek, and stays open.
        name: what the person calls it.
        limits: what it may take.
        parent: of the folder; None: the app's own data folder.

    Yields:
        Steps that count packed bytes, now and then; ``done`` stays 0 while the archive is hashed.

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
        for piece in _checked(all_of(file)):
            digest.update(piece)
            yield Step(0, packed)
        folder = _folder(name, digest.hexdigest(), parent)
        if not folder.is_dir():
            with staging_folder(data_dir(), _STAGING) as staging:
                yield from _unpacked(file, packed, staging, limits)
                _finish(staging, folder)
        yield Step(packed, packed)
        return folder


def unpack_archive(
    source: Path | BinaryIO, name: str, folder: Path, limits: Limits = LIMITS
) -> Work[None]:
    """Unpack the images of a ZIP or TAR archive into an empty folder of the caller's, who clears it away.

    Args, Yields, Raises: as ``import_archive``.
    """
    with _importing(name, "read"), _opened(source) as file:
        packed = file.seek(0, os.SEEK_END)
        yield from _unpacked(file, packed, folder, limits)
        _check_any(folder)
        yield Step(packed, packed)


def import_files(
    files: Iterable[tuple[str, BinaryIO]],
    name: str,
    total: int,
    limits: Limits = LIMITS,
    parent: Path | None = None,
) -> Work[Path]:
    """Write the images of a folder that was chosen in a browser into a folder of Thaw's own, all of them or none.

    Args:
        files: (path below what was chosen, content); the paths are trusted no more than an archive's.
        name: of the folder that was chosen.
        total: how many files there are.
        limits: what they may take.
        parent: of the folder; None: the app's own data folder.

    Yields:
        Steps that count files.

    Returns:
        The folder; the same for the same names and contents in any order.

    Raises:
        DataError: when there is no image among them, or a file could not lie below one folder.
    """
    with _importing(name), staging_folder(data_dir(), _STAGING) as staging:
        names, budget = Names(limits), Budget(limits)
        lines = []
        for done, (relative, file) in enumerate(files, start=1):
            path = names.admit(relative)
            if path:
                digest = hashlib.sha256()
                for piece in _write(Image(path, budget.spend(all_of(file))), staging, limits):
                    digest.update(piece)
                lines.append(f"{digest.hexdigest()} {path}\n")
            yield Step(done, total)
        digest = hashlib.sha256("".join(sorted(lines)).encode())
        folder = _folder(name, digest.hexdigest(), parent)
        _finish(staging, folder)
        return folder


@contextmanager
def _importing(name: str, what: str = "imported") -> Iterator[None]:
    """Says what was refused. Reading has its own errors, so an OSError that arrives here is one of writing."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{printable_name(name)} was not {what}: {error}") from None
    except OSError as error:
        raise DataError(
            f"{printable_name(name)} was not {what}: {data_dir()} cannot be written to "
            f"({error.strerror}). Make room there, or set THAW_HOME to another folder."
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
            "it is damaged, cut short, or no ZIP or TAR archive at all "
            f"({printable_name(str(error))}). Download or pack it again."
        ) from None


def _folder(name: str, digest: str, parent: Path | None) -> Path:
    base = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if base.lower().endswith(suffix)), "")
    base = unicodedata.normalize("NFC", base[: len(base) - len(suffix)])
    stem = re.sub(r"[^\w.-]+", "-", base).strip("-.")[:60].rstrip("-.")
    return (parent or data_dir()) / f"{stem or 'images'}-{digest[:8]}"


def _unpacked(file: BinaryIO, packed: int, folder: Path, limits: Limits) -> Work[None]:
    """(packed bytes read, packed bytes in all), now and then."""
    reported, step = 0, min(PIECE, packed // 100)
    for count, _ in enumerate(_unpack(file, packed, folder, limits)):
        if file.tell() > reported + step or count % _SILENT_PIECES == 0:
            reported = file.tell()
            yield Step(reported, packed)


def _unpack(file: BinaryIO, packed: int, folder: Path, limits: Limits) -> Iterator[object]:
    """Goes on after each piece, image, and anything else in an archive."""
    for image in _checked(_images(file, packed, limits)):
        yield image
        if image:
            yield from _write(image, folder, limits)


def _images(file: BinaryIO, packed: int, limits: Limits) -> Iterator[Image | None]:
    file.seek(0)
    reader = zips if file.read(4) in zips.SIGNATURES else tars
    yield from reader.images(file, Names(limits), Budget(limits, packed))


def _write(image: Image, folder: Path, limits: Limits) -> Pieces:
    """Write an image, and hand on each piece that is written."""
    path = folder / image.path
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("xb") as file:
        # By its descriptor: where others can rename folders, the path may lead to another file.
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o644)
        for piece in _checked(image.content):
            written += len(piece)
            if written > limits.file_bytes:
                raise DataError(
                    f"“{printable_name(image.path)}” is larger than {size(limits.file_bytes)}. "
                    "Leave it out, then try again."
                )
            file.write(piece)
            yield piece


def _finish(staging: Path, folder: Path) -> None:
    _check_any(staging)
    folder.parent.mkdir(parents=True, exist_ok=True)
    settle(staging, folder)


def _check_any(folder: Path) -> None:
    if not any(folder.iterdir()):
        raise DataError(f"it holds no image. Thaw reads {', '.join(sorted(EXTENSIONS))}.")
