"""What it costs to have a run trained by Ray: small runs in this process, and the same as tasks of a Ray of this machine's own.

    python -m benchmarks.ray_overhead
    python -m benchmarks.ray_overhead --runs 5

Ray starts once a command or app, a worker process once per place, and looks at storage once per data set; each run then costs what it
takes to hand it over and to notice its end. Wall times depend on what else the machine does: the load says how busy it was.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.inspection import write_photos
from finetune_core.config import RunConfig, make_config
from finetune_core.runs.executors import Executor, InProcess
from finetune_core.runs.ray_executor import RayExecutor
from finetune_core.runs.record import create_run


def seconds(executor: Executor, config: RunConfig, runs_dir: Path) -> float:
    """Of one run, from its folder to its last event."""
    began = time.perf_counter()
    for _ in executor.execute(create_run(config, runs_dir, elsewhere=executor.elsewhere)):
        pass
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each kind, after a first one (default 3)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["THAW_HOME"] = home
        write_photos(Path(home, "images"), 60, 64)
        usual = {"backbone": "squeezenet1_1", "weights": "none", "image_size": 32, "epochs": 1, "precision": "fp32"}
        configs = [make_config(usual | {"data": str(Path(home, "images")), "seed": seed}) for seed in range(asked.runs + 1)]
        runs_dir = Path(home, "runs")
        here, *usual_here = (seconds(InProcess(), config, runs_dir) for config in configs)
        began = time.perf_counter()
        executor = RayExecutor()
        executor.driver()
        started = time.perf_counter() - began
        try:
            there, *usual_there = (seconds(executor, config, runs_dir) for config in configs)
        finally:
            executor.close()
    print(f"Ray starts: {started:.1f} s; the first run: {there:.1f} s, in this process {here:.1f} s")
    print(
        f"Each further run: {median(usual_there):.2f} s, in this process {median(usual_here):.2f} s: "
        f"{median(usual_there) - median(usual_here):.2f} s more; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
