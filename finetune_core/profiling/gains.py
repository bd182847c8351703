"""Gains over the linear probe, with simultaneous intervals of all arms.

The gain of an arm is the difference of two mean accuracies, as in
``evaluation/comparison/strategies.py``: other images and other seeds would both change it.

- Images: the covariance of the arms' gains, which are measured on the same images. Near-duplicates
  and groups count as clusters (``inspection/clusters.py``).
- Seeds: what a seed adds beyond chance, pooled over all arms, with its degrees of freedom. The
  probe is fitted and has no such part.

A 95 % interval for each of eight arms would miss the best one's true gain far more often than in 5
% of profiles. So all intervals have the level at which the largest deviation among them stays
inside in 95 % of profiles (max-t, Hothorn, Bretz & Westfall 2008). It is found by drawing from
their joint normal distribution; each interval then takes Student's t with its own degrees of
freedom.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from finetune_core.evaluation.comparison.paired import LEVEL, ArmPredictions
from finetune_core.evaluation.comparison.pairs import pool_seed_variances
from finetune_core.evaluation.comparison.strategies import (
    Interval,
    SeedVariance,
    t_quantile,
    total_variance,
)
from finetune_core.inspection.clusters import cluster_residuals

_DRAWS = 20_000


def simultaneous_gains(
    arms: Sequence[ArmPredictions], pairs: Sequence[tuple[int, int]], fitted: int, sets: np.ndarray
) -> list[Interval]:
    """Return the differences of arms' accuracies, with simultaneous 95 % intervals.

    Args:
        arms: the arms.
        pairs: indices of two arms each: the difference is the first minus the second.
        fitted: index of the arm whose head is fitted.
        sets: int ``[images]``, equal for near-duplicates and images of one group.
    """
    variances = pool_seed_variances(arms, [place != fitted for place in range(len(arms))])
    several = [variance for variance in variances if variance]
    # If no arm is pooled, the largest variance is the conservative choice.
    pooled = max(several, key=lambda variance: (variance.pooled, variance.value), default=None)
    seeds = [
        None if place == fitted and own is None else own or pooled
        for place, own in enumerate(variances)
    ]
    gained = np.stack([arms[a].by_image - arms[b].by_image for a, b in pairs])
    covariance = _image_covariance(gained, sets)
    clusters = len(np.unique(sets))
    errors, freedoms = [], []
    for (a, b), of_images in zip(pairs, np.diag(covariance), strict=True):
        sides = [
            (seed_variance, arms[index].seeds)
            for index in (a, b)
            if (seed_variance := seeds[index])
        ]
        variance, freedom = total_variance(float(of_images), clusters, sides)
        errors.append(variance**0.5)
        freedoms.append(freedom)
    covariance += _seed_covariance(arms, pairs, seeds)
    tail = _tail_level(covariance)
    reach = [
        t_quantile(1 - tail, freedom) * error
        for error, freedom in zip(errors, freedoms, strict=True)
    ]
    means = gained.mean(axis=1)
    return [
        Interval(
            float(mean), max(-1.0, float(mean - half_width)), min(1.0, float(mean + half_width))
        )
        for mean, half_width in zip(means, reach, strict=True)
    ]


def _image_covariance(gained: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Return the covariance ``[pairs, pairs]`` of mean gains due to sampling clusters of images."""
    residuals = cluster_residuals(gained, sets)
    clusters = residuals.shape[1]
    spread: np.ndarray = residuals @ residuals.T / gained.shape[1] ** 2
    spread *= clusters / max(1, clusters - 1)
    return spread


def _seed_covariance(
    arms: Sequence[ArmPredictions],
    pairs: Sequence[tuple[int, int]],
    seeds: Sequence[SeedVariance | None],
) -> np.ndarray:
    """Return the covariance ``[pairs, pairs]`` of mean gains due to the seeds."""
    signs = np.zeros((len(pairs), len(arms)))
    for row, (a, b) in enumerate(pairs):
        signs[row, [a, b]] = 1, -1
    own = [
        variance.value / arm.seeds if variance else 0.0
        for variance, arm in zip(seeds, arms, strict=True)
    ]
    covariance: np.ndarray = signs * own @ signs.T
    return covariance


def _tail_level(covariance: np.ndarray) -> float:
    """Return the tail of one normal deviate that makes the intervals simultaneous.

    The largest of all deviates exceeds it in 2.5 % of cases on each side.
    """
    deviation = np.sqrt(np.diag(covariance))
    scale = np.where(deviation > 0, deviation, 1.0)
    correlation = covariance / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    random = np.random.default_rng(0)
    normal = random.standard_normal((_DRAWS, len(values))) * np.sqrt(values.clip(min=0))
    largest = np.abs(normal @ vectors.T).max(axis=1)
    return float(norm.sf(np.quantile(largest, 1 - LEVEL)))
