"""Browsing of the readable folders: their subfolders, and how many images each holds."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.listing import escape_undecodable, is_within
from finetune_core.data.names import is_noise
from finetune_core.data.sources import check_roots
from finetune_core.errors import DataError

# Entries that are counted: below one subfolder, and in total.
_MAX_ENTRIES_BELOW, _MAX_ENTRIES = 2_000, 50_000


@dataclass(frozen=True)
class Subfolder:
    """A subfolder that can be opened.

    Attributes:
        path: the path with links resolved.
        name: the name as listed.
        images: the number of files with an image's name in the folder and below, as far as they
            were counted.
        counted: whether all of them were counted.
    """

    path: Path
    name: str
    images: int
    counted: bool


@dataclass(frozen=True)
class FolderView:
    """An open folder.

    Attributes:
        path: the path with links resolved.
        up: the parent folder; None if the parent is not readable.
        images: the number of images directly in the folder.
        subfolders: subfolders by name, without hidden ones and those that lead out of the readable
            folders.
    """

    path: Path
    up: Path | None
    images: int
    subfolders: tuple[Subfolder, ...]


def view_folder(folder: Path, roots: Sequence[Path], hidden: Sequence[Path] = ()) -> FolderView:
    """List a folder's subfolders and count its images.

    Counting ends early in large folders. The names are complete.

    Args:
        folder: the folder to open.
        roots: the folders that may be read.
        hidden: folders that are neither opened nor listed, with all that is in them.

    Raises:
        DataError: if the folder, with links resolved, lies in none of the roots, or cannot be read.
    """
    check_roots(folder, roots)
    if is_within(folder, hidden):
        raise DataError(
            f"The folder {folder} is not shown to people who sign in. Choose another one."
        )
    real = Path(os.path.realpath(folder))
    try:
        with os.scandir(real) as found:
            entries = sorted(found, key=lambda entry: (entry.name.casefold(), entry.name))
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    up = real.parent if real.parent != real and is_within(real.parent, roots) else None
    return FolderView(
        real, up, sum(map(_is_image, entries)), tuple(_list_subfolders(entries, roots, hidden))
    )


def _list_subfolders(
    entries: Sequence[os.DirEntry[str]], roots: Sequence[Path], hidden: Sequence[Path]
) -> Iterator[Subfolder]:
    left = _MAX_ENTRIES
    for entry in entries:
        if (
            is_noise(entry.name)
            or escape_undecodable(entry.name) != entry.name
            or not _is_folder(entry)
        ):
            continue
        if is_within(entry.path, hidden) or (
            entry.is_symlink() and not is_within(entry.path, roots)
        ):
            continue
        most = min(left, _MAX_ENTRIES_BELOW)
        images, seen = _count_images(entry.path, most)
        left -= min(seen, most)
        yield Subfolder(Path(os.path.realpath(entry.path)), entry.name, images, seen <= most)


def _count_images(folder: str, most: int) -> tuple[int, int]:
    """Count the images in a folder and below.

    Links to folders are not followed. Counting ends after ``most`` entries.

    Returns:
        The number of images, and the number of entries seen.
    """
    images = seen = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > most:
                        return images, seen
                    images += _is_image(entry)
                    if not is_noise(entry.name) and entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:  # an unreadable folder counts as empty
            continue
    return images, seen


def _is_image(entry: os.DirEntry[str]) -> bool:
    return (
        not is_noise(entry.name)
        and os.path.splitext(entry.name)[1].lower() in EXTENSIONS
        and not _is_folder(entry)
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False
