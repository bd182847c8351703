r"""Speed of Thaw against the tutorial's plain loop (``plain_loop.py``).

    python -m benchmarks.speed
    python -m benchmarks.speed --plain-epochs 2
    python -m benchmarks.speed --train 10000 --val 1500 --networks resnet18 \
        --jobs feature_extraction --plain-epochs 1
    python -m benchmarks.speed --to-accuracy --train 500 --size 96
    python -m benchmarks.speed --networks resnet18 --peers --plain-epochs 2

All sides have the same images, epochs, network and batch size, and alternate. The default is 2,000
+ 650 images, 10 epochs and three rounds, which takes many hours on two cores. Every epoch of the
plain loop costs the same, so that ``--plain-epochs 2`` runs two of them and counts ten.
``--to-accuracy`` measures the default recipe. ``--peers`` adds Lightning, HF Trainer and fastai
(``peers.py``).

Each job runs in a process of its own with empty caches. Seconds exclude imports on all sides. For
Thaw they include everything else: indexing, decoding, the trunk, the epochs, validation,
checkpoints, and the fp32 evaluation of the best epoch. Ratios compare sides within one round, where
they ran one after the other. Their median and range over the rounds count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers import PEERS, find_missing
from benchmarks.to_accuracy import measure_races
from finetune_core.formatting import pluralize

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("feature_extraction", "last_block", "last_two_blocks", "full")
PLAIN = "plain loop"
NETWORKS = ("resnet18", "efficientnet_lite0")
RACED = ("digits", "glyphs", "emoji", "shapes", "textures")
JOBS = ("feature_extraction", "last_block", "comparison", "full")
# job -> strategy of the other sides, if it is not the job itself
BASELINES = {"comparison": "last_block"}
# speed relative to the plain loop, for ResNet-18
TARGETS = {"last_block": 7.0, "full": 3.0, "comparison": 1.0}
# speed of feature extraction, by numbers of training and validation images
TARGETS_BY_SIZE = {(2000, 650): 32.0, (10000, 1500): 45.0}

THAW = """
import json, resource, statistics, sys, time
from pathlib import Path
from finetune_core.config import make_config
from finetune_core.training.loop import fit
settings, strategies, work = json.loads(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3])
parts, trained, epoch = {}, 0, 0.0
began = time.perf_counter()
for strategy in strategies:
    at = time.perf_counter()
    run_dir = work / strategy
    run_dir.mkdir()
    seconds = []
    for event in fit(make_config(settings | {"weights": "none", "strategy": strategy}), run_dir):
        if type(event).__name__ == "RunStarted":
            trained = event.trainable_parameters
        if type(event).__name__ == "EpochEnded":
            seconds.append(event.train_seconds)
    epoch = statistics.median(seconds[1:] or seconds)
    parts[strategy] = time.perf_counter() - at
