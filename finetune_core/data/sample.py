"""The bundled sample: scikit-learn's 1,797 real handwritten digits as an image folder."""

from pathlib import Path

import numpy as np
from PIL import Image

from finetune_core.errors import DataError
from finetune_core.files import publish_folder, staging_folder
from finetune_core.paths import data_dir

SAMPLE_NAME = "digits"
_SIDE = 64


def sample_folder() -> Path:
    """Return the folder of the sample. It may not exist yet."""
    return data_dir() / SAMPLE_NAME


def write_digits_folder() -> Path:
    """Return the sample's folder, and write it on first use, all of it or nothing.

    The files are ``data/digits/<0…9>/<number>.png``.

    Raises:
        DataError: if the folder cannot be written.

    Source: UCI ML hand-written digits test set (Alpaydin & Kaynak, 1998), as shipped in
    scikit-learn.
    """
    folder = sample_folder()
    if folder.is_dir():
        return folder
    try:
        with staging_folder(folder.parent, SAMPLE_NAME) as staging:
            _write_digits(staging)
            publish_folder(staging, folder)
    except OSError as error:
        raise DataError(
            f"The sample cannot be written to {folder}: {error}. "
            "Set THAW_HOME to a folder that can be."
        ) from None
    return folder


def _write_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits  # imported late: takes 0.3 s, and is needed once

    digits = load_digits()
    for label in np.unique(digits.target):
        (folder / str(label)).mkdir()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray(np.uint8(pixels * (255 / 16))).resize(
            (_SIDE, _SIDE), Image.Resampling.BICUBIC
        )
        image.save(folder / str(label) / f"{number:04d}.png")
