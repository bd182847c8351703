"""Tests whether images that look alike are the same image.

Images are compared as small gray squares, against how close different images of the same set are to
each other. Details are compared position by position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter

from finetune_core.data.decode import read_image
from finetune_core.data.threads import map_in_threads
from finetune_core.errors import ImageError

DETAIL_SIDE = 128  # pixels, of the squares that ``is_same_image`` compares
_NEIGHBOURS = 10
_FALSE_SHARE = 0.05  # share of the close pairs that may be close by chance
_NUM_SAMPLED = 1000  # images that distances between different images are estimated from
_BLACK, _WHITE = 4, 251  # gray levels beyond which values may have been clipped
# Sides in pixels: of the mean of differences, and of the neighbourhood whose edges excuse them.
_WINDOW, _AROUND = (4, 7)
# Scaling and compression change an edge by this share of its contrast.
_EXCUSED = 0.1
_PEAK = 9.0  # standard deviations of the averaged differences
_EDGE = 3  # pixels at the border that are not compared


def load_gray_squares(paths: Sequence[Path], side: int) -> Iterator[np.ndarray | None]:
    """Yield each image as uint8 gray levels ``[side, side]``, or None if it cannot be read.

    An image of any shape is resized to a square.
    """
    for _, square in map_in_threads(partial(_load_gray_square, side=side), paths):
        yield square


def _load_gray_square(path: Path, side: int) -> np.ndarray | None:
    try:
        image = read_image(path, 2 * side)
    except ImageError:
        return None
    # Bilinear: Pillow's box filter rounds its borders to whole pixels, which would shift a copy of
    # another size.
    return np.asarray(
        image.convert("L").resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    )


def distance_from_correlation(correlation: np.ndarray) -> np.ndarray:
    """Return the distance between unit vectors of a given correlation.

    The distance is 0 for images that are equal up to light and contrast, and √2 for unrelated ones.
    """
    return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * correlation.astype(np.float64)))


@dataclass(frozen=True)
class ChancePairs:
    """The expected number of pairs of *different* images that are closer than a distance.

    The number follows a power law, as in any set that varies in a few respects (Levina & Bickel
    2004). It is fitted at each image's 5th to 10th nearest neighbour, where a few copies do not
    count.

    Attributes:
        images: the number of images in the set.
        neighbours: the number of neighbours within ``radius`` of each sampled image.
        radius: ``[m]``, of the sampled images.
        dimension: the exponent.
    """

    images: int
    neighbours: int
    radius: np.ndarray
    dimension: float

    def expected_pairs(self, distances: np.ndarray) -> np.ndarray:
        """Return the expected number of pairs in the set that are closer than each distance."""
        scale = float(np.mean((self.radius / self.radius.mean()) ** -self.dimension))
        volumes: np.ndarray = (distances / self.radius.mean()) ** self.dimension
        return self.images / 2 * self.neighbours * scale * volumes

    def max_copy_distance(self) -> float:
        """Return the distance within which copies are found even if each image is one."""
        least = _FALSE_SHARE * self.images / self.expected_pairs(np.array([self.radius.mean()]))[0]
        return float(self.radius.mean() * min(1.0, least) ** (1 / self.dimension))

    def is_closer_than_chance(self, distances: np.ndarray) -> np.ndarray:
        """Return which pairs are closer than chance explains, boolean ``[n]``.

        Of the pairs that are as close, at most one in twenty is expected by chance (the
        Benjamini-Hochberg rule).
        """
        order = np.argsort(distances, kind="stable")
        enough = np.flatnonzero(
            self.expected_pairs(distances[order]) <= _FALSE_SHARE * np.arange(1, len(order) + 1)
        )
        chosen = np.zeros(len(distances), dtype=bool)
        chosen[order[: enough[-1] + 1 if len(enough) else 0]] = True
        return chosen


def fit_chance_pairs(vectors: np.ndarray) -> ChancePairs:
    """Fit the law to the unit vectors ``[n, d]`` of a set of at least five images."""
    count = len(vectors)
    last = min(_NEIGHBOURS, (count - 1) // 2)
    first = max(1, last // 2)
    near = []
    sampled = vectors[:: -(-count // _NUM_SAMPLED)]
    block = max(1, 20_000_000 // count)
    for start in range(0, len(sampled), block):
        correlation = sampled[start : start + block] @ vectors.T
        # One more: the image itself is its closest.
        closest = -np.partition(-correlation, last, axis=1)[:, : last + 1]
        near.append(np.sort(distance_from_correlation(closest), axis=1)[:, 1:])
    far = np.maximum(np.concatenate(near), 1e-6)
    inner = np.arange(first, last)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, last))])
    # The expected mean of log(radius / distance), times the dimension.
    usual = (harmonic[last - 1] - harmonic[inner - 1]).mean()
    spread = np.log(far[:, last - 1 :] / far[:, inner - 1]).mean()
    return ChancePairs(count, last, far[:, last - 1], usual / max(spread, 1e-6))


def is_same_image(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two aligned gray squares are equal in detail, up to light and contrast.

    Saving, scaling and noise leave differences all over the image, or at edges. A scratch, or a
    part that is missing or turned, is a peak where at least one of the images has no edge.
    """
    return _has_no_peak(one, other) or _has_no_peak(other, one)


def _has_no_peak(target: np.ndarray, source: np.ndarray) -> bool:
    target, source = target.astype(np.float32), source.astype(np.float32)
    adjusted = _match_light(source, target)
    averaged = uniform_filter(target - adjusted, _WINDOW)
    excuse = _EXCUSED * np.minimum(_local_contrast(target), _local_contrast(adjusted))
    inner = (slice(_EDGE, -_EDGE), slice(_EDGE, -_EDGE))
    peak = (np.abs(averaged) - excuse)[inner].max()
    return bool(peak <= _PEAK * averaged[inner].std())


def _match_light(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Match the source to the light and contrast of the target.

    The result is clipped at black and white, as the target is.
    """
    whole = (np.minimum(source, target) > _BLACK) & (np.maximum(source, target) < _WHITE)
    if np.count_nonzero(whole) < 0.01 * whole.size:
        whole[:] = True
    x, y = source[whole], target[whole]
    gain = float(np.mean((x - x.mean()) * (y - y.mean())) / max(float(x.var()), 1e-6))
    adjusted: np.ndarray = y.mean() + gain * (source - x.mean())
    return adjusted.clip(0, 255)


def _local_contrast(image: np.ndarray) -> np.ndarray:
    contrast: np.ndarray = maximum_filter(image, _AROUND) - minimum_filter(image, _AROUND)
    return contrast
