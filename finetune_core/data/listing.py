"""Listing of the image files of a folder or manifest, with class and split by their place.

No image is opened.
"""

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core import paths
from finetune_core.data import splits
from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.entry import unlabelled_folder
from finetune_core.data.manifest import is_manifest, read_manifest
from finetune_core.data.names import is_noise
from finetune_core.errors import ConfigError, DataError
from finetune_core.files import NotRegularFileError, check_regular
from finetune_core.formatting import pluralize

EXPECTED = (
    "Thaw expects one subfolder of images per class, or train/ and val/ with such subfolders."
)
_COLUMNS = {
    "id": "str",
    "class": "str",
    "split": "str",
    "group": "str",
    "bytes": "int64",
    "changed": "int64",
}

_ENDINGS = tuple(EXTENSIONS)

Note = tuple[str, str]  # (kind of finding, the path as shown)


@dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
        root: the folder that ids are relative to.
        files: one row per image file. ``id`` (path below root, with ``/``), ``class``, ``split``
            and ``group`` (empty if not given), ``bytes`` (-1 for a missing file), ``changed``
            (nanoseconds).
        notes: files and folders that were left out.
        added: ids that ``extend_listing`` was asked for.
    """

    root: Path
    files: pd.DataFrame
    notes: tuple[Note, ...]
    added: frozenset[str] = frozenset()


def image_root(data: str | Path) -> Path:
    """Return the folder that the ids of a data set are relative to.

    This is the folder itself, or the one that contains its manifest.
    """
    path = Path(data)
    return path.parent if is_manifest(path) and not path.is_dir() else path


def is_data(path: Path) -> bool:
    """Return whether there is such a folder or manifest."""
    try:
        return path.is_dir() or (path.is_file() and is_manifest(path))
    except OSError:  # for example, the name is too long
        return False


def check_data(data: str | Path) -> None:
    """Check that there is such a folder or manifest.

    Raises:
        ConfigError: if there is none.
    """
    if not is_data(Path(data)):
        raise ConfigError({"data": _describe_irregular(Path(data)) or f"there is no folder {data}"})


def list_data(data: str | Path, roots: Sequence[Path] = ()) -> Listing:
    """List class folders, with or without ``train/`` and ``val/`` above them, or a manifest.

    Args:
        data: folder or manifest.
        roots: if given, files outside these folders (behind a link, or named by a manifest) are
            left out.

    Raises:
        DataError: if there is no such folder or manifest, or no image in it.
    """
    path = _resolve_existing(data)
    try:
        return _list_manifest(path, roots) if path.is_file() else _list_folder(path, roots)
    except OSError as error:
        raise DataError(
            f"{escape_undecodable(str(error.filename or path))} cannot be read: {error.strerror}."
        ) from None


def _list_folder(path: Path, roots: Sequence[Path]) -> Listing:
    top = _descend_wrappers(path)
    split_folders = _find_split_folders(top)
    walk = _FileCollector(path, roots)
    for folder, split in (split_folders or {top: ""}).items():
        walk.add_class_folders(folder, split)
    if split_folders:
        walk.notes += [
            ("ignored_folder", walk.relative(folder))
            for folder in _list_subfolders(top)
            if folder not in split_folders
        ]
        walk.notes += [("no_class", walk.relative(file)) for file in _list_images(top)]
    if not len(walk):
        raise DataError(_describe_empty(path, walk.notes))
    return Listing(path, walk.files().sort_values("id", ignore_index=True), tuple(walk.notes))


def extend_listing(listing: Listing, ids: Sequence[str], roots: Sequence[Path] = ()) -> Listing:
    """Add images outside the data set, without a class, to a listing.

    Ids that are listed already stay as they are.

    Args:
        listing: the listing.
        ids: paths below the listing's root, or absolute paths.
        roots: as for ``list_data``.
    """
    may_hold = make_containment_check(listing.root, roots)
    listed = pd.Index(listing.files["id"])
    fresh = [sample for sample in dict.fromkeys(ids) if sample not in listed]
    inside = [sample for sample in fresh if may_hold(listing.root / sample)]
    notes = [("outside", sample) for sample in fresh if sample not in set(inside)]
    stats = [_read_size_and_time(listing.root / sample) for sample in inside]
    rows = pd.DataFrame(stats, columns=["bytes", "changed"])
    rows = rows.assign(**{"id": inside, "class": "", "split": "", "group": ""}).astype(_COLUMNS)
    files = pd.concat([listing.files, rows[list(_COLUMNS)]]) if inside else listing.files
    files = files.sort_values("id", ignore_index=True)
    return Listing(listing.root, files, (*listing.notes, *notes), frozenset(ids))


def list_unlabelled(folder: str | Path, roots: Sequence[Path] = ()) -> Listing:
    """List all images in a folder and below, without a class.

    Raises:
        DataError: if there is no such folder, or no image in it.
    """
    path = _resolve_existing(folder)
    if path.is_file():
        raise DataError(f"{path} is a file. Give a folder of images to label.")
    walk = _FileCollector(path, roots)
    try:
        walk.add_all()
    except OSError as error:
        raise DataError(
            f"{escape_undecodable(str(error.filename or path))} cannot be read: {error.strerror}."
        ) from None
    if not len(walk):
        raise DataError(f"{path} holds no images. Give a folder of images to label.")
    return Listing(path, walk.files().sort_values("id", ignore_index=True), tuple(walk.notes))


def is_within(path: str | Path, roots: Sequence[Path]) -> bool:
    """Return whether a path, with links resolved, lies in one of the folders."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def make_containment_check(root: Path, roots: Sequence[Path]) -> Callable[[str | Path], bool]:
    """Return a predicate that says whether a data set may contain a file.

    The file has to lie below one of the roots, links resolved. A file in the app's own data folder
    also has to lie in the data set's folder, or among the images that were brought there to be
    labelled. Uploads of several people are side by side in the data folder, and a link or manifest
    in one must not open another.

    Args:
        root: the data set's folder.
        roots: the folders that may be read; empty if all may.
    """
    # Resolve the folders once: a manifest may name a million files.
    own, base, uploads, *readable = (
        Path(os.path.realpath(path))
        for path in (paths.data_dir(), root, unlabelled_folder(root), *roots)
    )

    def may_hold(file: str | Path) -> bool:
        real = Path(os.path.realpath(file))
        if not any(map(real.is_relative_to, readable)):
            return False
        return not real.is_relative_to(own) or any(map(real.is_relative_to, (base, uploads)))

    return may_hold if roots else lambda _: True


