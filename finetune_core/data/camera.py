"""Data sets recorded with a camera.

They are ordinary image folders among Thaw's own. Their manifest keeps together the frames of one
press of the record button.
"""

import csv
import hashlib
import io
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from threading import Lock

import pandas as pd

from finetune_core.data.dataset import index_data
from finetune_core.data.duplicates import merge_groups
from finetune_core.data.entry import load_split, save_split
from finetune_core.data.frames import Batch
from finetune_core.data.limits import LIMITS, Budget
from finetune_core.data.names import escape_name, is_noise
from finetune_core.errors import DataError
from finetune_core.files import write_bytes
from finetune_core.formatting import format_number
from finetune_core.paths import data_dir
from finetune_core.work import Work

CAMERA = "camera"
MOST_OF_CLASS = 5000  # frames
LEAST_OF_CLASS = 4  # frames: one for validation, one for testing, and two for training
_LONGEST_NAME = 60  # letters
_DELETED = ".deleted"
_FRAME = re.compile(r"(?P<press>[0-9a-z]{1,32})_(?P<number>\d{5})\.jpg")
# A press that is the only one of its class is parted into blocks that end at these shares.
_BLOCKS = (0.7, 0.85)
_FORBIDDEN = re.compile('[<>:"/\\\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
# Names that Windows reserves.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class StorageError(DataError):
    """Frames that could not be written, and can be once the cause is gone."""


_changing = Lock()  # two sessions of this process must not overwrite each other's changes


def recordings_folder(person: str = "") -> Path:
    """Return the folder of the data sets recorded with a camera. It may not exist.

    Args:
        person: the person, where people sign in: each has a folder of their own.
    """
    folder = data_dir() / CAMERA
    return folder / f".{hashlib.sha256(person.encode()).hexdigest()[:16]}" if person else folder


def list_recordings(person: str = "") -> list[str]:
    """Return the names of all recorded data sets, the latest first."""
    folder = recordings_folder(person)
    return sorted(
        _list_subfolders(folder), key=lambda name: (folder / name).stat().st_mtime, reverse=True
    )


def validate_name(name: str, what: str, beside: Sequence[str] = ()) -> str:
    """Return the name of a data set or class in a form that can be a folder's name on every system.

    Args:
        name: the name that the person typed.
        what: the kind of thing that is named, such as ``data set``.
        beside: the names that exist already.

    Raises:
        DataError: if the name cannot be used.
    """
    name = unicodedata.normalize("NFC", name).strip()
    problem = _find_problem(name)
    if problem:
        raise DataError(f"The {what} needs another name: {problem}.")
    same = next(
        (other for other in beside if other != name and _is_same_ignoring_case(other, name)), None
    )
    if same is not None:
        raise DataError(
            f"There is a {what} “{same}” already. Write it in the same way, or choose a name that "
            "differs more."
        )
    return name


def _find_problem(name: str) -> str:
    if not name:
        return "this one is empty"
    if _FORBIDDEN.search(name):
        return (
            'it becomes a folder, whose name cannot hold / \\ : * ? " < > | or control characters'
        )
    if is_noise(name) or name.endswith("."):
        return (
            "it becomes a folder, whose name cannot begin or end with a dot, or be one that "
            "systems use themselves"
        )
    if _RESERVED.fullmatch(name):
        return f"“{escape_name(name)}” is reserved on Windows"
    return f"this one has more than {_LONGEST_NAME} letters" if len(name) > _LONGEST_NAME else ""


def _is_same_ignoring_case(one: str, other: str) -> bool:
    """Return whether a file system that ignores case would take two names for the same."""
    return (
        unicodedata.normalize("NFC", one).casefold()
        == unicodedata.normalize("NFC", other).casefold()
    )


def list_frames_by_class(folder: Path) -> dict[str, list[str]]:
    """Return the file names of each class's images, in the order in which they were recorded."""
    found = {
        name: sorted(file.name for file in (folder / name).glob("*.jpg"))
        for name in _list_subfolders(folder)
    }
    return {name: files for name, files in found.items() if files}


def list_presses(files: Sequence[str]) -> list[str]:
    """Return the presses of the record button that a class's images come from.

    An image that was not recorded counts as a press of its own.
    """
    return list(dict.fromkeys(_parse_press(file) for file in files))


def store_frames(batch: Batch, person: str = "") -> Path:
    """Store frames in the folder of their class, and update the manifest.

    Frames that are sent again replace themselves.

    Returns:
        The data set's folder.

    Raises:
        StorageError: if the frames cannot be written.
        DataError: if a name cannot be a folder's, or there are too many frames.
    """
    parent = recordings_folder(person)
    folder = parent / validate_name(batch.recording, "data set", list_recordings(person))
    name = validate_name(batch.class_name, "class", _list_subfolders(folder))
    _check_press(batch)
    with _changing, _translate_errors(folder):
        parent.mkdir(parents=True, exist_ok=True)
        _check_space(sum(map(len, batch.frames)))
        if len(list_frames_by_class(folder).get(name, ())) + len(batch.frames) > MOST_OF_CLASS:
            raise DataError(
                f"“{name}” has {format_number(MOST_OF_CLASS)} frames, which is the most. "
                "Record another class."
            )
        _write_frames(batch, folder / name)
        _write_manifest(folder)
    return folder


def store_unlabelled_frames(batch: Batch, folder: Path) -> None:
    """Store frames that have no class yet. Frames that are sent again replace themselves.

    Args:
        batch: the frames.
        folder: the folder of these frames; created if it is missing.

    Raises:
        StorageError: if the frames cannot be written.
        DataError: if there are too many frames.
    """
    _check_press(batch)
    with _changing, _translate_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(sum(map(len, batch.frames)))
        if len(list(folder.iterdir())) + len(batch.frames) > MOST_OF_CLASS:
            raise DataError(
                f"There are {format_number(MOST_OF_CLASS)} frames, which is the most. Label these "
                "first."
            )
        _write_frames(batch, folder)


def _write_frames(batch: Batch, folder: Path) -> None:
    for index, frame in enumerate(batch.frames, start=batch.first):
        write_bytes(folder / f"{batch.press}_{index:05d}.jpg", frame)


def delete_frames(folder: Path, ids: Sequence[str]) -> None:
    """Remove images from a recorded data set.

    ``restore_frames`` brings back the images of the last call.

    Args:
        folder: the data set's folder.
        ids: ``class/file``; missing ones are ignored.

    Raises:
        DataError: if the folder cannot be written to.
    """
    with _changing, _translate_errors(folder):
        existing = {
            f"{name}/{file}"
            for name, files in list_frames_by_class(folder).items()
            for file in files
        }
        shutil.rmtree(folder / _DELETED, ignore_errors=True)
        _move_images(
            [one for one in dict.fromkeys(ids) if one in existing], folder, folder / _DELETED
        )
        _write_manifest(folder)


def restore_frames(folder: Path) -> None:
    """Bring back the images that were deleted last.

    Raises:
        DataError: if the folder cannot be written to.
    """
    deleted = folder / _DELETED
    with _changing, _translate_errors(folder):
        ids = [
            f"{name}/{file}"
            for name, files in list_frames_by_class(deleted).items()
            for file in files
        ]
        _move_images(ids, deleted, folder)
        _write_manifest(folder)


def count_deleted_frames(folder: Path) -> int:
    """Return the number of images that ``restore_frames`` would bring back."""
    return sum(map(len, list_frames_by_class(folder / _DELETED).values()))


def manifest_path(folder: Path) -> Path:
    """Return the path of a recorded data set's manifest, which is the data to train on.

    The manifest may not exist.
    """
    return folder / f"{folder.name}.csv"


def is_recording(data: str) -> bool:
    """Return whether data to train on were recorded with a camera."""
    return Path(data).is_relative_to(recordings_folder())


def group_frames(files: Sequence[str]) -> dict[str, str]:
    """Return the group of each image, which a split does not part.

    A group is the images of one press. If a class has a single press, it is parted all the same:
    into three blocks in time, which touch at two places only. The group of an image that was not
    recorded is empty.

    Args:
        files: the images of one class, in the order in which they were recorded.
    """
    if len(list_presses(files)) > 1 or not all(_FRAME.fullmatch(file) for file in files):
        return {file: _parse_press(file) if _FRAME.fullmatch(file) else "" for file in files}
    ends = [round(share * len(files)) for share in _BLOCKS]
    return {
        file: f"{_parse_press(file)}.{sum(place >= end for end in ends)}"
        for place, file in enumerate(files)
    }


def choose_split(folder: Path) -> Work[Path]:
    """Index a recording, and choose whether near-duplicates of different presses stay together.

    They do, unless a class would then have no images to be evaluated on.

    Yields:
        Steps that count files, then images compared.

    Returns:
        The manifest.

    Raises:
        DataError: if there is nothing to read, or the manifest cannot be written.
    """
    manifest = manifest_path(folder)
    with _changing, _translate_errors(folder):
        _write_manifest(folder)  # images may have been added or deleted by hand
    seen = yield from index_data(manifest)
    table = seen.rows[seen.rows["problem"] == ""]
    apart = pd.factorize(table["group"].where(table["group"] != "", table["id"]))[0]
    sides = pd.Series(merge_groups(apart, table["near"].to_numpy()), index=table.index)
    together = not table.empty and int(sides.groupby(table["class"]).nunique().min()) > 1
    save_split(
        manifest, load_split(manifest) | {"near_duplicates": "together" if together else "apart"}
    )
    return manifest


def _parse_press(file: str) -> str:
    found = _FRAME.fullmatch(file)
    return found["press"] if found else file


def _list_subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not is_noise(entry.name)
    )


def _move_images(ids: Sequence[str], source: Path, target: Path) -> None:
    for name, some in groupby(sorted(ids), key=lambda one: one.partition("/")[0]):
        (target / name).mkdir(parents=True, exist_ok=True)
        for one in some:
            (source / one).replace(target / one)


def _write_manifest(folder: Path) -> None:
    rows = _make_manifest_rows(list_frames_by_class(folder))
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label", "group"), *rows])
    write_bytes(manifest_path(folder), text.getvalue().encode())


def _make_manifest_rows(found: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str]]:
    for name, files in found.items():
        of_file = group_frames(files)
        yield from ((f"{name}/{file}", name, of_file[file]) for file in files)


def _check_press(batch: Batch) -> None:
    if not batch.press:
        raise DataError(
            "These frames belong to no press of the record button. Reload the page, then try again."
        )


def _check_space(needed: int) -> None:
    try:
        Budget(LIMITS).check_space(needed)
    except DataError as error:
        raise StorageError(f"The latest frames are not stored: {error}") from None


@contextmanager
def _translate_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written to: {error.strerror}. Make room there, or set THAW_HOME "
            "to another folder."
        ) from None
