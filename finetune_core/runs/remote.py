"""What a task on some machine does: train a run into its folder as the command line does, once, however often the task is tried."""

import os
import platform
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from finetune_core.data.rowcache import CACHE
from finetune_core.errors import FinetuneError, RunError
from finetune_core.runs.history import History
from finetune_core.runs.ownership import Owner, claim, this_process
from finetune_core.runs.record import Reservation, append_event, execute
from finetune_core.training.events import RunFailed, RunPlaced

MOST_TRIES = 6
_PATIENCE = 600.0  # seconds: as long as an owner on a machine that is cut off may go on
_TAKEN_OVER = 3  # exit status


@dataclass(frozen=True)
class RemoteRun:
    """A run for a task.

    Attributes:
        owner: the number of the owner that hands it over (see ``ownership.claim``).
        resume: whether it had begun before.
        machine, home: of whoever asks: see ``Holder``, and its THAW_HOME.
        roots: as for ``execute``.
        threads: of torch on processors, but no more than there are cores; 0: as many as it takes by itself.
        gpus, cores: see ``RunPlaced``.
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


def remote_run(row: dict[str, Any]) -> RemoteRun:
    """From plain values, as ``dataclasses.asdict`` and JSON give them."""
    named = {name: Path(row[name]) for name in ("run_dir", "home")}
    return RemoteRun(**(row | named | {"roots": tuple(map(Path, row["roots"]))}))


def outcome(run: RemoteRun, task: str) -> dict[str, str]:
    """What came of ``train_here``: ``problem``, in words, or of a bug ``traceback``; nothing where the run ended well or was stopped."""
    try:
        train_here(run, task)
    except FinetuneError as error:
        return {"problem": str(error)}
    except Exception:
        return {"traceback": traceback.format_exc()}
    return {}


def train_here(run: RemoteRun, task: str) -> None:
    """Train the run in this process, which does nothing else and ends at once where the run is taken from it.

    A task that is tried again goes on from the last checkpoint; where the run has ended meanwhile, it does nothing.

    Raises:
        FinetuneError: as ``execute`` does.
        RunError: when another process has the run, or it has cost too many processes their lives.
    """
    _settle_in(run)
    try:
        owner = claim(run.run_dir, task=task, handed=run.owner, patience=_PATIENCE, lost=lambda: os._exit(_TAKEN_OVER))
    except OSError as error:
        raise RunError(
            f"The run {run.run_dir.name} cannot be written to on {platform.node()}: {error}. Check who may write there."
        ) from None
    try:
        _train(run, task, owner)
    finally:
        owner.release()


def _train(run: RemoteRun, task: str, owner: Owner) -> None:
    again = owner.before is not None and owner.before.task == task
    history = History(run.run_dir).refresh()
    if again and history.end:
        return  # and its process died before it could say so
    tries = sum(place["task"] == task for place in history.places)
    if tries >= MOST_TRIES:
        message = f"Its process was ended {tries} times, perhaps because memory ran out: see the log of the machine {history.places[-1]['host']}, then resume the run."
        append_event(run.run_dir, RunFailed(message, ""))
        raise RunError(message)
    moved_from = owner.before.host if again and owner.before else ""
    append_event(run.run_dir, RunPlaced(platform.node(), task, moved_from, run.gpus, run.cores))
    for _ in execute(Reservation(run.run_dir, owner, resume=run.resume or again, has_device=True), run.roots):
        pass


def _settle_in(run: RemoteRun) -> None:
    """Have the folders and settings of whoever asks; activations stay on a disk of this machine, for later tasks here."""
    os.environ["THAW_HOME"] = str(run.home)
    if run.machine != this_process().machine:
        os.environ.setdefault("THAW_CACHE_DIR", str(Path.home() / ".cache" / "thaw"))
    CACHE.shared = True
    if run.threads:
        torch.set_num_threads(min(run.threads, psutil.cpu_count(logical=False) or run.threads))
