"""Thaw against the tutorial's plain loop (plain_loop.py): the same images, epochs, network and batch, alternating.

    python -m benchmarks.speed                          # 2,000 + 650 images, 10 epochs: more than an hour on two cores
    python -m benchmarks.speed --plain-epochs 2         # the plain loop's epochs all cost the same: run 2, count 10

Each job runs in a process of its own. Both sides' seconds leave imports out; Thaw's hold everything else: indexing,
decoding, the trunk, the epochs, validation, checkpoints and the test of the best epoch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("feature_extraction", "last_block", "last_two_blocks", "full")
TARGETS = {"last_block": 5.5, "feature_extraction": 28.0, "full": 2.5}

THAW = """
import json, resource, sys, time
from pathlib import Path
from finetune_core.config import make_config
from finetune_core.training.loop import fit
folder, strategies, epochs, work = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), Path(sys.argv[4])
parts = {}
began = time.perf_counter()
for strategy in strategies:
    at = time.perf_counter()
    config = make_config({"data": folder, "backbone": "resnet18", "weights": "none", "strategy": strategy, "epochs": epochs})
    run_dir = work / strategy
    run_dir.mkdir()
    for event in fit(config, run_dir):
        pass
    parts[strategy] = time.perf_counter() - at
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": time.perf_counter() - began, "parts": parts, "peak_bytes": peak}))
"""


def write_images(folder: Path, train: int, val: int) -> None:
    """JPEGs of 320 × 320 pixels in four classes: smooth colours with some grain, so that they decode like photographs."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            label = number % 4
            target = folder / split / f"class{label}"
            target.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (8 + 2 * label, 8 + 2 * label, 3), dtype=np.uint8)
            image = np.asarray(Image.fromarray(coarse).resize((320, 320), Image.Resampling.BICUBIC), dtype=np.int16)
            grain = random.integers(-12, 13, image.shape, dtype=np.int16)
            Image.fromarray(np.uint8(np.clip(image + grain, 0, 255))).save(target / f"{number:05d}.jpg", quality=90)


def run(command: list[str]) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [part.replace("{work}", home) for part in command],
            cwd=home,
            env=environment | {"THAW_HOME": home},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def plain(folder: Path, strategy: str, epochs: int, measured: int) -> float:
    result = run([sys.executable, "-m", "benchmarks.plain_loop", str(folder), strategy, str(measured)])
    return float(result["seconds"]) * epochs / measured


def thaw(folder: Path, strategies: str, epochs: int) -> dict[str, Any]:
    return run([sys.executable, "-c", THAW, str(folder), strategies, str(epochs), "{work}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--val", type=int, default=650)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plain-epochs", type=int, default=None)
    parser.add_argument("--jobs", default="feature_extraction,last_block,full,comparison")
    options = parser.parse_args()
    measured = options.plain_epochs or options.epochs
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        write_images(folder, options.train, options.val)
        plain_seconds = {}
        for job in options.jobs.split(","):
            against = "last_block" if job == "comparison" else job
            if against not in plain_seconds:
                plain_seconds[against] = plain(folder, against, options.epochs, measured)
            result = thaw(folder, ",".join(STRATEGIES) if job == "comparison" else job, options.epochs)
            before, now = plain_seconds[against], result["seconds"]
            if job == "comparison":
                words = f"{now / before:.2f} times the plain last_block (at most 1.3 wanted)"
            else:
                words = f"{before / now:.1f} times faster ({TARGETS[job]} wanted)"
            parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["parts"].items())
            print(
                f"{job}: plain {before:.1f} s, Thaw {now:.1f} s, {words}; {parts}; peak {result['peak_bytes'] / 1e9:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
