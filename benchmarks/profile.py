"""Does a profile name the right stage? Planted tasks, and what a profile costs.

    python -m benchmarks.profile run --results profile.jsonl      # goes on where it was ended
    python -m benchmarks.profile report --results profile.jsonl

Where something is planted behind a network that was trained on clean images, the profile starts from
that run, whose head is kept.

- solved: two hues, or noise whose labels are drawn at random: nothing can gain.
- stem: the images' polarity inverted, their channels permuted, or blurred: the first stages should win.
- labels: the classes renamed in a circle: the head alone has to change, or the last stage with it.
- texture: directions of gratings under noise, which early stages see.

``report`` counts how often the right stage or "nothing" is named, how many last-block runs a profile
costs, and how the cheap predictions rank the stages (Spearman) against the profile.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import spearmanr

from benchmarks.defaults import read_results
from benchmarks.image_sets import SIDE, write_set
from finetune_core.config import RunConfig, make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.evaluation.comparison.layer_diagnostics import known_layers, measure_layers
from finetune_core.inspection.learned import Probe
from finetune_core.profiling.operate import Asked, profile
from finetune_core.profiling.plan import Progress, set_up
from finetune_core.profiling.result import Profile, gain_by_stage
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import Run, RunStore
from finetune_core.training.speed_book import SpeedBook
from finetune_core.work import Work, finish

EARLY = ("stem", "block1", "block2")
Change = Callable[[Image.Image], Image.Image]
PREDICTIONS = {
    "gradients": "relative gradient norm",
    "probes": "probe by layer",
    "similarities": "change of features (1 - CKA)",
}
CORRUPTIONS: dict[str, Change] = {
    "inverted": ImageOps.invert,
    "permuted": lambda image: Image.merge("RGB", image.split()[1:] + image.split()[:1]),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
}


@dataclass(frozen=True)
class Task:
    """One planted task.

    Attributes:
        right: the answers that are right: names of stages, or ``nothing``.
        change: of the images; ``rename`` of the classes.
    """

    kind: str
    images: str
    right: tuple[str, ...]
    change: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kind, self.images, self.change, str(self.seed))))


def plan_tasks() -> list[Task]:
    """Return the 20 tasks, one of each kind in turn."""
    solved = [
        Task("solved", name, ("nothing",), seed=s) for s in range(3) for name in ("hues", "noise")
    ]
    names = ("digits", "shapes", "emoji")
    stem = [Task("stem", name, EARLY, change) for name in names for change in CORRUPTIONS]
    labels = [Task("labels", name, ("nothing", "block7"), "rename") for name in names]
    texture = [Task("texture", "textures", (*EARLY, "block3"), seed=s) for s in range(2)]
    rest = [solved, stem, labels, texture]
    ordered = []
    while any(rest):
        ordered += [kind.pop(0) for kind in rest if kind]
    return ordered


def write_plain(name: str, num_train: int, folder: Path, seed: int) -> None:
    """Write images of two hues, or of noise whose labels mean nothing."""
    random = np.random.default_rng([seed, len(name)])
    for part, count in (("train", num_train), ("val", num_train // 5), ("test", num_train)):
        for number in range(count):
            label = int(random.integers(2))
            pixels = random.normal(128, 40, (SIDE, SIDE, 3))
            if name == "hues":
                pixels[..., 2 * label] += 60
            target = folder / part / f"class {label}"
            target.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))
            picture.save(target / f"{number:05d}.png")


def write_task(task: Task, num_train: int, work: Path) -> tuple[Path, Path]:
    """Return the folders of a task's clean images and of its own."""
    if task.kind == "solved":
        folder = work / "sets" / f"{task.images}-{num_train}-{task.seed}"
        if not folder.exists():
            write_plain(task.images, num_train, folder, task.seed)
        return folder, folder
    clean = write_set(task.images, num_train, work / "sets", task.seed)
    if not task.change:
        return clean, clean
    folder = work / "sets" / f"{task.name}-{num_train}"
    if not folder.exists():
        beside = folder.with_suffix(".part")
        shutil.rmtree(beside, ignore_errors=True)
        change_images(task.change, clean, beside)
        beside.rename(folder)
    return clean, folder


def change_images(change: str, clean: Path, folder: Path) -> None:
    """Write all images of a set, changed, or in the folder of the next class."""
    for part in clean.iterdir():
        classes = sorted(path.name for path in part.iterdir())
        following = dict(zip(classes, classes[1:] + classes[:1], strict=True))
        for file in part.glob("*/*.png"):
            name = following[file.parent.name] if change == "rename" else file.parent.name
            target = folder / part.name / name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if change == "rename":
                shutil.copy(file, target)
            else:
                CORRUPTIONS[change](Image.open(file).convert("RGB")).save(target)


def config_of(data: Path, args: argparse.Namespace, **changes: Any) -> RunConfig:
    """Return the settings of all runs of a task: the auto recipe's, but for their number of steps."""
    epochs = max(6, round(args.steps * 32 / args.images))
    usual = {
        "data": str(data),
        "backbone": args.backbone,
        "image_size": args.size,
        "precision": "fp32",
        "compile": "off",
        "epochs": epochs,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": round(0.1 * epochs, 1),
    }
    return make_config(usual | changes)


