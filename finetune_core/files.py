"""Atomic writing of files and folders, and safe reading of files of unknown kind.

No reader ever sees half of a file or folder, not even after a crash.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from pydantic import ValidationError

from finetune_core.errors import ConfigError
from finetune_core.formatting import format_bytes

Stamp = tuple[int, int, int]  # inode, bytes, nanoseconds

# Prefix of temporary files and folders that Thaw creates and deletes beside other people's files.
# Their names end with eight random letters.
_PREFIX = ".thaw-"
_IDLE_SECONDS = 3600.0
# Between the creation of a staging folder and the lock on its marker, another process must not take
# the folder for abandoned.
_MIN_AGE_SECONDS = 60
_MARKER = "lock"
# Not every system has all of these flags. Opening a FIFO without a writer would block, and a link
# may lead anywhere.
_FLAGS = ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY")
_KIND_NAMES = {
    stat.S_IFLNK: "a link, which is not followed",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularFileError(OSError):
    """Raised if a path does not lead to a regular file.

    ``strerror`` says what the path leads to: ``a FIFO``.
    """


def is_file(name: str) -> bool:
    """Return whether a typed name is that of a file. False for names that no system could read."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def is_folder(name: str) -> bool:
    """Return whether a typed name is that of a folder."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


def stat_regular(path: Path) -> os.stat_result | None:
    """Return the status of a regular file.

    None where there is a link, a folder, a FIFO or nothing.
    """
    try:
        status = os.lstat(path)
    except (OSError, ValueError):  # a name that no system takes
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def file_stamp(path: Path) -> Stamp | None:
    """Return a value that changes when a file is written or replaced.

    None where there is no regular file.
    """
    status = stat_regular(path)
    return (status.st_ino, status.st_size, status.st_mtime_ns) if status else None


def path_exists(path: Path) -> bool:
    """Return whether anything has this path, including a broken link."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a name that no system takes
        return False


def is_link(path: Path) -> bool:
    """Return whether a path itself is a link, wherever the link leads."""
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def check_regular(path: Path) -> None:
    """Check that an untrusted path is a regular file or does not exist.

    Raises:
        NotRegularFileError: if the path is anything else.
        OSError: if that cannot be found out.
    """
    with suppress(FileNotFoundError):
        _check_mode(os.lstat(path).st_mode, path)


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Open an untrusted regular file.

    Never blocks, and follows no link at the end of ``path`` unless ``follow`` is true.

    Returns:
        A descriptor, for ``open``.

    Raises:
        FileNotFoundError: if there is nothing.
        NotRegularFileError: if it is no regular file.
        OSError: if it cannot be opened.
    """
    if not flags & os.O_CREAT:
        # Check before opening, because opening a device may have effects.
        _check_mode(os.stat(path, follow_symlinks=follow).st_mode, path)
    added = (getattr(os, flag, 0) for flag in _FLAGS if not (follow and flag == "O_NOFOLLOW"))
    descriptor = os.open(path, flags | sum(added), 0o644)
    try:
        _check_mode(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of an untrusted file, opened by ``open_regular``.

    Args:
        path: the file.
        most: maximum size in bytes.

    Raises:
        FileNotFoundError: if there is nothing.
        OSError: if it is no regular file, is larger than ``most``, or cannot be read.
    """
    with open(open_regular(path), "rb") as file:
        size_on_disk = os.fstat(file.fileno()).st_size
        content = file.read(min(size_on_disk, most) + 1)
    if len(content) > most or size_on_disk > most:
        raise OSError(errno.EFBIG, f"larger than {format_bytes(most)}", str(path))
    return content


