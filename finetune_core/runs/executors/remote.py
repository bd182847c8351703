"""Runs that are handed over to another process, and how the process that asked follows them.

The other process is a task on some machine, or one of several on this one. It trains the run into
its directory as the command line does, once, however often the task is tried.
"""

import os
import platform
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from finetune_core import paths
from finetune_core.data.rowcache import CACHE
from finetune_core.errors import FinetuneError, RunError, TrainingError
from finetune_core.runs.history import History
from finetune_core.runs.lines import EventLines
from finetune_core.runs.ownership import Owner, claim, current_holder
from finetune_core.runs.record import Reservation, append_event, execute, follow
from finetune_core.training.devices.ranks import ALONE, Ranks
from finetune_core.training.events import Event, RunFailed, RunPlaced, make_event

MOST_TRIES = 6
LOOK = 0.25  # seconds
_PATIENCE = 600.0  # seconds for which an owner on a machine without network may go on
_TAKEN_OVER = 3  # exit status

Row = dict[str, Any]


@dataclass(frozen=True)
class RemoteRun:
    """A run that is handed over to a task.

    Attributes:
        run_dir: the run directory.
        owner: number of the owner that hands the run over (see ``ownership.claim``).
        resume: whether the run had begun before.
        machine: id of the machine that asked (see ``Holder``).
        home: THAW_HOME of the process that asked.
        roots: as for ``execute``.
        threads: torch's threads on processors, in each process, at most one per core; 0: torch's
            default.
        gpus: see ``RunPlaced``.
        cores: see ``RunPlaced``.
        has_device: as in ``Reservation``.
    """

    run_dir: Path
    owner: int
    resume: bool
    machine: str
    home: Path
    roots: Sequence[Path] = ()
    threads: int = 0
    gpus: int = 0
    cores: int = 0
    has_device: bool = True


def hand_over(
    reservation: Reservation, roots: Sequence[Path], *, has_device: bool = True
) -> RemoteRun:
    """Hand a run of this process over to another process.

    Raises:
        RunError: if the run directory cannot be written to.
    """
    run_dir, owner = reservation.run_dir.resolve(), reservation.lock.become_owner()
    return RemoteRun(
        run_dir,
        owner,
        reservation.resume,
        current_holder().machine,
        paths.home(),
        tuple(roots),
        has_device=has_device,
    )


def run_to_row(run: RemoteRun) -> Row:
    """Return a run as plain values, for JSON."""
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(run).items()
    }
    return plain | {"roots": [str(root) for root in run.roots]}


def run_from_row(row: Row) -> RemoteRun:
    """Restore a run from ``run_to_row``."""
    named = {name: Path(row[name]) for name in ("run_dir", "home")}
    return RemoteRun(**(row | named | {"roots": tuple(map(Path, row["roots"]))}))


def train_and_report(run: RemoteRun, task: str, ranks: Ranks = ALONE) -> dict[str, str]:
    """Train the run in this process, which does nothing else.

    Args:
        run: the run.
        task: name of the task, which is the same when it is tried again.
        ranks: the ranks, if several processes train the run: each calls this function.

    Returns:
        ``problem`` as text, or ``traceback`` of a bug; nothing if the run ended well or was
        stopped.
    """
    _adopt_environment(run)
    try:
        with ranks.connect():
            if ranks.is_main_process:
                train_as_main_process(run, task, ranks)
            else:
                follow(ranks)
    except FinetuneError as error:
        return {"problem": str(error)}
    except Exception:
        return {"traceback": traceback.format_exc()}
    return {}


def follow_events(
    lines: EventLines, answer: Callable[[], Row | None]
) -> Generator[Event, None, Row]:
    """Yield a run's events, as another process writes them, until there is an answer.

    Args:
        lines: reader of the events.
        answer: waits for the answer, for at most ``LOOK``; None if there is none yet.

    Returns:
        The answer.
    """
    found = None
    while found is None:
        found = answer()
        yield from map(make_event, lines.read_new())
    return found


def raise_problem(found: Row, what: str) -> None:
    """Raise the problem of an outcome, if there is one.

    Args:
        found: the result of ``train_and_report``.
        what: the process that failed, for the developer who fixes the bug.

    Raises:
        TrainingError: if the outcome names a problem.
        RuntimeError: if the outcome holds a traceback.
    """
    if traceback_there := found.get("traceback"):
        raise RuntimeError(f"In the process of {what}:\n{traceback_there}")
    if problem := found.get("problem"):
        raise TrainingError(problem)


def train_as_main_process(run: RemoteRun, task: str, ranks: Ranks = ALONE) -> None:
    """Train a run as the first or only process, which exits at once if the run is taken over.

    A task that is tried again goes on from the last checkpoint. If the run has ended meanwhile, the
    task does nothing.

    Raises:
        FinetuneError: as ``execute``.
        RunError: if another process has the run, or too many processes have died of it.
    """
    try:
        owner = claim(
            run.run_dir,
            task=task,
            handed=run.owner,
            patience=_PATIENCE,
            lost=lambda: os._exit(_TAKEN_OVER),
        )
    except OSError as error:
        raise RunError(
            f"The run {run.run_dir.name} cannot be written to on {platform.node()}: {error}. "
            "Check who may write there."
        ) from None
    try:
        _train(run, task, owner, ranks)
    finally:
        owner.release()


def _train(run: RemoteRun, task: str, owner: Owner, ranks: Ranks) -> None:
    again = owner.before is not None and owner.before.task == task
    history = History(run.run_dir).refresh()
    if again and history.end:
        return  # the process died after the run had ended, before it could report that
    tries = sum(place["task"] == task for place in history.places)
    if tries >= MOST_TRIES:
        message = (
            f"Its process was ended {tries} times, perhaps because memory ran out: "
            f"see the log of the machine {history.places[-1]['host']}, then resume the run."
        )
        append_event(run.run_dir, RunFailed(message, ""))
        raise RunError(message)
    moved_from = owner.before.host if again and owner.before else ""
    # Else the run is on the machine of the process that asked, and waits for the device as there.
    if run.has_device:
        append_event(run.run_dir, RunPlaced(platform.node(), task, moved_from, run.gpus, run.cores))
    reservation = Reservation(
        run.run_dir, owner, resume=run.resume or again, has_device=run.has_device
    )
    for _ in execute(reservation, run.roots, ranks):
        pass


def _adopt_environment(run: RemoteRun) -> None:
    """Adopt the folders and settings of the process that asked.

    Activations stay on a disk of this machine, for later tasks here.
    """
    os.environ["THAW_HOME"] = str(run.home)
    if run.machine != current_holder().machine:
        os.environ.setdefault("THAW_CACHE_DIR", str(Path.home() / ".cache" / "thaw"))
    CACHE.shared = True
    if run.threads:
        torch.set_num_threads(min(run.threads, psutil.cpu_count(logical=False) or run.threads))
