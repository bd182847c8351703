"""How long a linear probe takes: on features that are there (choosing the penalty by cross-validation, and the fit itself), or as a whole run.

    python -m benchmarks.probe
    python -m benchmarks.probe --images 50000 --features 1280 --classes 100
    python -m benchmarks.probe --run

The features are random: classes overlap as far as ``--spread`` says, and the features are correlated, as a network's are. A run is of
images of 300 pixels that no run has seen before, with the packaged network. Wall time depends on what else the machine does; processor
time much less, and the load says how busy it was.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.inspection import write_photos
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.training.events import Progress, RunFinished
from finetune_core.training.logistic import linear_probe
from finetune_core.work import Step, finish


def features(
    images: int, width: int, classes: int, spread: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 ``[images, width]`` and labels int64 ``[images]``."""
    made = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=made)
    centres = torch.randn(classes, width, generator=made) * spread
    decay = torch.linspace(0, -3, width).exp()  # of the spectrum
    mixed = torch.linalg.qr(torch.randn(width, width, generator=made))[0] * decay[:, None]
    return (centres[labels] + torch.randn(images, width, generator=made)) @ mixed, labels


def timed(
    values: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[dict[str, float], float]:
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


def whole_run(images: int) -> Iterator[tuple[str, float, float]]:
    """(what was done, the seconds that it took, those of processor time), in its order."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["THAW_HOME"] = home
        write_photos(Path(home, "images"), images, 300)
        began = at = np.array([time.perf_counter(), time.process_time()])
        config = make_config({"data": str(Path(home, "images")), "strategy": "linear_probe"})
        doing = "start"
        for event in execute(create_run(config, Path(home, "runs"))):
            if isinstance(event, RunFinished) or (
                isinstance(event, Progress) and event.phase != doing
            ):
                now = np.array([time.perf_counter(), time.process_time()])
                yield doing, *(now - at)
                doing, at = (event.phase if isinstance(event, Progress) else ""), now
        yield "click to result", *(at - began)


@contextmanager
def machine() -> Iterator[None]:
    """Says afterwards how much processor time it took, and how busy the machine was."""
    began = time.process_time()
    yield
    spent, load = time.process_time() - began, os.getloadavg()[0]
    print(
        f"{spent:.1f} s of processor time on {torch.get_num_threads()} threads; load {load:.1f} on {os.cpu_count()} cores"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument(
        "--spread", type=float, default=0.15, help="of the classes' centres; the images' own is 1"
    )
    parser.add_argument("--run", action="store_true", help="a whole run instead, on images")
    asked = parser.parse_args()
    if asked.run:
        with machine():
            for doing, seconds, processor in whole_run(asked.images):
                print(
                    f"{doing:20} {seconds:6.1f} s, {processor:6.1f} s of processor time", flush=True
                )
        return
    values, labels = features(asked.images, asked.features, asked.classes, asked.spread)
    with machine():
        spent, chosen = timed(values, labels, asked.classes)
    print(f"choosing the penalty {spent['choose']:6.1f} s")
    print(f"fitting all images   {spent['fit']:6.1f} s")
    print(f"in total             {sum(spent.values()):6.1f} s; C = {chosen:.2g}")


if __name__ == "__main__":
    main()
