"""Who has a run that a task on some machine trains: a numbered file in its folder, which its owner keeps touching.

Locks on network storage cannot be trusted; that only one process can create a file can. The highest number has the run. Whoever takes a
run over from an owner that is gone creates the next number, and an owner that finds that its own is not the last any more has lost the
run. No two machines' clocks are compared: an owner on another machine is gone when its file has not changed for a while, as seen from here.
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
from finetune_core.files import Stamp, open_regular, read_regular, stamp, write_bytes

BEAT = 2.0  # seconds between two signs of life
STALE = 30.0  # seconds without one, seen from another machine, after which an owner is gone
_LONG_GONE = 600.0  # seconds by the clock, which no two machines' clocks differ by
_LOOK = 0.1  # seconds
_LARGEST = 10_000  # bytes
_NAME = re.compile(r"owner-(\d{1,9})\.json")


@dataclass(frozen=True)
class Holder:
    """A process that has a run, or had it.

    Attributes:
        host: for people.
        machine: differs between machines, their starts, and containers with processes of their own.
        pid, began: the process, and when it began (seconds since 1970).
        task: of whom it trains the run; empty: of nobody else.
        released: whether it has given the run back.
    """

    host: str
    machine: str
    pid: int
    began: float
    task: str = ""
    released: bool = False

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.machine == _machine()

    @property
    def runs(self) -> bool:
        """Whether a process of this machine is still there; one that has ended may be listed until its parent has taken note."""
        try:
            process = psutil.Process(self.pid)
            return bool(
                abs(process.create_time() - self.began) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            # a number that no process has: the file may be anybody's
            return False


_HOLDER = TypeAdapter(Holder)


class TakenOver(RunError):
    """The run is another process's now: nothing may be written into its folder any more."""


class Owner:
    """This process has the run, and says so until it releases it.

    Attributes:
        number: of its file.
        before: who had the run before; None where nobody did, or that cannot be read.
        lost: called, in a thread of its own, once another process has taken the run over.
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
        self._file, self._holder, self._ended = _file(run_dir, number), holder, Event()
        self._next, self._last_beat, self._is_lost = (
            _file(run_dir, number + 1),
            time.monotonic(),
            False,
        )
        Thread(target=self._live, name=f"owner of {run_dir.name}", daemon=True).start()

    def check(self) -> None:
        """To be asked before anything is written. A process that was suspended has missed its beats, and looks before it goes on.

        Raises:
            TakenOver: when the run is another's.
        """
        if self._is_lost or (time.monotonic() - self._last_beat > 2 * BEAT and not self._beat()):
            raise TakenOver(
                f"The run {self._file.parent.name} was taken over by another process while this "
                "one did not respond."
            )

    def own(self) -> int:
        """Its number: see ``RunLock.own``."""
        return self.number

    def release(self) -> None:
        """Give the run back; of one that was lost, nothing is touched."""
        self._ended.set()
        if self.holds():
            with suppress(OSError):  # then it counts as gone as soon as this process is
                content = _written(replace(self._holder, released=True))
                write_bytes(self._file, content, make_folder=False)

    def _live(self) -> None:
        while not self._ended.wait(BEAT):
            if not self._beat() and not self._ended.is_set():
                self._is_lost = True
                self.lost()
                return

    def _beat(self) -> bool:
        try:
            if not self.holds():
                return False
            os.utime(self._file)
            self._last_beat = time.monotonic()
        except FileNotFoundError:
            return False
        except OSError:  # storage that cannot be reached now: whoever can reach it decides
            pass
        return True

    def holds(self) -> bool:
        """Whether nobody has taken the run over."""
        return self._file.exists() and not self._next.exists()


def claim(
    run_dir: Path,
    *,
    task: str = "",
    handed: int = 0,
    patience: float = 0.0,
    lost: Callable[[], None] = lambda: None,
) -> Owner:
    """Take a run that nobody has.

    Args:
        task: see ``Holder``.
        handed: the number of an owner that gives the run to this process, although it is still there.
        patience: seconds to wait until an owner is gone.
        lost: see ``Owner``.

    Raises:
        RunError: when another process has it.
        OSError: when nothing can be written there.
    """
    end = time.monotonic() + patience
    while True:
        number, before = _last(run_dir)
        if number != handed and _is_there(run_dir, number, before):
            if time.monotonic() >= end:
                where = f" on {before.host}" if before else ""
                raise RunError(f"The run {run_dir.name} is going on already{where}.")
        elif owner := _take(run_dir, number, before, task, lost):
            break
        time.sleep(_LOOK)
    if before and not before.is_here and not before.released:
        # Had it been suspended only, it has found out by now that the run is another's, and written nothing more.
        time.sleep(2 * BEAT)
    return owner


def is_owned(run_dir: Path) -> bool:
    """Whether a process that lives, on whichever machine, owns the run."""
    return _is_there(run_dir, *_last(run_dir))


def has_owner_file(run_dir: Path) -> bool:
    """Whether a task has ever had the run."""
    return bool(_last(run_dir)[0])


def this_process(task: str = "") -> Holder:
    """This process as the owner of a run."""
    own = psutil.Process()
    return Holder(platform.node(), _machine(), own.pid, own.create_time(), task)


def _take(
    run_dir: Path, before: int, holder: Holder | None, task: str, lost: Callable[[], None]
) -> Owner | None:
    """The next owner; None where another process was faster."""
    own = this_process(task)
    try:
        descriptor = open_regular(_file(run_dir, before + 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return None
    with open(descriptor, "wb") as file:
        file.write(_written(own))
    owner = Owner(run_dir, before + 1, own, holder, lost)
    for number in _numbers(run_dir):
        if number <= before:
            with suppress(OSError):  # it counts for nothing any more
                _file(run_dir, number).unlink()
    return owner


@lru_cache(maxsize=1)
def _machine() -> str:
    parts = [platform.node()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(
                os.readlink(file) if file.endswith("pid") else Path(file).read_text().strip()
            )
    return " ".join(parts)


def _written(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _file(run_dir: Path, number: int) -> Path:
    return run_dir / f"owner-{number}.json"


def _numbers(run_dir: Path) -> list[int]:
    with suppress(OSError), os.scandir(run_dir) as entries:
        return [int(found[1]) for entry in entries if (found := _NAME.fullmatch(entry.name))]
    return []


def _last(run_dir: Path) -> tuple[int, Holder | None]:
    """The highest number and who it is; 0 where nobody ever was, None where it cannot be read: it is being written, or damaged."""
    number = max(_numbers(run_dir), default=0)
    try:
        return number, _HOLDER.validate_json(
            read_regular(_file(run_dir, number), _LARGEST)
        ) if number else None
    except (OSError, ValidationError):
        return number, None


# File -> how it was last seen, and since when on this process's clock.
_seen: dict[Path, tuple[Stamp, float]] = {}
_looking = Lock()


def _is_there(run_dir: Path, number: int, holder: Holder | None) -> bool:
    if not number or (holder and holder.released):
        return False
    if holder and holder.is_here:
        return holder.runs
    file = _file(run_dir, number)
    now = stamp(file)
    if now is None:
        return False
    with _looking:
        if file not in _seen or _seen[file][0] != now:
            first_look = file not in _seen
            gone = first_look and time.time() - now[2] / 1e9 > _LONG_GONE
            _seen[file] = (now, time.monotonic() - (STALE if gone else 0.0))
        return time.monotonic() - _seen[file][1] < STALE
