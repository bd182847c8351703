"""How long it takes to know a data set: 10,000 JPEGs indexed, opened again, looked into deeply; a million rows split and browsed.

python -m benchmarks.inspection [--images 10000] [--side 320] [--rows 1000000] [--no-deep]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_sample_images

from finetune_core.config import make_config
from finetune_core.data.dataset import Seen, assemble, load_dataset
from finetune_core.data.image_stats import Look
from finetune_core.data.listing import Listing
from finetune_core.work import Step, finish


def write_photos(folder: Path, count: int, side: int) -> None:
    """Crops of scikit-learn's two photographs at their own angle and place, in ten classes."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        target = folder / f"class{number % 10}"
        target.mkdir(parents=True, exist_ok=True)
        photo = photos[number % 2]
        scale = random.uniform(0.2, 0.5)
        width, height = int(photo.width * scale), int(photo.height * scale)
        x, y = (
            int(random.integers(0, room)) for room in (photo.width - width, photo.height - height)
        )
        crop = photo.crop((x, y, x + width, y + height)).rotate(random.uniform(-20, 20))
        crop.resize((side, side * 3 // 4)).save(target / f"{number:06d}.jpg", quality=88)


def simulated(count: int) -> Seen:
    """A data set of that many rows without its files: what the index would hold."""
    random = np.random.default_rng(0)
    files = pd.DataFrame({"id": [f"class{n % 100:02d}/{n:07d}.jpg" for n in range(count)]})
    files["class"] = files["id"].str.slice(0, 7)
    files = files.assign(split="", group="", bytes=20_000, changed=1)
    seen = asdict(
        Look(
            width=320,
            height=240,
            mode="RGB",
            format="JPEG",
            brightness=120,
            low=20,
            high=220,
            contrast=50,
            sharpness=0.5,
        )
    )
    rows = files.assign(
        **{name: value for name, value in seen.items() if name != "thumb"},
        near=np.arange(count),
        closeness=0.0,
    )
    rows["content"] = random.integers(0, 2**63, count).astype("uint64")
    return Seen(Listing(Path("/simulated"), files, ()), rows)


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - began:.2f} s")


def deep(folder: Path) -> None:
    from finetune_core.inspection.deep import inspect_deeply

    spent: dict[str, float] = {}
    last = [time.perf_counter()]

    def note(step: Step) -> None:
        now = time.perf_counter()
        spent[step.phase] = spent.get(step.phase, 0.0) + now - last[0]
        last[0] = now

    with timed("deep inspection, the packaged backbone at 224 pixels"):
        finish(inspect_deeply(load_dataset(folder), "efficientnet_lite0"), note)
    print("  of it", ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in spent.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--no-deep", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["THAW_HOME"] = home
        folder = Path(home, "photos")
        write_photos(folder, options.images, options.side)
        with timed(
            f"{options.images:,} JPEGs of {options.side} pixels: looked at, compared, split, checked"
        ):
            load_dataset(folder)
        with timed("opened again"):
            dataset = load_dataset(folder)
        print("  found", {finding.kind: finding.count for finding in dataset.findings})
        if not options.no_deep:
            deep(folder)
        settings = make_config({"data": "any"}).split_settings
        seen = simulated(options.rows)
        with timed(f"{options.rows:,} simulated rows: split and checked for the first time"):
            assemble("/simulated", seen, **settings, edits=())
        with timed("  again, as after each change"):
            table = assemble("/simulated", seen, **settings, edits=()).table
        with timed("  one page of the images of one class"):
            rows = table[table["label"] == 7]
            rows.iloc[rows.groupby("label").cumcount().argsort(kind="stable")].iloc[:24]
        with timed("  one page of all images"):
            table.iloc[table.groupby("label").cumcount().argsort(kind="stable")].iloc[:24]


if __name__ == "__main__":
    main()
