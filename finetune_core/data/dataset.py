"""A folder on disk -> a Dataset: one table of images with label and split, and what was found wrong on the way."""

import hashlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import pandas as pd

from finetune_core.data import splits
from finetune_core.data.decode import EXTENSIONS, ImageHeader, read_header, read_image
from finetune_core.data.threads import in_threads
from finetune_core.errors import DataError, ImageError

_NOISE = ("__MACOSX", "Thumbs.db", "desktop.ini")
_FEW = 10


@dataclass(frozen=True)
class Finding:
    """Something about the data that a person should know before training on it."""

    kind: str
    severity: Literal["error", "warning", "info"]
    message: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """An indexed, split data set.

    Attributes:
        root: the folder.
        classes: class names; a label is an index into it.
        table: one row a usable image: ``id`` (path below root, with ``/``), ``label`` (int), ``split``, ``width``,
            ``height`` (pixels, as shown), ``mode``, ``bytes``.
        findings: what was skipped, and what looks wrong.
        given_splits: whether the folder itself said which images validate.
    """

    root: Path
    classes: tuple[str, ...]
    table: pd.DataFrame
    findings: tuple[Finding, ...]
    given_splits: bool

    def paths(self, rows: pd.DataFrame) -> list[Path]:
        return [self.root / sample for sample in rows["id"]]

    def counts(self) -> pd.DataFrame:
        """Images a class (rows) and split (columns, those in use)."""
        counts = pd.crosstab(self.table["label"], self.table["split"])
        counts = counts.reindex(index=range(len(self.classes)), fill_value=0)
        counts = counts[[split for split in splits.SPLITS if split in counts.columns]]
        counts.index = pd.Index(self.classes, name="class")
        counts.columns.name = None
        return counts

    @cached_property
    def fingerprint(self) -> str:
        """Changes when an image is added, removed, resized, relabelled or moved to another split."""
        rows = self.table[["id", "label", "split", "width", "height", "bytes"]].sort_values("id")
        return hashlib.sha256(rows.to_csv(index=False).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def load_dataset(
    root: str | Path,
    *,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
) -> Dataset:
    """``index_dataset`` without its progress."""
    indexing = index_dataset(root, val_fraction=val_fraction, test_fraction=test_fraction, split_seed=split_seed)
    while True:
        try:
            next(indexing)
        except StopIteration as finished:
            return finished.value


def index_dataset(
    root: str | Path, *, val_fraction: float, test_fraction: float, split_seed: int
) -> Generator[tuple[int, int], None, Dataset]:
    """Index a folder: ``train/<class>/…`` with ``val/`` and ``test/`` where given, or plain ``<class>/…``.

    Image headers are read, in threads; pixels are not. Files that cannot be read are left out and named in a finding.

    Args:
        root: the folder.
        val_fraction, test_fraction, split_seed: how to split where the folder does not say (see ``assign_splits``).

    Yields:
        (files read, files in all).

    Returns:
        The data set.

    Raises:
        DataError: when there is no such folder, or nothing to train on.
    """
    try:
        root = Path(root).expanduser().resolve()
        readable = root.is_dir()
        if readable:
            next(root.iterdir(), None)
    except (OSError, RuntimeError) as error:
        raise DataError(f"The folder {root} cannot be read: {error}.") from None
    if not readable:
        raise DataError(f"There is no folder {root}. Name a folder with one subfolder of images for each class.")
    split_folders = _split_folders(root)
    given = bool(split_folders)
    listing = _list_files(split_folders or {root: ""})
    if given:
        listing.ignored.extend(folder for folder in _subfolders(root) if folder not in split_folders)
        listing.loose.extend(_images_in(root))
    if not listing.images:
        raise DataError(_nothing_found(root, listing))
    table, unreadable = yield from _read_headers(root, listing.images)
    if table.empty:
        raise DataError(f"None of the {len(unreadable)} image files in {root} can be read; the first: {unreadable[0][1]}")
    classes = tuple(sorted(table["class"].unique()))
    table["label"] = table["class"].map({name: index for index, name in enumerate(classes)}).astype("int64")
    table["split"] = _split(table, val_fraction, 0.0 if given else test_fraction, split_seed)
    table = table.drop(columns="class").sort_values("id", ignore_index=True)
    findings = [*_file_findings(root, listing, unreadable), *_table_findings(table, classes)]
    dataset = Dataset(root, classes, table, tuple(findings), given and splits.VAL in {split for split, _, _ in listing.images})
    _refuse_unusable(dataset)
    return dataset


def check_pixels(dataset: Dataset) -> Generator[tuple[int, int], None, list[Finding]]:
    """Decode every image, in threads: yields (images done, images in all), returns a finding for each damaged one."""
    findings = []
    decoding = in_threads(partial(_decode_error, dataset.root), dataset.table["id"])
    for done, (sample, error) in enumerate(decoding, start=1):
        if error:
            findings.append(Finding("damaged", "error", error, (sample,)))
        yield done, len(dataset.table)
    return findings


@dataclass
class _Listing:
    images: list[tuple[str, str, Path]]  # split name or "", class, file
    empty: list[Path]
    other: list[Path]
    loose: list[Path]  # images outside any class folder
    ignored: list[Path]  # folders beside train/ and val/


def _split_folders(root: Path) -> dict[Path, str]:
    """Folder -> split, where one of them is a ``train`` with class folders; else none (a class may be named "train")."""
    found = {
        folder: splits.FOLDER_NAMES[folder.name.lower()]
        for folder in _subfolders(root)
        if folder.name.lower() in splits.FOLDER_NAMES
    }
    return found if any(split == splits.TRAIN and _subfolders(folder) for folder, split in found.items()) else {}


def _images_in(folder: Path) -> list[Path]:
    files = (entry for entry in folder.iterdir() if entry.suffix.lower() in EXTENSIONS and not _is_noise(entry.name))
    return sorted(file for file in files if file.is_file())


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _is_noise(entry.name))