def describe_problem(path: Path, error: Exception) -> str:
    """Return the problem with a file in one line, without its parent folders.

    For example: ``config.json is a folder``.
    """
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
        return (
            f"{path.name} is {reason}"
            if isinstance(error, NotRegularFileError) or error.errno == errno.EFBIG
            else f"{path.name}: {reason}"
        )
    reason = str(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        reason = (
            ": ".join([".".join(map(str, first["loc"]))[:100], first["msg"]])
            if first["loc"]
            else first["msg"]
        )
    return f"{path.name} is damaged: {' '.join(reason.split())[:200] or type(error).__name__}"


def _check_mode(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegularFileError(
            errno.EINVAL, _KIND_NAMES.get(stat.S_IFMT(mode), "no regular file"), str(path)
        )


def _make_readable(descriptor: int) -> None:
    """Let everybody read a file, whatever the umask is."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o644)


@contextmanager
def replace_atomically(
    path: Path, *, make_folder: bool = True, set_mode: Callable[[int], None] = _make_readable
) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` if the block succeeds, and is deleted otherwise.

    The file is written beside ``path``, flushed, synced and renamed. Then the folder is synced, so
    that the rename survives a power cut. Files left behind by killed processes are swept first.

    Args:
        path: the file to replace.
        make_folder: create the folder if it is missing.
        set_mode: sets the file's permissions by its descriptor, because another user of the folder
            may have put a link in its place. Until then the permissions follow the umask.

    Raises:
        FileNotFoundError: if there is no folder and ``make_folder`` is False.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    temporary = path.with_name(f"{_PREFIX}{_shorten(path.name)}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            set_mode(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _shorten(name: str) -> str:
    """Return the start of a name, short enough to be extended: systems allow 255 bytes."""
    return name[:50]


def remove_abandoned(path: Path, older_than: float = _IDLE_SECONDS) -> None:
    """Delete files left beside ``path`` by processes killed during ``replace_atomically``.

    Args:
        path: the file.
        older_than: seconds since the last write. 0 where nobody can be writing.
    """
    for abandoned in _list_own_entries(path.parent, _shorten(path.name)):
        status = stat_regular(abandoned)
        if status and os.name == "posix" and status.st_uid != os.getuid():
            continue
        if status and time.time() - status.st_mtime >= older_than:
            with suppress(OSError):  # another process sweeps at the same time
                abandoned.unlink()


def _list_own_entries(parent: Path, name: str) -> list[Path]:
    """Return the paths in a folder that match the names of our temporary files."""
    pattern = re.compile(rf"{re.escape(_PREFIX + name)}-[a-z0-9_]{{8}}")
    try:
        return [parent / entry for entry in os.listdir(parent) if pattern.fullmatch(entry)]
    except OSError:
        return []


def write_bytes(path: Path, content: bytes, *, make_folder: bool = True) -> None:
    """Write a file completely or not at all.

    Raises:
        FileNotFoundError: if there is no folder and ``make_folder`` is False.
    """
    with replace_atomically(path, make_folder=make_folder) as file:
        file.write(content)


def copy_regular(source: Path, target: Path) -> None:
    """Copy an untrusted file completely or not at all.

    Raises:
        FileNotFoundError: if there is no file.
        OSError: if it is no regular file, or cannot be copied.
    """
    with open(open_regular(source), "rb") as read, replace_atomically(target) as file:
        shutil.copyfileobj(read, file)


@contextmanager
def staging_folder(parent: Path, purpose: str) -> Iterator[Path]:
    """Create a folder to fill and then publish. It is deleted after the block unless published.

    The folder lies in ``.thaw-PURPOSE-XXXXXXXX`` below ``parent``, which nobody else can enter,
    next to a marker file that is locked until the block ends. Folders of that kind with an unlocked
    marker were left behind by killed processes, and are deleted first.

    Args:
        parent: folder of the staging folder.
        purpose: a word for the name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for abandoned in _list_own_entries(parent, purpose):
        _delete_abandoned(abandoned)
    own = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=parent))
    folder = own / "new"
    with _open_folder(own) as descriptor:
        try:
            with FileLock(own / _MARKER, thread_local=False):
                _make_readable_folder(folder, descriptor)
                yield folder
        finally:
            _delete_staging(own, descriptor)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Create a staging folder in the system's temporary folder, closed to other users.

    Other users can neither see nor change its content.

    Raises:
        OSError: if other users can rename that folder, its content, or a folder above it.
    """
    # Resolve links once, because another user could change one later.
    parent = Path(tempfile.gettempdir()).resolve()
    for folder_above in (parent, *parent.parents) if os.name == "posix" else ():
        status = folder_above.stat()
        shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if shared or status.st_uid not in (0, os.getuid()):
            raise PermissionError(
                errno.EPERM, "other users can rename what is there", str(folder_above)
            )
    with staging_folder(parent, purpose) as folder:
        yield folder


@contextmanager
def _open_folder(folder: Path) -> Iterator[int | None]:
    """Open a folder, but no link to one, and yield its descriptor. None where systems have none.

    Raises:
        OSError: if it is no folder of this user.
    """
    if os.name != "posix":
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it is another user's", str(folder))
        yield descriptor
    finally:
        os.close(descriptor)


def _make_readable_folder(folder: Path, parent: int | None) -> None:
    """Create a folder that others can read, whatever the umask is.

    Args:
        folder: the folder.
        parent: descriptor of its parent. With the parent's path, another user could replace the new
            folder by a link, and another file's permissions would be changed.
    """
    if parent is None:
        folder.mkdir()
        return
    os.mkdir(folder.name, dir_fd=parent)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder.name, flags, dir_fd=parent)
    try:
        os.fchmod(descriptor, 0o755)
    finally:
        os.close(descriptor)


def copy_folder_mode(source: Path, target: Path) -> None:
    """Give one of this user's folders the permissions of another folder.

    Raises:
        OSError: if ``target`` is no folder of this user.
    """
    mode = stat.S_IMODE(source.stat().st_mode)
    with _open_folder(target) as descriptor:
        if descriptor is None:
            target.chmod(mode)
        else:
            os.fchmod(descriptor, mode)


def _delete_staging(folder: Path, descriptor: int | None) -> None:
    """Delete a staging folder, but nothing that another user has put in its place.

    Args:
        folder: the staging folder.
        descriptor: descriptor of the folder. None where systems have none.
    """
    inside = folder if descriptor is None else Path()
    # Delete the marker last. Without it, a folder left behind by a kill would not be recognised as
    # ours.
    shutil.rmtree(inside / "new", ignore_errors=True, dir_fd=descriptor)
    with suppress(OSError):
        os.unlink(inside / _MARKER, dir_fd=descriptor)
    with suppress(OSError):
        os.rmdir(folder)


def _delete_abandoned(folder: Path) -> None:
    """Delete a staging folder of this user that no living process holds."""
    try:
        if time.time() - os.lstat(folder).st_mtime < _MIN_AGE_SECONDS:
            return
        with _open_folder(folder) as descriptor:
            if not stat_regular(folder / _MARKER):
                os.rmdir(folder)  # killed before it could create the marker, so the folder is empty
                return
            with FileLock(folder / _MARKER).acquire(timeout=0):
                _delete_staging(folder, descriptor)
    except (OSError, TimeoutError):  # a living process holds it, or another one sweeps
        return


def publish_folder(staged: Path, folder: Path) -> None:
    """Rename a staged folder to its final name, unless another process was faster."""
    try:
        staged.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(path: Path, option: str) -> None:
    """Check that a file can be written. Call before hours of work for its content.

    Args:
        path: the file.
        option: the setting that named the file.

    Raises:
        ConfigError: if anything but a writable regular file is there.
    """
    with _explain_output_errors(path, option):
        _stat_output(path)


def write_output(path: Path, content: bytes, option: str) -> None:
    """Write a file that a person named, completely or not at all.

    A new file has the permissions that the umask leaves. An existing file keeps its owner and
    permissions.

    Args:
        path: the file.
        content: the content.
        option: the setting that named the file.

    Raises:
        ConfigError: as ``check_output`` does, and if the file cannot be written.
    """
    with _explain_output_errors(path, option):
        set_mode = partial(_keep_owner_and_mode, _stat_output(path))
        with replace_atomically(path, set_mode=set_mode) as file:
            file.write(content)


@contextmanager
def _explain_output_errors(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except NotRegularFileError as error:
        problem = f"{path} is {error.strerror}. Name a regular file, or a new one."
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}."
    except ValueError as error:
        problem = f"{path} cannot be written: {error}."
    else:
        return
    raise ConfigError({option: problem})


def _stat_output(path: Path) -> os.stat_result | None:
    """Return the status of a writable file, or None where there is no file."""
    try:
        descriptor = open_regular(path, os.O_WRONLY)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _keep_owner_and_mode(previous: os.stat_result | None, descriptor: int) -> None:
    if previous is None or os.name != "posix":
        return
    status = os.fstat(descriptor)
    if (status.st_uid, status.st_gid) != (previous.st_uid, previous.st_gid):
        os.fchown(descriptor, previous.st_uid, previous.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(previous.st_mode))
