"""Learning rate and number of steps by strategy: a sweep, and the cost of the default rule.

    python -m benchmarks.defaults sweep --results sweep.jsonl
    python -m benchmarks.defaults report --results sweep.jsonl

The sweep takes hours and continues where it was interrupted. Every run is an ordinary run of Thaw
on 96 px images of ``image_sets.py``, with AdamW, weight decay 0.01, and the best epoch chosen on
validation images. Each seed draws its own images.

``report`` compares the test accuracy of each recipe with the best of its cell (set, number of
images, backbone, strategy). The recipes are the tutorial's, the product's default (trained with
``--defaults``), and the recipe that is best on average over all *other* sets.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.image_sets import SETS, write_set
from finetune_core.config import auto_setting_names, make_config
from finetune_core.evaluation.single_run.evaluate import compute_run_calibration
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore
from finetune_core.training.strategies.recipes import fill_auto

STRATEGIES = (
    "linear_probe",
    "feature_extraction",
    "last_block",
    "last_two_blocks",
    "bias_only",
    "batchnorm_only",
    "lora",
    "linear_probe_then_full",
    "discriminative",
    "full",
)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
STEPS = (100, 300, 1000)
BATCH = 32
Cell = tuple[str, int, str, str]  # set, training images, backbone, strategy


def make_settings(
    strategy: str, rate: float, steps: int, images: int, start: str
) -> dict[str, Any]:
    """Return the settings of one run of the sweep.

    Args:
        strategy: the strategy.
        rate: the learning rate.
        steps: number of steps, rounded to whole epochs.
        images: number of training images.
        start: ``random``, or the run directory of a linear probe.
    """
    epochs = max(4, math.ceil(steps * BATCH / images))
    settings = {
        "strategy": strategy,
        "epochs": epochs,
        "learning_rate": rate,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": round(0.1 * epochs, 2),
        "batch_size": BATCH,
    }
    return settings | ({} if start == "random" else {"from_run": start})


def tutorial_settings(strategy: str) -> dict[str, Any]:
    """Return the classic tutorial's settings for a strategy."""
    rate = 1e-3 if strategy == "feature_extraction" else 1e-4
    return {"strategy": strategy, "epochs": 10, "learning_rate": rate}


