"""Effective sample size for images that are not independent: near-duplicates, and groups.

Such images form clusters, and the sample consists of clusters. A share of images is then as precise
as that of fewer independent ones, the effective sample size (Korn & Graubard 1998, Confidence
intervals for proportions with small expected number of positive counts estimated from survey data).
"""

import numpy as np


def cluster_sums(values: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Sum ``values`` within each cluster.

    Args:
        values: ``[candidates, n]``.
        sets: int ``[n]``, equal for images of one cluster.

    Returns:
        ``[candidates, clusters]``.
    """
    order = np.argsort(sets, kind="stable")
    starts = np.flatnonzero(np.diff(sets[order], prepend=sets[order[0]] - 1))
    sums: np.ndarray = np.add.reduceat(values[:, order], starts, axis=1)
    return sums


def cluster_residuals(right: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Return the surplus of correct images in each cluster over the number expected for its size.

    Args:
        right: bool ``[candidates, n]``.
        sets: as for ``cluster_sums``.

    Returns:
        Float ``[candidates, clusters]``. Their sum, divided by n, is the linearised share
            of a candidate.
    """
    return cluster_sums(right - right.mean(axis=1, keepdims=True), sets)


def effective_images(right: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Return how many independent images would give shares of the same standard error.

    Args:
        right: bool ``[candidates, n]``, the images that each candidate classifies correctly.
        sets: as for ``cluster_sums``.

    Returns:
        float ``[candidates]``, n where each cluster is one image, and never more than n.
    """
    images, sizes = right.shape[1], np.unique(sets, return_counts=True)[1]
    if len(sizes) == images:
        return np.full(len(right), float(images))
    share = right.mean(axis=1)
    alone = images * share * (1 - share) * images / (images - 1)
    clustered = (cluster_residuals(right, sets) ** 2).sum(axis=1)
    clustered *= len(sizes) / max(1, len(sizes) - 1)
    # If all images or none are correct, the similarity within clusters cannot be estimated. Count
    # the images of a cluster as equal (Kish 1965, Survey Sampling).
    equal = float((sizes**2).sum()) / images
    effect = np.divide(clustered, alone, out=np.full(len(right), equal), where=alone > 0)
    effective: np.ndarray = images / np.maximum(effect, 1.0)
    return effective
