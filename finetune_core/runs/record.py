"""Training into a run directory under a lock.

``config.json`` is written first, then ``events.jsonl`` line by line.
"""

import errno
import json
import os
import platform
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

from filelock import FileLock

from finetune_core.config import CONFIG_FILE, RunConfig, config_bytes, make_config, read_config
from finetune_core.data.listing import escape_undecodable
from finetune_core.errors import FinetuneError, RunError, TrainingError
from finetune_core.files import is_link, open_regular, path_exists, remove_abandoned, write_bytes
from finetune_core.runs.about import About, write_about
from finetune_core.runs.locks import LOCK_FILE, RunLock, acquire_lock, write_error
from finetune_core.runs.ownership import RunTakenOver
from finetune_core.runs.stop_request import PAUSE, STOP_FILE, read_stop_request
from finetune_core.runs.turns import wait_for_turn
from finetune_core.training.checkpoints.files import BEST, HEAD, LAST, START, checkpoint_path
from finetune_core.training.checkpoints.networks import copy_earlier_runs
from finetune_core.training.devices.device import choose_device
from finetune_core.training.devices.ranks import ALONE, MainProcessEnded, RankLost, Ranks
from finetune_core.training.devices.speed_book import SpeedBook, learn_from_run
from finetune_core.training.events import (
    END_EVENTS,
    EpochEnded,
    Event,
    HeadFitted,
    RunFailed,
    RunFinished,
    RunReopened,
    RunStarted,
    RunStopped,
)
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.prediction_history import PREDICTION_HISTORY_FILE
from finetune_core.training.predictions import PREDICTIONS_FILE
from finetune_core.training.prepare import check_config, check_devices

EVENTS_FILE = "events.jsonl"
_SAVED = (PREDICTIONS_FILE, PREDICTION_HISTORY_FILE)  # written by training, beside the checkpoints


class HeldLock(Protocol):
    """A run that this process has (see ``locks.RunLock``)."""

    def check(self) -> None:
        """Check that this process still owns the run. Call before writing."""
        ...

    def become_owner(self) -> int:
        """Make this process the owner of the run, and return its number."""
        ...

    def is_held(self) -> bool:
        """Return whether no other process has taken the run over."""
        ...

    def release(self) -> None:
        """Release the run for other processes."""
        ...


@dataclass(frozen=True)
class Reservation:
    """A run directory that this process has, so that others see the run as queued or running.

    Attributes:
        run_dir: the run directory.
        lock: the lock of the run.
        resume: whether the run had begun before.
        has_device: whether another part of the program keeps the device free for the run.
        devices: number of devices of one machine that the run is to train on.
    """

    run_dir: Path
    lock: HeldLock
    resume: bool = False
    has_device: bool = False
    devices: int = 1


_LAST_LINES = 2**16  # bytes
_NO_FILE_NAME = re.compile(r"[^\w.-]+", re.ASCII)
_LONGEST_NAME = 80
_NAMES_TRIED = 10


def create_run(
    config: RunConfig, runs_dir: Path, owner: str = "", *, remote: bool = False, devices: int = 1
) -> Reservation:
    """Make the directory of a new run, with its config, and lock it.

    Args:
        config: the settings.
        runs_dir: the parent folder.
        owner: the person who asked for the run, where people sign in.
        remote: whether the run may train on another machine, with other devices.
        devices: number of devices of one machine that the run is to train on.

    Raises:
        ConfigError: if the config cannot work, or not on so many devices; then there is no
            directory.
        RunError: if the directory cannot be written, or a run that this one starts from or averages
            is damaged.
        WeightsError: if weights that an earlier run started from are not on this machine.
    """
    check_config(config, remote=remote)
    check_devices(config, devices, remote=remote)
    if escape_undecodable(str(runs_dir)) != str(runs_dir):
        raise RunError(
            f"Runs cannot be kept in {escape_undecodable(str(runs_dir))}: the name is not valid "
            "Unicode. Choose another folder."
        )
    try:
        run_dir = _make_run_dir(runs_dir, f"{_to_file_name(config.backbone)}-{config.strategy}")
    except OSError as error:
        raise _storage_error(runs_dir, error) from None
    lock = FileLock(run_dir / LOCK_FILE, thread_local=False)
    try:
        lock.acquire(timeout=0)
        copy_earlier_runs(config, run_dir)
        # Before the config, which makes the directory a run: a run never lacks its owner.
        if owner:
            write_about(run_dir, About(owner=owner))
        write_bytes(run_dir / CONFIG_FILE, config_bytes(config), make_folder=False)
    except (OSError, FinetuneError) as error:
        lock.release(force=True)
        # The directory is no run yet, and this process made it.
        shutil.rmtree(run_dir, ignore_errors=True)
        if isinstance(error, OSError):
            raise _storage_error(runs_dir, error) from None
        raise
    return Reservation(run_dir, RunLock(lock), devices=devices)


