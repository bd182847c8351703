"""Who has a run: the lock in its folder, held by the process that has it queued or running; of a run that a task trains, its owner, too."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from filelock import FileLock

from finetune_core.errors import RunError
from finetune_core.files import NotRegular, check_regular, regular_file
from finetune_core.runs.ownership import Owner, claim, has_owner_file, is_owned

LOCK_TIMEOUT = 3.0  # seconds
LOCK_FILE = "lock"
# two threads that look at one lock would each take the other for a process that has the run
_LOOKING = Lock()


class RunLock:
    """A run that this process has: its lock, and where a task has ever had the run, its ownership."""

    def __init__(self, lock: FileLock, owner: Owner | None = None) -> None:
        self._lock, self._owner = lock, owner

    def check(self) -> None:
        """To be asked before anything is written.

        Raises:
            TakenOver: when the run is another process's now.
        """
        if self._owner:
            self._owner.check()

    def own(self) -> int:
        """The number of this process as the run's owner, which it is from now on; a task can take the run over from it.

        Raises:
            RunError: when another process is, or nothing can be written there.
        """
        if self._owner is None:
            run_dir = Path(self._lock.lock_file).parent
            try:
                self._owner = claim(run_dir)
            except OSError as error:
                raise not_written(run_dir, error) from None
        return self._owner.number

    def holds(self) -> bool:
        """Whether no task has taken the run over."""
        return self._owner is None or self._owner.holds()

    def release(self) -> None:
        """Let others have it."""
        if self._owner:
            self._owner.release()
        self._lock.release(force=True)


def is_locked(run_dir: Path) -> bool:
    """Whether a living process, on this machine or another, has the run queued or running."""
    return _is_locked_here(run_dir) or is_owned(run_dir)


def _is_locked_here(run_dir: Path) -> bool:
    if not regular_file(run_dir / LOCK_FILE):
        return False
    probe = FileLock(run_dir / LOCK_FILE)
    try:
        with _LOOKING, probe.acquire(timeout=0):
            return False
    except TimeoutError:
        return True
    except OSError:  # a folder that may only be read: nobody trains there
        return False


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Nobody trains the run meanwhile.

    Raises:
        RunError: when somebody does, or nothing can be written there.
    """
    lock = acquire_lock(run_dir)
    try:
        yield
    finally:
        lock.release()


def acquire_lock(run_dir: Path) -> RunLock:
    """
    Raises:
        RunError: when another process has the run, or its lock is no regular file, or cannot be written.
    """
    path = run_dir / LOCK_FILE
    lock = FileLock(path, thread_local=False)
    try:
        check_regular(path)
        # Whoever wrote the run's last event lets go of it a moment later, and who looks whether it is locked holds it for an instant.
        lock.acquire(timeout=LOCK_TIMEOUT, poll_interval=0.02)
        return RunLock(
            lock, claim(run_dir, patience=LOCK_TIMEOUT) if has_owner_file(run_dir) else None
        )
    except NotRegular as error:
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
        raise not_written(run_dir, error) from None


def not_written(run_dir: Path, error: OSError) -> RunError:
    return RunError(
        f"The run {run_dir.name} cannot be written to: {error}. "
        "Make room, or check who may write there."
    )
