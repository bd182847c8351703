"""Training of a run on several devices of this machine, in one process each.

The processes are started and followed here, and never outlive this process.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_core.runs.executors.remote import (
    LOOK,
    RemoteRun,
    Row,
    follow_events,
    hand_over,
    raise_problem,
    run_to_row,
)
from finetune_core.runs.lines import EventLines
from finetune_core.runs.record import EVENTS_FILE, Reservation, append_event
from finetune_core.training.events import Event, RunFailed

_PROJECT = Path(__file__).resolve().parents[3]
_LOST = (
    "A process of the run has ended, perhaps because memory ran out. "
    "Resume the run, on as many devices as there are."
)


def execute_on_devices(
    reservation: Reservation, roots: Sequence[Path] = ()
) -> Generator[Event, None, None]:
    """Train a run to its end on ``reservation.devices`` devices.

    If the generator is closed before that, the processes end, and the run counts as interrupted.

    Raises:
        TrainingError: if the run could not be trained to its end.
        RunError: if the run directory cannot be written to.
    """
    run_dir = reservation.run_dir
    lines = EventLines(run_dir / EVENTS_FILE)
    lines.read_new()
    try:
        run, task = (
            hand_over(reservation, roots, has_device=False),
            f"{run_dir.name}-{secrets.token_hex(4)}",
        )
        with RankProcesses(run, task, reservation.devices) as processes:
            found = yield from follow_events(lines, lambda: processes.wait(LOOK))
        # No rank has claimed the run, so none has written the failure.
        if "problem" in found and reservation.lock.is_held():
            append_event(run_dir, RunFailed(found["problem"], ""))
        raise_problem(found, f"the run {run_dir.name}")
    finally:
        reservation.lock.release()


class RankProcesses:
    """The processes that train a run together. Leaving the block early ends them."""

    def __init__(self, run: RemoteRun, task: str, devices: int) -> None:
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115  closed with the block
        # Import from the project, not from the working directory, where a person may have files
        # with names of modules. The directory stays: paths of the run may be relative to it.
        paths = {
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(_PROJECT), os.environ.get("PYTHONPATH")))
            ),
        }
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "finetune_core.runs.executors.launch",
                str(devices),
                json.dumps(run_to_row(run)),
                task,
            ],
            env=os.environ | paths,
            stdin=subprocess.PIPE,
            stdout=self._answer,
            start_new_session=True,  # Ctrl-C is for this process, which asks the run to stop
        )

    def wait(self, patience: float) -> Row | None:
        """Return the result of ``remote.train_and_report`` once the processes have ended.

        Returns:
            The result; None if they have not ended within ``patience`` seconds.
        """
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        self._answer.seek(0)
        text = self._answer.read()
        found: Row = json.loads(text) if text else {"problem": _LOST}
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # ends processes that have not ended yet
        self._process.wait()
        self._answer.close()
