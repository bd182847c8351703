"""Import of archives and browser uploads into image folders of Thaw's own.

All content counts as hostile until it has been checked. ``zips`` and ``tars`` read archives with
``zipfile`` and ``tarfile``, and refuse what those let pass.
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
from finetune_core.data.names import escape_name
from finetune_core.data.unpacking import PIECE, ArchivedImage, Pieces, read_pieces
from finetune_core.errors import DataError
from finetune_core.files import publish_folder, staging_folder
from finetune_core.formatting import format_bytes
from finetune_core.paths import data_dir
from finetune_core.work import Step, Work

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_STAGING = "unpacking"
# Few packed bytes may unpack to many pieces: report at least once in so many.
_SILENT_PIECES = 64

# Errors that the decompressors, struct, zipfile and TarInfo raise on damaged bytes.
_DAMAGE_ERRORS = (
    *(EOFError, OSError, ValueError, NotImplementedError, struct.error),
    *(zlib.error, lzma.LZMAError, tarfile.HeaderError, zipfile.BadZipFile),
)

Item = TypeVar("Item")


def is_archive(name: str) -> bool:
    """Return whether a file of that name is an archive that Thaw unpacks."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def import_archive(
    source: Path | BinaryIO, name: str, limits: Limits = LIMITS, parent: Path | None = None
) -> Work[Path]:
    """Unpack the images of a ZIP or TAR archive into a folder of Thaw's own.

    The folder is named after the archive and the hash of its content, so an archive that was
    imported before is not unpacked again. The images are unpacked into a temporary folder first,
    which is then renamed: either all of them arrive or none.

    Args:
        source: the archive; an open file must be seekable, and stays open.
        name: the archive's name, as the person knows it.
        limits: the sizes and counts that are allowed.
        parent: the folder to make the new folder in; None: the app's own data folder.

    Yields:
        Steps that count packed bytes, now and then; ``done`` stays 0 while the archive is hashed.

    Returns:
        The folder.

    Raises:
        DataError: if the archive is damaged or holds no image, or if anything in it is not a plain
            file or folder below one folder.
    """
    with _translate_errors(name), _open_archive(source) as file:
        digest = hashlib.sha256()
        file.seek(0, os.SEEK_END)
        packed = file.tell()
        file.seek(0)
        for piece in _raise_damage(read_pieces(file)):
            digest.update(piece)
            yield Step(0, packed)
        folder = _target_folder(name, digest.hexdigest(), parent)
        if not folder.is_dir():
            with staging_folder(data_dir(), _STAGING) as staging:
                yield from _unpack_with_steps(file, packed, staging, limits)
                _move_into_place(staging, folder)
        yield Step(packed, packed)
        return folder


def unpack_archive(
    source: Path | BinaryIO, name: str, folder: Path, limits: Limits = LIMITS
) -> Work[None]:
    """Unpack the images of a ZIP or TAR archive into an empty folder.

    The caller owns the folder, and deletes it after an error.

    Args:
        source: as for ``import_archive``.
        name: as for ``import_archive``.
        folder: the empty folder.
        limits: as for ``import_archive``.

    Yields:
        Steps that count packed bytes, now and then.

    Raises:
        DataError: as for ``import_archive``.
    """
    with _translate_errors(name, "read"), _open_archive(source) as file:
        packed = file.seek(0, os.SEEK_END)
        yield from _unpack_with_steps(file, packed, folder, limits)
        _check_not_empty(folder)
        yield Step(packed, packed)


