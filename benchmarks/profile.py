"""Right answers of profiles on planted tasks, and the cost of a profile.

    python -m benchmarks.profile run --results profile.jsonl
    python -m benchmarks.profile report --results profile.jsonl

``run`` continues where it was interrupted. The tasks are those of ``planted.py``. ``report`` counts
how often the right stage or "nothing" is named, and how many last-block runs a profile costs. It
also prints how well cheap predictions rank the stages (Spearman), compared with the profile.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.defaults import read_results
from benchmarks.image_sets import write_set
from benchmarks.planted import (
    BACKBONE,
    NOTHING,
    Task,
    cut_stage,
    find_right_answers,
    plan_tasks,
    write_images,
)
from finetune_core.config import RunConfig, make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.evaluation.comparison.layer_diagnostics import load_layers, measure_layers
from finetune_core.inspection.learned import Probe
from finetune_core.profiling.operate import ProfileRequest, profile
from finetune_core.profiling.plan import Progress
from finetune_core.profiling.result import Profile, arms_by_stage
from finetune_core.profiling.settings import Setup, set_up
from finetune_core.runs.design import PROFILE_RATES, run_key
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import Run, RunStore
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.work import Work, finish

SEEDS = (0, 1, 2)  # for measurements without a profile
CLEAN_STEPS = 1500  # of the network that the profile starts from
PREDICTIONS = {
    "gradients": "relative gradient norm",
    "probes": "probe by layer",
    "similarities": "change of features (1 - CKA)",
}


def make_task_config(data: Path, images: int, steps: int, size: int, **changes: Any) -> RunConfig:
    """Return a config with the settings of all runs of a task.

    They are those of the auto recipe, except for the number of steps.
    """
    epochs = max(6, round(steps * 32 / images))
    settings = {
        "data": str(data),
        "backbone": BACKBONE,
        "image_size": size,
        "precision": "fp32",
        "compile": "off",
        "epochs": epochs,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": round(0.1 * epochs, 1),
    }
    return make_config(settings | changes)


def train(config: RunConfig, runs_dir: Path) -> Run:
    """Train a run, or return the finished run with the same settings."""
    store = RunStore(runs_dir)
    for run in store.list_runs():
        if run.status == "finished" and run_key(run.config) == run_key(config):
            return run
    reservation = create_run(config, runs_dir)
    list(execute(reservation))
    return store.get_run(reservation.run_dir.name)


def profile_task(task: Task, args: argparse.Namespace, runs_dir: Path) -> dict[str, Any]:
    """Profile one task and return its numbers."""
    folder = write_images(task, args.images, args.work / "sets")
    clean = write_set(task.clean, args.clean_images, args.work / "sets")
    whole = {"strategy": "full", "weights": "none"}
    parent = train(
        make_task_config(clean, args.clean_images, CLEAN_STEPS, args.size, **whole),
        args.work / "clean",
    ).run_dir
    if task.kind == "cut":
        parent = cut_stage(parent, task.change, args.work / "cut")
    base = make_task_config(folder, args.images, args.steps, args.size, from_run=str(parent))
    dataset = load_dataset(base.data, **base.split_settings)
    # The recipe chooses another learning rate for full fine-tuning.
    rated = base.model_copy(update={"auto": ("learning_rate",)})
    setup = set_up(rated, args.images)

    def train_round(progress: Progress) -> Work[None]:
        for config in progress.wanted:
            train(config, runs_dir)
        yield from ()

    start_time = time.perf_counter()
    request = ProfileRequest(setup, dataset)
    result = finish(profile(request, RunStore(runs_dir), train_round, SpeedBook()))
    seconds = time.perf_counter() - start_time
    start_time = time.perf_counter()
    last_block = train(base.model_copy(update={"strategy": "last_block"}), runs_dir / "last_block")
    alone = time.perf_counter() - start_time
    right = list(task.right) or measure_answers(setup, result.probe, runs_dir)
    numbers = summarise(result, last_block, RunStore(runs_dir))
    return numbers | {"right": right, "seconds": seconds, "last_block_seconds": alone}


def measure_answers(setup: Setup, probe: float, runs_dir: Path) -> list[str]:
    """Measure the right answers by training each stage alone, with all rates and seeds.

    The stages train at full length. The rate with the lower validation log loss counts for a stage.
    """
    alone = {}
    for stage in setup.stages:
        means = []
        for rate in PROFILE_RATES:
            runs = [
                train(setup.make_stages_config([stage], seed, {stage: rate}), runs_dir)
                for seed in SEEDS
            ]
            ends = [run.history.end or {} for run in runs]
            means.append([np.mean([end[f] for end in ends]) for f in ("val_loss", "test_accuracy")])
        alone[stage] = float(min(means)[1])
    return find_right_answers(alone, probe)


def summarise(result: Profile, last_block: Run, store: RunStore) -> dict[str, Any]:
    """Return the answer of a profile, and the cheap predictions for its stages."""
    full_runs = [store.get_run(run_id) for run_id in result.full.run_ids[:1]] if result.full else []
    finish(measure_layers([last_block, *full_runs]))
    layers = load_layers(last_block)
    probes: Sequence[Probe] = layers.probes if layers else ()
    trained = load_layers(full_runs[0]) if full_runs else None
    moved = trained.stages if trained else ()
    arms = arms_by_stage(result)
    gradients = {one.stage: one.gradient for one in result.predictions}
    return {
        "named": name_answer(result),
        "sentence": result.sentence,
        "selected": result.selected_arm and result.selected_arm.stages,
        "probe": result.probe,
        "gains": {stage: arm.gain.value for stage, arm in arms.items()},
        "low": {stage: arm.gain.low for stage, arm in arms.items()},
        "probes": {one.stage: one.accuracy for one in probes},
        "similarities": {one.name: 1 - one.likeness for one in moved if one.likeness is not None},
        "gradients": {stage: value for stage, value in gradients.items() if value is not None},
    }


def name_answer(result: Profile) -> tuple[str, ...]:
    """Return the stages that a profile names, the best first.

    ``nothing`` means that no stage is worth training. ``undecided`` means that there is no answer.
    """
    selected = result.selected_arm
    if selected and result.worth_training:
        return selected.stages
    return ("undecided",) if selected is None or selected.is_undertrained else (NOTHING,)


def run(args: argparse.Namespace) -> None:
    """Profile the tasks that are not in the results file yet."""
    torch.set_num_threads(args.threads)
    finished = {row["key"] for row in read_results(args.results)}
    for task in plan_tasks():
        if task.name in finished or (args.kinds and task.kind not in args.kinds):
            continue
        with tempfile.TemporaryDirectory(dir=args.work) as runs_dir:
            numbers = profile_task(task, args, Path(runs_dir))
        with args.results.open("a") as file:
            row = {"key": task.name, "steps": args.steps, "images": args.images, **numbers}
            file.write(json.dumps(row) + "\n")
        print(f"{task.name}: {numbers['sentence']}", flush=True)


def correlate(rows: Sequence[dict[str, Any]], field: str) -> Iterator[float]:
    """Yield Spearman's rank correlation of a prediction with the gains, for each task."""
    for row in rows:
        stages = [stage for stage in row["gains"] if stage in row[field]]
        gains = [row["gains"][stage] for stage in stages]
        predicted = [row[field][stage] for stage in stages]
        if len(set(gains)) > 1 and len(set(predicted)) > 1:
            yield float(spearmanr(gains, predicted).statistic)


