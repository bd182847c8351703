"""Unlabelled images of a data set, from folders that a person added to it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, BinaryIO

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from finetune_core.config.edit import LONGEST_NAME, LONGEST_PATH
from finetune_core.data.archives import import_archive, import_files, is_archive
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import collect_labelled_paths
from finetune_core.data.entry import entry_folder, unlabelled_folder
from finetune_core.data.index import read_index
from finetune_core.data.listing import image_root, list_unlabelled, make_containment_check
from finetune_core.data.sources import check_roots, resolve_path
from finetune_core.data.splits import TEST, TRAIN
from finetune_core.errors import DataError
from finetune_core.files import describe_problem, path_exists, read_regular, write_bytes
from finetune_core.work import Work

TEST_SHARE = 0.1  # share of the images that is set aside for testing
_FILE = "unlabelled.json"
_LARGEST = 2**20  # bytes


class Unlabelled(BaseModel):
    """Folders that were added to a data set for labelling; stored beside its edits.

    Attributes:
        folders: absolute paths.
        set_aside: True if a random tenth of the images is labelled first, for testing.
        classes: names that no image has yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folders: tuple[Annotated[str, Field(max_length=LONGEST_PATH)], ...] = ()
    set_aside: bool = False
    classes: tuple[Annotated[str, Field(max_length=LONGEST_NAME)], ...] = ()


def load_unlabelled(data: str | Path) -> Unlabelled:
    """Load the folders that were added to a data set for labelling.

    Raises:
        DataError: if the file that stores them is damaged.
    """
    file = entry_folder(data) / _FILE
    if not path_exists(file):
        return Unlabelled()
    try:
        return Unlabelled.model_validate_json(read_regular(file.resolve(), _LARGEST))
    except (OSError, ValueError) as error:
        raise DataError(
            f"The list of unlabelled images, in {file}, cannot be read: "
            f"{describe_problem(file, error)}. Repair or delete that file."
        ) from None


def save_unlabelled(data: str | Path, unlabelled: Unlabelled) -> None:
    """Store the folders that were added to a data set for labelling.

    Raises:
        DataError: if the file cannot be written.
    """
    file = entry_folder(data) / _FILE
    try:
        write_bytes(file, unlabelled.model_dump_json(indent=1).encode())
    except OSError as error:
        raise DataError(f"The folder cannot be kept in {file}: {error}.") from None


def add_folder(
    data: str | Path, folder: str, *, set_aside: bool = False, roots: Sequence[Path] = ()
) -> Unlabelled:
    """Add a folder of unlabelled images to a data set. Its files stay in place.

    Args:
        data: folder or manifest of the data set.
        folder: path as a person typed it.
        set_aside: label a random tenth first, for testing. The setting of the first added folder
            holds for all folders of the data set.
        roots: if given, a folder outside of these is refused.

    Raises:
        DataError: if the folder contains no image, or may not be read.
    """
    path = resolve_path(folder)
    if roots:
        check_roots(path, roots)
    if not make_containment_check(image_root(data), roots)(path):
        raise DataError(
            f"{path} is in Thaw's own data folder, where each folder is a data set of its own. "
            "Upload the images, or move the folder out of it."
        )
    list_unlabelled(path, roots)
    known = load_unlabelled(data)
    changes = {
        "folders": tuple(dict.fromkeys((*known.folders, str(path)))),
        "set_aside": known.set_aside if known.folders else set_aside,
    }
    unlabelled = known.model_copy(update=changes)
    save_unlabelled(data, unlabelled)
    return unlabelled


def add_images(
    data: str | Path, source: str, *, set_aside: bool = False, roots: Sequence[Path] = ()
) -> Work[Unlabelled]:
    """Add a folder of unlabelled images, or the content of an archive, to a data set.

    Args:
        data: folder or manifest of the data set.
        source: path of a folder or an archive, as a person typed it.
        set_aside: as for ``add_folder``.
        roots: as for ``add_folder``.

    Yields:
        Steps that count bytes while an archive is unpacked.

    Raises:
        DataError: as for ``add_folder``, and if an archive is refused.
    """
    path = resolve_path(source)
    if is_archive(path.name) and path.is_file():
        if roots:
            check_roots(path, roots)
        uploads = unlabelled_folder(image_root(data))
        source = str((yield from import_archive(path, path.name, parent=uploads)))
    return add_folder(data, source, set_aside=set_aside, roots=roots)


