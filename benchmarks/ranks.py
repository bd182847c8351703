"""What a second rank is worth: full fine-tuning on two ranks with one thread each against one rank with one thread, in turns.

    python -m benchmarks.ranks
    python -m benchmarks.ranks --images 512 --turns 4

Images per second of training, of each epoch but the first; every run starts in processes of its own, as a user's does, and the time
that this takes is said apart. The machine has to be idle: a rank waits for the slower one in every step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.inspection import write_photos

_BATCH = 32


def measured(
    data: Path, home: Path, ranks: int, side: int, epochs: int
) -> tuple[list[float], float]:
    """Seconds of training of each epoch but the first, and of all that is not training or validation."""
    settings = {
        "--strategy": "full",
        "--batchnorm": "frozen",
        "--precision": "fp32",
        "--device": "cpu",
        "--image-size": str(side),
        "--batch-size": str(_BATCH),
        "--epochs": str(epochs),
        "--devices": str(ranks),
    }
    options = [part for pair in settings.items() for part in pair]
    command = [sys.executable, "-m", "finetune_core", "train", str(data), *options, "--json"]
    began = time.monotonic()
    environment = os.environ | {"THAW_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    spent = time.monotonic() - began
    lines = Path(json.loads(done.stdout)["run_dir"], "events.jsonl").read_text().splitlines()
    ended = [event for event in map(json.loads, lines) if event["event"] == "EpochEnded"]
    return [event["train_seconds"] for event in ended[1:]], spent - ended[-1]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    asked = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        data, home = Path(folder, "photos"), Path(folder, "home")
        write_photos(data, asked.images, 2 * asked.side)
        for _ in range(asked.turns):
            for ranks, seconds in found.items():
                trained, rest = measured(data, home, ranks, asked.side, asked.epochs)
                seconds += trained
                words = ", ".join(f"{one:.1f}" for one in trained)
                print(
                    f"{ranks} rank{'s' * (ranks > 1)}: epochs of {words} s; start, reading and evaluation {rest:.1f} s",
                    flush=True,
                )
    one, two = (statistics.median(found[ranks]) for ranks in (1, 2))
    print(
        f"medians {one:.1f} and {two:.1f} s: two ranks train {one / two:.2f} times as fast; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
