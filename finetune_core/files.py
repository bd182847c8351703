"""Writing files and folders so that a reader, or a crash, never meets half of one."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_LEFT_SECONDS = 24 * 3600


def is_file(name: str) -> bool:
    """Whether what a person typed names a file; what no system could read names none."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes ``path``'s place when the block ends well, and vanishes when it does not.

    Written beside, flushed, synced, renamed; then the folder is synced, so that the rename survives a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write all of a file or none of it."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder in ``parent`` to fill and to ``settle``; gone when the block ends, with whatever was not settled.

    Folders of that prefix that are older than a day were left by processes that were killed: they go first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):  # another process sweeps, too
            if time.time() - left.lstat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(staged: Path, folder: Path) -> None:
    """Give a staged folder its name, unless another process has given that name to the same before."""
    try:
        staged.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
