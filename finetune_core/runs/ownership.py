"""Ownership of runs that a task on some machine trains.

An owner is a numbered file in the run directory, which the owning process keeps touching. Locks on
network storage cannot be trusted, but only one process can create a file. The highest number owns
the run. A process takes a run over from a dead owner by creating the next number. An owner whose
number is no longer the highest has lost the run. Clocks of two machines are never compared: an
owner on another machine counts as dead if its file has not changed for a while, as seen from here.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Event, Lock, Thread

import psutil
from pydantic import TypeAdapter, ValidationError

from finetune_core.errors import RunError
from finetune_core.files import Stamp, file_stamp, open_regular, read_regular, write_bytes

BEAT = 2.0  # seconds between two signs of life
STALE = 30.0  # seconds without a sign of life after which another machine takes an owner for dead
_LONG_GONE = 600.0  # seconds; clocks of two machines differ by less
_LOOK = 0.1  # seconds
_LARGEST = 10_000  # bytes
_NAME = re.compile(r"owner-(\d{1,9})\.json")


@dataclass(frozen=True)
class Holder:
    """A process that has, or had, a run.

    Attributes:
        host: name of the machine, for people.
        machine: id that differs between machines, their boots, and containers with processes of
            their own.
        pid: id of the process.
        began: start of the process, in seconds since 1970.
        task: the task that trains the run; empty if none does.
        released: whether the process has released the run.
    """

    host: str
    machine: str
    pid: int
    began: float
    task: str = ""
    released: bool = False

    @property
    def is_local(self) -> bool:
        """True if the process is, or was, one of this machine."""
        return self.machine == _machine_id()

    @property
    def is_alive(self) -> bool:
        """True if a process of this machine is alive.

        A process that has ended may be listed until its parent has collected it.
        """
        try:
            process = psutil.Process(self.pid)
            return bool(
                abs(process.create_time() - self.began) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            # No process can have this number: anybody may have written the file.
            return False


_HOLDER = TypeAdapter(Holder)


class RunTakenOver(RunError):
    """Raised if another process has taken the run over.

    Nothing may be written into the run directory then.
    """


class Owner:
    """This process as the owner of a run, until it releases the run.

    Attributes:
        number: number of its file.
        before: the previous owner; None if there was none, or its file cannot be read.
        lost: called in a thread of its own once another process has taken the run over.
    """

    def __init__(
        self,
        run_dir: Path,
        number: int,
        holder: Holder,
        before: Holder | None,
        lost: Callable[[], None],
    ) -> None:
        self.number, self.before, self.lost = number, before, lost
        self._owner_file, self._holder, self._ended = _owner_file(run_dir, number), holder, Event()
        self._next, self._last_beat, self._is_lost = (
            _owner_file(run_dir, number + 1),
            time.monotonic(),
            False,
        )
        Thread(target=self._send_beats, name=f"owner of {run_dir.name}", daemon=True).start()

    def check(self) -> None:
        """Check that this process still owns the run. Call before writing.

        A process that was suspended has missed its signs of life, and looks at the files before it
        goes on.

        Raises:
            RunTakenOver: if another process has claimed the run.
        """
        if self._is_lost or (time.monotonic() - self._last_beat > 2 * BEAT and not self._beat()):
            raise RunTakenOver(
                f"The run {self._owner_file.parent.name} was taken over by another process while "
                "this one did not respond."
            )

    def become_owner(self) -> int:
        """Return the number of this owner, as ``RunLock.become_owner`` does."""
        return self.number

    def release(self) -> None:
        """Release the run. If the run was lost, nothing is written."""
        self._ended.set()
        if self.is_held():
            with suppress(OSError):  # the owner then counts as dead once this process has ended
                content = _encode(replace(self._holder, released=True))
                write_bytes(self._owner_file, content, make_folder=False)

    def _send_beats(self) -> None:
        while not self._ended.wait(BEAT):
            if not self._beat() and not self._ended.is_set():
                self._is_lost = True
                self.lost()
                return

    def _beat(self) -> bool:
        try:
            if not self.is_held():
                return False
            os.utime(self._owner_file)
            self._last_beat = time.monotonic()
        except FileNotFoundError:
            return False
        except OSError:  # a process that can reach the storage decides
            pass
        return True

    def is_held(self) -> bool:
        """Return whether no process has taken the run over."""
        return self._owner_file.exists() and not self._next.exists()


def claim(
    run_dir: Path,
    *,
    task: str = "",
    handed: int = 0,
    patience: float = 0.0,
    lost: Callable[[], None] = lambda: None,
) -> Owner:
    """Take a run that no process has.

    Args:
        run_dir: the run directory.
        task: see ``Holder``.
        handed: number of an owner that hands the run to this process while it is still alive.
        patience: seconds to wait for an owner to end.
        lost: see ``Owner``.

    Raises:
        RunError: if another process has the run.
        OSError: if the run directory cannot be written to.
    """
    end = time.monotonic() + patience
    while True:
        number, before = _read_last(run_dir)
        if number != handed and _is_alive(run_dir, number, before):
            if time.monotonic() >= end:
                where = f" on {before.host}" if before else ""
                raise RunError(f"The run {run_dir.name} is going on already{where}.")
        elif owner := _create_next_owner(run_dir, number, before, task, lost):
            break
        time.sleep(_LOOK)
    if before and not before.is_local and not before.released:
        # A previous owner that was only suspended finds out within this time that it has lost the
        # run, and writes nothing more.
        time.sleep(2 * BEAT)
    return owner


def is_owned(run_dir: Path) -> bool:
    """Return whether a living process, on any machine, owns the run."""
    return _is_alive(run_dir, *_read_last(run_dir))


def has_owner_file(run_dir: Path) -> bool:
    """Return whether a task has ever had the run."""
    return bool(_read_last(run_dir)[0])


def current_holder(task: str = "") -> Holder:
    """Return this process as the holder of a run."""
    own = psutil.Process()
    return Holder(platform.node(), _machine_id(), own.pid, own.create_time(), task)


def _create_next_owner(
    run_dir: Path, before: int, holder: Holder | None, task: str, lost: Callable[[], None]
) -> Owner | None:
    """Become the next owner; return None if another process was faster."""
    own = current_holder(task)
    try:
        descriptor = open_regular(
            _owner_file(run_dir, before + 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL
        )
    except FileExistsError:
        return None
    with open(descriptor, "wb") as file:
        file.write(_encode(own))
    owner = Owner(run_dir, before + 1, own, holder, lost)
    for number in _list_numbers(run_dir):
        if number <= before:
            with suppress(OSError):  # only the highest number counts
                _owner_file(run_dir, number).unlink()
    return owner


@lru_cache(maxsize=1)
def _machine_id() -> str:
    parts = [platform.node()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(
                os.readlink(file) if file.endswith("pid") else Path(file).read_text().strip()
            )
    return " ".join(parts)


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _owner_file(run_dir: Path, number: int) -> Path:
    return run_dir / f"owner-{number}.json"


def _list_numbers(run_dir: Path) -> list[int]:
    with suppress(OSError), os.scandir(run_dir) as entries:
        return [int(found[1]) for entry in entries if (found := _NAME.fullmatch(entry.name))]
    return []


def _read_last(run_dir: Path) -> tuple[int, Holder | None]:
    """Return the highest number, and its holder.

    The number is 0 if there never was an owner. The holder is None if its file is damaged, or just
    being written.
    """
    number = max(_list_numbers(run_dir), default=0)
    try:
        return number, _HOLDER.validate_json(
            read_regular(_owner_file(run_dir, number), _LARGEST)
        ) if number else None
    except (OSError, ValidationError):
        return number, None


# File -> its last known stamp, and the time on this process's clock when it was first seen.
_seen: dict[Path, tuple[Stamp, float]] = {}
_seen_lock = Lock()


def _is_alive(run_dir: Path, number: int, holder: Holder | None) -> bool:
    if not number or (holder and holder.released):
        return False
    if holder and holder.is_local:
        return holder.is_alive
    file = _owner_file(run_dir, number)
    now = file_stamp(file)
    if now is None:
        return False
    with _seen_lock:
        if file not in _seen or _seen[file][0] != now:
            first_look = file not in _seen
            is_dead = first_look and time.time() - now[2] / 1e9 > _LONG_GONE
            _seen[file] = (now, time.monotonic() - (STALE if is_dead else 0.0))
        return time.monotonic() - _seen[file][1] < STALE