def _is_noise(name: str) -> bool:
    return name.startswith(".") or name in _NOISE


def _list_files(split_folders: dict[Path, str]) -> _Listing:
    listing = _Listing([], [], [], [], [])
    for split_folder, split in split_folders.items():
        listing.loose.extend(_images_in(split_folder))
        for class_folder in _subfolders(split_folder):
            before = len(listing.images)
            for folder, folders, files in os.walk(class_folder):
                folders[:] = sorted(name for name in folders if not _is_noise(name))
                for name in sorted(files):
                    if _is_noise(name):
                        continue
                    file = Path(folder, name)
                    if file.suffix.lower() in EXTENSIONS:
                        listing.images.append((split, class_folder.name, file))
                    else:
                        listing.other.append(file)
            if len(listing.images) == before:
                listing.empty.append(class_folder)
    return listing


def _nothing_found(root: Path, listing: _Listing) -> str:
    expected = "Thaw expects one subfolder of images for each class, or train/ and val/ with such subfolders."
    if listing.loose:
        return f"{root} holds {_images(len(listing.loose))}, but no class folders. {expected}"
    if listing.empty:
        return f"The class folders in {root} hold no images. {expected}"
    return f"{root} holds no images. {expected}"


def _header_or_error(root: Path, sample: str) -> tuple[ImageHeader, int] | str:
    if not sample.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in sample):
        return f"{sample!r} has a name that is not valid Unicode; rename it"
    try:
        return read_header(root / sample), (root / sample).stat().st_size
    except ImageError as error:
        return str(error)


def _decode_error(root: Path, sample: str) -> str | None:
    try:
        read_image(root / sample, shorter_side=64)
    except ImageError as error:
        return str(error)
    return None


def _read_headers(
    root: Path, images: list[tuple[str, str, Path]]
) -> Generator[tuple[int, int], None, tuple[pd.DataFrame, list[tuple[str, str]]]]:
    samples = {file.relative_to(root).as_posix(): (split, name) for split, name, file in images}
    rows, unreadable = [], []
    for done, (sample, found) in enumerate(in_threads(partial(_header_or_error, root), samples), start=1):
        if isinstance(found, str):
            unreadable.append((sample, found))
        else:
            header, size = found
            split, name = samples[sample]
            rows.append((sample, name, split, header.width, header.height, header.mode, size))
        yield done, len(samples)
    columns = ["id", "class", "split", "width", "height", "mode", "bytes"]
    return pd.DataFrame(rows, columns=columns), unreadable


