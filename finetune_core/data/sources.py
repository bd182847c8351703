"""DATA as a person names it -> the folder or manifest it stands for; and which folders the app may read."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.request import url2pathname

from finetune_core import paths
from finetune_core.data.archives import import_archive, is_archive
from finetune_core.data.listing import is_within
from finetune_core.data.public import PUBLIC_SETS, is_fetched, public_folder
from finetune_core.data.sample import SAMPLE_NAME, digits_folder
from finetune_core.errors import DataError
from finetune_core.formatting import size
from finetune_core.work import Work

_VARIABLE = "THAW_DATA_ROOTS"
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE)
_QUOTES = ("''", '""', "‘’", "“”")


def resolve_data(name: str) -> Work[str]:
    """A folder and a manifest are themselves, an archive is what it unpacks to, ``digits`` and the names of public sets are
    their folders, where no folder here has that name.

    Yields:
        Steps that count bytes while an archive is unpacked.

    Raises:
        DataError: when an archive is refused, a public set is not on this machine yet, or nothing can have such a name.
    """
    name = _unwrapped(name)
    path = whole_path(name)
    if not path.exists():
        if name == SAMPLE_NAME:
            return str(digits_folder())
        if name in PUBLIC_SETS:
            return str(_fetched(name))
    if path.is_file() and is_archive(path.name):
        return str((yield from import_archive(path, path.name)))
    return str(path)


def readable_data(name: str, roots: Sequence[Path]) -> Work[str]:
    """``resolve_data`` of what the app may read.

    Args:
        roots: when given, what lies elsewhere is refused, an archive before it is unpacked.

    Raises:
        DataError: as ``resolve_data``, and when it may not be read.
    """
    if roots and (path := whole_path(name)).exists():
        check_roots(path, roots)
    data = yield from resolve_data(name)
    if roots:
        check_roots(data, roots)
    return data


def whole_path(name: str) -> Path:
    """What a person typed or pasted as an absolute path, links followed; it need not be there.

    Args:
        name: also in quotes, as file managers copy it, or as a ``file://`` URL (RFC 8089).

    Raises:
        DataError: when nothing can have such a name, or it is on another machine.
    """
    try:
        path = Path(_unwrapped(name)).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {error}.") from None
    return path


def _unwrapped(name: str) -> str:
    """The path itself, of one in quotes or in a ``file://`` URL."""
    name = name.strip()
    if len(name) > 2 and name[0] + name[-1] in _QUOTES:
        name = name[1:-1].strip()
    url = _FILE_URL.fullmatch(name)
    if url is None:
        return name
    if (url["host"] or "localhost").lower() != "localhost":
        raise DataError(
            f"{name} is on another machine, {url['host']}. Name a folder of the machine that Thaw "
            "runs on."
        )
    return url2pathname(url["path"])


def data_roots(*, home_too: bool) -> tuple[Path, ...]:
    """The folders that the app may read: its own data, and those that THAW_DATA_ROOTS names, or, where it names none and nobody
    has to sign in, the home of whoever runs it."""
    named = [
        Path(part).expanduser().resolve()
        for part in os.environ.get(_VARIABLE, "").split(os.pathsep)
        if part
    ]
    return (paths.data_dir(), *(named or ([Path.home()] if home_too else [])))


def check_roots(data: str | Path, roots: Sequence[Path]) -> None:
    """Refuse what the app may not read.

    Raises:
        DataError: when it lies in none of the folders, links followed.
    """
    if not is_within(data, roots):
        allowed = ", ".join(str(root) for root in roots)
        raise DataError(
            f"{data} lies outside the folders that Thaw may read here: {allowed}. "
            f"Put the images there, or start Thaw with {_VARIABLE} set to the folders it may read."
        )


def imported_folders() -> list[Path]:
    """What lies in the app's own data folder, the latest first."""
    folder = paths.data_dir()
    found = (
        [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if folder.is_dir()
        else []
    )
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _fetched(name: str) -> Path:
    if not is_fetched(name):
        one = PUBLIC_SETS[name]
        raise DataError(
            f"{one.title} is not on this machine yet: `python -m finetune_core fetch {name}` "
            f"downloads it ({size(one.download_bytes)})."
        )
    return public_folder(name)
