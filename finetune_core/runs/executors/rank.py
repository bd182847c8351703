"""Train a run as one of its ranks.

The program is ``python -m finetune_core.runs.executors.rank RUN TASK PLACE RANK WORLD``.
``launch.py`` starts this process in its own process group, which ends when the app or command that
asked for the run does. Rank 0 writes the outcome to stdout, as JSON. Everything else that is
printed goes to stderr.
"""

import json
import os
import sys
from pathlib import Path

from finetune_core.runs.executors.remote import run_from_row, train_and_report
from finetune_core.training.devices.ranks import Ranks, select_device


def main(run: str, task: str, place: str, rank: str, world: str) -> None:
    """Train a run as one rank.

    Args:
        run: a RemoteRun, as JSON.
        task: as for ``remote.train_and_report``.
        place: path of the ``rendezvous_file``.
        rank: number of this process.
        world: number of processes.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ranks = Ranks(int(rank), int(world), int(rank), int(world), Path(place))
    select_device(ranks.local_rank, ranks.local_world_size)
    found = train_and_report(run_from_row(json.loads(run)), task, ranks)
    if ranks.is_main_process:
        with answers:
            json.dump(found, answers)
    elif "traceback" in found:  # rank 0 knows only the last line of the traceback
        sys.stderr.write(found["traceback"])
    elif ranks.is_broken:
        sys.stderr.write(f"Rank {rank} of {world}: {found['problem']}\n")
    if ranks.is_broken:
        sys.exit(1)  # so that ranks that still wait for this one are killed


if __name__ == "__main__":
    main(*sys.argv[1:])