def _split(table: pd.DataFrame, val_fraction: float, test_fraction: float, seed: int) -> pd.Series:
    """Keep the folder's own splits; where it has no validation images, take some out of its training images."""
    split = table["split"].replace("", splits.TRAIN)
    if (split == splits.VAL).any():
        return split
    training = table[split == splits.TRAIN].reset_index()
    split.loc[training["index"]] = splits.assign_splits(training["id"], training["class"], val_fraction, test_fraction, seed)
    return split


def _file_findings(root: Path, listing: _Listing, unreadable: list[tuple[str, str]]) -> Iterator[Finding]:
    if unreadable:
        yield Finding(
            "unreadable",
            "error",
            f"{_images(len(unreadable))} cannot be read and will be left out: {unreadable[0][1]}",
            tuple(_printable(sample) for sample, _ in unreadable),
        )
    if listing.empty:
        names = tuple(_shown(root, folder) for folder in listing.empty)
        yield Finding("empty_class", "warning", f"No images in {_some(names)}; left out.", names)
    if listing.loose:
        names = tuple(_shown(root, file) for file in listing.loose)
        yield Finding("no_class", "warning", f"{_images(len(names))} in no class folder, left out: {_some(names)}.", names)
    if listing.ignored:
        names = tuple(_shown(root, folder) for folder in listing.ignored)
        yield Finding("ignored_folder", "warning", f"Folders beside train/ and val/, left out: {_some(names)}.", names)
    if listing.other:
        names = tuple(_shown(root, file) for file in listing.other)
        yield Finding("not_an_image", "info", f"Files that are no images, left out: {_some(names)}.", names)


def _table_findings(table: pd.DataFrame, classes: tuple[str, ...]) -> Iterator[Finding]:
    if len(classes) == 1:
        yield Finding(
            "single_class",
            "warning",
            f"There is only one class, {classes[0]}: nothing to tell apart, so every score will be perfect.",
            classes,
        )
    by_split = {split: set(table.loc[table["split"] == split, "label"]) for split in splits.SPLITS}
    for split in (splits.TRAIN, splits.VAL):
        missing = tuple(name for label, name in enumerate(classes) if label not in by_split[split])
        if missing and split == splits.TRAIN:
            yield Finding(
                "class_not_trained",
                "warning",
                f"No training images for {_some(missing)}: the network cannot learn it.",
                missing,
            )
        elif missing:
            yield Finding(
                "class_not_validated",
                "warning",
                f"No validation images for {_some(missing)}: nothing will be said about it.",
                missing,
            )
    training = table.loc[table["split"] == splits.TRAIN, "label"].value_counts()
    few = tuple(classes[label] for label in sorted(training.index) if training[label] < _FEW)
    if few:
        yield Finding("few_images", "warning", f"Fewer than {_FEW} training images in {_some(few)}.", few)
    if len(training) > 1 and training.max() >= 10 * training.min():
        yield Finding(
            "imbalance",
            "warning",
            f"The largest class has {training.max() / training.min():.0f} times the training images of the smallest: accuracy alone will mislead.",
        )


def _refuse_unusable(dataset: Dataset) -> None:
    counts = dataset.table["split"].value_counts()
    if not counts.get(splits.TRAIN, 0):
        raise DataError(f"No training image in {dataset.root} can be read.")
    if not counts.get(splits.VAL, 0):
        raise DataError(
            f"{dataset.root} has too few images to set any aside for validation: give each class at least three, or add a val/ folder."
        )


def _shown(root: Path, path: Path) -> str:
    return _printable(path.relative_to(root).as_posix())


def _printable(name: str) -> str:
    """A file system's name need not be valid Unicode; what is shown must be."""
    return name.encode("utf-8", "backslashreplace").decode()


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _some(names: tuple[str, ...], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"
