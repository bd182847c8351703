"""Starts one process per device of this machine, and sees to it that all of them end: what torchrun does, without typing it.

``python -m finetune_core.runs.launch DEVICES RUN TASK FOLDER``, a process of its own (``together.py`` starts it), because torch's launcher
replaces handlers of signals, which only a main thread may do. Each process it starts runs ``rank.py``, and has this one's stdin and stdout.
"""

import logging
import os
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from finetune_core.data.threads import usable_cores
from finetune_core.lifeline import end_with_stdin

_THREADS = "OMP_NUM_THREADS"


def launch(devices: int, run: str, task: str, folder: str) -> int:
    """Have so many ranks train a run, and wait for them; where one dies, the others are ended.

    Args:
        run, task, folder: as ``rank.main`` takes them.

    Returns:
        The exit status: 0, or 1 where one has died.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=str(Path(folder, "rendezvous")),
        rdzv_configs={
            "store_type": "file"
        },  # not on a port, where whoever reaches it could have pickles loaded
        max_restarts=0,
    )
    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # the processes say themselves what is wrong
    os.environ.setdefault(_THREADS, str(max(1, usable_cores() // devices)))
    try:
        elastic_launch(config, sys.executable)("-m", "finetune_core.runs.rank", run, task, folder)
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    end_with_stdin()
    sys.exit(launch(int(sys.argv[1]), *sys.argv[2:]))
