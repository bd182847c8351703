"""Training into a run folder: ``config.json`` first, then ``events.jsonl`` line by line, under a lock."""

import json
import os
import secrets
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Annotated, BinaryIO, Literal

from filelock import FileLock
from pydantic import Field, TypeAdapter

from finetune_core.config import RunConfig, make_config, read_config
from finetune_core.errors import FinetuneError, RunError, TrainingError
from finetune_core.files import (
    NotRegular,
    check_regular,
    is_link,
    is_there,
    open_regular,
    problem_with,
    read_regular,
    regular_file,
    write_bytes,
)
from finetune_core.runs.turns import in_turn
from finetune_core.training.device import choose_device
from finetune_core.training.events import (
    END_EVENTS,
    EpochEnded,
    Event,
    RunFailed,
    RunFinished,
    RunReopened,
    RunStarted,
    RunStopped,
)
from finetune_core.training.forecast import SpeedBook, learn_from_run
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.prepare import check_config

_PAUSE, _STOP = "pause", "stop"
_LETS_GO = 3.0  # seconds
CONFIG_FILE, EVENTS_FILE, LOCK_FILE, STOP_FILE = "config.json", "events.jsonl", "lock", "stop"
ABOUT_FILE = "about.json"
_LOOKING = Lock()  # two threads that look at one lock would each take the other for a process that has the run


@dataclass(frozen=True)
class Reservation:
    """A run folder that this process has locked, so that everyone can see that it is queued or running here."""

    run_dir: Path
    lock: FileLock
    resume: bool = False


@dataclass(frozen=True)
class About:
    """What people say of a run: a name, a note, and whose it is; empty where nobody did."""

    name: Annotated[str, Field(max_length=1000)] = ""
    note: Annotated[str, Field(max_length=20_000)] = ""
    owner: Annotated[str, Field(max_length=1000)] = ""


_ABOUT = TypeAdapter(About)
_LARGEST_ABOUT = 2**18  # bytes
_LARGEST_STOP = 100
_LAST_LINES = 2**16  # bytes


def read_about(run_dir: Path) -> About:
    """What is known; nothing where nobody has said anything.

    Raises:
        RunError: when the file is damaged.
    """
    path = run_dir / ABOUT_FILE
    try:
        return _ABOUT.validate_json(read_regular(path, _LARGEST_ABOUT), strict=True)
    except FileNotFoundError:
        return About()
    except (OSError, ValueError) as error:
        raise RunError(f"{problem_with(path, error)}.") from None


def write_about(run_dir: Path, about: About) -> None:
    write_bytes(run_dir / ABOUT_FILE, json.dumps(asdict(about)).encode())


def create_run(config: RunConfig, runs_dir: Path, owner: str = "") -> Reservation:
    """Make the folder of a new run, with its config, and lock it.

    Args:
        owner: who asked for it, where people sign in.

    Raises:
        ConfigError: when the config cannot work; then there is no folder.
        RunError: when nothing can be written there.
    """
    check_config(config)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.backbone}-{config.strategy}-{secrets.token_hex(2)}"
    run_dir = runs_dir / name
    lock = FileLock(run_dir / LOCK_FILE, thread_local=False)
    try:
        run_dir.mkdir(parents=True)
        lock.acquire(timeout=0)
        if owner:  # before the config, without which it is no run: never one that has lost its owner
            write_about(run_dir, About(owner=owner))
        write_bytes(run_dir / CONFIG_FILE, config.model_dump_json(indent=2).encode())
    except OSError as error:
        raise RunError(f"The run cannot be written to {runs_dir}: {error}. Choose another folder, or make room.") from None
    return Reservation(run_dir, lock)


def reopen_run(run_dir: Path) -> Reservation:
    """Lock a run that had ended, or was cut off, so that it can go on.

    Raises:
        ConfigError: when it cannot work any more: its data or its device are gone.
        RunError: when somebody has it already, or it is finished, or nothing can be written there.
    """
    if is_link(run_dir) or not is_there(run_dir / CONFIG_FILE):
        raise RunError(f"There is no run in {run_dir} any more.")
    check_config(make_config(read_config(run_dir / CONFIG_FILE)))
    lock = _acquired(run_dir)
    try:
        if _is_finished(run_dir):
            lock.release(force=True)
            raise RunError(f"The run {run_dir.name} is finished; start a new one with its config.json to train it again.")
        (run_dir / STOP_FILE).unlink(missing_ok=True)
        with _events_file(run_dir) as file:
            _write(file, RunReopened())
    except OSError as error:
        lock.release(force=True)
        raise _not_written(run_dir, error) from None
    return Reservation(run_dir, lock, resume=True)


def request_stop(run_dir: Path, *, pause: bool = False) -> None:
    """Ask the process that trains this run, whichever it is, to stop it, for now or for good: the last request counts.

    Raises:
        RunError: when nothing can be written there.
    """
    try:
        write_bytes(run_dir / STOP_FILE, (_PAUSE if pause else _STOP).encode())
    except OSError as error:
        raise RunError(f"The run {run_dir.name} cannot be asked to stop: {error}. Check who may write there.") from None


