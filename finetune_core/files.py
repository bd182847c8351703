"""Writing files and folders so that a reader, or a crash, never meets half of one; reading what may not be what it seems."""

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
from finetune_core.formatting import size

Stamp = tuple[int, int, int]  # inode, bytes, nanoseconds

# What Thaw makes and deletes beside other people's files is named like this, and with eight
# random letters at the end.
_OWN = ".thaw-"
_IDLE_SECONDS = 3600.0
# Between making a staging folder and locking its marker, another process must not take it for left.
_YOUNG_SECONDS = 60
_MARKER = "lock"
# Not every system has all of these. A FIFO without a writer would be waited for, a link leads anywhere.
_FLAGS = ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY")
_NO_FILE = {
    stat.S_IFLNK: "a link, which is not followed",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegular(OSError):
    """What a path leads to is no regular file; ``strerror`` says what it is: ``a FIFO``."""


def is_file(name: str) -> bool:
    """Whether what a person typed names a file; what no system could read names none."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def is_folder(name: str) -> bool:
    """Whether what a person typed names a folder."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


def regular_file(path: Path) -> os.stat_result | None:
    """What is known of a file, or None where there is none: a link, a folder or a FIFO is none."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):  # a name that no system takes
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def stamp(path: Path) -> Stamp | None:
    """Changes when a file is written or replaced; None where there is no regular file."""
    found = regular_file(path)
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found else None


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, be it a link that leads nowhere."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a name that no system takes
        return False


def is_link(path: Path) -> bool:
    """Whether a path is a link itself, wherever that leads."""
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def check_regular(path: Path) -> None:
    """Whether a file that anybody may have put there is a regular file, or not there yet.

    Raises:
        NotRegular: when it is neither.
        OSError: when that cannot be found out.
    """
    with suppress(FileNotFoundError):
        _check_mode(os.lstat(path).st_mode, path)


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Open a file that anybody may have put there; never waits, and follows no link at the end of ``path`` unless ``follow``.

    Returns:
        A descriptor, for ``open``.

    Raises:
        FileNotFoundError: when there is nothing.
        NotRegular: when it is no regular file.
        OSError: when it cannot be opened.
    """
    if not flags & os.O_CREAT:
        # before it is opened: devices may do something then
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
    """All of a file that anybody may have put there, as ``open_regular`` opens it.

    Args:
        most: bytes.

    Raises:
        FileNotFoundError: when there is nothing.
        OSError: when it is no regular file, is larger than ``most``, or cannot be read.
    """
    with open(open_regular(path), "rb") as file:
        there = os.fstat(file.fileno()).st_size
        content = file.read(min(there, most) + 1)
    if len(content) > most or there > most:
        raise OSError(errno.EFBIG, f"larger than {size(most)}", str(path))
    return content


def problem_with(path: Path, error: Exception) -> str:
    """What is wrong with a file, in one line, without the folders above it: ``config.json is a folder``."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
        return (
            f"{path.name} is {reason}"
            if isinstance(error, NotRegular) or error.errno == errno.EFBIG
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
        raise NotRegular(
            errno.EINVAL, _NO_FILE.get(stat.S_IFMT(mode), "no regular file"), str(path)
        )


def _make_readable(descriptor: int) -> None:
    """Let everybody read a file, whatever the umask is."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o644)


@contextmanager
def replacing(
    path: Path, *, make_folder: bool = True, set_mode: Callable[[int], None] = _make_readable
) -> Iterator[BinaryIO]:
    """Open a file that takes ``path``'s place when the block ends well, and vanishes when not.

    It is written beside ``path``, flushed, synced and renamed. Then the folder is synced, so that
    the rename survives a power cut. Files that killed processes have left are swept first.

    Args:
        make_folder: make the folder where there is none.
        set_mode: sets the file's permissions, by its descriptor: another user of the folder may have
            put a link in its place. Before that they are what the umask leaves.

    Raises:
        FileNotFoundError: when there is no folder and ``make_folder`` is False.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    beside = path.with_name(f"{_OWN}{_start(path.name)}-{secrets.token_hex(4)}")
    try:
        with open(beside, "xb") as file:
            set_mode(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _start(name: str) -> str:
    """Return as much of a name as leaves room for more: systems admit 255 bytes."""
    return name[:50]


def sweep(path: Path, older_than: float = _IDLE_SECONDS) -> None:
    """Delete what processes that were killed while ``replacing`` a file have left beside it.

    Args:
        older_than: seconds since anything was written to it; 0 where nobody can be writing.
    """
    for left in _own_entries(path.parent, _start(path.name)):
        found = regular_file(left)
        if found and os.name == "posix" and found.st_uid != os.getuid():
            continue
        if found and time.time() - found.st_mtime >= older_than:
            with suppress(OSError):  # another process sweeps, too
                left.unlink()


def _own_entries(parent: Path, name: str) -> list[Path]:
    """Return what lies in a folder under names that ``tempfile`` gives for our prefix and a name."""
    pattern = re.compile(rf"{re.escape(_OWN + name)}-[a-z0-9_]{{8}}")
    try:
        return [parent / one for one in os.listdir(parent) if pattern.fullmatch(one)]
    except OSError:
        return []


def write_bytes(path: Path, content: bytes, *, make_folder: bool = True) -> None:
    """Write all of a file or none of it.

    Raises:
        FileNotFoundError: when there is no folder and ``make_folder`` is False.
    """
    with replacing(path, make_folder=make_folder) as file:
        file.write(content)


def copy_regular(source: Path, target: Path) -> None:
    """Copy a file that anybody may have put there, all of it or nothing.

    Raises:
        FileNotFoundError: when there is none.
        OSError: when it is no regular file, or cannot be copied.
    """
    with open(open_regular(source), "rb") as read, replacing(target) as file:
        shutil.copyfileobj(read, file)


@contextmanager
def staging_folder(parent: Path, purpose: str) -> Iterator[Path]:
    """A folder to fill and to ``settle`` beside; gone when the block ends, if it was not settled.

    It lies in a folder ``.thaw-PURPOSE-XXXXXXXX`` of ``parent`` that nobody else can enter, next to
    a marker that is locked until the block ends. Folders of that kind whose marker nobody holds
    were left by processes that were killed: they go first.

    Args:
        purpose: a word.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in _own_entries(parent, purpose):
        _delete_left(left)
    own = Path(tempfile.mkdtemp(prefix=f"{_OWN}{purpose}-", dir=parent))
    folder = own / "new"
    with _held_folder(own) as held:
        try:
            with FileLock(own / _MARKER, thread_local=False):
                _make_readable_folder(folder, held)
                yield folder
        finally:
            _delete_staging(own, held)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A staging folder in the system's temporary folder, for what no other user may see or change.

    Raises:
        OSError: when other users can rename that folder, what is in it, or a folder above it.
    """
    # Resolved once: another user could change a link in it later.
    parent = Path(tempfile.gettempdir()).resolve()
    for one in (parent, *parent.parents) if os.name == "posix" else ():
        found = one.stat()
        shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if shared or found.st_uid not in (0, os.getuid()):
            raise PermissionError(errno.EPERM, "other users can rename what is there", str(one))
    with staging_folder(parent, purpose) as folder:
        yield folder


@contextmanager
def _held_folder(folder: Path) -> Iterator[int | None]:
    """Open a folder, but no link to one. Yields its descriptor, or None where systems have none.

    Raises:
        OSError: when it is no folder of this user's.
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
    """Make a folder that others can read, whatever the umask is.

    Args:
        parent: descriptor of the folder around it. By its path, another user could put a link in the
            place of what was made, and have the permissions of another file changed.
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
    """Give a folder of this user's the permissions of another folder.

    Raises:
        OSError: when ``target`` is no folder of this user's.
    """
    mode = stat.S_IMODE(source.stat().st_mode)
    with _held_folder(target) as held:
        if held is None:
            target.chmod(mode)
        else:
            os.fchmod(held, mode)


def _delete_staging(folder: Path, held: int | None) -> None:
    """Delete a staging folder, and nothing that another user of ``parent`` has put in its place.

    Args:
        held: its descriptor.
    """
    inside = folder if held is None else Path()
    # The marker goes last: without it, what a kill leaves would not be known for ours.
    shutil.rmtree(inside / "new", ignore_errors=True, dir_fd=held)
    with suppress(OSError):
        os.unlink(inside / _MARKER, dir_fd=held)
    with suppress(OSError):
        os.rmdir(folder)


def _delete_left(folder: Path) -> None:
    """Delete a staging folder that was made by this user and that no living process holds."""
    try:
        if time.time() - os.lstat(folder).st_mtime < _YOUNG_SECONDS:
            return
        with _held_folder(folder) as held:
            if not regular_file(folder / _MARKER):
                os.rmdir(folder)  # it was killed before it could make the marker, so it is empty
                return
            with FileLock(folder / _MARKER).acquire(timeout=0):
                _delete_staging(folder, held)
    except (OSError, TimeoutError):  # a living process holds it, or another one sweeps, too
        return


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


def check_output(path: Path, option: str) -> None:
    """Check that a file which a person named may be written: before hours of work for its content.

    Args:
        option: the setting that named the file.

    Raises:
        ConfigError: when anything but a writable regular file is there.
    """
    with _output_problems(path, option):
        _owner_and_mode(path)


def write_output(path: Path, content: bytes, option: str) -> None:
    """Write a file that a person named, all of it or nothing.

    A new file has the permissions that the umask leaves. An earlier one keeps its owner and permissions.

    Args:
        option: the setting that named the file.

    Raises:
        ConfigError: as ``check_output``, and when the file cannot be written.
    """
    with _output_problems(path, option):
        set_mode = partial(_keep_owner_and_mode, _owner_and_mode(path))
        with replacing(path, set_mode=set_mode) as file:
            file.write(content)


@contextmanager
def _output_problems(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except NotRegular as error:
        problem = f"{path} is {error.strerror}. Name a regular file, or a new one."
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}."
    except ValueError as error:
        problem = f"{path} cannot be written: {error}."
    else:
        return
    raise ConfigError({option: problem})


def _owner_and_mode(path: Path) -> os.stat_result | None:
    """Return what is known of a file that can be written, or None where there is none."""
    try:
        descriptor = open_regular(path, os.O_WRONLY)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _keep_owner_and_mode(kept: os.stat_result | None, descriptor: int) -> None:
    if kept is None or os.name != "posix":
        return
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) != (kept.st_uid, kept.st_gid):
        os.fchown(descriptor, kept.st_uid, kept.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(kept.st_mode))
