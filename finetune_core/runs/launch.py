"""A command of the command line on several devices of this machine: what torchrun does, without typing it."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from finetune_core.data.threads import usable_cores

_THREADS = "OMP_NUM_THREADS"


def launch(devices: int, arguments: Sequence[str]) -> int:
    """Run ``python -m finetune_core`` with these arguments in one process per device, and wait for them: ``led`` makes them one run.

    They write to this process's stdout and stderr. Where it is ended, they are, too.

    Returns:
        The exit status: the first process's, or 1 where another one has died.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGHUP",
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes say themselves what is wrong
    os.environ.setdefault(_THREADS, str(max(1, usable_cores() // devices)))
    try:
        elastic_launch(config, sys.executable)("-m", "finetune_core", *arguments)
    except ChildFailedError as error:
        status = error.failures[0].exitcode if 0 in error.failures else 1
        return status if status > 0 else 1
    return 0
