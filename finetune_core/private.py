"""Files that no other user may see or change, because what is in them will be run.

They lie in one folder that belongs to the user who runs Thaw and that only this user can enter.
The folder is opened once per call and checked by its descriptor, and files are opened relative to
that: another folder or a link that is put in its place meanwhile is not looked into.
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
    """Return what a private file holds, or None where there is none.

    Args:
        most: bytes.

    Raises:
        OSError: when other users can read or write the file or its folder, the file is larger than
            ``most`` or no regular file, or it cannot be read.
    """
    try:
        with _folder(make=False) as folder:
            descriptor = os.open(name, os.O_RDONLY | _flags(_FILE_FLAGS), dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, "no regular file", name)
                _check_private(found, name)
                content = file.read(most + 1)
    except FileNotFoundError:
        return None
    if len(content) > most:
        raise OSError(errno.EFBIG, "too large", name)
    return content


def write_private(name: str, content: bytes) -> None:
    """Write all of a private file or none of it.

    Raises:
        OSError: when other users can read or write the folder, or it cannot be written.
    """
    with _folder(make=True) as folder:
        half = f".thaw-{name}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _flags(_FILE_FLAGS)
        descriptor = os.open(half, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(half, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(half, dir_fd=folder)
            raise


def make_room(names: re.Pattern[str], most: int) -> None:
    """Delete the oldest private files until the rest takes ``most`` bytes.

    What killed processes have half written goes, too.

    Args:
        names: of the files that may be deleted, and that are counted.

    Raises:
        OSError: when other users can read or write the folder, or it cannot be read.
    """
    with _folder(make=True) as folder:
        total, now = 0, time.time()
        found = []
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # another process makes room, too
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if names.fullmatch(name):
                    found.append((status.st_mtime, name, status.st_size))
                elif _HALF_WRITTEN.fullmatch(name) and now - status.st_mtime > _IDLE_SECONDS:
                    os.unlink(name, dir_fd=folder)
        for _, name, size in sorted(found, reverse=True):
            total += size
            if total > most:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)


@contextmanager
def _folder(*, make: bool) -> Iterator[int]:
    """A descriptor of the private folder."""
    path = paths.private_dir()
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | _flags(_FOLDER_FLAGS))
    try:
        _check_private(os.fstat(descriptor), str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def _check_private(found: os.stat_result, name: str) -> None:
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(errno.EPERM, "other users can read or write it", name)


def _flags(names: tuple[str, ...]) -> int:
    """Combine flags of ``os.open``; not every system has all of them."""
    return sum(getattr(os, name, 0) for name in names)