def plan_runs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the key of every run of the sweep, the cheapest strategies first."""
    for strategy, images, backbone, name, seed in product(
        args.strategies, args.images, args.backbones, args.sets, range(args.seeds)
    ):
        cell = {"set": name, "images": images, "backbone": backbone, "strategy": strategy}
        cell |= {"seed": seed}
        if strategy == "linear_probe":
            yield cell | {"recipe": "fit"}
            continue
        yield cell | {"recipe": "tutorial"}
        if args.defaults:
            yield cell | {"recipe": "auto"}
            continue
        for start, rate, steps in product(args.starts, args.rates, args.steps):
            yield cell | {"recipe": "sweep", "start": start, "rate": rate, "steps": steps}


def train_once(key: dict[str, Any], folder: Path, work: Path) -> dict[str, Any]:
    """Train one run and return its metrics."""
    shared = {
        "data": str(folder),
        "backbone": key["backbone"],
        "image_size": 96,
        "seed": key["seed"],
        "precision": "fp32",
        "compile": "off",
    }
    if key["recipe"] == "fit":
        settings: dict[str, Any] = {"strategy": "linear_probe"}
    elif key["recipe"] == "tutorial":
        settings = tutorial_settings(key["strategy"])
    elif key["recipe"] == "auto":
        settings = {"strategy": key["strategy"], "auto": auto_setting_names()}
    else:
        start = key["start"]
        if start == "probe":
            names = ("set", "images", "backbone", "seed")
            start = str(work / "-".join(str(key[name]) for name in names))
            if not Path(start).exists():
                probe = make_config(shared | {"strategy": "linear_probe", "seed": 0})
                reservation = create_run(probe, work / "probes")
                list(execute(reservation))
                reservation.run_dir.rename(start)
        settings = make_settings(key["strategy"], key["rate"], key["steps"], key["images"], start)
    config = fill_auto(make_config(shared | settings), key["images"])
    reservation = create_run(config, work / "runs")
    start_time = time.process_time()
    list(execute(reservation))
    run = RunStore(work / "runs").get_run(reservation.run_dir.name)
    end = run.history.end
    assert end is not None, f"{run.run_dir} has not ended"
    epochs = [
        [row["train_loss"], row["val_loss"], row["val_accuracy"]] for row in run.history.epochs
    ]
    calibration = compute_run_calibration(run, "test").before
    return {
        "test": end["test_accuracy"],
        "val": end["val_accuracy"],
        "test_loss": calibration.loss,
        "ece": calibration.ece,
        "best_epoch": end["best_epoch"],
        "epochs": epochs,
        "seconds": time.process_time() - start_time,
    }


def sweep(args: argparse.Namespace) -> None:
    """Train the runs that are not in the results file yet."""
    torch.set_num_threads(args.threads)
    finished = {json.dumps(row["key"], sort_keys=True) for row in read_results(args.results)}
    for key in plan_runs(args):
        mark = json.dumps(key, sort_keys=True)
        if mark in finished:
            continue
        folder = write_set(key["set"], key["images"], args.work / "sets", key["seed"])
        with tempfile.TemporaryDirectory(dir=args.work) as runs:
            work = args.work / "kept"
            work.mkdir(exist_ok=True)
            (work / "runs").unlink(missing_ok=True)
            (work / "runs").symlink_to(runs)
            numbers = train_once(key, folder, work)
        with args.results.open("a") as file:
            file.write(json.dumps({"key": key, **numbers}) + "\n")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a results file. Return no rows if there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def group_results(rows: Sequence[dict[str, Any]]) -> dict[Cell, dict[Any, float]]:
    """Return the test accuracy of each recipe by cell, in percent, averaged over seeds.

    Recipes are named as by ``get_recipe``.
    """
    accuracies: dict[Cell, dict[Any, list[float]]] = {}
    for row in rows:
        key = row["key"]
        cell = key["set"], key["images"], key["backbone"], key["strategy"]
        accuracies.setdefault(cell, {}).setdefault(get_recipe(row), []).append(100 * row["test"])
    return {
        cell: {recipe: sum(values) / len(values) for recipe, values in recipes.items()}
        for cell, recipes in accuracies.items()
    }


def get_recipe(row: dict[str, Any]) -> Any:
    """Return ``fit``, ``tutorial``, ``auto``, or the tuple (initial head, learning rate, steps)."""
    key = row["key"]
    swept = key["recipe"] == "sweep"
    return (key["start"], key["rate"], key["steps"]) if swept else key["recipe"]


def compute_deficit(recipes: dict[Any, float], recipe: Any) -> float:
    """Return the points between a recipe and the best recipe of its cell's sweep."""
    best = max(value for name, value in recipes.items() if isinstance(name, tuple))
    return best - recipes[recipe]


def choose_recipe(cells: Sequence[dict[Any, float]]) -> Any:
    """Return the swept recipe with the smallest mean deficit over cells."""
    swept = [recipe for recipe in cells[0] if isinstance(recipe, tuple)]
    shared = [recipe for recipe in swept if all(recipe in cell for cell in cells)]
    return min(shared, key=lambda recipe: sum(compute_deficit(cell, recipe) for cell in cells))


def report(args: argparse.Namespace) -> None:
    """Print the deficit of each recipe, and of the recipe chosen on other sets, by strategy."""
    rows = read_results(args.results)
    cells = group_results(rows)
    probes = {cell[:3]: recipes["fit"] for cell, recipes in cells.items() if "fit" in recipes}
    for strategy in args.strategies:
        print_calibration(strategy, rows)
        own = {cell: recipes for cell, recipes in cells.items() if cell[3] == strategy}
        own = {cell: found for cell, found in own.items() if any(map(_is_swept, found))}
        if own:
            print_losses(strategy, list(own.values()))
            print_left_out(own, probes)


