"""Search for images that are copies of each other, or nearly.

Small colour thumbnails give candidates, which are then compared as larger gray squares.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from finetune_core.data.closeness import (
    DETAIL_SIDE,
    distance_from_correlation,
    fit_chance_pairs,
    is_same_image,
)
from finetune_core.data.threads import limit_blas_threads, map_in_threads
from finetune_core.work import Step, Work

# Correlation of two 12 × 12 colour thumbnails, and of two gray squares. Images that were saved
# again, scaled, or changed in light and contrast stay above.
_LIKENESS, _CLOSE = 0.985, 0.97
# More similar images than this are the nature of the set (one camera, one machine). Copies among
# them have to be closer than chance explains.
_LARGEST_SET, _LARGEST_SHARE = 20, 0.01
# In a small set, this number and share of similar images are its nature, too.
_SMALLEST_NATURE, _NATURE = (8, 0.25)
_SAME = 0.003  # distance of equal pixels after rounding
_PLAIN = 2.0  # gray levels: a thumbnail with less contrast is not informative
MOST_COMPARED = 2_000_000  # images: comparing all pairs of more would take an hour
_MOST_ALIKE = 200_000  # similar images that are compared as larger squares
_TILE = (256, 1024)  # of the matrix of products: fits a core's cache
_MOST_PAIRS = 2_000_000  # pairs in memory: all pairs of a fixed camera's images are similar
_NUM_DIRECTIONS = 31
# Up to so many images, finding the main directions takes longer than it saves.
_COMPARED_WHOLE = 2000
# Pixels of a gray square, and above how many images the smaller side is used.
_SIDE, _SMALL_SIDE, _MANY = (64, 32, 20_000)

_ROUNDING = 1e-3
_AT_ONCE = 10_000  # images whose vectors are in memory

Squares = Callable[[np.ndarray, int], Iterator[np.ndarray | None]]
Vectors = Callable[[np.ndarray], np.ndarray]  # positions -> unit vectors [n, d]
Found = tuple[np.ndarray, np.ndarray]  # pairs, and how alike each is


def find_near_duplicates(
    thumbs: pd.Series, content: np.ndarray, squares: Squares
) -> Work[tuple[np.ndarray, np.ndarray]]:
    """Group images with equal content, and images that are nearly the same.

    Nearly the same are images that were saved again, scaled, made lighter or darker, or taken a
    moment later.

    Args:
        thumbs: thumbnails as bytes (``ImageStats.thumb``), ``[n]``.
        content: hashes of the files, uint64 ``[n]``.
        squares: a function (positions, side) -> gray squares of those images
            (``load_gray_squares``). It is called for candidates only.

    Yields:
        Steps that count images compared.

    Returns:
        Two arrays. For each image, the position of the first image of its set, int64 ``[n]``. For
        each image, the correlation with the closest image of its set, float ``[n]``: 1 for equal
        content, 0 for an image alone.
    """
    _, first, same, copies = np.unique(
        content, return_index=True, return_inverse=True, return_counts=True
    )
    closest = np.where(copies > 1, 1.0, 0.0)
    sets = np.arange(len(first))
    if 2 <= len(first) <= MOST_COMPARED:
        pixels = _stack_thumbnails(thumbs, first)
        telling = np.concatenate(
            [_normalize(pixels[rows])[1] for rows in _split_rows(np.arange(len(first)))]
        )
        pairs, _ = yield from _find_similar_pairs(
            lambda rows: _normalize(pixels[rows])[0],
            np.flatnonzero(telling),
            _LIKENESS,
            partial(_ConnectingPairs, len(first)),
        )
        del pixels
        links, likeness = yield from _verify_candidates(
            _label_components(pairs, len(first)), first, squares
        )
        sets = _label_components(links, len(first))
        np.maximum.at(closest, links.ravel(), likeness.repeat(2))
    return _find_first_positions(sets[same]), closest[same]


def _stack_thumbnails(thumbs: pd.Series, positions: np.ndarray) -> np.ndarray:
    """Return the thumbnails at some positions, uint8 ``[n, d]``."""
    found = np.empty((len(positions), len(thumbs.iloc[0])), dtype=np.uint8)
    for at in _split_rows(np.arange(len(positions))):
        found[at] = np.frombuffer(b"".join(thumbs.iloc[positions[at]]), dtype=np.uint8).reshape(
            len(at), -1
        )
    return found


def _split_rows(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))


def _normalize(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of thumbnails, and which of the thumbnails are informative.

    The mean of each channel is removed, so light and tint do not count.

    Args:
        pixels: uint8 ``[n, d]``.
    """
    coloured = pixels.reshape(len(pixels), -1, 3).astype(np.float32)
    coloured -= coloured.mean(axis=1, keepdims=True)
    flat = coloured.reshape(len(pixels), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.maximum(length, 1e-6), length[:, 0] / np.sqrt(flat.shape[1]) >= _PLAIN


def _verify_candidates(
    candidates: np.ndarray, positions: np.ndarray, squares: Squares
) -> Work[Found]:
    """Compare the candidates as gray squares, and return the pairs of the same image.

    Args:
        candidates: int ``[n]``; images of the same number are candidates.
        positions: ``[n]``, the position that ``squares`` takes for each image.
        squares: as for ``find_near_duplicates``.

    Returns:
        Pairs ``[m, 2]``, and their correlation.
    """
    sizes = np.bincount(candidates)
    members = np.flatnonzero((sizes[candidates] > 1) & (sizes[candidates] <= _MOST_ALIKE))
    members = members[np.argsort(candidates[members], kind="stable")]
    side = _SIDE if len(members) <= _MANY else _SMALL_SIDE
    seen = np.zeros((len(members), side, side), dtype=np.uint8)
    for done, square in enumerate(squares(positions[members], side)):
        if square is not None:
            seen[done] = square
        yield Step(done + 1, len(members))
    largest = max(_LARGEST_SET, round(_LARGEST_SHARE * len(candidates)))
    largest = min(largest, max(_SMALLEST_NATURE - 1, round(_NATURE * len(candidates))))
    links, likeness = [np.empty((0, 2), dtype=np.int64)], [np.empty(0)]
    for rows in np.split(np.arange(len(members)), np.flatnonzero(np.diff(candidates[members])) + 1):
        if len(rows):
            pairs, close = yield from _find_close_pairs(seen[rows], outstanding=len(rows) > largest)
            kept = _select_same_images(pairs, positions[members[rows]], squares)
            links.append(members[rows][pairs[kept]])
            likeness.append(close[kept])
    return np.concatenate(links), np.concatenate(likeness)


def _find_close_pairs(squares: np.ndarray, *, outstanding: bool) -> Work[Found]:
    """Find the close pairs among squares ``[n, side, side]``, the closest first.

    Args:
        squares: the squares.
        outstanding: whether pairs have to be closer than different images of the set are by chance.

    Returns:
        Pairs ``[m, 2]``, and their correlation.
    """
    flat = squares.reshape(len(squares), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(length, 1e-6)
    rows = np.flatnonzero(length[:, 0] > 0)
    least, chance = _CLOSE, None
    if outstanding and len(rows) >= _SMALLEST_NATURE:
        chance = fit_chance_pairs(flat[rows])
        least = max(least, 1 - max(chance.max_copy_distance(), _SAME) ** 2 / 2)
    pairs, likeness = yield from _find_similar_pairs(flat.__getitem__, rows, least, _ClosestPairs)
    if chance:
        apart = distance_from_correlation(likeness)
        kept = chance.is_closer_than_chance(apart) | (apart <= _SAME)
        pairs, likeness = pairs[kept], likeness[kept]
    order = np.argsort(-likeness, kind="stable")
    return pairs[order], likeness[order]


def _select_same_images(pairs: np.ndarray, positions: np.ndarray, squares: Squares) -> np.ndarray:
    """Return which of the pairs, the closest first, are the same image in detail, boolean.

    Pairs whose images other pairs connect already are skipped.
    """
    rows, inverse = np.unique(pairs, return_inverse=True)
    details = dict(enumerate(squares(positions[rows], DETAIL_SIDE)))
    sets = np.arange(len(rows))
    kept = np.zeros(len(pairs), dtype=bool)
    for at, (left, right) in enumerate(inverse.reshape(-1, 2)):
        one, other = details[left], details[right]
        if sets[left] == sets[right] or one is None or other is None:
            continue
        kept[at] = is_same_image(one, other)
        if kept[at]:
            sets[sets == sets[right]] = sets[left]
    return kept


class _ConnectingPairs:
    """Collector that keeps fewer than ``count`` pairs, which connect the same images.

    Similarities are not kept. Pairs that are connected already need not be compared.
    """

    def __init__(self, count: int) -> None:
        self._sets = np.zeros(0, dtype=np.int64)
        self._count = count
        self._pairs = [np.empty((0, 2), dtype=np.int64)]
        self._new = 0

    def is_connected(self, left: np.ndarray, right: np.ndarray) -> bool:
        """Return whether all images of both sides are in one set already."""
        return len(self._sets) > 0 and bool(
            (self._sets[left] == self._sets[left[0]]).all()
            and (self._sets[right] == self._sets[left[0]]).all()
        )

    def add(self, pairs: np.ndarray, _: np.ndarray) -> None:
        """Add pairs, and drop those that connect nothing new once there are many."""
        if len(pairs) > sum(_TILE):
            images, pairs = np.unique(pairs, return_inverse=True)
            pairs = images[_reduce_pairs(pairs.reshape(-1, 2), len(images))]
        self._pairs.append(pairs)
        self._new += len(pairs)
        if self._new > min(_MOST_PAIRS, self._count):
            self._thin()

    def _thin(self) -> None:
        pairs = np.concatenate(self._pairs)
        self._sets = _label_components(pairs, self._count)
        self._pairs, self._new = [_reduce_pairs(pairs, self._count)], 0

    def collect(self) -> Found:
        """Return the pairs, with a similarity of 1 each."""
        pairs = np.concatenate(self._pairs)
        return pairs, np.ones(len(pairs), dtype=np.float32)


class _ClosestPairs:
    """Collector that keeps the most similar pairs."""

    def __init__(self) -> None:
        self._pairs = [np.empty((0, 2), dtype=np.int64)]
        self._likeness = [np.empty(0, dtype=np.float32)]
        self._count = 0

    def is_connected(self, left: np.ndarray, right: np.ndarray) -> bool:
        """Return False, because every pair counts."""
        return False

    def add(self, pairs: np.ndarray, likeness: np.ndarray) -> None:
        """Add pairs, and drop the less similar half once there are too many."""
        self._pairs.append(pairs)
        self._likeness.append(likeness)
        self._count += len(pairs)
        if self._count > _MOST_PAIRS:
            held, alike = self.collect()
            kept = np.argpartition(-alike, _MOST_PAIRS // 2)[: _MOST_PAIRS // 2]
            self._pairs, self._likeness, self._count = [held[kept]], [alike[kept]], len(kept)

    def collect(self) -> Found:
        """Return the pairs in order, and their similarities."""
        pairs, likeness = np.concatenate(self._pairs), np.concatenate(self._likeness)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        return pairs[order], likeness[order]


def _find_similar_pairs(
    vectors: Vectors,
    rows: np.ndarray,
    least: float,
    keep: Callable[[], _ConnectingPairs] | type[_ClosestPairs],
) -> Work[Found]:
    """Find all pairs ``[m, 2]`` of ``rows`` whose product is at least ``least``.

    Most pairs are ruled out in few dimensions. Let p be the part of the unit vector v in the main
    directions and r the length of the rest, q and s those of w. Then v·w ≤ p·q + r·s, which is
    itself a product of short vectors. The rows are sorted by the direction in which they differ
    most: the distance of a pair is at least its distance in that direction.

    Args:
        vectors: positions -> unit vectors.
        rows: the positions to compare.
        least: the smallest product of a pair.
        keep: makes the collector, which keeps some of the pairs if there are too many.

    Returns:
        The pairs and their products.
    """
    kept = keep()
    if not len(rows):
        return kept.collect()
    with limit_blas_threads():
        short = _project(vectors, rows) if len(rows) > _COMPARED_WHOLE else vectors(rows)
    spread = short[:, short.std(axis=0).argmax()]
    order = np.argsort(spread, kind="stable")
    short, spread, rows = short[order], spread[order], rows[order]
    reach = float(distance_from_correlation(np.array([least]))[0]) + _ROUNDING
    height, width = _TILE

    def compare_tile(start: int) -> Found:
        """Compare the rows of one tile with the rows behind them."""
        part = keep()
        head = slice(start, min(start + height, len(rows)))
        last = int(np.searchsorted(spread, spread[head.stop - 1] + reach, side="right"))
        for column in range(start, last, width):
            across = slice(column, min(column + width, last))
            if kept.is_connected(rows[head], rows[across]):
                continue
            likely = short[head] @ short[across].T >= least
            if column < head.stop:
                likely = np.triu(likely, start - column + 1)
            if likely.any():
                part.add(*_select_pairs(vectors, rows[head], rows[across], likely, least))
        return part.collect()

    with (
        limit_blas_threads(),
        closing(map_in_threads(compare_tile, range(0, len(rows), height))) as comparing,
    ):
        for start, found in comparing:
            kept.add(*found)
            yield Step(min(start + height, len(rows)), len(rows))
    return kept.collect()


def _select_pairs(
    vectors: Vectors, left: np.ndarray, right: np.ndarray, likely: np.ndarray, least: float
) -> Found:
    """Return the likely pairs whose product is at least ``least``, and their products.

    Args:
        vectors: positions -> unit vectors.
        left: positions of the rows of ``likely``.
        right: positions of the columns of ``likely``.
        likely: boolean ``[left, right]``.
        least: the smallest product of a pair.
    """
    first, second = np.nonzero(likely)
    if len(first) > len(left) + len(right):  # computing all products is quicker then
        products = (vectors(left) @ vectors(right).T)[first, second]
    else:
        products = np.einsum("nd,nd->n", vectors(left[first]), vectors(right[second]))
    alike = products >= least
    pairs = np.stack([left[first[alike]], right[second[alike]]], axis=1)
    return np.sort(pairs, axis=1), products[alike]


def _reduce_pairs(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return fewer than ``count`` pairs that connect the same images."""
    first = _find_first_positions(_label_components(pairs, count))
    others = np.flatnonzero(first != np.arange(count))
    return np.stack([first[others], others], axis=1)


def _project(vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    """Project the vectors onto the main directions of a sample, ``[n, 32]``.

    The last column is the length of the rest.
    """
    some = vectors(rows[:: -(-len(rows) // 1000)])
    main = np.linalg.qr(some.T @ np.linalg.eigh(some @ some.T)[1][:, -_NUM_DIRECTIONS:])[0]
    short = np.empty((len(rows), main.shape[1] + 1), dtype=np.float32)
    for at in _split_rows(np.arange(len(rows))):
        kept = vectors(rows[at]) @ main
        short[at, :-1], short[at, -1] = (
            kept,
            np.sqrt(np.maximum(0, 1 - np.square(kept).sum(axis=1))),
        )
    return short


def _label_components(pairs: np.ndarray, count: int) -> np.ndarray:
    links = coo_array(
        (np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count)
    )
    sets: np.ndarray = connected_components(links, directed=False)[1]
    return sets


def merge_groups(*columns: np.ndarray) -> np.ndarray:
    """Number the rows so that rows which share a value in any column get the same number.

    Args:
        columns: int ``[n]`` each; a value of -1 connects nothing.

    Returns:
        Int ``[n]``.
    """
    links = [np.empty((0, 2), dtype=np.int64)]
    for column in columns:
        used = np.flatnonzero(column >= 0)
        links.append(np.stack([used, used[_find_first_positions(column[used])]], axis=1))
    return _find_first_positions(_label_components(np.concatenate(links), len(columns[0])))


def _find_first_positions(sets: np.ndarray) -> np.ndarray:
    """Return for each position the first position that holds the same value."""
    _, first, inverse = np.unique(sets, return_index=True, return_inverse=True)
    return first[inverse]
