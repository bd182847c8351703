"""Which images are copies of each other, or nearly: sets found from small colour thumbnails."""

from collections.abc import Generator

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

# Correlation of two 12 × 12 colour thumbnails. Saving again, scaling, light and contrast stay above the first; where that
# links too many images, the pictures of this data set simply look alike, and more is asked of those.
_LIKENESS = (0.985, 0.99, 0.995, 0.999)
_LARGEST_SET = 20
_LARGEST_SHARE = 0.01
_PLAIN = 2.0  # gray levels: of images with less contrast, the thumbnail tells nothing
MOST_COMPARED = 200_000  # all pairs of more would take hours
_ENTRIES = 20_000_000  # of the matrix of products that is held at a time
_MOST_PAIRS = 2_000_000  # that are held: of a fixed camera's images, all pairs are alike
_KEPT_DIRECTIONS = 31


def near_sets(thumbs: pd.Series, content: np.ndarray) -> Generator[tuple[int, int], None, np.ndarray]:
    """Sets of images with equal content, or nearly equal looks.

    Args:
        thumbs: ``[n]`` of bytes (``Look.thumb``).
        content: uint64 ``[n]``.

    Yields:
        (images compared, images in all).

    Returns:
        int64 ``[n]``: for each image the position of the first image of its set.
    """
    _, first, same = np.unique(content, return_index=True, return_inverse=True)
    if not 2 <= len(first) <= MOST_COMPARED:
        return _first_of_each(same)
    vectors, telling = _vectors(thumbs.iloc[first])
    pairs, likeness = yield from _alike(vectors, np.flatnonzero(telling))
    sets = _grown(pairs, likeness, len(first))
    return _first_of_each(sets[same])


def _vectors(thumbs: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors ``[n, d]``, each channel without its mean (light and tint do not count), and which of them tell something."""
    pixels = np.frombuffer(b"".join(thumbs), dtype=np.uint8).reshape(len(thumbs), -1, 3).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    flat = pixels.reshape(len(thumbs), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.maximum(length, 1e-6), length[:, 0] / np.sqrt(flat.shape[1]) >= _PLAIN


def _alike(vectors: np.ndarray, rows: np.ndarray) -> Generator[tuple[int, int], None, tuple[np.ndarray, np.ndarray]]:
    """All pairs ``[m, 2]`` of ``rows`` that are alike, and how much.

    Most pairs are ruled out in few dimensions: with p the part of a unit vector in the main directions and r the length of
    the rest, v·w ≤ p·q + r·s, which is itself a product of short vectors.
    """
    short = _shortened(vectors[rows])
    pairs, likeness = [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=np.float32)]
    block = max(16, _ENTRIES // max(1, len(rows)))
    for start in range(0, len(rows), block):
        likely = np.triu(short[start : start + block] @ short[start:].T >= _LIKENESS[0], 1)
        if np.count_nonzero(likely) > _MOST_PAIRS // 40:  # then all products at once are quicker, and need less memory
            products = vectors[rows[start : start + block]] @ vectors[rows[start:]].T
            left, right = np.nonzero(likely & (products >= _LIKENESS[0]))
            alike = products[left, right]
        else:
            left, right = np.nonzero(likely)
            alike = np.einsum("nd,nd->n", vectors[rows[left + start]], vectors[rows[right + start]])
            left, right, alike = (values[alike >= _LIKENESS[0]] for values in (left, right, alike))
        pairs.append(np.stack([rows[left + start], rows[right + start]], axis=1))
        likeness.append(alike)
        if sum(map(len, likeness)) > _MOST_PAIRS:
            pairs, likeness = _thinned(np.concatenate(pairs), np.concatenate(likeness), len(vectors))
        yield min(start + block, len(rows)), len(rows)
    return np.concatenate(pairs), np.concatenate(likeness)


def _thinned(pairs: np.ndarray, likeness: np.ndarray, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fewer than ``count`` of the pairs, which connect the same images at every likeness: the closest spanning tree."""
    distance = coo_array((2 - likeness, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    tree = minimum_spanning_tree(distance.tocsr()).tocoo()
    return [np.stack([tree.row, tree.col], axis=1).astype(np.int64)], [np.float32(2 - tree.data)]


def _shortened(vectors: np.ndarray) -> np.ndarray:
    """``[n, 32]``: each vector in the main directions, and the length of what is left."""
    some = vectors[:: max(1, len(vectors) // 5000)]
    directions = np.linalg.svd(some, full_matrices=False)[2][:_KEPT_DIRECTIONS]
    main = vectors @ directions.T
    rest = np.sqrt(np.maximum(0, 1 - np.square(main).sum(axis=1, keepdims=True)))
    return np.concatenate([main, rest], axis=1)


def _grown(pairs: np.ndarray, likeness: np.ndarray, count: int) -> np.ndarray:
    """Connected sets; those that are too large are linked again by closer likeness only."""
    largest = max(_LARGEST_SET, round(_LARGEST_SHARE * count))
    sets = np.arange(count)
    open_rows = np.ones(count, dtype=bool)
    for least in _LIKENESS:
        use = (likeness >= least) & open_rows[pairs].all(axis=1)
        grown = _connected(pairs[use], count)
        sets = np.where(open_rows, grown + count * (1 + _LIKENESS.index(least)), sets)
        sizes = np.bincount(grown[open_rows], minlength=count)
        open_rows &= sizes[grown] > largest
        if not open_rows.any():
            break
    return np.unique(sets, return_inverse=True)[1]


def _connected(pairs: np.ndarray, count: int) -> np.ndarray:
    links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def united(*columns: np.ndarray) -> np.ndarray:
    """Int ``[n]``: rows that share a value in any of the columns get the same number. A column's -1 links nothing."""
    links = [np.empty((0, 2), dtype=np.int64)]
    for column in columns:
        used = np.flatnonzero(column >= 0)
        links.append(np.stack([used, used[_first_of_each(column[used])]], axis=1))
    return _first_of_each(_connected(np.concatenate(links), len(columns[0])))


def _first_of_each(sets: np.ndarray) -> np.ndarray:
    """For each position the first position that holds the same value."""
    _, first, inverse = np.unique(sets, return_index=True, return_inverse=True)
    return first[inverse]
