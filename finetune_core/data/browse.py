"""Walking through the folders that may be read: what lies in one, and which folders below it hold images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.listing import is_within, printable
from finetune_core.data.names import is_noise
from finetune_core.data.sources import check_roots
from finetune_core.errors import DataError

_MOST_LOOKED_AT = 2_000  # entries of one subfolder, and of all that lies in it
_MOST_IN_ALL = 50_000


@dataclass(frozen=True)
class Subfolder:
    """A folder to go to.

    Attributes:
        path: links followed.
        name: as listed.
        images: files with an image's name in it and below, as far as they were counted.
        counted: whether that is all of them.
    """

    path: Path
    name: str
    images: int
    counted: bool


@dataclass(frozen=True)
class FolderView:
    """A folder that is open.

    Attributes:
        path: links followed.
        up: the folder above it; None for one that no readable folder holds.
        images: those directly in it.
        subfolders: by name, without hidden ones and those that lead elsewhere.
    """

    path: Path
    up: Path | None
    images: int
    subfolders: tuple[Subfolder, ...]


def view_folder(folder: Path, roots: Sequence[Path], hidden: Sequence[Path] = ()) -> FolderView:
    """Look into a folder. Counting ends early where folders are large; the names are complete.

    Args:
        hidden: folders that are neither opened nor listed, with all that is in them.

    Raises:
        DataError: when it lies in none of the readable folders, links followed, or cannot be read.
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
        real, up, sum(map(_is_image, entries)), tuple(_subfolders(entries, roots, hidden))
    )


def _subfolders(
    entries: Sequence[os.DirEntry[str]], roots: Sequence[Path], hidden: Sequence[Path]
) -> Iterator[Subfolder]:
    left = _MOST_IN_ALL
    for entry in entries:
        if is_noise(entry.name) or printable(entry.name) != entry.name or not _is_folder(entry):
            continue
        if is_within(entry.path, hidden) or (
            entry.is_symlink() and not is_within(entry.path, roots)
        ):
            continue
        most = min(left, _MOST_LOOKED_AT)
        images, looked_at = _count(entry.path, most)
        left -= min(looked_at, most)
        yield Subfolder(Path(os.path.realpath(entry.path)), entry.name, images, looked_at <= most)


def _count(folder: str, most: int) -> tuple[int, int]:
    """(images, entries looked at) in a folder and below; links to folders are not followed. Ends beyond so many entries."""
    images = looked_at = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    looked_at += 1
                    if looked_at > most:
                        return images, looked_at
                    images += _is_image(entry)
                    if not is_noise(entry.name) and entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:  # one that may not be read holds nothing for us
            continue
    return images, looked_at


def _is_image(entry: os.DirEntry[str]) -> bool:
    return (
        not is_noise(entry.name)
        and os.path.splitext(entry.name)[1].lower() in EXTENSIONS
        and not _is_folder(entry)
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
