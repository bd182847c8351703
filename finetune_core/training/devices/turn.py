"""A queue for each device of this machine, across programs: one piece of work at a time."""

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from filelock import FileLock, Timeout

from finetune_core import paths
from finetune_core.training.devices.device import Device, choose_device
from finetune_core.training.devices.memory import release_memory
from finetune_core.work import Step, Work

WAITING = "device"  # phase of the steps while waiting

T = TypeVar("T")

_POLL, _LOOK = 1.0, 0.1  # seconds


class Turn:
    """A position in the queue for a kind of device, given up at the end of a ``with`` block.

    The holder of the first lock is next, the holder of the second has the device. With a single
    lock, a program that starts one run after the other would always be faster than programs that
    look at the lock now and then.
    """

    def __init__(self, kind: str) -> None:
        self._folder, self._kind, self._has_device = paths.home() / "locks", kind, False
        self._next = FileLock(self._folder / f"{kind}-next.lock", thread_local=False)
        self._device = FileLock(self._folder / f"{kind}.lock", thread_local=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        _clear_frames(error)
        self.release()

    def acquire(self, *, at_once: bool = False) -> bool:
        """Return whether the turn has come, after waiting a second or so.

        Until it has, the position in the queue is kept. Where no lock can be written it has come:
        no other program can have locked the device there.

        Args:
            at_once: Do not wait.
        """
        patience = 0.0 if at_once else _POLL
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._next.is_locked:
                self._next.acquire(timeout=patience, poll_interval=_LOOK)
            self._device.acquire(timeout=patience, poll_interval=_LOOK)
        except Timeout:
            return False
        except OSError:
            # The home may be read-only.
            pass
        self._has_device = True
        self._next.release(force=True)
        return True

    def release(self) -> None:
        """Give up the device, after its memory, or the position in the queue."""
        if self._has_device:
            release_memory(self._kind)
        self._has_device = False
        for lock in (self._device, self._next):
            lock.release(force=True)


def run_in_turn(work: Work[T], kind: str) -> Work[T]:
    """Do some work once nothing else uses that kind of device.

    Yields:
        A step of the phase ``device`` every second while waiting, then the steps of the work.
    """
    with Turn(kind) as turn:
        try:
            while not turn.acquire():
                yield Step(0, None, WAITING)
            return (yield from work)
        finally:
            work.close()


def run_on_idle_device(make: Callable[[Device], Work[T]], precision: str = "auto") -> Work[T]:
    """Do some work on the GPU if nothing uses it, else on the processor.

    The work has the GPU to itself until it ends. Others may use the processor meanwhile.

    Args:
        make: Function of a device that returns the work. What it holds on the device is its own,
            and gone when it ends.
        precision: ``auto`` or ``fp32``.
    """
    device = choose_device("auto", precision)
    with Turn(device.kind) as turn:
        if device.kind == "cpu" or not turn.acquire(at_once=True):
            turn.release()
            device = choose_device("cpu", precision)
        return (yield from make(device))


def _clear_frames(error: BaseException | None) -> None:
    """Clear the frames of an error's tracebacks.

    As long as the error is referenced, their variables hold networks and optimizers.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        traceback.clear_frames(error.__traceback__)
        seen.append(error)
        error = error.__cause__ or error.__context__