class _FileCollector:
    """Collector of the files of one folder, column by column.

    A million files as rows would be a million objects.
    """

    def __init__(self, root: Path, roots: Sequence[Path]) -> None:
        self.root, self._may_hold = root, make_containment_check(root, roots)
        self.notes: list[Note] = []
        self._ids: list[str] = []
        self._classes: list[str] = []
        self._splits: list[str] = []
        self._bytes, self._changed = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._ids)

    def files(self) -> pd.DataFrame:
        """Return the files as in a ``Listing``, in the order of the walk."""
        columns = {"id": self._ids, "class": self._classes, "split": self._splits, "group": ""}
        sizes = {"bytes": np.array(self._bytes), "changed": np.array(self._changed)}
        return pd.DataFrame(columns | sizes).astype(_COLUMNS)

    def add_class_folders(self, folder: Path, split: str) -> None:
        """Collect the images in the class folders of a folder."""
        self.notes += [("no_class", self.relative(file)) for file in _list_images(folder)]
        for class_folder in _list_subfolders(folder):
            if not self._may_hold(class_folder):
                self.notes.append(("outside", self.relative(class_folder)))
                continue
            before = len(self)
            self._add_files(class_folder, class_folder.name, split)
            if len(self) == before:
                self.notes.append(("empty_class", self.relative(class_folder)))

    def add_all(self) -> None:
        """Collect all images, including those in no class folder."""
        self._add_files(self.root, "", "")

    def _add_files(self, folder: Path, name: str, split: str) -> None:
        prefix = "" if folder == self.root else f"{folder.relative_to(self.root).as_posix()}/"
        for entry, below in _walk_entries(folder, prefix):
            if entry.name.lower().endswith(_ENDINGS):
                self._add_image(entry, below, name, split)
            else:
                self.notes.append(("not_an_image", escape_undecodable(below)))

    def _add_image(self, entry: os.DirEntry[str], sample: str, name: str, split: str) -> None:
        if escape_undecodable(sample) != sample:
            self.notes.append(("bad_name", escape_undecodable(sample)))
        elif entry.is_symlink() and not self._may_hold(entry.path):
            self.notes.append(("outside", sample))
        else:
            size, time = _read_size_and_time(entry)
            self._ids.append(sample)
            self._classes.append(name)
            self._splits.append(split)
            self._bytes.append(size)
            self._changed.append(time)

    def relative(self, path: Path) -> str:
        """Return the path below the root, for a message."""
        return escape_undecodable(path.relative_to(self.root).as_posix())


