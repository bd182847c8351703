"""What it costs to have a run trained by Ray: small runs in this process, and the same as tasks of a Ray of this machine's own.

    python -m benchmarks.ray_overhead
    python -m benchmarks.ray_overhead --runs 5

Ray starts once a command or app, a worker process once per place, and looks at storage once per data set; each run then costs what it
takes to hand it over and to notice its end. Wall times depend on what else the machine does, and the load says how busy it was;
processor times, of this process and all that it has started, much less.
"""

import argparse
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from benchmarks.inspection import write_photos
from finetune_core.config import RunConfig, make_config
from finetune_core.runs.executors import Executor, InProcess
from finetune_core.runs.ray_executor import RayExecutor
from finetune_core.runs.record import create_run


class Cost(NamedTuple):
    """Seconds by the clock, and of processors."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.processor:.1f} s of processors)"


def now() -> Cost:
    """Both so far."""
    own = psutil.Process()
    spent = 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return Cost(time.perf_counter(), spent)


def since(began: Cost) -> Cost:
    """What it took."""
    ended = now()
    return Cost(ended.wall - began.wall, ended.processor - began.processor)


def trained(executor: Executor, config: RunConfig, runs_dir: Path) -> Cost:
    """Of one run, from its folder to its last event."""
    began = now()
    for _ in executor.execute(create_run(config, runs_dir, elsewhere=executor.elsewhere)):
        pass
    return since(began)


def middle(costs: list[Cost]) -> Cost:
    """The medians."""
    return Cost(median(one.wall for one in costs), median(one.processor for one in costs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="of each kind, after a first one (default 3)"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["THAW_HOME"] = home
        write_photos(Path(home, "images"), 60, 64)
        usual = {
            "backbone": "squeezenet1_1",
            "weights": "none",
            "image_size": 32,
            "epochs": 1,
            "precision": "fp32",
        }
        configs = [
            make_config(usual | {"data": str(Path(home, "images")), "seed": seed})
            for seed in range(asked.runs + 1)
        ]
        runs_dir = Path(home, "runs")
        here, *usual_here = (trained(InProcess(), config, runs_dir) for config in configs)
        began, executor = now(), RayExecutor()
        executor.driver()
        started = since(began)
        try:
            there, *usual_there = (trained(executor, config, runs_dir) for config in configs)
        finally:
            executor.close()
    print(f"Ray starts: {started}; the first run: {there}, in this process {here}")
    print(f"Each further run: {middle(usual_there)}, in this process {middle(usual_here)}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
