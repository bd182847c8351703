"""How long a linear probe takes on features that are there: choosing the penalty by cross-validation, and the fit itself.

    python -m benchmarks.probe
    python -m benchmarks.probe --images 50000 --features 1280 --classes 100

The features are random: classes overlap as far as ``--spread`` says, and the features are correlated, as a network's are.
"""

import argparse
import time

import numpy as np
import torch

from finetune_core.training.logistic import linear_probe
from finetune_core.work import Step, finish


def features(images: int, width: int, classes: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 ``[images, width]`` and labels int64 ``[images]``."""
    made = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=made)
    centres = torch.randn(classes, width, generator=made) * spread
    decay = torch.linspace(0, -3, width).exp()  # of the spectrum
    mixed = torch.linalg.qr(torch.randn(width, width, generator=made))[0] * decay[:, None]
    return (centres[labels] + torch.randn(images, width, generator=made)) @ mixed, labels


def timed(values: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[dict[str, float], float]:
    """Phase -> seconds, and the C that was chosen."""
    spent: dict[str, float] = {}
    phase, at = "", time.perf_counter()

    def note(step: Step) -> None:
        nonlocal phase, at
        now = time.perf_counter()
        spent[phase] = spent.get(phase, 0.0) + now - at
        phase, at = step.phase, now

    _, choice = finish(linear_probe(values, labels, np.arange(len(labels)), classes, seed=0), note)
    note(Step(1, 1))
    return spent, choice.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--spread", type=float, default=0.15, help="of the classes' centres; the images' own is 1")
    asked = parser.parse_args()
    values, labels = features(asked.images, asked.features, asked.classes, asked.spread)
    spent, chosen = timed(values, labels, asked.classes)
    print(f"choosing the penalty {spent['choose']:6.1f} s")
    print(f"fitting all images   {spent['fit']:6.1f} s")
    print(f"in total             {sum(spent.values()):6.1f} s on {torch.get_num_threads()} threads; C = {chosen:.2g}")


if __name__ == "__main__":
    main()