def _is_swept(recipe: Any) -> bool:
    return isinstance(recipe, tuple)


def print_losses(strategy: str, cells: Sequence[dict[Any, float]]) -> None:
    """Print the mean and the largest deficit of each recipe."""
    print(f"\n## {strategy}: points below the best recipe of the cell\n")
    print("| initial head | learning rate | steps | cells | mean | worst |")
    print("|---|---|---|---|---|---|")
    swept = sorted({recipe for found in cells for recipe in found if _is_swept(recipe)})
    for recipe in [*swept, "tutorial", "auto"]:
        losses = [compute_deficit(found, recipe) for found in cells if recipe in found]
        columns = list(recipe) if _is_swept(recipe) else [recipe, "", ""]
        if losses:
            columns += [len(losses), f"{sum(losses) / len(losses):.1f}", f"{max(losses):.1f}"]
            print(f"| {' | '.join(map(str, columns))} |")


def print_calibration(strategy: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the mean calibration and the mean best epoch of each recipe, where known."""
    results: dict[Any, list[list[float]]] = {}
    for row in rows:
        if row["key"]["strategy"] == strategy and "ece" in row and row["epochs"]:
            share = row["best_epoch"] / len(row["epochs"])
            numbers = [100 * row["test"], 100 * row["ece"], row["test_loss"], 100 * share]
            results.setdefault(get_recipe(row), []).append(numbers)
    if not results:
        return
    print(f"\n## {strategy}: calibration\n")
    print("| recipe | runs | test accuracy | calibration error | log loss | best epoch after |")
    print("|---|---|---|---|---|---|")
    for recipe, runs in sorted(results.items(), key=str):
        accuracy, error, loss, share = (
            sum(column) / len(runs) for column in zip(*runs, strict=True)
        )
        name = recipe if isinstance(recipe, str) else ", ".join(map(str, recipe))
        print(
            f"| {name} | {len(runs)} | {accuracy:.1f} % | {error:.1f} % | {loss:.3f} | "
            f"{share:.0f} % |"
        )


def print_left_out(
    own: dict[Cell, dict[Any, float]], probes: dict[tuple[str, int, str], float]
) -> None:
    """Print the deficit on each set of the recipe that is best on the other sets."""
    print("\n| left-out set | images | backbone | best on the others | lost | over the probe |")
    print("|---|---|---|---|---|---|")
    losses = []
    for left_out in sorted({cell[0] for cell in own}):
        others = [found for cell, found in own.items() if cell[0] != left_out]
        chosen: Any = choose_recipe(others) if others else None
        for cell, found in own.items():
            if cell[0] != left_out or chosen not in found:
                continue
            lost = compute_deficit(found, chosen)
            losses.append(lost)
            gain = f"{found[chosen] - probes[cell[:3]]:+.1f}" if cell[:3] in probes else ""
            recipe = ", ".join(map(str, chosen))
            print(f"| {left_out} | {cell[1]} | {cell[2]} | {recipe} | {lost:.1f} | {gain} |")
    if losses:
        mean = sum(losses) / len(losses)
        print(f"\nLeft out: {mean:.2f} points on average, {max(losses):.1f} at worst.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sweep", "report"])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "defaults")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--images", nargs="+", type=int, default=[100, 500, 2000])
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--starts", nargs="+", default=["random"], choices=["random", "probe"])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--defaults", action="store_true", help="train the default, no sweep")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "sweep":
        os.environ["THAW_HOME"] = str(args.work / "home")
        sweep(args)
    else:
        report(args)


if __name__ == "__main__":
    main()
