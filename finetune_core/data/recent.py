"""Ids of data sets, and the data sets that were opened recently.

An id is short enough for an address. It stands for a folder or manifest.
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_core import paths
from finetune_core.data.camera import CAMERA, recordings_folder
from finetune_core.data.entry import entries_folder, entry_folder
from finetune_core.data.listing import is_within
from finetune_core.data.public import PUBLIC_SETS
from finetune_core.data.sample import SAMPLE_NAME, write_digits_folder
from finetune_core.errors import DataError
from finetune_core.files import read_regular, stat_regular, write_bytes

_FILE = "source.json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_MOST_BYTES = 20_000
_MOST_PEOPLE = 50


@dataclass(frozen=True)
class Source:
    """A data set that was opened.

    Attributes:
        data_id: its id in an address.
        path: its folder or manifest.
        people: the people who opened it, where people sign in.
    """

    data_id: str
    path: str
    people: tuple[str, ...] = ()


def data_id(data: str | Path) -> str:
    """Return the id of a folder or manifest: the name of its entry.

    The id of the bundled sample is the same on every machine.
    """
    folder = entry_folder(data)
    return SAMPLE_NAME if folder == entry_folder(paths.data_dir() / SAMPLE_NAME) else folder.name


def remember_source(data: str | Path, person: str = "") -> str:
    """Record that a data set was opened, so that its id can be resolved.

    Args:
        data: its folder or manifest.
        person: the person who opened it, where people sign in.

    Returns:
        The id.
    """
    file = entry_folder(data) / _FILE
    path = str(Path(data).expanduser().resolve())
    known = _read_source(file)
    people = [*dict.fromkeys([*([person] if person else []), *(known.people if known else ())])][
        :_MOST_PEOPLE
    ]
    with suppress(OSError):  # where nothing can be written, the data set is not listed
        write_bytes(file, json.dumps({"path": path, "people": people}).encode())
    return data_id(data)


def resolve_source(wanted: str) -> str:
    """Return the folder or manifest of an id. The caller checks whether it may be read.

    Raises:
        DataError: if no data set of that id was opened on this machine.
    """
    if wanted == SAMPLE_NAME:
        return str(write_digits_folder())
    known = _read_source(entries_folder() / wanted / _FILE) if _ID.fullmatch(wanted) else None
    if known is None:
        raise DataError(
            f"The data set “{wanted[:80]}” that the address names is not known here. "
            "Choose it again."
        )
    return known.path


def check_private(data: str | Path, person: str) -> None:
    """Refuse data that other people have brought into the app's own folder, where people sign in.

    The sample and public data sets are everybody's. A recording is its maker's. An upload or
    unpacked archive belongs to those who brought it (``remember_source``).

    Raises:
        DataError: if a path, links resolved, is another person's, or contains the app's own folder.
    """
    real, own = (Path(os.path.realpath(path)) for path in (data, paths.data_dir()))
    if not _is_visible(real, own, person):
        raise DataError(
            f"The folder {data} is not shown to people who sign in. Choose another one."
        )


def _is_visible(real: Path, own: Path, person: str) -> bool:
    if not real.is_relative_to(own):
        return not own.is_relative_to(real)
    name = next(iter(real.relative_to(own).parts), "")
    if name == SAMPLE_NAME or name in PUBLIC_SETS:
        return True
    if not (name and person):
        return False
    if name == CAMERA:
        return real.is_relative_to(os.path.realpath(recordings_folder(person)))
    known = _read_source(entry_folder(own / name) / _FILE)
    return known is not None and person in known.people


def list_recent_sources(
    roots: Sequence[Path], most: int, person: str | None = None
) -> list[Source]:
    """Return the data sets that were opened, the latest first, without the sample.

    Data sets that no longer exist or may not be read are left out.

    Args:
        roots: the folders that may be read.
        most: the largest number of data sets.
        person: if given, only what this person has opened.
    """
    files = entries_folder().glob(f"*/{_FILE}")
    dated = [(status.st_mtime, file) for file in files if (status := stat_regular(file))]
    known = (_read_source(file) for _, file in sorted(dated, reverse=True))
    sample = data_id(paths.data_dir() / SAMPLE_NAME)
    found = (
        one
        for one in known
        if one
        and (person is None or person in one.people)
        and one.data_id != sample
        and is_within(one.path, roots)
        and Path(one.path).exists()
    )
    return list(islice(found, most))


def _read_source(file: Path) -> Source | None:
    """Read the source of an entry; None if it is damaged, or was made for another entry."""
    try:
        found: Any = json.loads(read_regular(file, _MOST_BYTES))
        path, people = found["path"], found["people"]
        if (
            not isinstance(path, str)
            or not isinstance(people, list)
            or not all(isinstance(one, str) for one in people)
        ):
            return None
        return (
            Source(data_id(path), path, tuple(people))
            if entry_folder(path) == file.parent
            else None
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return None
