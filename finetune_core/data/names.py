"""File names: those that operating systems leave behind, and those that a stranger chose."""

import re

from finetune_core.errors import DataError

_NOISE = ("__MACOSX", "Thumbs.db", "desktop.ini")
_LONGEST_PART = 255  # bytes; the limit of nearly every file system
_LONGEST_PATH = 1000  # bytes; short enough for every system, with the folder above

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_DRIVE = re.compile("[A-Za-z]:")


def is_noise(name: str) -> bool:
    """Return whether a file or folder of that name belongs to the system and not to the data."""
    return name.startswith(".") or name in _NOISE


def safe_path(name: str, depth: int) -> tuple[str, ...]:
    """Split a stranger's relative path into parts that stay below the target folder.

    A backslash separates folders, too: it does on some systems, and some archives are packed that
    way.

    Args:
        name: such as ``train/cat/1.jpg``; ``./`` and doubled separators are harmless and dropped.
        depth: the most folders above a file.

    Returns:
        The parts; none if the name means the folder itself.

    Raises:
        DataError: if the path could lead out of the folder, or cannot be a file name on every
            system.
    """
    path = name.replace("\\", "/")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    problem = _find_problem(name, path, parts, depth)
    if problem:
        raise DataError(
            f"“{escape_name(name)}” {problem}. Rename it or leave it out, then try again."
        )
    return parts


def escape_name(name: str) -> str:
    """Return a stranger's name for a message: on one line, printable and short."""
    if len(name) > 80:
        name = f"{name[:40]}…{name[-40:]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )


def _find_problem(name: str, path: str, parts: tuple[str, ...], depth: int) -> str | None:
    if not name:
        return "is no name"
    if _SURROGATE.search(name):
        return "is not valid Unicode"
    if _CONTROL.search(name):
        return "has control characters in its name"
    if path.startswith("/"):
        return "is an absolute path, not one below the folder"
    if any(part.strip(" ") == ".." for part in parts):  # Windows drops the spaces
        return "leads out of the folder"
    if any(_DRIVE.match(part) for part in parts):
        return "names a drive"
    if any(len(part.encode()) > _LONGEST_PART for part in parts):
        return f"has a name of more than {_LONGEST_PART} bytes"
    if len(parts) > depth + 1:
        return f"lies below more than {depth} folders"
    if len(path.encode()) > _LONGEST_PATH:
        return f"has a path of more than {_LONGEST_PATH} bytes"
    return None
