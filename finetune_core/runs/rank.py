"""One of the processes that train a run together: ``python -m finetune_core.runs.rank RUN TASK FOLDER``, as torch's launcher starts it.

It ends when its stdin does, so it never outlives who asked for it, even where the launcher has been killed. The first rank says on stdout
what came of the run, ``remote.outcome`` as JSON; all else that is printed goes to stderr.
"""

import json
import os
import sys
from pathlib import Path

from finetune_core.lifeline import end_with_stdin
from finetune_core.runs.remote import outcome, remote_run
from finetune_core.training.ranks import launched, see_one_device


def main(run: str, task: str, folder: str) -> None:
    """Take part in a run.

    Args:
        run: a RemoteRun, as JSON.
        task: as for ``remote.outcome``.
        folder: in which the processes find each other; nobody else may write there.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ranks = launched(Path(folder, "meeting-point"))
    see_one_device(ranks.local_rank, ranks.local_world)
    found = outcome(remote_run(json.loads(run)), task, ranks)
    if ranks.leads:
        with answers:
            json.dump(found, answers)
    elif "traceback" in found:  # the first rank knows the last line of it only
        sys.stderr.write(found["traceback"])


if __name__ == "__main__":
    end_with_stdin()
    main(*sys.argv[1:])