def import_files(
    files: Iterable[tuple[str, BinaryIO]],
    name: str,
    total: int,
    limits: Limits = LIMITS,
    parent: Path | None = None,
) -> Work[Path]:
    """Write the images of a folder that was chosen in a browser into a folder of Thaw's own.

    Either all images are written or none.

    Args:
        files: pairs of path below the chosen folder and content; the paths are trusted no more than
            those of an archive.
        name: name of the chosen folder.
        total: the number of files.
        limits: the sizes and counts that are allowed.
        parent: the folder to make the new folder in; None: the app's own data folder.

    Yields:
        Steps that count files.

    Returns:
        The folder. It is the same for the same names and contents in any order.

    Raises:
        DataError: if there is no image among the files, or a file could not lie below one folder.
    """
    with _translate_errors(name), staging_folder(data_dir(), _STAGING) as staging:
        names, budget = Names(limits), Budget(limits)
        lines = []
        for done, (relative, file) in enumerate(files, start=1):
            path = names.admit(relative)
            if path:
                digest = hashlib.sha256()
                for piece in _write_image(
                    ArchivedImage(path, budget.spend(read_pieces(file))), staging, limits
                ):
                    digest.update(piece)
                lines.append(f"{digest.hexdigest()} {path}\n")
            yield Step(done, total)
        digest = hashlib.sha256("".join(sorted(lines)).encode())
        folder = _target_folder(name, digest.hexdigest(), parent)
        _move_into_place(staging, folder)
        return folder


@contextmanager
def _translate_errors(name: str, action: str = "imported") -> Iterator[None]:
    """Turn errors into a DataError that says what was refused.

    Errors of reading are DataErrors already, so an OSError that arrives here is one of writing.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{escape_name(name)} was not {action}: {error}") from None
    except OSError as error:
        raise DataError(
            f"{escape_name(name)} was not {action}: {data_dir()} cannot be written to "
            f"({error.strerror}). Make room there, or set THAW_HOME to another folder."
        ) from None


@contextmanager
def _open_archive(source: Path | BinaryIO) -> Iterator[BinaryIO]:
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


def _raise_damage(items: Iterator[Item]) -> Iterator[Item]:
    """Hand on the items, and turn the errors of damaged archives into a DataError."""
    try:
        yield from items
    except _DAMAGE_ERRORS as error:
        raise DataError(
            "it is damaged, cut short, or no ZIP or TAR archive at all "
            f"({escape_name(str(error))}). Download or pack it again."
        ) from None


def _target_folder(name: str, digest: str, parent: Path | None) -> Path:
    base = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if base.lower().endswith(suffix)), "")
    base = unicodedata.normalize("NFC", base[: len(base) - len(suffix)])
    stem = re.sub(r"[^\w.-]+", "-", base).strip("-.")[:60].rstrip("-.")
    return (parent or data_dir()) / f"{stem or 'images'}-{digest[:8]}"


def _unpack_with_steps(file: BinaryIO, packed: int, folder: Path, limits: Limits) -> Work[None]:
    """Unpack the archive, and yield (packed bytes read, packed bytes in total) now and then."""
    reported, step = 0, min(PIECE, packed // 100)
    for count, _ in enumerate(_unpack(file, packed, folder, limits)):
        if file.tell() > reported + step or count % _SILENT_PIECES == 0:
            reported = file.tell()
            yield Step(reported, packed)


def _unpack(file: BinaryIO, packed: int, folder: Path, limits: Limits) -> Iterator[object]:
    """Unpack the archive, and yield after each piece, each image and each other entry."""
    for image in _raise_damage(_read_images(file, packed, limits)):
        yield image
        if image:
            yield from _write_image(image, folder, limits)


def _read_images(file: BinaryIO, packed: int, limits: Limits) -> Iterator[ArchivedImage | None]:
    file.seek(0)
    reader = zips if file.read(4) in zips.SIGNATURES else tars
    yield from reader.read_images(file, Names(limits), Budget(limits, packed))


def _write_image(image: ArchivedImage, folder: Path, limits: Limits) -> Pieces:
    """Write an image, and yield each piece once it is written."""
    path = folder / image.path
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("xb") as file:
        # By the descriptor: where others can rename folders, the path may lead to another file.
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o644)
        for piece in _raise_damage(image.content):
            written += len(piece)
            if written > limits.file_bytes:
                raise DataError(
                    f"“{escape_name(image.path)}” is larger than "
                    f"{format_bytes(limits.file_bytes)}. Leave it out, then try again."
                )
            file.write(piece)
            yield piece


def _move_into_place(staging: Path, folder: Path) -> None:
    _check_not_empty(staging)
    folder.parent.mkdir(parents=True, exist_ok=True)
    publish_folder(staging, folder)


def _check_not_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        raise DataError(f"it holds no image. Thaw reads {', '.join(sorted(EXTENSIONS))}.")
