"""Image corruptions in the manner of Hendrycks & Dietterich 2019, each at three severities."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from finetune_core.formatting import SPLIT_TITLES

_FULL_SIZE = 224  # side in pixels of the images that lengths refer to

Corrupt = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _blur(image: Image.Image, sigma: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma * image.width / _FULL_SIZE))


def _add_noise(image: Image.Image, spread: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)
    noisy = pixels + random.normal(0, 255 * spread, pixels.shape)
    return Image.fromarray(np.uint8(noisy.clip(0, 255).round()))


def _compress_jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _brighten(image: Image.Image, more: float, _: np.random.Generator) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge(
        "HSV", (hue, saturation, value.point(lambda level: min(255, round(level + 255 * more))))
    ).convert("RGB")


def _rotate(image: Image.Image, degrees: float, random: np.random.Generator) -> Image.Image:
    # Corners take the mean colour, because black corners would be a second corruption.
    mean = tuple(np.asarray(image).mean((0, 1)).round().astype(int).tolist())
    return image.rotate(degrees * random.choice((-1, 1)), Image.Resampling.BILINEAR, fillcolor=mean)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        title: label in a list.
        severities: mild, middle, strong: the 1st, 3rd and 5th of Hendrycks & Dietterich, who have
            no rotation.
        unit: unit of the severities.
        apply: function of the image, the severity and a random generator.
    """

    title: str
    severities: tuple[float, float, float]
    unit: str
    apply: Corrupt


CORRUPTIONS = {
    "blur": Corruption("Gaussian blur", (1, 3, 6), "pixels, standard deviation at 224", _blur),
    "noise": Corruption(
        "Gaussian noise", (0.08, 0.18, 0.38), "of the range, standard deviation", _add_noise
    ),
    "jpeg": Corruption("JPEG", (25, 15, 7), "quality", _compress_jpeg),
    "brightness": Corruption("Brightness", (0.1, 0.3, 0.5), "of the range, brighter", _brighten),
    "rotation": Corruption("Rotation", (10, 25, 45), "degrees", _rotate),
}
SEVERITIES = {1: "mild", 2: "middle", 3: "strong"}
CLEAN = "none"


@dataclass(frozen=True)
class CorruptedSplit:
    """One corruption of the images of a split.

    Attributes:
        split: the split.
        corruption: a key of ``CORRUPTIONS``, or ``CLEAN``.
        severity: a key of ``SEVERITIES``; 0 for ``CLEAN``.
    """

    split: str
    corruption: str
    severity: int

    @property
    def key(self) -> str:
        """Key within the split: ``noise-3``."""
        return f"{self.corruption}-{self.severity}"

    @property
    def name(self) -> str:
        """Label in a list: ``Gaussian noise, strong (0.38)``."""
        corruption = CORRUPTIONS[self.corruption]
        return (
            f"{corruption.title}, {SEVERITIES[self.severity]} "
            f"({corruption.severities[self.severity - 1]:g})"
        )

    @property
    def described(self) -> str:
        """Description within a sentence."""
        return f"the runs' own {SPLIT_TITLES[self.split].lower()} images, made worse: {self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``corruption, severity``."""
        return {"corruption": self.corruption, "severity": self.severity}


def list_corruptions(split: str) -> list[CorruptedSplit]:
    """Return all corruptions of a split in order; the clean images come first."""
    corruptions = [
        CorruptedSplit(split, name, severity) for name in CORRUPTIONS for severity in SEVERITIES
    ]
    return [CorruptedSplit(split, CLEAN, 0), *corruptions]


def corrupt(squares: np.ndarray, which: CorruptedSplit, seed: int) -> np.ndarray:
    """Corrupt images. Equal seeds give equal results.

    Args:
        squares: uint8 ``[n, side, side, 3]``.
        which: the corruption.
        seed: seed of the random generator.

    Returns:
        Uint8 ``[n, side, side, 3]``.
    """
    if which.corruption == CLEAN:
        return squares
    corruption = CORRUPTIONS[which.corruption]
    random = np.random.default_rng([seed, which.severity])
    amount = corruption.severities[which.severity - 1]
    return np.stack(
        [
            np.asarray(corruption.apply(Image.fromarray(square), amount, random))
            for square in squares
        ]
    )