def _to_file_name(backbone: str) -> str:
    """Return the last part of a network's name, which may be a repository or a folder."""
    return (
        _NO_FILE_NAME.sub("-", re.split(r"[/\\:]", backbone.rstrip("/\\"))[-1])[:_LONGEST_NAME]
        or "network"
    )


def _make_run_dir(runs_dir: Path, what: str) -> Path:
    """Make a folder whose name is not taken."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    for _ in range(_NAMES_TRIED):
        run_dir = runs_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{what}-{secrets.token_hex(4)}"
        with suppress(FileExistsError):
            run_dir.mkdir()
            return run_dir
    raise FileExistsError(errno.EEXIST, "every name that was tried is taken", str(runs_dir))


def _storage_error(runs_dir: Path, error: OSError) -> RunError:
    return RunError(
        f"The run cannot be written to {runs_dir}: {error}. Choose another folder, or make room."
    )


def reopen_run(run_dir: Path, *, remote: bool = False, devices: int = 1) -> Reservation:
    """Lock a run that had ended, or was cut off, so that it can go on.

    Args:
        run_dir: the run directory.
        remote: as for ``create_run``.
        devices: as for ``create_run``.

    Raises:
        ConfigError: if the run cannot work any more: its data or its device are gone.
        RunError: if another process has the run, it is finished, or its directory cannot be written
            to.
    """
    if is_link(run_dir) or not path_exists(run_dir / CONFIG_FILE):
        raise RunError(f"There is no run in {run_dir} any more.")
    config = make_config(read_config(run_dir / CONFIG_FILE))
    check_config(config, run_dir, remote=remote)
    check_devices(config, devices, remote=remote)
    lock = acquire_lock(run_dir)
    try:
        if _is_finished(run_dir):
            lock.release()
            raise RunError(
                f"The run {run_dir.name} is finished; start a new one with its config.json to "
                "train it again."
            )
        (run_dir / STOP_FILE).unlink(missing_ok=True)
        with _open_events(run_dir) as file:
            _write_event(file, RunReopened())
    except OSError as error:
        lock.release()
        raise write_error(run_dir, error) from None
    return Reservation(run_dir, lock, resume=True, devices=devices)


def execute(
    reservation: Reservation, roots: Sequence[Path] = (), ranks: Ranks = ALONE
) -> Generator[Event, None, None]:
    """Train a reserved run to its end in this process.

    Every event is written to the run directory before it is yielded.

    Args:
        reservation: the run.
        roots: if given, images outside these folders are left out.
        ranks: the ranks, if several processes train the run. This process is rank 0, and the other
            ranks call ``follow``.

    Raises:
        FinetuneError: as ``fit``, once RunFailed is written. Any other exception is a bug, and is
            written, too.
    """
    run_dir = reservation.run_dir
    try:
        for path in (
            *(checkpoint_path(run_dir, name) for name in (START, HEAD, LAST, BEST)),
            *(run_dir / name for name in _SAVED),
        ):
            remove_abandoned(
                path, older_than=0
            )  # the lock is held, so their writer has been killed
        with _open_events(run_dir) as file:
            ranks.all_gather(
                _Task(str(run_dir.resolve()), reservation.resume, tuple(map(str, roots)))
            )
            yield from _record_events(reservation, roots, ranks, file)
    except OSError as error:  # for example, the disk is full
        raise TrainingError(_describe_file_error(error)) from error
    finally:
        reservation.lock.release()


@dataclass(frozen=True)
class _Task:
    """Message from rank 0 to the other ranks."""

    run_dir: str
    resume: bool
    roots: tuple[str, ...]


def follow(ranks: Ranks) -> None:
    """Train a run that rank 0 executes, to its end. Rank 0 records and reports the run.

    Raises:
        FinetuneError: if this rank cannot go on; rank 0 learns why.
    """
    with suppress(MainProcessEnded):
        task = ranks.broadcast(_Task("", False, ()))
        run_dir = Path(task.run_dir)
        if not path_exists(run_dir / CONFIG_FILE):
            raise RunError(
                f"there is no {run_dir} on {platform.node()}. Keep runs in a folder that all "
                "machines see."
            )
        config = make_config(read_config(run_dir / CONFIG_FILE))
        for _ in fit(
            config, run_dir, resume=task.resume, roots=tuple(map(Path, task.roots)), ranks=ranks
        ):
            pass


def _record_events(
    reservation: Reservation, roots: Sequence[Path], ranks: Ranks, file: BinaryIO
) -> Iterator[Event]:
    """Write and yield the events of a run, and write the reason if it fails."""
    run_dir = reservation.run_dir
    events: list[Event] = []
    try:
        config = make_config(read_config(run_dir / CONFIG_FILE))
        fitting = fit(config, run_dir, resume=reservation.resume, roots=roots, ranks=ranks)
        training = (
            fitting
            if reservation.has_device
            else wait_for_turn(fitting, choose_device(config.device).kind)
        )
        for event in _yield_until_stopped(training, run_dir):
            if isinstance(event, (RunStarted, EpochEnded, HeadFitted)):
                events.append(event)
            # Forecasts are made for one device.
            if isinstance(event, RunFinished) and not ranks.is_distributed:
                started, *epochs = [one.to_json() for one in events]
                learn_from_run(SpeedBook(), config, started, epochs, event.to_json())
            reservation.lock.check()
            _write_event(file, event)
            yield event
    except (RunTakenOver, RankLost):
        # Write no end: another process has the run, or the run counts as interrupted.
        raise
    except FinetuneError as error:
        _write_failure(file, RunFailed(str(error), ""))
        raise
    except OSError as error:
        _write_failure(file, RunFailed(_describe_file_error(error), ""))
        raise
    except Exception as error:
        # The run is cut off, not broken: without an end it counts as interrupted.
        if _is_interpreter_exit(error):
            raise TrainingError(
                f"The program ended while {run_dir.name} was going on; resume it."
            ) from error
        _write_failure(file, RunFailed(f"{type(error).__name__}: {error}", traceback.format_exc()))
        raise


def _describe_file_error(error: OSError) -> str:
    return (
        f"A file could not be written or read: {error}. Make room on the disk, then resume the run."
    )


def _is_interpreter_exit(error: Exception) -> bool:
    """Return whether an error only says that Python is exiting.

    When Python exits cleanly, it first closes the helper threads of threads that still work.
    """
    return isinstance(error, RuntimeError) and str(error).startswith(
        "cannot schedule new futures after"
    )


def _yield_until_stopped(
    events: Generator[Event | None, None, None], run_dir: Path
) -> Iterator[Event]:
    """Yield the events until a stop is requested, then the events of an orderly end."""
    if asked := read_stop_request(run_dir):
        yield RunStopped(0, 0, 0.0, paused=asked == PAUSE)
        return
    for event in events:
        if event is not None:
            yield event
        if isinstance(event, END_EVENTS):
            return
        if read_stop_request(run_dir):
            yield from _yield_orderly_end(chain([events.throw(StopRequested())], events), run_dir)
            return


def _yield_orderly_end(events: Iterable[Event | None], run_dir: Path) -> Iterator[Event]:
    """Yield the events of an orderly end: those of earlier steps, and RunStopped."""
    for event in events:
        if isinstance(event, RunStopped):
            # Read the request again: during the last checkpoint a pause may have become a stop.
            yield replace(event, paused=read_stop_request(run_dir) == PAUSE)
        elif event is not None:
            yield event


def append_event(run_dir: Path, event: Event) -> None:
    """Write an event to the directory of a run that this process has, beside those of ``execute``.

    Raises:
        RunError: if the event cannot be written.
    """
    try:
        with _open_events(run_dir) as file:
            _write_event(file, event)
    except OSError as error:
        raise write_error(run_dir, error) from None


def _open_events(run_dir: Path) -> BinaryIO:
    """Open the events to append to them.

    Half a line that a crash left behind is ended, so that it spoils no other line.
    """
    descriptor = open_regular(run_dir / EVENTS_FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    file = open(descriptor, "ab+", buffering=0)  # noqa: SIM115  the caller's
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


def _write_event(file: BinaryIO, event: Event) -> None:
    """Write a whole line or nothing.

    The file is not buffered, so nothing is left to be written when the file is closed.

    Raises:
        OSError: if there is no room for the line.
    """
    text = json.dumps(event.to_json() | {"at": time.time()}, ensure_ascii=False)
    # A file name need not be valid Unicode, but a line of JSON must be.
    line = text.encode("utf-8", "replace") + b"\n"
    end = file.seek(0, os.SEEK_END)
    try:
        while line:
            line = line[file.write(line) :]
    except OSError:
        file.truncate(end)
        raise
    if isinstance(event, EpochEnded):
        os.fsync(file.fileno())


def _write_failure(file: BinaryIO, event: RunFailed) -> None:
    """Write the reason of a failure. Without room for it, the caller's exception still tells it."""
    with suppress(OSError):
        _write_event(file, event)