ends = [time.perf_counter() - began]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"ends": ends, "trained": trained, "parts": parts, "epoch": epoch, \
"peak_bytes": peak}))
"""


@dataclass(frozen=True)
class Work:
    """Work of every side.

    Attributes:
        folder: image folder with train/ and val/.
        network: the network.
        epochs: number of epochs.
        measured: number of epochs that the other sides run. Their seconds are extrapolated to
            ``epochs``.
        options: further options of ``plain_loop.py``.
        settings: further settings of Thaw's config.
    """

    folder: Path
    network: str
    epochs: int
    measured: int
    options: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def write_images(folder: Path, train: int, val: int) -> None:
    """Write JPEGs of 320 × 320 pixels in four classes.

    They consist of smooth colours with some grain, so that they decode like photographs.
    """
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            label = number % 4
            target = folder / split / f"class{label}"
            target.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (8 + 2 * label, 8 + 2 * label, 3), dtype=np.uint8)
            image = np.asarray(
                Image.fromarray(coarse).resize((320, 320), Image.Resampling.BICUBIC), dtype=np.int16
            )
            grain = random.integers(-12, 13, image.shape, dtype=np.int16)
            Image.fromarray(np.uint8(np.clip(image + grain, 0, 255))).save(
                target / f"{number:05d}.jpg", quality=90
            )


def run_python(command: Sequence[str]) -> dict[str, Any]:
    """Run a Python process and return what it prints as JSON.

    The process runs in an empty directory, which also holds its caches.
    """
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.run(
            [sys.executable, *(part.replace("{work}", home) for part in command)],
            cwd=home,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "THAW_HOME": home,
                "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor",
            },
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode:
        raise SystemExit(process.stderr)
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def extrapolate_seconds(ends: Sequence[float], epochs: int) -> float:
    """Extrapolate the seconds of ``epochs`` epochs.

    Args:
        ends: seconds at the end of each measured epoch. The first also contains the start of a
            side.
        epochs: number of epochs.
    """
    if len(ends) < 2:
        return ends[0] * epochs
    return ends[0] + (ends[-1] - ends[0]) / (len(ends) - 1) * (epochs - 1)


def run_other(side: str, work: Work, strategy: str) -> dict[str, Any]:
    """Run the plain loop or a peer. Return ``seconds`` and the number of ``trained`` parameters."""
    arguments = [str(work.folder), strategy, str(work.measured)]
    if side == PLAIN:
        result = run_python(
            ["-m", "benchmarks.plain_loop", *arguments, "--network", work.network, *work.options]
        )
    else:
        result = run_python(["-m", "benchmarks.peers", side, *arguments])
    return result | {"seconds": extrapolate_seconds(result["ends"], work.epochs)}


def run_thaw(work: Work, strategies: Sequence[str]) -> dict[str, Any]:
    """Run Thaw with one or more strategies.

    Returns:
        ``seconds`` of all strategies, and ``parts`` by strategy. For the last strategy, the number
        of ``trained`` parameters, and the seconds of an ``epoch``. ``peak_bytes`` of the process.
    """
    settings = {
        "data": str(work.folder),
        "backbone": work.network,
        "epochs": work.epochs,
        **work.settings,
    }
    result = run_python(["-c", THAW, json.dumps(settings), ",".join(strategies), "{work}"])
    return result | {"seconds": result["ends"][-1]}


Seconds = tuple[float, float]  # of another side, and of Thaw right after


def measure_round(
    work: Work, jobs: Sequence[str], sides: Sequence[str]
) -> dict[tuple[str, str], Seconds]:
    """Run one round and print it.

    Returns:
        (job, side) -> seconds of the side and of Thaw.

    Raises:
        SystemExit: if a side trains other parameters than Thaw.
    """
    measured = {}
    others: dict[str, dict[str, dict[str, Any]]] = {}
    for job in jobs:
        strategy = BASELINES.get(job, job)
        if strategy not in others:
            others[strategy] = {side: run_other(side, work, strategy) for side in sides}
        result = run_thaw(work, STRATEGIES if job == "comparison" else (job,))
        trained = {side: outcome["trained"] for side, outcome in others[strategy].items()}
        if job == strategy and set(trained.values()) != {result["trained"]}:
            raise SystemExit(
                f"{work.network}, {job}: Thaw trains {result['trained']:,} parameters, the "
                f"others {trained}"
            )
        for side, outcome in others[strategy].items():
            measured[job, side] = outcome["seconds"], result["seconds"]
        print(describe_job(work, job, measured, result), flush=True)
    return measured


def describe_job(
    work: Work, job: str, measured: Mapping[tuple[str, str], Seconds], result: Mapping[str, Any]
) -> str:
    """Describe a job of one round in a line."""
    times = ", ".join(
        f"{side} {seconds:.1f} s"
        for (other_job, side), (seconds, _) in measured.items()
        if other_job == job
    )
    parts = ", ".join(f"{name} {part:.1f} s" for name, part in result["parts"].items())
    trained = (
        f"{result['trained']:,} parameters train" if job not in BASELINES else f"of it {parts}"
    )
    return (
        f"  {work.network}, {job}: {times}, Thaw {result['seconds']:.1f} s; {trained}; peak "
        f"{result['peak_bytes'] / 1e9:.2f} GB"
    )


def describe_rounds(
    network: str, job: str, side: str, rounds: Sequence[Seconds], size: tuple[int, int]
) -> str:
    """Describe the rounds of one job against one side in a line.

    The target is added for ResNet-18 against the plain loop.

    Args:
        network: the network.
        job: the job.
        side: the other side.
        rounds: seconds of the other side and of Thaw, for each round.
        size: numbers of training and validation images.
    """
    target_ratio = TARGETS_BY_SIZE.get(size) if job == "feature_extraction" else TARGETS[job]
    backwards = job == "comparison"
    ratios = [
        our_seconds / their_seconds if backwards else their_seconds / our_seconds
        for their_seconds, our_seconds in rounds
    ]
    relation = f"the time of one {BASELINES[job]} of" if backwards else "as fast as"
    target = (
        f"; {'at most ' if backwards else ''}{target_ratio:g} wanted"
        if target_ratio and (network, side) == ("resnet18", PLAIN)
        else ""
    )
    their_seconds, our_seconds = (
        statistics.median(pair[index] for pair in rounds) for index in (0, 1)
    )
    return (
        f"{network}, {job}: {statistics.median(ratios):.2f} times {relation} {side}: "
        f"{our_seconds:.1f} s against {their_seconds:.1f} s "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {pluralize(len(rounds), 'round')}{target})"
    )


def find_peers() -> list[str]:
    """Return the peers that are installed, and print which are not."""
    for library in PEERS:
        if packages := find_missing(library):
            print(f"{library} is left out: not installed ({', '.join(packages)})", flush=True)
    return [library for library in PEERS if not find_missing(library)]


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=2000, help="training images")
    parser.add_argument("--val", type=int, default=650, help="validation images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plain-epochs", type=int, help="how many of them the others run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument(
        "--peers",
        action="store_true",
        help="Lightning, HF Trainer and fastai on ResNet-18, where installed",
    )
    parser.add_argument(
        "--to-accuracy",
        action="store_true",
        help="the default recipe against the tutorial's, both in Thaw (to_accuracy.py)",
    )
    parser.add_argument("--size", type=int, default=224, help="pixels, with --to-accuracy")
    options = parser.parse_args()
    options.plain_epochs = options.plain_epochs or options.epochs
    if options.peers and options.plain_epochs < min(2, options.epochs):
        parser.error(
            "--peers needs --plain-epochs 2 or more: a peer's first epoch also holds what starts it"
        )
    return options


def main() -> None:
    options = read_options()
    if options.to_accuracy:
        measure_races(
            run_python,
            RACED,
            options.train,
            options.rounds,
            options.networks.split(",")[-1],
            options.size,
        )
        return
    peers = find_peers() if options.peers else []
    with tempfile.TemporaryDirectory() as base:
        write_images(Path(base), options.train, options.val)
        for network in options.networks.split(","):
            work = Work(Path(base), network, options.epochs, options.plain_epochs)
            rounds: dict[tuple[str, str], list[Seconds]] = defaultdict(list)
            for number in range(options.rounds):
                print(f"round {number + 1}", flush=True)
                sides = [PLAIN, *peers] if network == "resnet18" else [PLAIN]
                for key, seconds in measure_round(work, options.jobs.split(","), sides).items():
                    rounds[key].append(seconds)
            for (job, side), pairs in rounds.items():
                print(
                    describe_rounds(network, job, side, pairs, (options.train, options.val)),
                    flush=True,
                )


if __name__ == "__main__":
    main()
