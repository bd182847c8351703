"""Exports in a subprocess, because tracing changes torch's global state while the app trains.

The program of the subprocess is ``exporters/__main__.py``. It ends when its stdin is closed, so it
never outlives the app.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetune_core.errors import ExportError
from finetune_core.runs.store import Run
from finetune_core.work import Step, Work

_PROJECT = Path(__file__).resolve().parents[2]


def export_in_subprocess(run: Run, format: str, roots: Sequence[Path] = ()) -> Work[None]:
    """Export a run in a subprocess, which ends when this generator is closed.

    Yields:
        The steps that the subprocess reports.

    Raises:
        ExportError: if the subprocess fails, with its message.
    """
    command = [
        sys.executable,
        "-m",
        "finetune_core.exporters",
        str(run.run_dir),
        format,
        *map(str, roots),
    ]
    with (
        tempfile.TemporaryFile("w+") as problems,
        subprocess.Popen(
            command,
            cwd=_PROJECT,
            stdin=subprocess.PIPE,  # stays open, nothing is written to it
            stdout=subprocess.PIPE,
            stderr=problems,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                yield Step(*json.loads(line))
        except GeneratorExit:
            process.terminate()
            process.wait()  # before stdin is closed, so that the process can clean up
            raise
        if process.wait():
            problems.seek(0)
            message = problems.read().strip()
            raise ExportError(
                message
                or f"The export ended with status {process.returncode}: memory may have run out."
            )
