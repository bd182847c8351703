"""Other data sets for runs: degraded images of a data set, in folders of their own."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def darken_images(
    samples, root: Path, folder: Path, names: Mapping[str, str] | None = None, noise: float = 60
) -> Path:
    """Copy images (ids below ``root``), half as bright and noisy. ``names`` renames classes."""
    random = np.random.default_rng(0)
    for sample in samples:
        pixels = np.asarray(Image.open(root / sample).convert("RGB"), dtype=float)
        pixels = (pixels / 2 + random.normal(0, noise, pixels.shape)).clip(0, 255)
        target = _target(sample, folder, names)
        Image.fromarray(np.uint8(pixels)).save(target)
    return folder


def copy_images(samples, root: Path, folder: Path, names: Mapping[str, str] | None = None) -> Path:
    """Copy images (ids below ``root``) exactly to ``folder``."""
    for sample in samples:
        shutil.copyfile(root / sample, _target(sample, folder, names))
    return folder


def _target(sample: str, folder: Path, names: Mapping[str, str] | None) -> Path:
    of_class, _, file = sample.partition("/")
    target = folder / (names or {}).get(of_class, of_class) / file
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
