"""Training a finished run further, as a copy with more epochs. The finished run stays.

With a constant schedule the copy ends, bit for bit, as a run that had all these epochs from the
start. Any other schedule continues as that of the larger number of epochs: a cosine's learning rate
rises to its value there and falls to zero again, a warm restart (Loshchilov & Hutter 2017, SGDR). A
run that was ended by early stopping goes on without early stopping. Up to the epochs that it was
meant to have, its schedule stays the same.
"""

import json
from contextlib import suppress
from typing import Any

from finetune_core.config import RunConfig, get_setting, make_config
from finetune_core.errors import RunError
from finetune_core.files import copy_regular, open_regular, write_bytes
from finetune_core.runs.about import About, write_about
from finetune_core.runs.record import EVENTS_FILE, create_run
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints.files import BEST, HEAD, LAST, START, checkpoint_path
from finetune_core.training.events import LONGEST_LINE
from finetune_core.training.prediction_history import PREDICTION_HISTORY_FILE
from finetune_core.training.predictions import PREDICTIONS_FILE
from finetune_core.training.strategies.catalogue import count_epochs

_COPIED = (PREDICTIONS_FILE, PREDICTION_HISTORY_FILE)
_ENDS = ("RunFinished", "RunStopped", "RunFailed", "RunReopened")


def why_not_extended(run: Run) -> str | None:
    """Return why a run cannot train further, or None where it can."""
    if not count_epochs(run.config):
        return "it has no epochs"
    if run.status != "finished":
        return "it has not finished: resume it"
    return None


def suggest_epochs(run: Run) -> int:
    """Return a suggestion for the total number of epochs: those of the schedule, or twice as many.

    The schedule's epochs are suggested for a run that early stopping ended.
    """
    if _has_stopped_early(run):
        return run.config.epochs
    return min(2 * run.config.epochs, int(get_setting("epochs").limits["le"]))


def _has_stopped_early(run: Run) -> bool:
    return len(run.history.epochs) < run.config.epochs


def extend_run(run: Run, epochs: int, owner: str = "", *, remote: bool = False) -> str:
    """Copy a finished run, so that the copy resumes with more epochs to go.

    Args:
        run: the finished run.
        epochs: the total number of epochs, including those that are done.
        owner: as for ``create_run``.
        remote: as for ``create_run``.

    Returns:
        The id of the copy. The copy counts as interrupted until it is resumed.

    Raises:
        ConfigError: if the number of epochs is not allowed, or the data or the device are gone.
        RunError: if the run cannot train further, or the copy cannot be written.
    """
    if reason := why_not_extended(run):
        raise RunError(f"The run {run.run_id} cannot train further: {reason}.")
    done = len(run.history.epochs)
    if epochs <= done:
        raise RunError(f"The run {run.run_id} has {done} epochs already: name more than that.")
    config = _extend_config(run, epochs)
    reservation = create_run(config, run.run_dir.parent, owner, remote=remote)
    folder = reservation.run_dir
    try:
        for path in (
            *(checkpoint_path(folder, name) for name in (START, HEAD, LAST, BEST)),
            *(folder / name for name in _COPIED),
        ):
            with suppress(FileNotFoundError):
                copy_regular(run.run_dir / path.name, path)
        write_about(folder, About(note=f"Goes on with {run.run_id}.", owner=owner))
        # The last file: a copy without events would start anew when it is resumed.
        write_bytes(folder / EVENTS_FILE, _extend_events(run, epochs), make_folder=False)
    except OSError as error:
        raise RunError(
            f"The copy of {run.run_id} cannot be written to {folder}: {error}."
        ) from None
    finally:
        reservation.lock.release()
    return folder.name


def _extend_config(run: Run, epochs: int) -> RunConfig:
    """Return the run's settings with more epochs; stages thaw in the same epochs."""
    changes: dict[str, Any] = {"epochs": epochs}
    if _has_stopped_early(run):
        changes["patience"] = epochs
    changes["auto"] = tuple(name for name in run.config.auto if name not in changes)
    if late := [stage["thaw_epoch"] for stage in run.started["stages"] if stage["thaw_epoch"] > 1]:
        changes["thaw_every"] = min(late) - 1
    return make_config(run.config.model_dump() | changes)


def _extend_events(run: Run, epochs: int) -> bytes:
    """Return the run's events without its end, as events of a run with more epochs."""
    lines = []
    with open(open_regular(run.run_dir / EVENTS_FILE), "rb") as file:
        while line := file.readline(LONGEST_LINE):
            with suppress(ValueError):
                row = json.loads(line)
                if not isinstance(row, dict) or row.get("event") in _ENDS:
                    continue
                if row.get("event") == "RunStarted":
                    row["epochs"] = epochs
                lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return b"".join(lines)
