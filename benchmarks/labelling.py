"""Labels saved by asking for uncertain and diverse images, and the time of a new order.

    python -m benchmarks.labelling labels --results labelling.jsonl
    python -m benchmarks.labelling report --results labelling.jsonl
    python -m benchmarks.labelling speed

Both sides of ``labels`` start from the same two images of each class, fit the same linear probe
after every ten labels, and are evaluated on the same test images.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from benchmarks.image_sets import write_set
from finetune_core import paths
from finetune_core.data.dataset import load_dataset
from finetune_core.data.splits import TEST, TRAIN
from finetune_core.inspection.features import compute_features
from finetune_core.labelling.orders import BATCH
from finetune_core.labelling.session import Labelling, Labels
from finetune_core.models.catalogue import PACKAGED
from finetune_core.work import finish

SETS = ("glyphs", "emoji", "shapes", "textures", "photographs")
POOL, SIZE = 1500, 96  # images, pixels
STARTING = 2  # labels of each class
LABELS = 300  # a side stops there
BAR = 0.6  # target share of the random side's labels


def load_task(name: str) -> tuple[Labelling, np.ndarray, np.ndarray]:
    """Return a labelling task, the classes of its pool, and which images are in the pool.

    The pool holds the training images. The test images serve as validation images, so the probe's
    accuracy is measured on them.
    """
    dataset = load_dataset(write_set(name, POOL, paths.home() / "benchmarks"))
    features = finish(compute_features(dataset, PACKAGED, SIZE))
    table = dataset.table.iloc[features.rows].reset_index(drop=True)
    values = features.final
    train, test = ((table["split"] == split).to_numpy() for split in (TRAIN, TEST))
    pool = table.loc[train, ["id", "content", "split"]].reset_index(drop=True)
    validation = (
        table.loc[test, ["id", "class", "group"]].assign(split="val").reset_index(drop=True)
    )
    directions = PCA(64, svd_solver="randomized", random_state=0).fit_transform(values[train])
    labelling = Labelling(
        dataset.root,
        dataset.classes,
        pool,
        values[train],
        directions.astype(np.float32),
        validation,
        values[test],
    )
    return labelling, table.loc[train, "class"].to_numpy(dtype=object), train


def run_side(task: Labelling, truth: np.ndarray, order: str, seed: int) -> list[float]:
    """Return the test accuracy after the first labels and after each batch of labels."""
    random = np.random.default_rng(seed)
    labelled = np.zeros(len(truth), dtype=bool)
    for name in task.classes:
        labelled[random.choice(np.flatnonzero(truth == name), STARTING, replace=False)] = True
    accuracies = []
    while True:
        labels = Labels(np.where(labelled, truth, ""), ~labelled, 0, 0)
        probe = task.fit(labels)
        accuracies.append(float(probe.accuracy or 0))
        if labelled.sum() >= LABELS:
            return accuracies
        unlabelled = np.flatnonzero(~labelled)
        queue = (
            random.permutation(unlabelled)
            if order == "random"
            else task.order(labels, probe, order)
        )
        labelled[queue[:BATCH]] = True


def measure_labels(results: Path, sets: list[str], seeds: int) -> None:
    """Run both sides on each set with each seed, and append the accuracies to a file."""
    for name in sets:
        task, truth, _ = load_task(name)
        for seed in range(seeds):
            row: dict[str, Any] = {"set": name, "seed": seed, "start": STARTING * len(task.classes)}
            row |= {side: run_side(task, truth, side, seed) for side in ("random", "uncertain")}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(name, seed, row["random"][-1], row["uncertain"][-1], flush=True)


def count_needed_labels(row: Any, side: str) -> float:
    """Return the number of labels after which a side first reaches the target accuracy.

    The target is the mean of the random side's last three accuracies, so that one lucky fit does
    not decide. Returns infinity if the side never reaches the target.
    """
    target = statistics.mean(row["random"][-3:])
    reached = np.flatnonzero(np.array(row[side]) >= target)
    return float(row["start"] + BATCH * reached[0]) if len(reached) else float("inf")


def report(results: Path) -> None:
    """Print the table of docs/labelling.md."""
    rows = pd.DataFrame([json.loads(line) for line in results.read_text().splitlines()])
    print(
        "| set | seeds | random, 300 labels | same labels, asked for | labels for the same | "
        "share |"
    )
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(rows["set"]):
        some: Any = rows[rows["set"] == name]
        last = some["random"].map(lambda one: statistics.mean(one[-3:]))
        uncertain = some["uncertain"].map(lambda one: statistics.mean(one[-3:]))
        needed = some.apply(count_needed_labels, axis=1, side="uncertain")
        shares = needed / (some["start"] + BATCH * (some["random"].map(len) - 2))
        inside = int((shares <= BAR).sum())
        print(
            f"| {name} | {len(some)} | {last.mean():.1%} | {uncertain.mean():.1%} | "
            f"{needed.median():.0f} ({needed.min():.0f} to {needed.max():.0f}) | "
            f"{shares.median():.0%}; at most {BAR:.0%} in {inside} of {len(some)} |"
        )


def measure_speed(images: int, features: int, labels: int, classes: int) -> None:
    """Print the seconds of a fit and of a new order on random features."""
    random = np.random.default_rng(0)
    centres = random.normal(0, 1, (classes, features))
    truth = random.integers(classes, size=images)
    values = (centres[truth] + random.normal(0, 3, (images, features))).astype(np.float32)
    names = np.array([f"class {label}" for label in truth], dtype=object)
    ids = [f"{number}.png" for number in range(images)]
    pool = pd.DataFrame({"id": ids, "content": np.arange(images, dtype=np.uint64), "split": TRAIN})
    validation = pd.DataFrame({"id": [], "class": [], "split": [], "group": []}, dtype=str)
    directions = PCA(64, svd_solver="randomized", random_state=0).fit_transform(values)
    task = Labelling(
        Path(),
        tuple(sorted(set(names))),
        pool,
        values,
        directions.astype(np.float32),
        validation,
        np.empty((0, features), np.float32),
    )
    labelled = np.arange(images) < labels
    state = Labels(np.where(labelled, names, ""), ~labelled, 0, 0)
    seconds = []
    for _ in range(5):
        start_time = time.perf_counter()
        probe = task.fit(state)
        fitted = time.perf_counter()
        task.order(state, probe)
        seconds.append((fitted - start_time, time.perf_counter() - fitted))
    fit, order = (statistics.median(one) for one in zip(*seconds, strict=True))
    print(f"{images:,} images, {labels} labels: fit {fit:.2f} s, order {order:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("labels", "report", "speed"))
    parser.add_argument("--results", type=Path, default=Path("labelling.jsonl"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000, help="of speed")
    arguments = parser.parse_args()
    if arguments.command == "labels":
        measure_labels(arguments.results, arguments.sets, arguments.seeds)
    elif arguments.command == "report":
        report(arguments.results)
    else:
        measure_speed(arguments.images, 1280, 200, 10)


if __name__ == "__main__":
    main()
