"""An export in a process of its own, for an app that trains meanwhile: tracing changes torch's global state.

``python -m finetune_core.exporters.apart RUN FORMAT [ROOT…]`` exports into the run's own folder, and says how far it is on stdout:
one JSON list per ``Step``. What goes wrong is said on stderr. It ends when its stdin does: it never outlives the app.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetune_core.errors import ExportError, FinetuneError, explain_memory_errors
from finetune_core.lifeline import end_with_stdin
from finetune_core.runs.store import Run, RunStore
from finetune_core.work import Step, Work, finish

_PROJECT = Path(__file__).resolve().parents[2]


def export_apart(run: Run, format: str, roots: Sequence[Path] = ()) -> Work[None]:
    """Export a run in another process, which ends when this generator is closed.

    Raises:
        ExportError: with what went wrong there.
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
            stdin=subprocess.PIPE,  # held open, and never written to
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
            process.wait()  # before its stdin is closed, so that it can clear up
            raise
        if process.wait():
            problems.seek(0)
            words = problems.read().strip()
            raise ExportError(
                words
                or f"The export ended with status {process.returncode}: memory may have run out."
            )


def main(run_dir: str, format: str, *roots: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # cleanly: half an export leaves nothing
    try:
        with explain_memory_errors():
            from finetune_core.exporters.formats import exporting

        run = RunStore(Path(run_dir).parent).read(Path(run_dir))
        finish(exporting(run, format, roots=[Path(root) for root in roots]), _report)
    except FinetuneError as error:
        sys.exit(str(error))


def _report(step: Step) -> None:
    sys.stdout.write(f"{json.dumps(step)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    end_with_stdin()
    main(*sys.argv[1:])
