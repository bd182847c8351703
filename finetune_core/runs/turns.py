"""One run per device at a time, whichever programs of this machine train: a lock that a run waits for."""

from collections.abc import Generator
from contextlib import suppress

from filelock import FileLock, Timeout

from finetune_core import paths
from finetune_core.training.events import Event, Progress, RunStopped
from finetune_core.training.loop import StopRequested

WAITING = "device"  # the phase of a run that waits here
_POLL = 1.0  # seconds


def in_turn(events: Generator[Event, None, None], device: str) -> Generator[Event | None, None, None]:
    """A run's events, once no other program trains on that kind of device.

    While it waits it says so once, and then yields None every second: nothing new, but a moment at which it can be stopped. Where
    no lock can be written it does not wait: no other program can have locked the device there.
    """
    folder = paths.home() / "locks"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{device}.lock", thread_local=False)
    reported = False
    try:
        while not _taken(lock):
            yield None if reported else Progress(WAITING, 0, 0)
            reported = True
        if reported:
            yield Progress("prepare", 0, 0)
    except StopRequested as request:
        lock.release(force=True)
        yield RunStopped(0, 0, 0.0, request.pause)
        return
    try:
        yield from events
    finally:
        lock.release(force=True)


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=_POLL, poll_interval=0.1)
    except Timeout:
        return False
    except OSError:  # a home that may only be read, say
        return True
    return True
