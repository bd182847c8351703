"""Start one process per device of this machine, and wait for all of them.

``python -m finetune_core.runs.executors.launch DEVICES RUN TASK`` is a process of its own, started
by ``together.py``. It leads a process group, which ends with its stdin. Each process that it starts
runs ``rank.py`` and inherits its stdin and stdout.
"""

import os
import signal
import subprocess
import sys

from finetune_core.data.threads import count_usable_cores
from finetune_core.lifeline import exit_with_stdin
from finetune_core.training.devices.ranks import rendezvous_file

_THREADS = "OMP_NUM_THREADS"


def launch(devices: int, run: str, task: str) -> int:
    """Train a run with one rank per device, and wait for the ranks. When one dies, kill the others.

    Args:
        devices: how many ranks.
        run: as for ``rank.main``.
        task: as for ``rank.main``.

    Returns:
        The exit status: 0, or 1 when a rank has died.
    """
    os.environ.setdefault(_THREADS, str(max(1, count_usable_cores() // devices)))
    with rendezvous_file() as place:
        command = [sys.executable, "-m", "finetune_core.runs.executors.rank", run, task, str(place)]
        ranks = [
            subprocess.Popen([*command, str(rank), str(devices)]).pid for rank in range(devices)
        ]
        return _wait_for_all(ranks)


def _wait_for_all(pids: list[int]) -> int:
    running, failed = set(pids), False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGKILL)
    return int(failed)


if __name__ == "__main__":
    exit_with_stdin()
    sys.exit(launch(int(sys.argv[1]), *sys.argv[2:]))
