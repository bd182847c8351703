"""Two published orderings of freeze strategies, tried small: do they hold here?

LP-FT: training the head first, then everything, beats training everything at once on shifted test images (Kumar et al. 2022).
Surgical: for images that differ in their pixels only, training the first block beats training the last (Lee et al. 2023).

Each strategy's learning rate is the one of four with the lowest validation loss (seed 100, not counted). Then both train with
the same seeds; the interval is of the mean difference over seeds (Student's t, paired).

python -m benchmarks.orderings [shifted] [noisy] [--seeds N]
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import t
from sklearn.datasets import load_digits

from finetune_core.config import make_config
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.robustness import CORRUPTIONS
from finetune_core.models.catalogue import PACKAGED
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import Run, RunStore, summary

SIDE, CHOOSING = 64, 100
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SETTINGS = {
    "backbone": PACKAGED,
    "image_size": SIDE,
    "near_duplicates": "apart",
    "precision": "fp32",
    "augmentation": "none",
}

Change = Callable[[Image.Image, int], Image.Image]


def unchanged(image: Image.Image, _number: int) -> Image.Image:
    return image


def mixed_shift(image: Image.Image, number: int) -> Image.Image:
    """One of the five middle corruptions, in turn."""
    corruption = list(CORRUPTIONS.values())[number % len(CORRUPTIONS)]
    return corruption.apply(image, corruption.severities[1], np.random.default_rng(number))


def noise(image: Image.Image, number: int) -> Image.Image:
    corruption = CORRUPTIONS["noise"]
    return corruption.apply(image, corruption.severities[1], np.random.default_rng(number))


def write(folder: Path, numbers: dict[str, np.ndarray], changes: dict[str, Change]) -> None:
    """Digits as ``<split>/<class>/<number>.png``, each split with its change."""
    digits = load_digits()
    for split, chosen in numbers.items():
        for number in chosen:
            image = Image.fromarray(np.uint8(digits.images[number] * (255 / 16))).convert("RGB")
            image = changes[split](image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), int(number))
            file = folder / split / str(digits.target[number]) / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)


def trained(runs: Path, settings: dict[str, Any]) -> Run:
    reservation = create_run(make_config(SETTINGS | settings), runs)
    for _ in execute(reservation):
        pass
    return RunStore(runs).run(reservation.run_dir.name)


def best_rate(runs: Path, settings: dict[str, Any]) -> float:
    def loss(rate: float) -> float:
        run = trained(runs, settings | {"learning_rate": rate, "seed": CHOOSING})
        return min(float(epoch["val_loss"]) for epoch in run.history.epochs)

    return min(RATES, key=loss)


def ordering(title: str, runs: Path, settings: dict[str, Any], first: str, second: str, seeds: int) -> None:
    """Both strategies on the same seeds; prints every accuracy and the interval of their difference."""
    accuracies = {}
    for strategy in (first, second):
        chosen = settings | {"strategy": strategy}
        rate = best_rate(runs, chosen)
        tested = [trained(runs, chosen | {"learning_rate": rate, "seed": seed}) for seed in range(seeds)]
        accuracies[strategy] = np.array([summary(run)["test_accuracy"] for run in tested])
        each = " ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies[strategy])
        print(f"{title}: {strategy}, rate {rate:g}: {each}; mean {100 * accuracies[strategy].mean():.1f} %", flush=True)
    difference = accuracies[first] - accuracies[second]
    half = t.ppf(0.975, seeds - 1) * difference.std(ddof=1) / np.sqrt(seeds)
    low, high = 100 * (difference.mean() - half), 100 * (difference.mean() + half)
    verdict = "holds" if low > 0 else "is reversed" if high < 0 else "is not settled"
    print(
        f"{title}: {first} - {second}: {100 * difference.mean():+.1f} points, 95 % {low:+.1f} to {high:+.1f}; the published "
        f"ordering {verdict} here",
        flush=True,
    )


def shifted_test(base: Path, order: np.ndarray, seeds: int) -> None:
    """Trained on clean images, tested on images that each have one of five corruptions."""
    numbers = {"train": order[:400], "val": order[400:550], "test": order[550:1550]}
    write(base / "shifted", numbers, {"train": unchanged, "val": unchanged, "test": mixed_shift})
    settings = {"data": str(base / "shifted"), "epochs": 10}
    ordering("shifted test images", base / "runs", settings, "linear_probe_then_full", "full", seeds)


def corrupted_images(base: Path, order: np.ndarray, seeds: int) -> None:
    """A network tuned to clean images meets noisy ones: few to learn from, more to be tested on. The head is new for both."""
    write(base / "clean", {"train": order[:600], "val": order[600:750]}, {"train": unchanged, "val": unchanged})
    tuning = {"data": str(base / "clean"), "strategy": "full", "epochs": 8, "learning_rate": 3e-4, "seed": 0}
    state = load_predictor(trained(base / "runs", tuning)).network.model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, base / "tuned.safetensors")
    few = {"train": order[750:900], "val": order[900:1050], "test": order[1050:1797]}
    write(base / "noisy", few, dict.fromkeys(few, noise))
    settings = {"data": str(base / "noisy"), "epochs": 30, "weights": str(base / "tuned.safetensors")}
    ordering("noisy images, few of them", base / "runs", settings, "first_block", "last_block", seeds)


EXPERIMENTS = {"shifted": shifted_test, "noisy": corrupted_images}


def main(names: list[str], seeds: int) -> None:
    order = np.random.default_rng(0).permutation(1797)
    with tempfile.TemporaryDirectory() as base:
        os.environ["THAW_HOME"] = base
        for name in names:
            EXPERIMENTS[name](Path(base), order, seeds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.experiments, arguments.seeds)
