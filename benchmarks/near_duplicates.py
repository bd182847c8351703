"""Precision and recall of near-duplicates with planted copies.

    python -m benchmarks.near_duplicates [--images 300] [--copies 24] [--seeds 3]

The images are parts of a machine before one camera, and digits, each with and without planted
copies.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from finetune_core.data.dataset import load_dataset
from finetune_core.data.sample import write_digits_folder


@dataclass(frozen=True)
class Line:
    """A production line as its camera sees it.

    Attributes:
        pose: standard deviation of the position, in pixels at 320 × 240. The rotation varies by
            half as many degrees.
        texture: contrast of each part's surface, in gray levels.
        noise: noise of each picture, in gray levels.
        light: relative variation of the light.
    """

    pose: float
    texture: float
    noise: float = 2.0
    light: float = 0.03


LINES = {
    "parts laid by hand": Line(2, 4),
    "parts in a fixture": Line(0.4, 3),
    "parts that never move": Line(0, 2),
    "plain parts, little noise": Line(1, 0, 0.5, 0.01),
    "plain parts that never move": Line(0, 0),
}


def encode_image(
    image: Image.Image, format: str = "JPEG", quality: int = 92, **options: Any
) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, format, quality=quality, **options)
    return buffer.getvalue()


def _add_noise(image: Image.Image, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=float)
    return Image.fromarray(np.uint8(np.clip(pixels + random.normal(0, 4, pixels.shape), 0, 255)))


COPIES: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "saved again": lambda image, _: encode_image(image, quality=60),
    "scaled": lambda image, _: encode_image(
        image.resize([side * 3 // 4 for side in image.size], Image.Resampling.BILINEAR)
    ),
    "brighter": lambda image, _: encode_image(ImageEnhance.Brightness(image).enhance(1.15)),
    "noise": lambda image, random: encode_image(_add_noise(image, random)),
}


class Camera:
    """A camera that takes pictures of parts before one background."""

    def __init__(self, line: Line, seed: int, size: tuple[int, int] = (320, 240)) -> None:
        self.line, self.size, self.random = line, size, np.random.default_rng(seed)
        self.scale = size[0] / 320
        coarse = Image.fromarray(self.random.integers(90, 150, (6, 8), np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        draw = ImageDraw.Draw(coarse)
        for x, y, radius, gray in self.random.random((6, 4)):
            x, y, radius = x * size[0], y * size[1], (6 + 14 * radius) * self.scale
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), int(40 + 180 * gray))
        self.background = np.asarray(coarse, float) + self.random.normal(0, 3, (size[1], size[0]))

    def picture(self, *, defect: bool) -> Image.Image:
        """Take a picture of a part."""
        line, random, (width, height) = self.line, self.random, self.size
        shape, surface = self._draw_shape(), self._draw_surface(defect)
        angle, shift = (
            random.normal(0, line.pose * 0.5),
            random.normal(0, line.pose, 2) * 3 * self.scale,
        )

        def place(layer: Image.Image) -> np.ndarray:
            turned = layer.rotate(angle, Image.Resampling.BILINEAR, translate=tuple(shift))
            return np.asarray(turned.resize(self.size, Image.Resampling.BOX), float)

        mask = place(shape) / 255
        pixels = self.background * (1 - mask) + place(surface) * mask
        pixels *= (1 + random.normal(0, line.light)) * (
            1 + random.normal(0, line.light / 2) * np.linspace(-1, 1, width)
        )
        pixels += random.normal(0, line.noise, (height, width))
        return Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).convert("RGB")

    def _draw_shape(self) -> Image.Image:
        """Draw a gear with holes, at three times the size of the picture."""
        width, height = (3 * side for side in self.size)
        layer = Image.new("L", (width, height))
        draw = ImageDraw.Draw(layer)
        angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        radius = 225 * self.scale * (1 + 0.08 * np.sign(np.sin(12 * angles)))
        draw.polygon(
            [
                *zip(
                    width / 2 + radius * np.cos(angles),
                    height / 2 + radius * np.sin(angles),
                    strict=True,
                )
            ],
            fill=255,
        )
        for angle in (0.3, 1.9, 3.6, 5.0):
            x, y, hole = (
                width / 2 + self.scale * 135 * np.cos(angle),
                height / 2 + self.scale * 135 * np.sin(angle),
                self.scale * 27,
            )
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        return layer

    def _draw_surface(self, defect: bool) -> Image.Image:
        """Draw the gray levels of the part.

        A defect is a spot or a scratch of a few hundredths of the picture's width.
        """
        width, height = (3 * side for side in self.size)
        grain = Image.fromarray(self.random.normal(0, 1, (40, 40)).astype(np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        values = 190 + self.line.texture * np.asarray(grain)
        if defect:
            layer = Image.new("L", (width, height))
            draw = ImageDraw.Draw(layer)
            angle, away, extent = (
                self.random.uniform(0, 2 * np.pi),
                self.random.uniform(75, 180),
                self.random.uniform(12, 24) * self.scale,
            )
            x, y = (
                width / 2 + self.scale * away * np.cos(angle),
                height / 2 + self.scale * away * np.sin(angle),
            )
            if self.random.random() < 0.5:
                draw.ellipse(
                    (x - extent / 2, y - extent / 2, x + extent / 2, y + extent / 2), fill=255
                )
            else:
                draw.line(
                    (x - extent, y - 0.7 * extent, x + extent, y + 0.7 * extent), fill=255, width=6
                )
            values = values - np.asarray(layer, float) / 255 * self.random.uniform(40, 90)
        return Image.fromarray(values.astype(np.float32))


def write_parts(
    folder: Path, line: Line, count: int, seed: int, size: tuple[int, int] = (320, 240)
) -> None:
    """Write ``count`` pictures of parts in the classes ``good`` and ``bad``.

    Three in ten have a defect and are ``bad``.
    """
    camera = Camera(line, seed, size)
    for number in range(count):
        name = "bad" if number % 10 < 3 else "good"
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:05d}.jpg").write_bytes(
            encode_image(camera.picture(defect=name == "bad"))
        )


def write_digits(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` random digits."""
    files = sorted(write_digits_folder().glob("*/*.png"))
    for file in np.random.default_rng(seed).choice(
        np.array(files, dtype=object), count, replace=False
    ):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())


