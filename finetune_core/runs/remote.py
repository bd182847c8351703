"""A run that is handed over to another process: what that one does, and how whoever asked follows it.

The process is a task on some machine, or one of several on this one. It trains the run into its folder as the command line does, once,
however often the task is tried.
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
from finetune_core.runs.ownership import Owner, claim, this_process
from finetune_core.runs.record import Reservation, append_event, execute, follow
from finetune_core.training.events import Event, RunFailed, RunPlaced, event_of
from finetune_core.training.ranks import ALONE, Ranks

MOST_TRIES = 6
LOOK = 0.25  # seconds
_PATIENCE = 600.0  # seconds: as long as an owner on a machine that is cut off may go on
_TAKEN_OVER = 3  # exit status

Row = dict[str, Any]


@dataclass(frozen=True)
class RemoteRun:
    """A run for a task.

    Attributes:
        owner: the number of the owner that hands it over (see ``ownership.claim``).
        resume: whether it had begun before.
        machine, home: of whoever asks: see ``Holder``, and its THAW_HOME.
        roots: as for ``execute``.
        threads: of torch on processors, in each process, but no more than there are cores; 0: as many as it takes by itself.
        gpus, cores: see ``RunPlaced``.
        has_device: as in Reservation.
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


def handed_over(
    reservation: Reservation, roots: Sequence[Path], *, has_device: bool = True
) -> RemoteRun:
    """A run of this process, for another one to take over.

    Raises:
        RunError: when nothing can be written to its folder.
    """
    run_dir, owner = reservation.run_dir.resolve(), reservation.lock.own()
    return RemoteRun(
        run_dir,
        owner,
        reservation.resume,
        this_process().machine,
        paths.home(),
        tuple(roots),
        has_device=has_device,
    )


def plain_row(run: RemoteRun) -> Row:
    """As plain values, for JSON."""
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(run).items()
    }
    return plain | {"roots": [str(root) for root in run.roots]}


def remote_run(row: Row) -> RemoteRun:
    """From ``plain_row``."""
    named = {name: Path(row[name]) for name in ("run_dir", "home")}
    return RemoteRun(**(row | named | {"roots": tuple(map(Path, row["roots"]))}))


def outcome(run: RemoteRun, task: str, ranks: Ranks = ALONE) -> dict[str, str]:
    """Train the run in this process, which does nothing else.

    Args:
        task: its name: the same where it is tried again.
        ranks: where several processes do it together: each calls this.

    Returns:
        What came of it: ``problem``, in words, or of a bug ``traceback``; nothing where the run ended well or was stopped.
    """
    _settle_in(run)
    try:
        with ranks.joined():
            if ranks.leads:
                train_here(run, task, ranks)
            else:
                follow(ranks)
    except FinetuneError as error:
        return {"problem": str(error)}
    except Exception:
        return {"traceback": traceback.format_exc()}
    return {}


def followed(lines: EventLines, answer: Callable[[], Row | None]) -> Generator[Event, None, Row]:
    """A run's events, as another process writes them, until there is an answer, which is returned.

    Args:
        answer: waits for it, for ``LOOK`` or less; None where there is none yet.
    """
    found = None
    while found is None:
        found = answer()
        yield from map(event_of, lines.new())
    return found


def raise_problem(found: Row, what: str) -> None:
    """
    Args:
        found: an ``outcome``.
        what: that which failed, for whoever fixes the bug.

    Raises:
        TrainingError: when it names a problem.
        RuntimeError: when it holds a traceback.
    """
    if traceback_there := found.get("traceback"):
        raise RuntimeError(f"In the process of {what}:\n{traceback_there}")
    if problem := found.get("problem"):
        raise TrainingError(problem)


def train_here(run: RemoteRun, task: str, ranks: Ranks = ALONE) -> None:
    """What the first, or the only, process does: it ends at once where the run is taken from it.

    A task that is tried again goes on from the last checkpoint; where the run has ended meanwhile, it does nothing.

    Raises:
        FinetuneError: as ``execute`` does.
        RunError: when another process has the run, or it has cost too many processes their lives.
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
        return  # and its process died before it could say so
    tries = sum(place["task"] == task for place in history.places)
    if tries >= MOST_TRIES:
        message = (
            f"Its process was ended {tries} times, perhaps because memory ran out: "
            f"see the log of the machine {history.places[-1]['host']}, then resume the run."
        )
        append_event(run.run_dir, RunFailed(message, ""))
        raise RunError(message)
    moved_from = owner.before.host if again and owner.before else ""
    # else it waits for its turn as in the process that asked, on whose machine it is
    if run.has_device:
        append_event(run.run_dir, RunPlaced(platform.node(), task, moved_from, run.gpus, run.cores))
    reservation = Reservation(
        run.run_dir, owner, resume=run.resume or again, has_device=run.has_device
    )
    for _ in execute(reservation, run.roots, ranks):
        pass


def _settle_in(run: RemoteRun) -> None:
    """Have the folders and settings of whoever asks; activations stay on a disk of this machine, for later tasks here."""
    os.environ["THAW_HOME"] = str(run.home)
    if run.machine != this_process().machine:
        os.environ.setdefault("THAW_CACHE_DIR", str(Path.home() / ".cache" / "thaw"))
    CACHE.shared = True
    if run.threads:
        torch.set_num_threads(min(run.threads, psutil.cpu_count(logical=False) or run.threads))
