"""Resolution of DATA, as a person names it, to a folder or manifest.

This module also knows which folders the app may read.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.request import url2pathname

from finetune_core import paths
from finetune_core.data.archives import import_archive, is_archive
from finetune_core.data.listing import is_within
from finetune_core.data.public import PUBLIC_SETS, is_fetched, public_set_folder
from finetune_core.data.sample import SAMPLE_NAME, write_digits_folder
from finetune_core.errors import DataError
from finetune_core.formatting import format_bytes
from finetune_core.work import Work

_VARIABLE = "THAW_DATA_ROOTS"
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE)
_QUOTES = ("''", '""', "‘’", "“”")


def resolve_data(name: str) -> Work[str]:
    """Resolve the name of data to a folder or manifest.

    Folders and manifests stand for themselves. An archive is unpacked. ``digits`` and the names of
    public sets are their folders, unless a folder of that name exists here.

    Yields:
        Steps that count bytes while an archive is unpacked.

    Raises:
        DataError: if an archive is refused, a public set is not on this machine yet, or the name
            cannot be a path.
    """
    name = _unwrap_path(name)
    path = resolve_path(name)
    if not path.exists():
        if name == SAMPLE_NAME:
            return str(write_digits_folder())
        if name in PUBLIC_SETS:
            return str(_find_fetched(name))
    if path.is_file() and is_archive(path.name):
        return str((yield from import_archive(path, path.name)))
    return str(path)


def resolve_readable_data(name: str, roots: Sequence[Path]) -> Work[str]:
    """Resolve the name of data as ``resolve_data`` does, and check that the app may read them.

    Args:
        name: the name.
        roots: if given, data outside these folders are refused, an archive before it is unpacked.

    Raises:
        DataError: as for ``resolve_data``, and if the data may not be read.
    """
    if roots and (path := resolve_path(name)).exists():
        check_roots(path, roots)
    data = yield from resolve_data(name)
    if roots:
        check_roots(data, roots)
    return data


def resolve_path(name: str) -> Path:
    """Return what a person typed or pasted as an absolute path, links resolved.

    The path may not exist.

    Args:
        name: may be in quotes, as file managers copy it, or a ``file://`` URL (RFC 8089).

    Raises:
        DataError: if the name cannot be a path, or is on another machine.
    """
    try:
        path = Path(_unwrap_path(name)).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {error}.") from None
    return path


def _unwrap_path(name: str) -> str:
    """Return the path in quotes or in a ``file://`` URL."""
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


def list_data_roots(*, home_too: bool) -> tuple[Path, ...]:
    """Return the folders that the app may read.

    These are its own data and the folders in THAW_DATA_ROOTS. If that variable names none, and
    nobody has to sign in, the home of the user who runs the app is readable, too.

    Args:
        home_too: whether nobody has to sign in.
    """
    named = [
        Path(part).expanduser().resolve()
        for part in os.environ.get(_VARIABLE, "").split(os.pathsep)
        if part
    ]
    return (paths.data_dir(), *(named or ([Path.home()] if home_too else [])))


def check_roots(data: str | Path, roots: Sequence[Path]) -> None:
    """Refuse data that the app may not read.

    Raises:
        DataError: if the data, with links resolved, lie in none of the folders.
    """
    if not is_within(data, roots):
        allowed = ", ".join(str(root) for root in roots)
        raise DataError(
            f"{data} lies outside the folders that Thaw may read here: {allowed}. "
            f"Put the images there, or start Thaw with {_VARIABLE} set to the folders it may read."
        )


def list_imported_folders() -> list[Path]:
    """Return the folders in the app's own data folder, the latest first."""
    folder = paths.data_dir()
    found = (
        [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if folder.is_dir()
        else []
    )
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _find_fetched(name: str) -> Path:
    if not is_fetched(name):
        one = PUBLIC_SETS[name]
        raise DataError(
            f"{one.title} is not on this machine yet: `python -m finetune_core fetch {name}` "
            f"downloads it ({format_bytes(one.download_bytes)})."
        )
    return public_set_folder(name)
