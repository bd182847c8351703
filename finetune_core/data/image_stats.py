"""Statistics of one image file.

The bytes are read once, and all facts that an inspection needs come from them.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune_core.data.decode import read_with_header
from finetune_core.errors import ImageError
from finetune_core.files import NotRegularFileError, open_regular

THUMB_SIDE = 12
_SIDE = 96  # pixels: an image that is blurred at this size looks blurred to a network
_PLAIN = 1e-3  # gray levels


@dataclass(frozen=True, slots=True)
class ImageStats:
    """Statistics of one image file.

    Attributes:
        problem: empty, or a kind of finding: ``empty_file``, ``unreadable``, ``damaged`` or
            ``missing_file``.
        reason: the problem as text.
        content: uint64 hash of the file's bytes (BLAKE2b).
        width: pixels, as shown.
        height: pixels, as shown.
        mode: Pillow's name of the colour mode.
        format: Pillow's name of the file format.
        frames: more than 1 for an animation.
        brightness: mean gray level, 0…255.
        low: 5th percentile of the gray levels.
        high: 95th percentile of the gray levels.
        contrast: standard deviation of the gray levels.
        sharpness: variance of the Laplacian over the variance of the gray levels (Pech-Pacheco et
            al. 2000), at a common scale.
        thumb: RGB ``[12, 12, 3]`` as bytes, for near-duplicates.
    """

    problem: str = ""
    reason: str = ""
    content: int = 0
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    frames: int = 1
    brightness: float = 0.0
    low: float = 0.0
    high: float = 0.0
    contrast: float = 0.0
    sharpness: float = 0.0
    thumb: bytes = bytes(THUMB_SIDE * THUMB_SIDE * 3)


def measure_image(path: Path) -> ImageStats:
    """Read a file once and compute its statistics. No content of a file raises an error."""
    try:
        with open(open_regular(path, follow=True), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return ImageStats("missing_file", f"{path.name} is not there")
    except NotRegularFileError as error:
        return ImageStats("unreadable", f"{path.name} is {error.strerror}, not an image file")
    except OSError as error:
        return ImageStats("unreadable", f"{path.name} cannot be opened: {error.strerror}")
    if not content:
        return ImageStats("empty_file", f"{path.name} is empty (0 bytes)")
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    try:
        header, image = read_with_header(content, _SIDE)
    except ImageError as error:
        return ImageStats("unreadable", _insert_name(error, path), digest)
    if isinstance(image, ImageError):
        return ImageStats(
            "damaged",
            _insert_name(image, path),
            digest,
            header.width,
            header.height,
            header.mode,
            header.format,
        )
    # Bilinear: a box filter rounds its borders to whole pixels, which would shift a copy of another
    # size.
    thumb = image.resize(
        (THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0
    ).tobytes()
    return ImageStats(
        "",
        "",
        digest,
        header.width,
        header.height,
        header.mode,
        header.format,
        header.frames,
        *_measure_light_and_sharpness(image),
        thumb,
    )


def _measure_light_and_sharpness(image: Image.Image) -> tuple[float, float, float, float, float]:
    """Return mean, 5th and 95th percentile, standard deviation and sharpness of the gray levels."""
    gray = image.convert("L")
    gray.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(gray)
    levels, shares = np.arange(256), np.bincount(pixels.ravel(), minlength=256) / pixels.size
    low, high = np.searchsorted(np.cumsum(shares), (0.05, 0.95))
    mean = float(shares @ levels)
    spread = math.sqrt(max(0.0, float(shares @ levels**2) - mean**2))
    if min(gray.size) < 3 or spread < _PLAIN:
        return mean, float(low), float(high), spread, 0.0
    values = pixels.astype(np.int16)
    inner = values[1:-1, 1:-1]
    laplacian = (
        values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * inner
    )
    return mean, float(low), float(high), spread, float(laplacian.var(dtype=np.float32)) / spread**2


def _insert_name(error: ImageError, path: Path) -> str:
    """Return the error with the file's name, which the decoder of its bytes did not know."""
    return str(error).replace("The image", path.name, 1)
