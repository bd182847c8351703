"""Check that another machine sees what a run needs there, and has the same programs.

A run needs its run directory, Thaw's folder and its data.
"""

import hashlib
import os
import platform
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from finetune_core.errors import RunError

_PROGRAMS: Final = ("torch", "torchvision", "timm", "numpy")
_PACKAGE = Path(__file__).resolve().parents[2]


@contextmanager
def show_storage(folders: Iterable[Path], data: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Describe what this machine sees, for ``find_differences`` on another one.

    During the block a file of random content lies in each folder.

    Args:
        folders: folders that have to be the same ones on the other machine.
        data: files and folders that have to exist there.

    Raises:
        RunError: if a folder cannot be written to.
    """
    files = {
        folder / f".thaw-check-{secrets.token_hex(8)}": secrets.token_hex(16) for folder in folders
    }
    try:
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        yield {
            "files": {str(file): content for file, content in files.items()},
            "data": {path: _digest_data(path) for path in dict.fromkeys(data)},
            "programs": dict(_list_versions()),
        }
    except OSError as error:
        raise RunError(
            f"Runs cannot be kept there: {error}. Choose another folder, or make room."
        ) from None
    finally:
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)


def find_differences(seen: dict[str, Any]) -> list[str]:
    """Describe what this machine does not see, or has in another version.

    Args:
        seen: the value of ``show_storage`` on another machine.
    """
    problems = [
        f"{Path(file).parent} is not the same folder there"
        for file, content in seen["files"].items()
        if _read(file) != content
    ]
    for path, listing in seen["data"].items():
        found = _digest_data(path)
        if found != listing:
            problems.append(f"{path} holds other files there" if found else f"{path} is not there")
    own = _list_versions()
    for name, wanted in seen["programs"].items():
        if own[name] != wanted:
            problems.append(f"it has {name} {own[name]}, not {wanted}")
    return problems


def _read(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""


def _digest_data(path: str) -> str:
    """Return a digest of the names in a folder, or the size of a file; empty if neither exists."""
    try:
        if os.path.isdir(path):
            return hashlib.sha256(
                "\0".join(sorted(os.listdir(path))).encode("utf-8", "surrogateescape")
            ).hexdigest()[:12]
        return str(os.stat(path).st_size)
    except OSError:
        return ""


@lru_cache(maxsize=1)
def _list_versions() -> dict[str, str]:
    """Return versions of all that decides how a run computes; of Thaw, a digest of its source."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    found = {"Thaw": digest.hexdigest()[:12], "Python": platform.python_version()}
    for name in _PROGRAMS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