def train(config: RunConfig, runs_dir: Path) -> Run:
    reservation = create_run(config, runs_dir)
    list(execute(reservation))
    return RunStore(runs_dir).run(reservation.run_dir.name)


def profile_task(task: Task, args: argparse.Namespace, runs_dir: Path) -> dict[str, Any]:
    """Profile one task and return its numbers."""
    clean, folder = write_task(task, args.images, args.work)
    changes: dict[str, Any] = {}
    if task.change:
        parent = train(config_of(clean, args, strategy="last_two_blocks"), runs_dir / "clean")
        changes["from_run"] = str(parent.run_dir)
    base = config_of(folder, args, **changes)
    dataset = load_dataset(base.data, **base.split_settings)
    # Full fine-tuning has a learning rate of its own, which the recipe chooses.
    rated = base.model_copy(update={"auto": ("learning_rate",)})
    asked = Asked(set_up(rated, args.images, args.stages), dataset)
    store = RunStore(runs_dir)

    def train_round(progress: Progress) -> Work[None]:
        for config in progress.wanted:
            train(config, runs_dir)
        yield from ()

    began = time.perf_counter()
    found = finish(profile(asked, store, train_round, SpeedBook()))
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    last_block = train(base.model_copy(update={"strategy": "last_block"}), runs_dir / "last_block")
    alone = time.perf_counter() - began
    whole = [store.run(run_id) for run_id in found.full.run_ids[:1]] if found.full else []
    return summarise(found, last_block, whole) | {"seconds": seconds, "last_block_seconds": alone}


def summarise(found: Profile, last_block: Run, whole: Sequence[Run]) -> dict[str, Any]:
    """Return the answer of a profile, and what the cheap predictions say of its stages."""
    finish(measure_layers([last_block, *whole]))
    layers = known_layers(last_block)
    probes: Sequence[Probe] = layers.probes if layers else ()
    trained = known_layers(whole[0]) if whole else None
    moved = trained.stages if trained else ()
    arms = gain_by_stage(found)
    gradients = {one.stage: one.gradient for one in found.predictions}
    return {
        "named": found.worth_training or ("nothing",),
        "sentence": found.sentence,
        "selected": found.selected and found.selected.stages,
        "probe": found.probe,
        "gains": {stage: arm.gain.value for stage, arm in arms.items()},
        "low": {stage: arm.gain.low for stage, arm in arms.items()},
        "probes": {one.stage: one.accuracy for one in probes},
        "similarities": {one.name: 1 - one.likeness for one in moved if one.likeness is not None},
        "gradients": {stage: value for stage, value in gradients.items() if value is not None},
    }


def run(args: argparse.Namespace) -> None:
    """Profile the tasks that are not in the results file yet."""
    torch.set_num_threads(args.threads)
    done = {row["key"] for row in read_results(args.results)}
    for task in plan_tasks():
        if task.name in done or (args.kinds and task.kind not in args.kinds):
            continue
        with tempfile.TemporaryDirectory(dir=args.work) as runs_dir:
            numbers = profile_task(task, args, Path(runs_dir))
        with args.results.open("a") as file:
            row = {"key": task.name, "steps": args.steps, "images": args.images, **numbers}
            file.write(json.dumps(row) + "\n")
        print(f"{task.name}: {numbers['sentence']}", flush=True)


def is_right(task: Task, row: dict[str, Any]) -> bool:
    """Return whether all stages that a profile names are among the right ones."""
    return set(row["named"]) <= set(task.right)


def correlate(rows: Sequence[dict[str, Any]], field: str) -> Iterator[float]:
    """Yield Spearman's rank correlation of a prediction with the gains, one for each task."""
    for row in rows:
        stages = [stage for stage in row["gains"] if stage in row[field]]
        gains = [row["gains"][stage] for stage in stages]
        predicted = [row[field][stage] for stage in stages]
        if len(set(gains)) > 1 and len(set(predicted)) > 1:
            yield float(spearmanr(gains, predicted).statistic)


def report(args: argparse.Namespace) -> None:
    """Print each task's answer, how many are right, the costs and the correlations."""
    rows = {row["key"]: row for row in read_results(args.results)}
    tasks = [task for task in plan_tasks() if task.name in rows]
    print("| task | probe | named | right | cost in last-block runs |\n|---|---|---|---|---|")
    for task in tasks:
        row = rows[task.name]
        cost = row["seconds"] / row["last_block_seconds"]
        named, right = ", ".join(row["named"]), "yes" if is_right(task, row) else "no"
        print(f"| {task.name} | {row['probe']:.1%} | {named} | {right} | {cost:.0f} |")
    count = sum(is_right(task, rows[task.name]) for task in tasks)
    print(f"\nRight: {count} of {len(tasks)}.")
    found = [rows[task.name] for task in tasks]
    for field, title in PREDICTIONS.items():
        values = list(correlate(found, field))
        if values:
            print(f"Spearman, {title}: {np.mean(values):.2f} on average over {len(values)} tasks.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "profile")
    parser.add_argument("--kinds", nargs="+", choices=["solved", "stem", "labels", "texture"])
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=SIDE, help="pixels")
    parser.add_argument("--stages", nargs="+", default=[], help="by default all")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "run":
        os.environ["THAW_HOME"] = str(args.work / "home")
        run(args)
    else:
        report(args)


if __name__ == "__main__":
    main()
