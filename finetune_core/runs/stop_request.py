"""Requests to pause or stop a run: a file in the run directory, read by the process that trains."""

from pathlib import Path
from typing import Final, Literal

from finetune_core.errors import RunError
from finetune_core.files import read_regular, write_bytes

PAUSE: Final = "pause"
_STOP: Final = "stop"
STOP_FILE = "stop"
_LARGEST_STOP = 100


def request_stop(run_dir: Path, *, pause: bool = False) -> None:
    """Ask the process that trains this run to stop or pause it. The last request counts.

    Raises:
        RunError: if the request cannot be written.
    """
    try:
        content = (PAUSE if pause else _STOP).encode()
        write_bytes(run_dir / STOP_FILE, content, make_folder=False)
    except OSError as error:
        raise RunError(
            f"The run {run_dir.name} cannot be asked to stop: {error}. Check who may write there."
        ) from None


def read_stop_request(run_dir: Path) -> Literal["", "pause", "stop"]:
    """Return the request since the run began or went on; empty without one."""
    try:
        return (
            PAUSE if read_regular(run_dir / STOP_FILE, _LARGEST_STOP) == PAUSE.encode() else _STOP
        )
    except FileNotFoundError:
        return ""
    except OSError:
        return _STOP