def requested_stop(run_dir: Path) -> Literal["", "pause", "stop"]:
    """What was asked of a run's process since the run began, or went on; empty: nothing."""
    try:
        return _PAUSE if read_regular(run_dir / STOP_FILE, _LARGEST_STOP) == _PAUSE.encode() else _STOP
    except FileNotFoundError:
        return ""
    except OSError:
        return _STOP


def is_locked(run_dir: Path) -> bool:
    """Whether a living process has the run queued or running."""
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
    lock = _acquired(run_dir)
    try:
        yield
    finally:
        lock.release(force=True)


def _acquired(run_dir: Path) -> FileLock:
    """
    Raises:
        RunError: when another process has the run, or its lock is no regular file, or cannot be written.
    """
    path = run_dir / LOCK_FILE
    lock = FileLock(path, thread_local=False)
    try:
        check_regular(path)
        # Whoever wrote the run's last event lets go of it a moment later, and who looks whether it is locked holds it for an instant.
        lock.acquire(timeout=_LETS_GO, poll_interval=0.02)
    except NotRegular as error:
        raise RunError(f"{path} is {error.strerror}: delete it, then the run {run_dir.name} can be locked.") from None
    except TimeoutError:
        raise RunError(f"The run {run_dir.name} is going on already.") from None
    except OSError as error:
        raise _not_written(run_dir, error) from None
    return lock


def _not_written(run_dir: Path, error: OSError) -> RunError:
    return RunError(f"The run {run_dir.name} cannot be written to: {error}. Make room, or check who may write there.")


def execute(reservation: Reservation, roots: Sequence[Path] = ()) -> Iterator[Event]:
    """Train a reserved run to its end, writing every event to its folder before it is yielded.

    Args:
        roots: when given, images that lie elsewhere are left out.

    Raises:
        FinetuneError: as ``fit`` does, once RunFailed is written; anything else that is raised is a bug, and written, too.
    """
    run_dir = reservation.run_dir
    with _events_file(run_dir) as file:
        told: list[Event] = []
        try:
            config = make_config(read_config(run_dir / CONFIG_FILE))
            training = in_turn(fit(config, run_dir, resume=reservation.resume, roots=roots), choose_device(config.device).kind)
            for event in _stoppable(training, run_dir):
                if isinstance(event, (RunStarted, EpochEnded)):
                    told.append(event)
                if isinstance(event, RunFinished):
                    started, *epochs = [one.to_json() for one in told]
                    learn_from_run(SpeedBook(), config, started, epochs, event.to_json())
                _write(file, event)
                yield event
        except FinetuneError as error:
            _write(file, RunFailed(str(error), ""))
            raise
        except OSError as error:
            failed = RunFailed(f"A file could not be written or read: {error}. Make room on the disk, then resume the run.", "")
            with suppress(OSError):  # of a full disk, its lock and its last checkpoint tell what to do
                _write(file, failed)
            raise TrainingError(failed.message) from error
        except Exception as error:
            if _program_ends(error):  # then the run is cut off, not broken: without a last word it counts as interrupted
                raise TrainingError(f"The program ended while {run_dir.name} was going on; resume it.") from error
            _write(file, RunFailed(f"{type(error).__name__}: {error}", traceback.format_exc()))
            raise
        finally:
            reservation.lock.release(force=True)


def _program_ends(error: Exception) -> bool:
    """When Python ends in good order it first closes the helper threads of those that still work."""
    return isinstance(error, RuntimeError) and str(error).startswith("cannot schedule new futures after")


def _stoppable(events: Iterator[Event | None], run_dir: Path) -> Iterator[Event]:
    """The events, until a stop is asked for; then those of an orderly end."""
    if asked := requested_stop(run_dir):
        yield RunStopped(0, 0, 0.0, paused=asked == _PAUSE)
        return
    stopping = False
    for event in events:
        if event is not None:
            yield event
        if isinstance(event, END_EVENTS):
            return
        if not stopping and requested_stop(run_dir):
            stopping = True
            stopped = events.throw(StopRequested())  # type: ignore[attr-defined]
            # Read again: while the last checkpoint was written, the pause may have become a stop.
            yield replace(stopped, paused=requested_stop(run_dir) == _PAUSE)


def _events_file(run_dir: Path) -> BinaryIO:
    """Opened to write at its end; half a line that a crash left behind is closed, so that it spoils no other."""
    file = open(open_regular(run_dir / EVENTS_FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+")  # noqa: SIM115  the caller's
    if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def _is_finished(run_dir: Path) -> bool:
    try:
        with open(open_regular(run_dir / EVENTS_FILE), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_LINES))
            lines = file.read(_LAST_LINES).splitlines()
    except FileNotFoundError:
        return False
    return any(line.startswith(b'{"event": "RunFinished"') for line in lines[-3:])


def _write(file: BinaryIO, event: Event) -> None:
    line = json.dumps(event.to_json() | {"at": time.time()}, ensure_ascii=False)
    file.write(line.encode("utf-8", "replace") + b"\n")  # a file's name may be no valid Unicode, a line of JSON has to be
    file.flush()
    if isinstance(event, EpochEnded):
        os.fsync(file.fileno())
