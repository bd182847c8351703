"""Simultaneous confidence intervals of all candidates, valid for the best one, too.

Separate 95 % intervals for each of eight stages would miss the true accuracy of the stage that
looks best far more often than in 5 % of data sets. Simultaneous intervals use the 95 % quantile of
the largest deviation among all candidates. The correlation of the candidates is estimated, because
they classify the same images (Hothorn, Bretz & Westfall 2008, Simultaneous inference in general
parametric models). Near-duplicates and groups count as clusters. With few clusters the deviations
follow Student's t.
"""

import numpy as np
from scipy.stats import norm, t

from finetune_core.evaluation.intervals import wilson
from finetune_core.inspection.clusters import cluster_residuals, effective_images

_LEVEL = 0.95
_DRAWS = 10_000


def simultaneous_intervals(right: np.ndarray, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 95 % intervals (Wilson 1927) of all candidates' accuracies.

    Args:
        right: bool ``[candidates, n]``, the images that each candidate classifies correctly.
        sets: int ``[n]``, equal for near-duplicates and images of one group.

    Returns:
        The lower and the upper ends, each ``[candidates]``.
    """
    effective = effective_images(right, sets)
    return wilson(right.mean(axis=1) * effective, effective, _quantile(right, sets))


def _quantile(right: np.ndarray, sets: np.ndarray) -> float:
    """Return the 95 % quantile of the largest absolute deviation, in standard errors."""
    residuals = cluster_residuals(right, sets)
    clusters = residuals.shape[1]
    # The variance of a share of independent images follows from the share: nothing is estimated.
    freedom = np.inf if clusters == right.shape[1] else max(1, clusters - 1)
    if len(right) == 1:
        tail = (1 + _LEVEL) / 2
        return float(norm.ppf(tail) if np.isinf(freedom) else t.ppf(tail, freedom))
    length = np.linalg.norm(residuals, axis=1, keepdims=True)
    # A candidate that is right on all images or on none has no correlation with others.
    unit = np.divide(residuals, length, out=np.zeros_like(residuals), where=length > 0)
    correlation = unit @ unit.T
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    random = np.random.default_rng(0)
    normal = random.standard_normal((_DRAWS, len(right))) * np.sqrt(values.clip(min=0))
    largest = np.abs(normal @ vectors.T).max(axis=1)
    if not np.isinf(freedom):
        largest /= np.sqrt(random.chisquare(freedom, _DRAWS) / freedom)
    return float(np.quantile(largest, _LEVEL))
