"""Files that no other user may see or change, because their content will be run.

The files lie in one folder that belongs to the user who runs Thaw and that only this user can
enter. Each call opens the folder once and checks its descriptor, and opens files relative to that
descriptor. Another folder or a link put in its place meanwhile is ignored.
"""

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from finetune_core import paths

_HALF_WRITTEN = re.compile(r"\.thaw-.+-[0-9a-f]{16}")
_IDLE_SECONDS = 3600.0
_FOLDER_FLAGS = ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
_FILE_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC")


def read_private(name: str, most: int) -> bytes | None:
    """Return the content of a private file, or None where there is none.

    Args:
        name: name of the file.
        most: maximum size in bytes.

    Raises:
        OSError: if other users can read or write the file or its folder, if the file is larger than
            ``most`` or no regular file, or if it cannot be read.
    """
    try:
        with _open_folder(make=False) as folder:
            descriptor = os.open(name, os.O_RDONLY | _combine_flags(_FILE_FLAGS), dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "no regular file", name)
                _check_private(status, name)
                content = file.read(most + 1)
    except FileNotFoundError:
        return None
    if len(content) > most:
        raise OSError(errno.EFBIG, "too large", name)
    return content


def write_private(name: str, content: bytes) -> None:
    """Write a private file completely or not at all.

    Raises:
        OSError: if other users can read or write the folder, or it cannot be written.
    """
    with _open_folder(make=True) as folder:
        temporary = f".thaw-{name}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _combine_flags(_FILE_FLAGS)
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise


def evict_oldest(names: re.Pattern[str], most: int) -> None:
    """Delete the oldest private files until the rest takes ``most`` bytes.

    Half-written files of killed processes are deleted, too.

    Args:
        names: pattern of the files that are counted and may be deleted.
        most: bytes to keep.

    Raises:
        OSError: if other users can read or write the folder, or it cannot be read.
    """
    with _open_folder(make=True) as folder:
        total, now = 0, time.time()
        files = []
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # another process makes room at the same time
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if names.fullmatch(name):
                    files.append((status.st_mtime, name, status.st_size))
                elif _HALF_WRITTEN.fullmatch(name) and now - status.st_mtime > _IDLE_SECONDS:
                    os.unlink(name, dir_fd=folder)
        for _, name, size in sorted(files, reverse=True):
            total += size
            if total > most:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)


@contextmanager
def _open_folder(*, make: bool) -> Iterator[int]:
    """Yield a descriptor of the private folder."""
    path = paths.private_dir()
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | _combine_flags(_FOLDER_FLAGS))
    try:
        _check_private(os.fstat(descriptor), str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def _check_private(status: os.stat_result, name: str) -> None:
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(errno.EPERM, "other users can read or write it", name)


def _combine_flags(names: tuple[str, ...]) -> int:
    """Combine flags of ``os.open``; not every system has all of them."""
    return sum(getattr(os, name, 0) for name in names)