def add_uploads(
    data: str | Path,
    files: Sequence[tuple[str, BinaryIO]],
    *,
    set_aside: bool = False,
    roots: Sequence[Path] = (),
) -> Work[Unlabelled]:
    """Add unlabelled images that a browser uploads to a data set: images, archives, or both.

    Args:
        data: folder or manifest of the data set.
        files: name and content of each file.
        set_aside: as for ``add_folder``.
        roots: as for ``add_folder``.

    Yields:
        Steps that count bytes of an archive, or files.

    Raises:
        DataError: if a file is refused; earlier files have been added by then.
    """
    uploads = unlabelled_folder(image_root(data))
    loose = [(name, file) for name, file in files if not is_archive(name)]
    for name, file in files:
        if is_archive(name):
            folder = yield from import_archive(file, name, parent=uploads)
            add_folder(data, str(folder), set_aside=set_aside, roots=roots)
    if loose:
        folder = yield from import_files(loose, "uploaded", len(loose), parent=uploads)
        add_folder(data, str(folder), set_aside=set_aside, roots=roots)
    return load_unlabelled(data)


def remove_folder(data: str | Path, folder: str) -> None:
    """Remove a folder from the queue of a data set. Labels of its images are kept.

    Raises:
        DataError: if that cannot be stored.
    """
    known = load_unlabelled(data)
    folders = tuple(path for path in known.folders if path != folder)
    save_unlabelled(data, known.model_copy(update={"folders": folders}))


def add_class(data: str | Path, name: str) -> None:
    """Add a class that no image has yet.

    Raises:
        DataError: if no class can have that name, or it cannot be stored.
    """
    name = name.strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise DataError(
            f"A class cannot be named {name[:80]!r}. Give a name in one line of up to "
            f"{LONGEST_NAME} characters."
        )
    known = load_unlabelled(data)
    classes = tuple(dict.fromkeys((*known.classes, name)))
    save_unlabelled(data, known.model_copy(update={"classes": classes}))


def find_pool(
    dataset: Dataset, unlabelled: Unlabelled, roots: Sequence[Path] = ()
) -> Work[pd.DataFrame]:
    """Find the images of the added folders, labelled or not.

    Copies of images of the data set are left out, and so are copies among the added ones.

    Returns:
        One row per image: ``id`` (as in the data set's table), ``content``, and ``split``: the
        split that the image joins once it has a label.

    Raises:
        DataError: if a folder cannot be read.
    """
    parts = []
    for folder in unlabelled.folders:
        listing = list_unlabelled(folder, roots)
        rows = yield from read_index(folder, listing)
        rows = rows[rows["problem"] == ""]
        # Near-duplicates must be in the same split, so the first one decides for all.
        first_content = rows.groupby("near")["content"].transform("min")
        paths = (listing.root / sample for sample in rows["id"])
        parts.append(
            pd.DataFrame(
                {
                    "id": [_image_id(dataset.root, path) for path in paths],
                    "content": rows["content"].to_numpy(),
                    "split": [
                        _draw_split(content) if unlabelled.set_aside else TRAIN
                        for content in first_content
                    ],
                }
            )
        )
    if not parts:
        return pd.DataFrame({"id": [], "content": [], "split": []})
    pool = pd.concat(parts).drop_duplicates("id").drop_duplicates("content")
    own = dataset.table[~dataset.table["id"].isin(list(collect_labelled_paths(dataset.edits)))]
    known = pool["id"].isin(own["id"]) | pool["content"].isin(own["content"])
    return pool[~known].sort_values("id", ignore_index=True)


def _image_id(root: Path, path: Path) -> str:
    """Return an image's id: its path relative to the root, or its whole path outside of it."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _draw_split(content: int) -> str:
    """Return the split of an image that may be set aside: pseudo-random, equal on every machine."""
    digest = hashlib.blake2b(f"set aside/{content}".encode(), digest_size=8).digest()
    return TEST if int.from_bytes(digest) < TEST_SHARE * 2**64 else TRAIN
