"""Asking the process that trains a run to pause or stop it: a file in the run's folder."""

from pathlib import Path
from typing import Final, Literal

from finetune_core.errors import RunError
from finetune_core.files import read_regular, write_bytes

PAUSE: Final = "pause"
_STOP: Final = "stop"
STOP_FILE = "stop"
_LARGEST_STOP = 100


def request_stop(run_dir: Path, *, pause: bool = False) -> None:
    """Ask the process that trains this run, whichever it is, to stop it, for now or for good: the last request counts.

    Raises:
        RunError: when nothing can be written there.
    """
    try:
        content = (PAUSE if pause else _STOP).encode()
        write_bytes(run_dir / STOP_FILE, content, make_folder=False)
    except OSError as error:
        raise RunError(
            f"The run {run_dir.name} cannot be asked to stop: {error}. Check who may write there."
        ) from None


def requested_stop(run_dir: Path) -> Literal["", "pause", "stop"]:
    """What was asked of a run's process since the run began, or went on; empty: nothing."""
    try:
        return (
            PAUSE if read_regular(run_dir / STOP_FILE, _LARGEST_STOP) == PAUSE.encode() else _STOP
        )
    except FileNotFoundError:
        return ""
    except OSError:
        return _STOP