def plant_copies(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Write copies of some images beside them, of all kinds in turn.

    Returns:
        Id of each copy -> id of its original.
    """
    random = np.random.default_rng(seed)
    files = sorted(path for path in folder.glob("*/*"))
    truth = {}
    for number, index in enumerate(random.choice(len(files), count, replace=False)):
        kind = [*COPIES][number % len(COPIES)]
        copy = files[index].with_name(f"copy{number:03d}-{kind.replace(' ', '-')}.jpg")
        with Image.open(files[index]) as image:
            copy.write_bytes(COPIES[kind](image.convert("RGB"), random))
        truth[str(copy.relative_to(folder))] = str(files[index].relative_to(folder))
    return truth


def find_near_pairs(folder: Path) -> set[frozenset[str]]:
    """Return all pairs of images that Thaw reports as near-duplicates."""
    near = load_dataset(folder).table.groupby("near")["id"].agg(list)
    return {frozenset((one, other)) for ids in near for one in ids for other in ids if one < other}


def measure(name: str, write: Callable[[Path, int], None], copies: int, seeds: int) -> None:
    """Print recall, precision and processor time for one kind of images."""
    pairs = hits = false_pairs = planted = 0
    seconds = 0.0
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as top:
            folder = Path(top, "images")
            write(folder, seed)
            false_pairs += len(find_near_pairs(folder))
            truth = {frozenset(pair) for pair in plant_copies(folder, copies, seed).items()}
            start_time = time.process_time()
            pairs_found = find_near_pairs(folder)
            seconds += time.process_time() - start_time
            pairs, hits, planted = (
                pairs + len(pairs_found),
                hits + len(pairs_found & truth),
                planted + len(truth),
            )
    precision = f"{hits / pairs:.3f}" if pairs else "none called"
    print(
        f"{name:28s} clean: {false_pairs} pairs called; planted: recall {hits / planted:.3f} "
        f"({hits} of {planted}), precision {precision} "
        f"({hits} of {pairs}); {seconds / seeds:.1f} s of processor time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--copies", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["THAW_HOME"] = home
        for name, line in LINES.items():

            def write(folder: Path, seed: int, line: Line = line) -> None:
                write_parts(folder, line, options.images, seed)

            measure(name, write, options.copies, options.seeds)
        measure(
            "digits",
            lambda folder, seed: write_digits(folder, options.images, seed),
            options.copies,
            options.seeds,
        )


if __name__ == "__main__":
    main()
