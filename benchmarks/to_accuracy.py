"""Time until the default recipe is as accurate as the tutorial's ten epochs, both in Thaw.

    python -m benchmarks.speed --to-accuracy --train 500 --size 96

Each run is a process of its own with empty caches, and the two recipes alternate. Seconds exclude
imports, and include everything else up to the end of an epoch: decoding, the trunk, the initial
head, the steps and validation. The accuracy to reach is the tutorial's validation accuracy after
its last epoch. The time is given as a share of the tutorial's training, and of its whole run, which
includes an evaluation. Test accuracy is that of each run's best epoch.
"""

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.defaults import tutorial_settings
from benchmarks.image_sets import write_set
from finetune_core.config import auto_setting_names

TRAIN = """
import json, sys, time
from pathlib import Path
import timm
from finetune_core.config import make_config
from finetune_core.training.loop import fit
from finetune_core.training.strategies.recipes import fill_auto
settings, images, work = json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
config = fill_auto(make_config(settings), images)
(work / "run").mkdir()
epochs, test = [], None
began = time.perf_counter()
for event in fit(config, work / "run"):
    if type(event).__name__ == "EpochEnded":
        epochs.append([time.perf_counter() - began, event.val_accuracy])
    if type(event).__name__ == "RunFinished":
        test = event.test_accuracy
print(json.dumps({"epochs": epochs, "test": test, "seconds": time.perf_counter() - began}))
"""
Runner = Callable[[Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Race:
    """One pair of runs.

    Attributes:
        tutorial: seconds to the end of the tutorial's last epoch.
        whole: seconds of the tutorial's whole run.
        reached: seconds until the default recipe is as accurate. Infinity if it never is.
        gained: test accuracy of the default minus that of the tutorial, in points.
    """

    tutorial: float
    whole: float
    reached: float
    gained: float


def compare_runs(tutorial: dict[str, Any], default: dict[str, Any]) -> Race:
    """Compare two runs, each as printed by ``TRAIN``."""
    seconds, target = tutorial["epochs"][-1]
    reached = (end for end, accuracy in default["epochs"] if accuracy >= target)
    gained = 100 * (default["test"] - tutorial["test"])
    return Race(seconds, tutorial["seconds"], next(reached, math.inf), gained)


def measure_races(
    train: Runner, sets: Sequence[str], images: int, seeds: int, network: str, size: int
) -> None:
    """Train both recipes' last block on each set with each seed, and print the races."""
    races_by_set: dict[str, list[Race]] = {name: [] for name in sets}
    with tempfile.TemporaryDirectory() as base:
        for seed, name in product(range(seeds), sets):
            shared = {
                "data": str(write_set(name, images, Path(base))),
                "backbone": network,
                "image_size": size,
                "seed": seed,
            }
            default = {"strategy": "last_block", "auto": auto_setting_names()}
            runs = [
                train(["-c", TRAIN, json.dumps(shared | settings), str(images), "{work}"])
                for settings in (tutorial_settings("last_block"), default)
            ]
            races_by_set[name].append(compare_runs(*runs))
            print(f"{name}, seed {seed}: {describe_races(races_by_set[name][-1:])}", flush=True)
    for name, races in races_by_set.items():
        print(f"{name}: {describe_races(races)}")
    print(f"all: {describe_races([one for races in races_by_set.values() for one in races])}")


def describe_races(races: Sequence[Race]) -> str:
    """Describe races in a line: median and range of the share of the tutorial's time."""
    shares = [one.reached / one.tutorial for one in races]
    tutorial = statistics.median(one.tutorial for one in races)
    gains = [one.gained for one in races]
    of_whole = statistics.median(one.reached / one.whole for one in races)
    never = sum(math.isinf(share) for share in shares)
    return (
        f"as accurate after {statistics.median(shares):.2f} of the tutorial's {tutorial:.1f} s "
        f"({min(shares):.2f} to {max(shares):.2f}; never in {never} of {len(races)}), "
        f"{of_whole:.2f} of its whole run; test accuracy "
        f"{statistics.mean(gains):+.1f} points ({min(gains):+.1f} to {max(gains):+.1f})"
    )
