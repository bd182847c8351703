"""Locks of runs: the process that has a run queued or running holds the lock in its directory.

A run that a task trains also has an owner (see ``ownership``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from filelock import FileLock

from finetune_core.errors import RunError
from finetune_core.files import NotRegularFileError, check_regular, stat_regular
from finetune_core.runs.ownership import Owner, claim, has_owner_file, is_owned

LOCK_TIMEOUT = 3.0  # seconds
LOCK_FILE = "lock"
# Two threads that probe one lock would each take the other for a process that has the run.
_probe_lock = Lock()


class RunLock:
    """Lock of a run that this process has, and its ownership if a task has ever had the run."""

    def __init__(self, lock: FileLock, owner: Owner | None = None) -> None:
        self._lock, self._owner = lock, owner

    def check(self) -> None:
        """Check that this process still owns the run. Call before writing.

        Raises:
            RunTakenOver: if another process has claimed the run.
        """
        if self._owner:
            self._owner.check()

    def become_owner(self) -> int:
        """Make this process the owner of the run, so that a task can take the run over from it.

        Returns:
            The number of the owner.

        Raises:
            RunError: if another process is the owner, or the run directory cannot be written to.
        """
        if self._owner is None:
            run_dir = Path(self._lock.lock_file).parent
            try:
                self._owner = claim(run_dir)
            except OSError as error:
                raise write_error(run_dir, error) from None
        return self._owner.number

    def is_held(self) -> bool:
        """Return whether no task has taken the run over."""
        return self._owner is None or self._owner.is_held()

    def release(self) -> None:
        """Release the run for other processes."""
        if self._owner:
            self._owner.release()
        self._lock.release(force=True)


def is_locked(run_dir: Path) -> bool:
    """Return whether a living process, on any machine, has the run queued or running."""
    return _is_locked_here(run_dir) or is_owned(run_dir)


def _is_locked_here(run_dir: Path) -> bool:
    if not stat_regular(run_dir / LOCK_FILE):
        return False
    probe = FileLock(run_dir / LOCK_FILE)
    try:
        with _probe_lock, probe.acquire(timeout=0):
            return False
    except TimeoutError:
        return True
    except OSError:  # nobody trains in a read-only directory
        return False


@contextmanager
def hold_lock(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run, so that nobody trains it meanwhile.

    Raises:
        RunError: if a process has the run, or the run directory cannot be written to.
    """
    lock = acquire_lock(run_dir)
    try:
        yield
    finally:
        lock.release()


def acquire_lock(run_dir: Path) -> RunLock:
    """Acquire the lock of a run.

    Raises:
        RunError: if another process has the run, or its lock is no regular file, or cannot be
            written.
    """
    path = run_dir / LOCK_FILE
    lock = FileLock(path, thread_local=False)
    try:
        check_regular(path)
        # The writer releases the lock shortly after the last event, and every reader holds it
        # briefly while probing. Retry before reporting the run as busy.
        lock.acquire(timeout=LOCK_TIMEOUT, poll_interval=0.02)
        return RunLock(
            lock, claim(run_dir, patience=LOCK_TIMEOUT) if has_owner_file(run_dir) else None
        )
    except NotRegularFileError as error:
        raise RunError(
            f"{path} is {error.strerror}: delete it, then the run {run_dir.name} can be locked."
        ) from None
    except TimeoutError:
        raise RunError(f"The run {run_dir.name} is going on already.") from None
    except RunError:
        lock.release(force=True)
        raise
    except OSError as error:
        lock.release(force=True)
        raise write_error(run_dir, error) from None


def write_error(run_dir: Path, error: OSError) -> RunError:
    """Return the error of a run directory that cannot be written to."""
    return RunError(
        f"The run {run_dir.name} cannot be written to: {error}. "
        "Make room, or check who may write there."
    )
