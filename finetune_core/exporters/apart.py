"""Exports in a subprocess, because tracing changes torch's global state while the app trains.

``python -m finetune_core.exporters.apart RUN FORMAT [ROOT…]`` exports into the run directory.
It prints one JSON list per ``Step`` to stdout, and errors to stderr. It ends when its stdin is
closed, so it never outlives the app.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetune_core.errors import ExportError, FinetuneError, explain_memory_errors
from finetune_core.lifeline import exit_with_stdin
from finetune_core.runs.store import Run, RunStore
from finetune_core.work import Step, Work, finish

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
        "finetune_core.exporters.apart",
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


def main(run_dir: str, format: str, *roots: str) -> None:
    """Export a run and print its progress. Exit with the message of an error."""
    # Exit instead of dying, so that half an export is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with explain_memory_errors():
            from finetune_core.exporters.formats import export_in_steps

        run = RunStore(Path(run_dir).parent).load_run(Path(run_dir))
        finish(export_in_steps(run, format, roots=[Path(root) for root in roots]), _print_step)
    except FinetuneError as error:
        sys.exit(str(error))


def _print_step(step: Step) -> None:
    sys.stdout.write(f"{json.dumps(step)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    exit_with_stdin()
    main(*sys.argv[1:])
