"""Program of the subprocess that exports a run.

``python -m finetune_core.exporters RUN FORMAT [ROOT…]`` exports into the run directory. It prints
one JSON list per ``Step`` to stdout, and errors to stderr. It ends when its stdin is closed.
"""

import json
import signal
import sys
from pathlib import Path

from finetune_core.errors import FinetuneError, explain_memory_errors
from finetune_core.lifeline import exit_with_stdin
from finetune_core.runs.store import RunStore
from finetune_core.work import Step, finish


def main(run_dir: str, format: str, *roots: str) -> None:
    """Export a run and print its progress. Exit with the message of an error."""
    # Exit instead of dying, so that half an export is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        # Libraries of the formats may not fit into memory, so the import is explained, too.
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