def escape_undecodable(name: str) -> str:
    """Return a file name as valid Unicode, which names in a file system need not be."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _describe_irregular(path: Path) -> str:
    """Describe what has this path if it is neither a folder nor a file; else return ""."""
    with suppress(OSError, RuntimeError, ValueError):  # a name that no system allows
        try:
            check_regular(path.resolve())
        except NotRegularFileError as error:
            return "" if path.is_dir() else f"{path} is {error.strerror}, no regular file"
    return ""


def _resolve_existing(data: str | Path) -> Path:
    try:
        path = Path(data).expanduser().resolve()
        if path.is_dir():
            next(path.iterdir(), None)
            return path
        if path.is_file() and is_manifest(path):
            return path
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"The folder {data} cannot be read: {error}.") from None
    if path.is_file():
        raise DataError(
            f"{path} is neither a folder of images, nor an archive, nor a manifest (.csv or "
            ".parquet)."
        )
    if irregular := _describe_irregular(path):
        raise DataError(
            f"{irregular}. Give a folder with one subfolder of images per class, an archive, or a "
            "manifest."
        )
    raise DataError(
        f"There is no folder {path}. Give a folder with one subfolder of images per class."
    )


def _list_manifest(path: Path, roots: Sequence[Path]) -> Listing:
    table, may_hold = read_manifest(path), make_containment_check(path.parent, roots)
    notes, keep, stats = [], [], []
    for sample in table["id"]:
        inside = may_hold(path.parent / sample)
        keep.append(inside)
        stats.append(_read_size_and_time(path.parent / sample) if inside else (-1, 0))
        if not inside:
            notes.append(("outside", sample))
    table["bytes"], table["changed"] = zip(*stats, strict=True)
    files = table[list(_COLUMNS)].astype(_COLUMNS)[keep].sort_values("id", ignore_index=True)
    if files.empty:
        raise DataError(
            f"None of the images that {path.name} names lies in a folder that Thaw may read here."
        )
    return Listing(path.parent, files, tuple(notes))


def _read_size_and_time(file: os.DirEntry[str] | Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except (OSError, ValueError):
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _descend_wrappers(folder: Path) -> Path:
    """Descend through folders that contain only one other folder of folders.

    Packing a data set leaves such folders around it.
    """
    while not _find_split_folders(folder):
        inner = _list_subfolders(folder)
        if (
            len(inner) != 1
            or _list_images(folder)
            or _list_images(inner[0])
            or not _list_subfolders(inner[0])
        ):
            return folder
        if not any(
            _list_images(below) or _list_subfolders(below) for below in _list_subfolders(inner[0])
        ):
            return folder
        folder = inner[0]
    return folder


def _find_split_folders(root: Path) -> dict[Path, str]:
    """Return split folders with their splits, if one is a ``train`` with class folders.

    Without class folders, "train" may be the name of a class, and the result is empty.
    """
    found = {
        _descend_doubled(folder): splits.FOLDER_NAMES[folder.name.lower()]
        for folder in _list_subfolders(root)
        if folder.name.lower() in splits.FOLDER_NAMES
    }
    return (
        found
        if any(
            split == splits.TRAIN and _list_subfolders(folder) for folder, split in found.items()
        )
        else {}
    )


def _descend_doubled(folder: Path) -> Path:
    """Return the inner one of ``training_set/training_set/<class>``, packed once too often."""
    inner = _list_subfolders(folder)
    names = splits.FOLDER_NAMES
    twice = (
        len(inner) == 1
        and names.get(inner[0].name.lower()) == names[folder.name.lower()]
        and not _list_images(folder)
    )
    return inner[0] if twice else folder


def _walk_entries(folder: Path, prefix: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield (file, its path below the root) for each file that is no noise.

    Links to folders are not followed.

    Args:
        folder: the folder to walk.
        prefix: prefix of the path, which is empty or ends in ``/``.
    """
    # A stack instead of recursion: a tree may be deeper than Python's limit.
    waiting = _scan_reversed(folder, prefix)
    while waiting:
        entry, below = waiting.pop()
        if entry.is_dir(follow_symlinks=False):
            waiting += _scan_reversed(entry.path, f"{below}/")
        elif not _is_link_to_folder(entry):
            yield entry, below


def _scan_reversed(folder: str | Path, prefix: str) -> list[tuple[os.DirEntry[str], str]]:
    with os.scandir(folder) as entries:
        found = [(entry, f"{prefix}{entry.name}") for entry in entries if not is_noise(entry.name)]
    return sorted(found, key=lambda one: one[0].name, reverse=True)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _list_images(folder: Path) -> list[Path]:
    files = (
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in EXTENSIONS and not is_noise(entry.name)
    )
    return sorted(file for file in files if file.is_file())


def _list_subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not is_noise(entry.name)
    )


def _describe_empty(root: Path, notes: Sequence[Note]) -> str:
    loose = sum(kind == "no_class" for kind, _ in notes)
    if loose:
        return f"{root} holds {pluralize(loose, 'image')}, but no class folders. {EXPECTED}"
    if any(kind == "empty_class" for kind, _ in notes):
        return f"The class folders in {root} hold no images. {EXPECTED}"
    return f"{root} holds no images. {EXPECTED}"
