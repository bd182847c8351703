"""Cost of a run on 1, 4 and 16 times as many images, or on one and two ranks.

    python -m benchmarks.growth
    python -m benchmarks.growth --ranks
    python -m benchmarks.growth --ranks --side 224

``--ranks`` alternates full fine-tuning on one rank and on two, with one thread per rank. The
machine has to be idle, because in every step a rank waits for the slower one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed import write_images

CHILD = """
import json, resource, sys
from finetune_core.__main__ import main
sys.argv[1:] = ["train", *sys.argv[1:], "--json"]
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def train(data: Path, threads: int = 0, **settings: object) -> tuple[Any, list[Any], int]:
    """Train a run of three epochs in a process of its own, with empty caches.

    Args:
        data: the image folder.
        threads: of each rank. 0 leaves the choice to torch.
        settings: further settings of the run.

    Returns:
        The RunStarted event, the EpochEnded events, and the largest memory of the process in bytes.
    """
    options = ["--epochs", "3"]
    for name, value in settings.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"THAW_HOME": home}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        process = subprocess.run(
            [sys.executable, "-c", CHILD, str(data), *options],
            cwd=Path(__file__).resolve().parent.parent,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        result, _, peak = process.stdout.strip().rpartition("\n")
        text = Path(json.loads(result)["run_dir"], "events.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    first = next(event for event in events if event["event"] == "RunStarted")
    return first, [event for event in events if event["event"] == "EpochEnded"], int(peak)


def measure_images(data: Path, images: int) -> str:
    """Train on cached features and describe time and memory per image."""
    write_images(data, images, images // 4)
    first, epochs, peak = train(data, strategy="last_block", weights="none", image_size=96)
    cache = first["cache"]
    return (
        f"{images:,} training images: {epochs[-1]['train_seconds'] / images * 1e3:.3f} ms per "
        f"image in a cached epoch, {cache['trunk_seconds'] / (images * 1.25) * 1e3:.2f} ms once "
        f"for the trunk; cache {cache['bytes'] / 1e6:.0f} MB {cache['where']}, peak "
        f"{peak / 1e9:.2f} GB"
    )


def measure_ranks(data: Path, images: int, side: int, turns: int) -> str:
    """Train on one rank and on two in turn, and describe the ratio of their times."""
    write_images(data, images, images // 4)
    settings = {"strategy": "full", "batchnorm": "frozen", "precision": "fp32", "device": "cpu"}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(turns):
        for ranks, epoch_seconds in seconds.items():
            _, epochs, _ = train(data, threads=1, image_size=side, devices=ranks, **settings)
            epoch_seconds += [epoch["train_seconds"] for epoch in epochs[1:]]
    one, two = map(statistics.median, seconds.values())
    return (
        f"an epoch takes {one:.1f} s on one rank, {two:.1f} s on two: {one / two:.2f} times as "
        f"fast; load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400, help="training images, the fewest")
    parser.add_argument("--ranks", action="store_true", help="two ranks against one instead")
    parser.add_argument("--side", type=int, default=128, help="pixels, with --ranks")
    parser.add_argument("--turns", type=int, default=2, help="with --ranks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.ranks:
            print(measure_ranks(Path(folder), options.images, options.side, options.turns))
            return
        for images in (options.images, 4 * options.images, 16 * options.images):
            print(measure_images(Path(folder, str(images)), images), flush=True)


if __name__ == "__main__":
    main()