def report(args: argparse.Namespace) -> None:
    """Print each task's answer, the number of right answers, the costs and the correlations."""
    rows = {row["key"]: row for row in read_results(args.results)}
    tasks = [task for task in plan_tasks() if task.name in rows]
    right = [task for task in tasks if rows[task.name]["named"][0] in rows[task.name]["right"]]
    print("| task | probe | named | right answer | is right | cost in last-block runs |")
    print("|---|---|---|---|---|---|")
    for task in tasks:
        row = rows[task.name]
        cost = row["seconds"] / row["last_block_seconds"]
        columns = [task.name, f"{row['probe']:.1%}", ", ".join(row["named"])]
        columns += [" or ".join(row["right"]), "yes" if task in right else "no", f"{cost:.0f}"]
        print(f"| {' | '.join(columns)} |")
    print(f"\nRight: {len(right)} of {len(tasks)}.")
    results = [rows[task.name] for task in tasks]
    for field, title in PREDICTIONS.items():
        values = list(correlate(results, field))
        if values:
            print(f"Spearman, {title}: {np.mean(values):.2f} on average over {len(values)} tasks.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "profile")
    parser.add_argument("--kinds", nargs="+", choices=sorted({one.kind for one in plan_tasks()}))
    parser.add_argument("--clean-images", type=int, default=1000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=48, help="pixels")
    parser.add_argument("--steps", type=int, default=600)
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
